"""Everything that the README and docs/ name exists: commands, options, files, variables."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import ggpy.llm
from ggpy.cli.main import COMMANDS, main
from ggpy.convert.pipeline import convert
from ggpy.gguf.shards import shard_names
from tests.support.tiny import tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "docs/architecture.md",
    "docs/cpu.md",
    "docs/gpu.md",
    "docs/text.md",
    "docs/adding.md",
    "docs/batch.md",
    "docs/serving.md",
    "docs/sampling.md",
    "docs/speculation.md",
    "benchmarks/README.md",
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def ggpy_commands() -> list[list[str]]:
    """The arguments of every `ggpy …` in the README's shell blocks."""
    found = []
    for block in blocks(README, "sh"):
        for line in block.splitlines():
            for part in re.split(r" && | \| ", line):
                words = shlex.split(part, comments=True)
                if words and words[0] == "ggpy":
                    found.append(words[1:])
    return found


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = README.splitlines()
    assert 'pip install . && ggpy run -p "What is the capital of France?"' in lines
    assert "pip install -e '.[test]' && pytest -n auto" in lines


@pytest.mark.parametrize("words", ggpy_commands(), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    command = main.get_command(context, words[0])
    assert command is not None
    command.make_parser(click.Context(command)).parse_args(words[1:])  # raises on an option it does not know


def test_every_command_is_shown() -> None:
    assert {words[0] for words in ggpy_commands()} >= set(COMMANDS)


def test_options_in_tables_exist() -> None:
    table = README.split("## Chat")[0]
    command = main.get_command(click.Context(main), "run")  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    named = {
        option for cell in re.findall(r"^\| (`-.*?) \|", table, re.MULTILINE) for option in re.findall(r"-[-\w]+", cell)
    }
    assert len(named) > 15
    assert named <= known


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The examples as they stand, with a tiny model of random weights."""
    convert(tiny_checkpoint(tmp_path, "qwen2"), "q8_0", tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    *said, shape = capsys.readouterr().out.splitlines()
    assert [line.split(" → ")[0] for line in said if " → " in line] == ["The capital of France is", "1, 2, 3,"]
    assert shape == f"({len(names['ids'])}, {names['llm'].n_vocab})"
    example = (ggpy.llm.__doc__ or "").split("\n\n", 1)[1]
    exec(compile(example, "ggpy/llm.py", "exec"), names)
    names["llm"].close()
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert all(((ROOT / page).parent / link).exists() for link in links)
    files = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    homes = [ROOT, ROOT / "ggpy", ROOT / "benchmarks"]
    assert not [file for file in files if not any((home / file).exists() for home in homes)]


def test_names_of_shards_are_as_described() -> None:
    named = re.findall(r"`(\S+-of-\S+)`", README)
    assert len(named) == 2  # in English and in Chinese
    assert all(shard_names(name)[0] == name and len(shard_names(name)) == 3 for name in named)


def test_environment_variables_are_read_somewhere() -> None:
    code = "".join(path.read_text(encoding="utf-8") for room in ("ggpy", "cli") for path in (ROOT / room).rglob("*.py"))
    named = set(re.findall(r"GGPY_[A-Z]+", README))
    assert named == set(re.findall(r"GGPY_[A-Z]+", code))


def test_python_started_in_the_checkout_finds_the_rooms() -> None:
    # Without site-packages, as a newcomer's `pip install .` leaves the checkout's folders to be found first.
    code = "import ggpy.quant.formats as f, ggpy.cli; print(f.__file__)"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == ROOT / "quant" / "formats.py"


def test_docstrings_stand_alone() -> None:
    """Noun phrases or imperatives: a reader who sees nothing else knows what is meant."""
    for folder in ("ggpy", "cli", "convert", "quant", "models", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    first = (ast.get_docstring(node) or "").split(" ")[0]
                    assert first not in ("Of", "What", "Whether"), (
                        f"{path.relative_to(ROOT)}: {ast.get_docstring(node)}"
                    )
