"""Every option of every command with values that nobody means: an answer or one sentence, never a page or a hang."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

import ggpy.llm
from ggpy.cli.main import COMMANDS, main
from ggpy.errors import GGPYError
from ggpy.runtime.load import Model
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, saying
from tests.support.tiny import tiny_checkpoint
from tests.support.vocabularies import bpe_metadata, write_gguf

NUMBERS = [
    "-1", "-2", "0", "00", "1", "1.5", "-0.5", "1e3", "1e999", "-1e999", "nan", "-nan", "inf", "-inf", "Infinity",
    "9223372036854775808", "-9223372036854775809", "9" * 30, "-" + "9" * 30, "9" * 5000, "0x10", "1_000", "٣", "½",
    "1,2", "1,,2", ",", "1,x", "1 2", " 1", "1;2", "--1", "+1", "1e", "None", "null", "True", "1" + "0" * 400,
]  # fmt: skip
TEXTS = [
    "", " ", "\n", "\0", "a\0b", "\udcff", "a\udcffb", "\ud800", "\x1b[2J", "\x9b2J", "💥", "你好", "e\u0301", "\ufeff",
    "x" * 300, "x" * 70_000, "-", "--", "-x", "..", ".", "/", "//", "~", "~nobody/x", "/dev/null", "/dev/full",
    "/dev/stdin/x", "%s%n%99999d", "{0.__class__}", "$HOME", "`id`", "a/b/c", "a\\b", "con", "hf:", "hf:..",
    "hf:a/../b", "cuda:", "cuda:,", "cuda:-1", "cuda:" + "9" * 5000, "auto,", "q4_0,", ",,", "q9_9",
]  # fmt: skip
VALUES = NUMBERS + TEXTS

# What makes each command go as far as it can; the odd option comes last and so counts.
BASES = {
    "run": ["-m", "fake.gguf", "-p", "x", "-n", "2"],
    "chat": ["-m", "fake.gguf", "-n", "2"],
    "bench": ["-m", "fake.gguf", "-p", "4", "-n", "2", "-r", "1"],
    "convert": ["-i", "tiny-llama", "-t", "q8_0", "-o", "out.gguf"],
    "inspect": [],
    "fit": ["-m", "tiny-llama"],
    "tokenize": ["-m", "vocabulary.gguf"],
    "warmup": [],
    "doctor": [],
    "pull": [],
    "batch": ["-m", "fake.gguf", "requests.jsonl"],
    "embed": ["-m", "fake.gguf", "text"],
    "rank": ["-m", "fake.gguf", "-q", "text", "text"],
    "serve": ["-m", "fake.gguf", "--port", "0"],
}
# A number of samples is nobody's business but the user's, who may want to wait.
WAITS = {("bench", "repeats")}


def options(name: str) -> list[click.Parameter]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return [p for p in command.params if not (isinstance(p, click.Option) and p.is_flag)]


# What chat and bench share with run is tried there.
SHARED = {option.name for option in options("run")}
CASES = [
    (name, option.name)
    for name in COMMANDS
    for option in options(name)
    if name == "run" or option.name == "threads" or option.name not in SHARED
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load(path: Path, n_ctx: int | None, *args: Any, n_slots: int = 1, **placing: Any) -> Model:
        if (n_ctx or 0) * n_slots > 1 << 12:
            raise GGPYError("Not that much memory is free.")
        fake = FakeRuntime(n_ctx=n_ctx or 256, n_slots=n_slots, script=saying("Hi"))
        return Model(FakeFile(), ByteTokenizer(), FakeTemplate(), fake)  # type: ignore[arg-type]

    monkeypatch.setattr(ggpy.llm, "load_model", load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "ggpy.hub.default_model.fetch", lambda *args: pytest.fail("nothing is fetched for an odd value")
    )
    monkeypatch.setattr("ggpy.cpu.needed.compile_missing", lambda names, notify: [])
    monkeypatch.setattr("ggpy.eval.bench.Memory", lambda *args: SimpleNamespace(bandwidth=lambda *args: 1e9))
    monkeypatch.setattr("ggpy.eval.bench.bytes_read", lambda *args: lambda case: 1e6)
    numeric, find = socket.AI_NUMERICHOST, socket.getaddrinfo  # no name is looked for anywhere
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **how: find(*args, **how, flags=numeric))
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: [one.close() for one in sockets or ()])
    Path("fake.gguf").touch()
    Path("requests.jsonl").write_text(
        '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}', encoding="utf-8"
    )
    write_gguf(Path("vocabulary.gguf"), bpe_metadata())
    tiny_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "option"), CASES)
def test_no_value_breaks_a_command(name: str, option: str, folder: Path) -> None:
    before = content(folder / "tiny-llama")
    parameter = next(p for p in options(name) if p.name == option)
    for value in VALUES:
        if (name, option) in WAITS and value.strip(" +-0").isdecimal():
            continue
        given = [value] if isinstance(parameter, click.Argument) else [f"{parameter.opts[-1]}={value}"]
        result = CliRunner().invoke(main, [name, *BASES[name], *given], input="hello\n")
        about = (name, option, value[:60], result.stderr[-500:])
        assert result.exit_code in (0, 1, 2), about
        assert isinstance(result.exception, (SystemExit, type(None))), (about, result.exception)
        assert "inside ggpy" not in result.stderr, about
        assert "Traceback" not in result.stderr, about
        assert not {"\x1b", "\0", "\x9b"} & set(result.stderr), about
        last = result.stderr.splitlines()[-1] if result.stderr else ""
        if result.exit_code:
            assert last.startswith("error: "), about
            assert len(last) < 700, about
    assert content(folder / "tiny-llama") == before
    left = {path.name for path in folder.iterdir() if path.name.endswith(".partial")}
    assert not left


def test_there_are_enough() -> None:
    assert len(CASES) * len(VALUES) > 1000
