"""Compiled kernels on disk: files that are whole or nothing, and a folder where the cache cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ggpy import kernel_files
from ggpy.compilers import compile_all
from ggpy.errors import GGPYError


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
    assert Path(path).parents[2] == tmp_path
    assert not Path(path).exists()


@pytest.mark.parametrize(("kept", "words"), [(True, "this happens once"), (False, "cannot be written: set GGPY_CACHE")])
def test_how_often_it_happens_is_said(kept: bool, words: str) -> None:
    notes: list[str] = []
    obtained: list[str] = []
    compile_all(["a", "b"], "this machine", obtained.append, "raise SystemExit", 1, kept, notes.append)
    assert obtained == ["a", "b"]
    assert words in notes[0]


# A process that has kernels compiled by others, where its cache is below a file, and so nobody's to write.
COMPILING = """
from ggpy.compilers import compile_all
from ggpy.errors import GGPYError
from ggpy.kernel_files import exists, folder, is_kept, read

path = folder("cuda", "abc")
names = ["a", "b", "c", "d"]
here = []
compile_all(names, "this machine", here.append, SERVE, 2, is_kept(path), print)
print(here, [read(path / name) == ({"by": name}, b"code") for name in names])
print([exists(path / name) for name in ("a", "e")])
"""
SERVE = """
import sys
from ggpy.kernel_files import folder, write
for line in sys.stdin:
    name = line.strip()
    write(folder("cuda", "abc") / name, {"by": name}, b"code")
    print(name, flush=True)
"""


def run_without_a_cache(tmp_path: Path, cache: str, code: str) -> str:
    environment = {**os.environ, "GGPY_CACHE": cache, "TMPDIR": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout


def test_processes_compile_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = run_without_a_cache(tmp_path, str(tmp_path / "file" / "cache"), f"SERVE = {SERVE!r}\n{COMPILING}")
    assert out.splitlines()[-2:] == [f"[] {[True] * 4}", "[True, False]"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, permissions bind nobody: the system's answer to who may write is changed instead."""
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    kernel_files.write(kernel_files.folder("kernels", "abc") / "old", {}, b"code")
    kernel_files.temporary.cache_clear()
    try:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        found = kernel_files.folder("kernels", "abc")
        assert not kernel_files.is_kept(found)
        assert kernel_files.exists(found / "old")
        assert kernel_files.read(found / "old") == ({}, b"code")
        kernel_files.write(found / "new", {}, b"more")
        assert kernel_files.read(found / "new") == ({}, b"more")
        assert [path.name for path in (tmp_path / "cache" / "kernels" / "abc").iterdir()] == ["old"]
        (tmp_path / "cache" / "kernels" / "abc" / "old").write_bytes(b"damaged")
        assert kernel_files.read(found / "old") is None
    finally:
        kernel_files.temporary.cache_clear()


def test_nowhere_to_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    kernel_files.temporary.cache_clear()
    with pytest.raises(GGPYError, match="set GGPY_CACHE to one that can"):
        kernel_files.folder("kernels")
