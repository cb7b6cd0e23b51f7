"""`ggpy warmup`: which kernels are needed, and what is said while they are compiled."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.cli.terminal import note
from ggpy.codegen.compile_workers import compiled_by_others
from ggpy.codegen.native import is_cached, kernel_cache
from ggpy.convert.pipeline import convert
from ggpy.cpu import kernels, needed
from ggpy.cpu.needed import compile_missing, program_kernels, type_kernels
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.notes import Passing
from ggpy.runtime.cache_types import cache_type
from ggpy.runtime.planned import planned
from tests.support.tiny import tiny_checkpoint


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that a stand-in for the compiler was asked for."""
    names: list[str] = []
    monkeypatch.setattr(needed, "MOST_WORKERS", 1)  # in this process
    monkeypatch.setattr(kernels, "kernel", names.append)
    monkeypatch.setattr(kernels, "missing", lambda wanted: [name for name in wanted if name not in names])
    return names


@pytest.mark.parametrize("file_type", ["q4_0", "f32"])
def test_types_name_what_a_model_of_them_needs(tmp_path: Path, file_type: str) -> None:
    path = tmp_path / "tiny.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32"), file_type, path)
    with GGUFFile(path) as file:
        wanted = program_kernels(planned(file), cache_type(file, planned(file).states))
        types = {info.type_name for info in file.tensors.values() if len(info.shape) == 2}
    assert set(wanted) <= set(type_kernels(types))
    assert len(set(wanted)) == len(wanted)


def test_file_types_bring_their_companions() -> None:
    needed = {"linear.Q4_K", "linear.Q6_K", "linear.Q6_K.q16", "quantize_activations.q8", "quantize_activations.q16"}
    assert needed | {"run_program"} <= set(type_kernels(["q4_k_m"]))
    assert {"linear.Q3_K", "linear.Q4_K", "linear.Q5_K", "linear.Q6_K.q16"} <= set(type_kernels(["Q3_K_M"]))
    assert not any("Q6_K" in name for name in type_kernels(["q8_0"]))
    assert "attention.f32" in type_kernels(["f32"])
    with pytest.raises(GGPYError, match="'q1_0' is not a type that has kernels; choose among f32, "):
        type_kernels(["q1_0"])


def test_progress(compiled: list[str]) -> None:
    notes: list[str] = []
    assert compile_missing(["run_program", "worker_loop"], notes.append) == ["run_program", "worker_loop"] == compiled
    first, *passing, last = notes
    assert first.startswith("compiling 2 kernels for this CPU")
    assert passing == ["compiling kernel 1 of 2: run_program", "compiling kernel 2 of 2: worker_loop"]
    assert all(isinstance(note, Passing) for note in passing)
    assert last.startswith("compiled in ")
    assert compile_missing(["run_program", "worker_loop"], notes.append) == []
    assert len(notes) == 4


def test_command(compiled: list[str]) -> None:
    result = CliRunner().invoke(main, ["warmup", "--types", "q8_0, F16"])
    assert result.exit_code == 0, result.stderr
    assert {"linear.Q8_0", "linear.F16", "pack.F16", "run_program"} <= set(compiled)
    assert result.stdout.startswith(f"q8_0, F16: {len(compiled)} kernels for ")
    assert result.stdout.endswith(f"kept in {kernel_cache()}\n")
    assert "1 of" not in result.stderr  # no terminal: no passing notes
    result = CliRunner().invoke(main, ["warmup", "--types", "q8_0"])
    assert "all compiled before" in result.stdout
    assert result.stderr == ""


def test_command_errors(compiled: list[str], tmp_path: Path) -> None:
    for args, message in (
        (("--types", ","), "names no type"),
        (("--types", "q8_0", "-m", "x.gguf"), "give one of them"),
        (("--types", "int3"), "'int3' is not a type"),
        (("-m", str(tmp_path / "none.gguf")), "does not exist"),
    ):
        result = CliRunner().invoke(main, ["warmup", *args])
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
    assert compiled == []


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_passing_notes_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("ggpy.cli.terminal.sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    for text in ("first", Passing("a"), Passing("b" * 40), "last", "more"):
        note(text)
    over = "\x1b[A\x1b[2K"
    assert screen.getvalue() == f"first\na\n{over}{'b' * 19}\n{over}last\nmore\n"


def test_a_pipe_gets_no_passing_notes(capsys: Any) -> None:
    note(Passing("a"))
    note("b")
    assert capsys.readouterr().err == "b\n"


def test_processes_compile_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    kernel_cache.cache_clear()
    try:
        names = ["run_program", "elementwise.silu_glu plain", "worker_loop"]
        assert sorted(compiled_by_others(needed.COMPILE_WORKER, names, 2, tmp_path)) == sorted(names)
        assert is_cached(kernels.file_name("run_program"))
        assert is_cached("elementwise.silu_glu.plain")
        with pytest.raises(OSError, match="compiling nothing failed"):
            list(compiled_by_others(needed.COMPILE_WORKER, ["nothing"], 1, tmp_path))
    finally:
        kernel_cache.cache_clear()


def test_processes_end_with_who_waits_for_them(tmp_path: Path) -> None:
    serve = "import sys, time; print(sys.stdin.readline().strip(), flush=True)\nwhile True: time.sleep(1)"
    found = compiled_by_others(serve, ["first", "never"], 1, tmp_path)
    assert next(found) == "first"
    found.close()  # would wait for ever
