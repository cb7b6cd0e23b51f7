"""The fingerprint of compiled kernels covers every source that they are made of."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ggpy
from ggpy.codegen import native, sources
from ggpy.cuda import compile as cuda_compile

HOST_ONLY = {"ggpy.cpu.executor", "ggpy.cpu.threads", "ggpy.cpu.needed", "ggpy.cuda.driver", "ggpy.cuda.executor"}


def modules() -> dict[str, Path]:
    """Every file of the package by its module's name."""
    found = {}
    for root in map(Path, ggpy.__path__):
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] not in ("ggpy", "tests", "benchmarks", "build") and not parts[0].startswith(
                "."
            ):  # which stand beside it in a checkout
                found[".".join(("ggpy", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def closure(roots: list[str]) -> set[str]:
    """`sources.sources` with Python's own parser."""
    known, found = modules(), set[str]()
    while roots:
        name = roots.pop()
        if name not in known or name in found or name == "ggpy":
            continue
        found.add(name)
        roots.append(name.rpartition(".")[0])
        tree = ast.parse(known[name].read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                node.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                roots += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                roots += [alias.name for alias in node.names]
    return found


ROOTS = {"cpu": list(native.COMPILED), "cuda": cuda_compile.compiled_modules()}


@pytest.mark.parametrize("device", ROOTS)
def test_imports_are_followed(device: str) -> None:
    found = set(sources.sources(ROOTS[device]))
    assert found == closure(list(ROOTS[device]))
    assert not found & HOST_ONLY


@pytest.mark.parametrize("device", ROOTS)
def test_every_source_counts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = native.fingerprint if device == "cpu" else cuda_compile.fingerprint.__wrapped__
    plain, changed, read = compute(), "", sources._read
    monkeypatch.setattr(sources, "_read", lambda path: read(path) + b" " * (path == changed))
    assert compute() == plain
    for name in sources.sources(ROOTS[device]):
        changed = str(sources._file(name))
        assert compute() != plain, name


def test_ways_to_import() -> None:
    text = b"""import ggpy.cpu.ops.read
from ggpy.quant import FORMATS, packed
if TYPE_CHECKING:
    from ggpy.llm import LLM

    import ggpy.engine.engine

def f():
    from ggpy.cpu import (
        threads,  # one
        run_program as w,
    )
"""
    for source in (text, text.replace(b"\n", b"\r\n")):
        names = {name for name in sources._imports(source) if sources._file(name)}
        assert names - {"ggpy.llm", "ggpy.engine.engine"} == {
            "ggpy.cpu.ops.read", "ggpy.quant", "ggpy.quant.packed", "ggpy.cpu", "ggpy.cpu.threads",
            "ggpy.cpu.run_program",
        }  # fmt: skip
        assert b"\r" in source or not names & {"ggpy.llm", "ggpy.engine.engine"}


# Compile kernels in a fresh process.
CPU = """
from numba.core import event
from ggpy.cpu.builds import build

class Files(event.Listener):
    def on_start(self, event):
        files.add(event.data["dispatcher"].py_func.__code__.co_filename)
    on_end = on_start

event.register("numba:compile", Files())
for name, prototype in (("embed.IQ2_XXS", "v:uuii"), ("elementwise.add", "v:uuii"), ("submit_step", "i:uiuuiu")):
    build(name, "plain", prototype)
import numpy
from ggpy.quant import FORMATS
FORMATS["Q4_0"].quantize(numpy.zeros((1, 32), numpy.float32))
"""
CUDA = """
from ggpy.cuda.compile import to_ptx
for name in ("pack.IQ2_XXS", "embed.Q4_K", "rope_store.q8_0"):
    to_ptx(name, (8, 0))
"""
# Which modules of ours were imported for that, and on the CPU the files of the functions that numba compiled.
START = """
import json, sys
files = set()
"""
PRINT = """
modules = {n: m.__file__ for n, m in sys.modules.items() if n.startswith("ggpy.") and getattr(m, "__file__", None)}
print(json.dumps([modules, sorted(f for f in files if "site-packages" not in f)]))
"""


@pytest.mark.parametrize("device", ROOTS)
def test_what_is_compiled_lies_in_the_sources(device: str) -> None:
    if device == "cuda":
        pytest.importorskip("numba_cuda")
        pytest.importorskip("cuda.bindings")
    script = START + (CPU if device == "cpu" else CUDA) + PRINT
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, files = json.loads(result.stdout)
    covered = sources.sources(ROOTS[device])
    assert set(modules) <= set(covered)
    assert files or device == "cuda"
    assert set(files) <= {modules[name] for name in covered if name in modules}


def test_every_module_of_kernels_is_covered() -> None:
    """Whatever imports numba or writes LLVM's language ends in machine code."""
    covered = set().union(*(sources.sources(roots) for roots in ROOTS.values()))
    for name, path in modules().items():
        text = path.read_text()
        if re.search(r"^(from|import) (numba|llvmlite import ir)", text, re.M):
            assert name in covered
