"""Compiled kernels on disk: files that are whole or nothing, and a folder where the cache cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggpy import kernel_files
from ggpy.compilers import compile_all


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path, code = tmp_path / "kernel.o", bytes(range(256)) + b"\n\n"
    assert kernel_files.read(path) is None
    kernel_files.write(path, {"entry": "f", "needs": ["g"]}, code)
    assert kernel_files.read(path) == ({"entry": "f", "needs": ["g"]}, code)
    assert list(tmp_path.iterdir()) == [path]
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:-1],
        whole[1:],
        whole.replace(b"\x07", b"\x08"),
        b"3\n",
        b"[]\n",
        b"{}\nabc",
        b"\xff\n",
    ):
        path.write_bytes(damaged)
        assert kernel_files.read(path) is None


def test_a_full_disk_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    kernel_files.write(tmp_path / "kernel.o", {}, b"code")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_can_be_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    found = kernel_files.folder("kernels", "abc")
    assert found == tmp_path / "cache" / "kernels" / "abc"
    assert found.is_dir()
    assert kernel_files.is_kept(found)


def test_a_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = (
        "from ggpy.kernel_files import folder, is_kept, write\n"
        "path = folder('kernels', 'abc'); write(path / 'a.o', {}, b'code'); print(path.is_dir(), is_kept(path), path)"
    )
    environment = {**os.environ, "GGPY_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    there, kept, path = result.stdout.split()
    assert (there, kept) == ("True", "False")
    assert Path(path).parent == tmp_path
    assert not Path(path).exists()


@pytest.mark.parametrize(("kept", "words"), [(True, "this happens once"), (False, "cannot be written, so every run")])
def test_how_often_it_happens_is_said(kept: bool, words: str) -> None:
    notes: list[str] = []
    obtained: list[str] = []
    compile_all(["a", "b"], "this machine", obtained.append, "raise SystemExit", 1 if kept else 4, kept, notes.append)
    assert obtained == ["a", "b"]
    assert words in notes[0]
