"""Whatever ggpy writes appears whole or not at all, over nothing that it reads and nothing that is no ordinary file."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ggpy.llm
from ggpy import LLM
from ggpy.conversation import Conversation
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.files import check_target, locked, read_file, sweep, whole_file
from ggpy.runtime.load import Model
from ggpy.units import size_text
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate
from tests.support.tiny import tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def saved(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"new")


def test_nothing_but_the_whole_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chmod(path, 0o640)

    def fail(file: Any) -> None:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        fail(file)
    assert path.read_bytes() == b"old"
    saved(path)
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o640


@posix
def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to("folder/real")
    saved(tmp_path / "link")  # to where nothing is yet
    saved(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(GGPYError, match="leads back to itself"):
        saved(tmp_path / "circle")
    assert (tmp_path / "circle").is_symlink()


@posix
@pytest.mark.parametrize("make", ["fifo", "socket", "folder"])
def test_what_is_no_file_stays_what_it_is(tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = Path("there")
    if make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    Path("link").symlink_to(path)
    before = path.stat()
    for name in (path, Path("link")):
        with pytest.raises(GGPYError, match="name an ordinary file"):
            saved(name)
        with pytest.raises(GGPYError, match="cannot be read"):  # and is not waited for
            read_file(name, 100)
    assert os.path.samestat(before, path.stat())
    assert sorted(os.listdir()) == ["link", "there"]


@posix
@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/stdout", "/dev/fd/1"])
def test_devices_and_streams_are_refused(device: str) -> None:
    """To a pipe or a device nothing can be written whole or not at all."""
    code = f"from ggpy.files import whole_file\nwith whole_file({device!r}) as file: file.write(b'x')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert "GGPYError: Cannot write" in result.stderr


@posix
def test_the_file_that_standard_output_goes_to_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"from ggpy.files import check_target\nprint('said', flush=True)\ncheck_target({str(out)!r})"
    with out.open("wb") as stream:
        result = subprocess.run([sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True)
    assert "standard input or output is this file" in result.stderr
    assert out.read_text() == "said\n"


@pytest.mark.parametrize("path", ["", "a\0b", "none/a", "x" * 1000, "\ud800"])
def test_impossible_names(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if path == "\ud800" and os.name != "posix":
        pytest.skip("a name there")
    with pytest.raises(GGPYError) as caught:
        saved(path)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())
    with pytest.raises(GGPYError):
        read_file(path, 100)


def test_names_as_long_as_the_system_takes(tmp_path: Path) -> None:
    for name in ("😀" * 60, "x" * 250):
        saved(tmp_path / name)
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_reading_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_file(tmp_path / "a", 100) == b"x" * 100
    with pytest.raises(GGPYError, match="more than 99 B"):
        read_file(tmp_path / "a", 99)
    if os.path.exists("/dev/zero"):
        with pytest.raises(GGPYError, match="more than"):
            read_file("/dev/zero", 1 << 20, ordinary=False)


KILLED = """
import sys
from pathlib import Path
from ggpy.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"x" * (2 << 20))
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writing() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Processes that are in the middle of a file."""
    processes = []

    def start(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@posix
def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path, writing: Any) -> None:
    path = tmp_path / "model.gguf"
    killed, alive = writing(path), writing(path)
    mine = {entry.name for entry in tmp_path.iterdir()}
    assert len(mine) == 2  # the second did not take the first one's for left behind
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stem = ".model.gguf."
    others = [f"{stem}backup.partial", f"{stem}abcdefg1.partial.x", ".other.gguf.abcdefg1.partial", "a.partial"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / ".model.gguf.abcdefg2.partial").symlink_to("a.partial")
    saved(path)
    left = {entry.name for entry in tmp_path.iterdir()} - {path.name, ".model.gguf.abcdefg2.partial", *others}
    assert len(left) == 1
    assert left < mine
    assert (tmp_path / "a.partial").read_bytes() == b"somebody's"
    alive.communicate("")
    assert alive.returncode == 0
    assert path.stat().st_size == 2 << 20
    assert not left & {entry.name for entry in tmp_path.iterdir()}


@posix
def test_a_folder_is_swept_of_all_that_killed_processes_left(tmp_path: Path, writing: Any) -> None:
    killed, alive = writing(tmp_path / "a"), writing(tmp_path / "b")
    killed.kill()
    killed.wait()
    (tmp_path / "c.partial").touch()
    (tmp_path / ".d.partial").touch()
    assert len(list(tmp_path.iterdir())) == 4
    sweep(tmp_path)
    assert sorted(entry.name[:3] for entry in tmp_path.iterdir()) == [".b.", ".d.", "c.p"]
    alive.communicate("")
    assert (tmp_path / "b").stat().st_size == 2 << 20


@posix
def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    inside: list[int] = []
    waited: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with locked(path, lambda: waited.append(number)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert len(waited) == len(set(waited)) > 0  # told once each
    assert list(tmp_path.iterdir()) == []
    path.touch()  # as a killed process leaves it
    with locked(path, lambda: pytest.fail("nobody holds it")):
        assert path.exists()
    assert not path.exists()


@posix
def test_who_waits_for_a_lock_can_be_interrupted(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with locked(tmp_path / ".lock", pytest.fail):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / ".lock", interrupt):
            pytest.fail("held twice")
        assert (tmp_path / ".lock").exists()
    with (
        pytest.raises(GGPYError, match=r"Cannot write .*none/\.lock: No such file"),
        locked(tmp_path / "none/.lock", pytest.fail),
    ):
        pass


@posix
def test_without_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("ggpy.files.fcntl.flock", no_locks)
    with locked(tmp_path / ".lock", pytest.fail), locked(tmp_path / ".lock", pytest.fail):
        pass


# What is read is not written over


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@posix
def test_convert_leaves_its_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", shards=2)
    (folder / "notes.md").write_text("not read by ggpy, but a file of the checkpoint")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    # a shard as the hub's cache has it: a link to where it lies
    shard = next(folder.glob("model-00001*"))
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    os.link(folder / "tokenizer.json", tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(folder / "config.json")
    (tmp_path / "again").symlink_to(folder)
    (folder / "locked").mkdir(mode=0)  # what may not be looked into stops nothing
    before = content(tmp_path)
    targets = [path for path in folder.rglob("*") if path.is_file()]
    targets += [tmp_path / name for name in ("blob", "hard.gguf", "soft.gguf", "again/config.json")]
    targets += [folder / "." / ".." / folder.name / "config.json"]
    for target in targets:
        with pytest.raises(GGPYError, match="is the same file, and it is read"):
            convert(folder, "q8_0", target)
    monkeypatch.chdir(folder)
    with pytest.raises(GGPYError, match="is the same file"):
        convert(Path("."), "q8_0", Path("config.json"))
    with pytest.raises(GGPYError, match="it is a folder"):
        convert(Path("."), "q8_0", Path("."))
    assert content(tmp_path) == before
    for _ in range(2):  # a GGUF file in the folder is no part of the checkpoint
        convert(Path("."), "q8_0", Path("model.gguf"))
    assert {name: data for name, data in content(tmp_path).items() if name in before} == before


@posix
def test_convert_sweeps_and_says_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    left = tmp_path / ".out.gguf.0123abcd.partial"
    left.write_bytes(b"x" * 1000)

    def usage(path: Any) -> Any:
        return shutil._ntuple_diskusage(1 << 20, 1 << 20, 30_000 - (1000 if left.exists() else 0))  # type: ignore[attr-defined]

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(GGPYError, match=r"will take [\d.]+ MiB, [\d.]+ MiB more than is free") as caught:
        convert(folder, "f32", tmp_path / "out.gguf")
    assert " 0.00" not in str(caught.value)
    assert not left.exists()


def test_sizes_are_written_in_units_that_fit() -> None:
    sizes = (0, 1, 1023, 1024, 1_500_000, 98_362_432, 3 << 30, 5 << 40)
    assert [size_text(n) for n in sizes] == [
        "0 B", "1 B", "1023 B", "1.00 KiB", "1.43 MiB", "93.81 MiB", "3.00 GiB", "5.00 TiB",
    ]  # fmt: skip


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Conversation:
    def load(path: Path, *args: Any, **placing: Any) -> Model:
        return Model(FakeFile(), ByteTokenizer(), FakeTemplate(), FakeRuntime())  # type: ignore[arg-type]

    monkeypatch.setattr(ggpy.llm, "load_model", load)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return Conversation(LLM(tmp_path / "m.gguf"), system="half a pair: \ud83d")


def test_a_conversation_replaces_no_shard(talk: Conversation, tmp_path: Path) -> None:
    shard = tmp_path / "m-00002-of-00002.gguf"
    shard.write_bytes(b"GGUF")
    talk.llm.file.paths.append(shard)
    with pytest.raises(GGPYError, match="is the same file, and it is read"):
        talk.save(shard)
    assert shard.read_bytes() == b"GGUF"


@posix
def test_a_conversation_replaces_neither_the_model_nor_what_is_no_file(talk: Conversation, tmp_path: Path) -> None:
    os.link(tmp_path / "m.gguf", tmp_path / "other name.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("m.gguf", "other name.json", "pipe"):
        with pytest.raises(GGPYError, match="Cannot write"):
            talk.save(tmp_path / name)
    assert (tmp_path / "m.gguf").read_bytes() == b"GGUF"
    (tmp_path / "link.json").symlink_to("talk.json")
    talk.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    again = Conversation(talk.llm)
    again.load(tmp_path / "talk.json")
    assert again.system == talk.system


@pytest.mark.parametrize("json", [b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": [{"role": [], "content": ""}]}'])
def test_what_is_loaded_is_checked(talk: Conversation, tmp_path: Path, json: bytes) -> None:
    (tmp_path / "deep.json").write_bytes(json)
    with pytest.raises(GGPYError, match="holds no saved conversation"):
        talk.load(tmp_path / "deep.json")
    if os.path.exists("/dev/zero"):
        with pytest.raises(GGPYError, match="it is a device"):
            talk.load(Path("/dev/zero"))


@posix
def test_a_history_that_cannot_be_kept_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.history import InMemoryHistory

    from ggpy.cli.chat_prompt import _history

    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    os.mkfifo(tmp_path / "chat_history")
    assert isinstance(_history(), InMemoryHistory)
    (tmp_path / "chat_history").unlink()
    kept = _history()
    assert not isinstance(kept, InMemoryHistory)
    (tmp_path / "chat_history").unlink()
    (tmp_path / "chat_history").mkdir()
    kept.append_string("said")
    assert kept.get_strings() == ["said"]
    monkeypatch.setenv("GGPY_CACHE", "~no such user/x")
    assert isinstance(_history(), InMemoryHistory)


def test_nothing_writes_past_the_one_writer() -> None:
    """A list of all code that opens a file for writing, with the reason; new code goes through `whole_file`."""
    import re

    writes = re.compile(r"""open\([^)]*["'][rwax]?b?[wax+][b+]*["']|\.write_(text|bytes)\(|os\.(replace|rename)\(""")
    reasons = {
        "ggpy/files.py": "the writer",
        "ggpy/codegen/kernel_files.py": "compiled code, which may be lost",
        "ggpy/hub/default_model.py": "the installer's log, in a folder that goes",
    }
    found = {
        str(path.relative_to(ROOT).as_posix())
        for room in ("ggpy", "cli", "convert", "quant", "models")
        for path in (ROOT / room).rglob("*.py")
        if writes.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(reasons)


def test_check_target_gives_where_the_file_goes(tmp_path: Path) -> None:
    assert check_target(tmp_path / "x" / ".." / "a") == Path(os.path.realpath(tmp_path)) / "a"
