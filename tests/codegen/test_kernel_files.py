"""Compiled kernels on disk: files that are whole or nothing, and a folder where the cache cannot be written."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from ggpy.codegen import kernel_files, native
from ggpy.codegen.compile_workers import compile_all
from ggpy.cuda import driver
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
        whole.replace(b'"f"', b'"h"'),
        whole.replace(b'"g"', b'"h"'),
        b"3\n",
        b"[]\n",
        b"{}\nabc",
        b"\xff\n",
    ):
        path.write_bytes(damaged)
        assert kernel_files.read(path) is None
    path.write_bytes(whole)
    assert kernel_files.read(path)
    for other in (tmp_path / "other.o", tmp_path / "another version" / "kernel.o"):
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(whole)
        assert kernel_files.read(other) is None


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
def test_only_files_of_ours_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernel.o"
    kernel_files.write(path, {}, b"code")
    monkeypatch.setattr(kernel_files, "MOST_BYTES", path.stat().st_size - 1)
    assert kernel_files.read(path) is None
    monkeypatch.undo()
    for mode in (0o664, 0o646):
        path.chmod(mode)
        assert kernel_files.read(path) is None
    path.chmod(0o644)
    assert kernel_files.read(path)
    monkeypatch.setattr(kernel_files, "_is_ours", lambda uid: False)
    assert kernel_files.read(path) is None
    monkeypatch.undo()
    whole = path.rename(tmp_path / "whole")
    for make in (os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(whole)):
        make(path)
        assert kernel_files.read(path) is None  # and at once
        if not path.is_dir():
            kernel_files.write(path, {}, b"code")
            assert kernel_files.read(path)
            path.unlink()
        else:
            path.rmdir()
    assert Path("/dev/zero").exists()
    assert whole.exists()


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    before = os.umask(0o002)
    try:
        found = kernel_files.folder("kernels", "abc")
    finally:
        os.umask(before)
    assert kernel_files.is_kept(found)
    assert [place.stat().st_mode & 0o777 for place in (found, found.parent)] == [0o755, 0o755]
    found.parent.chmod(0o775)  # of another version of this program, under such a umask
    assert kernel_files.folder("kernels", "abc") == found
    assert found.parent.stat().st_mode & 0o777 == 0o700

    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)  # as on disks that have no permissions
    os.chmod(found, 0o777)
    instead = kernel_files.folder("kernels", "abc")
    assert not kernel_files.is_kept(instead)
    assert instead.stat().st_mode & 0o022 == 0
    assert kernel_files.why_not_kept(instead).startswith(f"others may write {found}, ")
    os.chmod(found, 0o755)
    monkeypatch.setattr(os, "geteuid", lambda: found.stat().st_uid + 1)
    if found.stat().st_uid == 0:  # which may be trusted: it may do everything
        assert kernel_files.folder("kernels", "abc") == found
        os.chown(found, 7, 7)
    instead = kernel_files.folder("kernels", "abc")
    assert not kernel_files.is_kept(instead)
    assert "belongs to another user, whose code would be run: set GGPY_CACHE" in kernel_files.why_not_kept(instead)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of kernels."""
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    native.kernel_cache.cache_clear()
    yield native.kernel_cache()
    native.kernel_cache.cache_clear()


def seven() -> native.ObjectCode:
    """A function that returns 7."""
    native._linker()
    module = llvm.parse_assembly("define i64 @seven() { ret i64 7 }")
    machine = llvm.Target.from_default_triple().create_target_machine()
    return native.ObjectCode(machine.emit_object(module), "seven", ())


def test_code_that_cannot_be_loaded_is_compiled_again(cache: Path) -> None:
    made = seven()
    path = cache / "seven.plain.o"
    compiled: list[int] = []

    def compile() -> native.ObjectCode:
        compiled.append(1)
        return made

    assert native.load("seven.plain", "i:", compile).call() == 7
    assert native.load("seven.plain", "i:", compile).from_disk
    assert len(compiled) == 1
    calls = llvm.parse_assembly("declare i64 @nobody() define i64 @seven() { %x = call i64 @nobody() ret i64 %x }")
    needing = llvm.Target.from_default_triple().create_target_machine().emit_object(calls)
    for about, image in (
        ({"entry": "eight", "needs": []}, made.image),
        ({"entry": "seven", "needs": ["nobody"]}, needing),
        ({"entry": "seven", "needs": []}, b"no object"),
        ({"entry": "seven", "needs": []}, b""),
        ({"entry": "seven"}, made.image),
        ({"entry": 7, "needs": []}, made.image),
        ({"entry": "seven", "needs": 7}, made.image),
    ):
        n = len(compiled)
        kernel_files.write(path, about, image)
        again = native.load("seven.plain", "i:", compile)
        assert again.call() == 7
        assert not again.from_disk
        assert len(compiled) == n + 1
        assert native.load("seven.plain", "i:", compile).from_disk
    path.write_bytes(path.read_bytes().replace(b"seven", b"eight"))  # what the hash tells
    assert not native.load("seven.plain", "i:", compile).from_disk


def test_a_gpus_code_that_cannot_be_loaded_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    obtained: list[str] = []

    error = driver.DriverError.__new__(driver.DriverError)

    class Broken:
        def __init__(self, device: object, made: str) -> None:
            if len(obtained) < 2:
                raise error

    monkeypatch.setattr(driver, "Kernel", Broken)
    monkeypatch.setattr(driver, "obtain", lambda name, cc: obtained.append(name))
    monkeypatch.setattr(driver, "discard", lambda name, cc: obtained.append(f"discard {name}"))
    for error.status, expected in (
        (200, ["a", "discard a", "a"]),
        (500, ["a", "discard a", "a"]),
        (2, ["a"]),
        (700, ["a"]),
    ):
        obtained.clear()
        device = driver.Device.__new__(driver.Device)
        device._kernels, device.cc = {}, (8, 0)
        with contextlib.suppress(driver.DriverError):
            assert device.kernel("a") is device.kernel("a")
        assert obtained == expected


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_temporary_folder_does_not_go_with_a_child(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "import os\nfrom ggpy.codegen.kernel_files import folder\npath = folder('kernels', 'abc')\n"
    code += "child = os.fork()\nif child:\n    os.waitpid(child, 0)\n    print(path.is_dir())"
    environment = {**os.environ, "GGPY_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "True\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = (
        "from ggpy.codegen.kernel_files import folder, is_kept, write\n"
        "path = folder('kernels', 'abc'); write(path / 'a.o', {}, b'code'); print(path.is_dir(), is_kept(path), path)"
    )
    environment = {**os.environ, "GGPY_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    there, kept, path = result.stdout.split()
    assert (there, kept) == ("True", "False")
    assert Path(path).parents[2] == tmp_path
    assert not Path(path).exists()


@pytest.mark.parametrize(("kept", "words"), [(True, "this happens once"), (False, "cannot be written: set GGPY_CACHE")])
def test_how_often_it_happens_is_said(kept: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path if kept else tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    notes: list[str] = []
    obtained: list[str] = []
    cache = kernel_files.folder("kernels", "abc")
    compile_all(["a", "b"], "this machine", obtained.append, "raise SystemExit", 1, cache, notes.append)
    assert obtained == ["a", "b"]
    assert words in notes[0]


# A process that has kernels compiled by others, where its cache is below a file, and so nobody's to write.
COMPILING = """
from ggpy.codegen.compile_workers import compile_all
from ggpy.errors import GGPYError
from ggpy.codegen.kernel_files import exists, folder, read

path = folder("cuda", "abc")
names = ["a", "b", "c", "d"]
here = []
compile_all(names, "this machine", here.append, COMPILE_WORKER, 2, path, print)
print(here, [read(path / name) == ({"by": name}, b"code") for name in names])
print([exists(path / name) for name in ("a", "e")])
"""
COMPILE_WORKER = """
import sys
from ggpy.codegen.kernel_files import folder, write
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
    out = run_without_a_cache(
        tmp_path, str(tmp_path / "file" / "cache"), f"COMPILE_WORKER = {COMPILE_WORKER!r}\n{COMPILING}"
    )
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
