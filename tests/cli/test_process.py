"""Commands as processes: their streams and locale, interrupts, and what start-up must not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggpy import __version__


def python(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The source of each import goes to stderr with -X importtime, which shows what a command really loads.
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        check=False,
    )


LIGHT = [["--help"], ["--version"], [], ["run", "--help"], ["pull"], ["chat", "-h"], ["serve", "-h"]]


@pytest.mark.parametrize("args", LIGHT)
def test_light_commands_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    result = python("-X", "importtime", "-m", "ggpy", *args, GGPY_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "click" in imported
    assert not imported & {"numba", "llvmlite", "numpy", "jinja2", "rich", "prompt_toolkit", "gguf"}
    assert not imported & {"starlette", "uvicorn", "pydantic"}


def test_doctor_goes_on_past_what_is_wrong() -> None:
    result = python("-m", "ggpy", "doctor", GGPY_ISA="i386")
    assert (result.returncode, result.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert rows["ggpy"].strip().startswith(__version__)
    assert rows["CPU"].strip().startswith("GGPY_ISA='i386' is no instruction-set tier; choose one of")
    assert {"memory", "cache", "numba", "numpy"} <= set(rows)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    code = (
        "from ggpy.cli.main import main; import click;"
        "main.callback = lambda: [click.echo('x' * 1000) for _ in range(1000)] and None; main([])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "GGPY_DEBUG": ""},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_output_is_utf8_whatever_the_locale(locale: dict[str, str]) -> None:
    code = r"from ggpy.cli.main import main; import click; main.callback = lambda: click.echo('\u4f60\u597d'); main([])"
    assert python("-c", code, **locale).stdout == "你好\n"


def test_control_characters_do_not_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from ggpy.cli.terminal import show

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        show("a\x1b[31m\tb\n\x9bc\r", stream)
    assert terminal.getvalue() == "a[31m\tb\nc"
    assert pipe.getvalue() == "a\x1b[31m\tb\n\x9bc\r"


UNWRITABLE = "error: Standard output cannot be written: "


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("streams", "status", "words"),
    [
        (">&-", 1, UNWRITABLE + "Bad file descriptor.\n"),
        (">/dev/full", 1, UNWRITABLE + "No space left on device.\n"),
        (">&- 2>&-", 1, ""),
        (">/dev/full 2>/dev/full", 1, ""),
        ("2>&-", 0, ""),  # what is said on the side may be lost
        ("2>/dev/full", 0, ""),
        ("| head -c 0", 0, ""),  # head's own status; nothing is complained about
    ],
)
@pytest.mark.parametrize("command", ["--version", "doctor"])
def test_output_that_goes_nowhere_is_no_success(command: str, streams: str, status: int, words: str) -> None:
    if "/dev/full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("no such device")
    line = f'"{sys.executable}" -m ggpy {command} {streams}'
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (status, words)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
@pytest.mark.parametrize(("descriptor", "status"), [(1, 1), (2, 0)])
def test_an_answer_that_cannot_be_written(descriptor: int, status: int) -> None:
    code = (
        "import ggpy.llm; from ggpy.cli.main import main; from ggpy.runtime.load import Model\n"
        "from tests.support.doubles import *\n"
        "def load(path, notify, **placing):\n"
        "    notify('a note')\n"
        "    return Model(FakeFile(), ByteTokenizer(), FakeTemplate(), FakeRuntime(script=saying('Hi')))\n"
        "ggpy.llm.load_model = load\n"
        "main(['run', '-m', 'pyproject.toml', '-p', 'x'])\n"
    )
    full = f"{descriptor}>/dev/full"
    line = ["sh", "-c", f'"{sys.executable}" -c "$CODE" {full}']
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(line, capture_output=True, text=True, cwd=root, env={**os.environ, "CODE": code})
    assert result.returncode == status, result.stderr
    if descriptor == 1:
        assert result.stderr.endswith(UNWRITABLE + "No space left on device.\n")
    else:
        assert (result.stdout, result.stderr) == ("Hi\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are UTF-16 there")
def test_arguments_are_utf8_whatever_the_locale() -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = python("-m", "ggpy", "inspect", "/你好", **locale)
    assert (result.returncode, result.stderr) == (1, "error: /你好 does not exist; check the path to the GGUF file.\n")
    result = python("-m", "ggpy", "inspect", "/\udcff", **locale)
    assert (result.returncode, result.stderr) == (1, "error: Argument 2 (/?) is not valid UTF-8.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(("closed", "words"), [(">&-", ""), ("2>&-", ""), ("<&-", "error: The prompt is empty")])
def test_streams_that_are_closed(closed: str, words: str) -> None:
    command = f'"{sys.executable}" -m ggpy run -f - {closed}'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, input="")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert words in result.stderr


INTERRUPTING_IMPORT = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), signal.SIGINT)

from ggpy.cli.entry import main
sys.meta_path.insert(0, Interrupter())
sys.argv = ["ggpy", "inspect", "/nonexistent"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("module", ["click", "ggpy.cli.main", "ggpy.cli.inspect"])
def test_ctrl_c_in_the_middle_of_an_import(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTING_IMPORT]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "AT": module})
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
