"""The house's plan, drawn from the sources: no module imports itself by a detour, and no room reaches up.

Imports inside functions count, as they are only later; those for type checkers alone do not, as nothing runs through
them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The rooms from the ground up: each may import those before it, and itself.
ROOMS = (
    "ggpy",
    "ggpy.errors", "ggpy.notes", "ggpy.progress", "ggpy.units", "ggpy.paths", "ggpy.arguments", "ggpy.files",
    "ggpy.host",
    "ggpy.codegen",
    "ggpy.quant",
    "ggpy.gguf",
    "ggpy.text",
    "ggpy.sampling",
    "ggpy.protocol",
    "ggpy.graph",
    "ggpy.models",
    "ggpy.cpu",
    "ggpy.cuda",
    "ggpy.runtime",
    "ggpy.engine",
    "ggpy.convert",
    "ggpy.hub",
    "ggpy.prompts", "ggpy.llm_options",
    "ggpy.outputs",
    "ggpy.embeddings", "ggpy.ranking",
    "ggpy.answers", "ggpy.choose",
    "ggpy.llm",
    "ggpy.async_llm",
    "ggpy.conversation",
    "ggpy.prepare",
    "ggpy.batch",
    "ggpy.server",
    "ggpy.cluster",
    "ggpy.eval",
    "ggpy.cli",
    "ggpy.__main__",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    found = {}
    for room in ("ggpy", "convert", "quant", "cli", "models"):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "ggpy" else ("ggpy", *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(path: Path, names: set[str]) -> Iterator[str]:
    """The modules of the product that a file imports, now or later."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names if alias.name in names)
            elif isinstance(child, ast.ImportFrom) and child.module in names:
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    yield inner if inner in names else child.module
            else:
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: set(imports(path, set(found))) - {name} for name, path in found.items()}


def room_of(module: str) -> int:
    """The storey of a module's room."""
    return max(
        (i for i, room in enumerate(ROOMS) if module == room or module.startswith(f"{room}.")),
        key=lambda i: len(ROOMS[i]),
    )


def test_no_module_imports_itself_by_a_detour() -> None:
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_no_room_reaches_up() -> None:
    up = [f"{name} imports {other}" for name, others in graph().items() for other in others
          if room_of(other) > room_of(name)]  # fmt: skip
    assert not up, "\n".join(sorted(up))


def test_tests_have_names_of_their_own() -> None:
    """Folders of tests are no packages: of two files of one name pytest would import one."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
