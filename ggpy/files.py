"""Files that are written whole or not at all: the one way in which ggpy writes to a user's disk.

The new content lies beside its target under a name of its own and takes the target's place when it is complete and on
the disk. Until then, and whatever goes wrong, the target is as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ggpy.errors import GGPYError, shown
from ggpy.units import size_text

if os.name == "posix":
    import fcntl

_STEM = 180  # bytes of the target's name in the name of a partial file: with what surrounds it below 255
_RANDOM = "[a-z0-9_]{8}"  # what tempfile puts into a name


@contextmanager
def whole_file(path: str | os.PathLike[str], *, size: int = 0, inputs: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """A new file for `path`, to be filled by the block; a link's target is replaced, not the link.

    size: the bytes it will take, where that is known; too little room is then reported at once. inputs: files that are
    read and must not be replaced. Whatever ends the block early leaves `path` as it was and nothing beside it; what a
    killed process left behind is removed at the next attempt. Raises GGPYError where `path` cannot be a file.
    """
    target = check_target(path, inputs)
    folder, stem = target.parent, _stem(target.name)
    try:
        _sweep(folder, stem)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise GGPYError(
                f"{shown(path)} will take {size_text(size)}, {size_text(size - free)} more than is free in "
                f"{shown(folder)}; make room or choose another place."
            )
        descriptor, partial = _create(folder, stem)
    except OSError as error:
        raise _cannot(path, str(error.strerror or error)) from error
    try:
        with open(descriptor, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            _take_permissions(target, partial)
            if os.name == "posix":  # still locked: no other attempt takes it for left behind
                os.replace(partial, target)
        if os.name != "posix":  # an open file has its name for good
            os.replace(partial, target)
        _sync_folder(folder)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(partial)
        if isinstance(error, OSError):
            raise GGPYError(
                f"Writing {shown(path)} failed: {error.strerror or error}; the target is as it was."
            ) from error
        raise


def check_target(path: str | os.PathLike[str], inputs: Iterable[Path] = ()) -> Path:
    """The target of a file for `path`, links followed. Raises GGPYError where that is no ordinary file, is not in a
    folder, is one of `inputs`, or is the file of a standard stream of this process, under whatever name."""
    if not os.fspath(path):
        raise GGPYError("The name of the file to write is empty; give one.")
    try:
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise _cannot(path, "it is a link that leads back to itself")
        if not target.parent.is_dir():
            raise _cannot(path, f"there is no folder {shown(target.parent)}")
        try:
            there = os.stat(path)  # not of `target`: what /dev/stdout leads to may have no path
        except FileNotFoundError:
            return target
        if not stat.S_ISREG(there.st_mode):
            raise _cannot(path, f"it is {_KINDS.get(stat.S_IFMT(there.st_mode), 'no file')}; name an ordinary file")
        for stream in range(3):
            with suppress(OSError):  # closed
                if os.path.samestat(there, os.fstat(stream)):
                    raise _cannot(path, "standard input or output is this file; name another one")
        for used in inputs:
            with suppress(OSError):  # gone meanwhile
                if os.path.samestat(there, os.stat(used)):
                    raise _cannot(path, f"{shown(used)} is the same file, and it is read; name another one")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or what the system cannot spell
        raise _cannot(path, getattr(error, "strerror", None) or str(error)) from error
    return target


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _cannot(path: str | os.PathLike[str], why: str) -> GGPYError:
    return GGPYError(f"Cannot write {shown(path)}: {why}.")


def read_file(path: str | os.PathLike[str], most: int, *, ordinary: bool = True) -> bytes:
    """The content of a file of up to `most` bytes. ordinary: refuse a pipe or a device instead of waiting for it.

    Raises GGPYError where it cannot be read or is larger.
    """
    name = os.fspath(path)
    if not name:
        raise GGPYError("The name of the file to read is empty; give one.")
    try:
        if ordinary and not stat.S_ISREG(mode := os.stat(path).st_mode):
            raise GGPYError(f"{shown(name)} cannot be read: it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}.")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise GGPYError(f"{shown(name)} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > most:
        raise GGPYError(f"{shown(name)} cannot be used: it holds more than {size_text(most)}.")
    return data


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Mark a folder as in use by this process, for as long as it lives: see `is_held`."""
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """True where a process still uses a folder, or where that cannot be known."""
    if os.name != "posix":
        return True
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file for the block, one process or thread at a time; it is gone afterwards.

    waiting: called once where another one holds it, before that one's end is awaited. Where there are no locks (outside
    POSIX, on some network file systems) nobody waits. Raises GGPYError where the file cannot be made.
    """
    if os.name != "posix":
        yield
        return
    descriptor, locks = _lock(path, waiting)
    try:
        yield
    finally:
        if locks:
            with suppress(OSError):  # still locked: whoever waits finds it gone and makes a new one
                os.unlink(path)
        os.close(descriptor)


def _lock(path: Path, waiting: Callable[[], None]) -> tuple[int, bool]:
    """The descriptor of a lock file, and whether it is locked."""
    told = False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise _cannot(path, str(error.strerror or error)) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, True
        except OSError:
            return descriptor, False
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it meanwhile


def sweep(folder: Path) -> None:
    """Remove the partial files of all targets in a folder that no process writes any more. Raises OSError."""
    _sweep(folder, "")


def _stem(name: str) -> str:
    """The beginning of the names of a target's partial files, short enough for every file system."""
    return "." + name.encode("utf-8", "surrogateescape")[:_STEM].decode("utf-8", "ignore") + "."


def _create(folder: Path, stem: str) -> tuple[int, str]:
    """A new partial file, open and locked: its descriptor and its path."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=stem, suffix=".partial", dir=folder)
        if os.name != "posix":
            return descriptor, name
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
        except BlockingIOError:
            pass
        except OSError:  # no locks on this file system: none will sweep it either
            return descriptor, name
        os.close(descriptor)  # another attempt's sweep was quicker than the lock


def _sweep(folder: Path, stem: str) -> None:
    """Remove the partial files of this target, or of all where `stem` is empty, that no process writes any more: they
    are not locked. (Outside POSIX an open file cannot be removed.)"""
    mine = re.compile((re.escape(stem) or r"\..+\.") + _RANDOM + r"\.partial", re.DOTALL)
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if mine.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in left:
        with suppress(OSError):
            if os.name != "posix":
                os.unlink(path)
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _take_permissions(path: Path, name: str) -> None:
    """Give the new file the old one's mode, or what the umask allows: mkstemp makes private files."""
    if os.name != "posix":
        return
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    os.chmod(name, mode)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
