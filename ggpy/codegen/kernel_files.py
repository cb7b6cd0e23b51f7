"""Compiled kernels on disk, for any processor: their folder, and files in which damage is detected.

These files hold code that is run. So nobody else may write the folder or the files, and a file is read only if it is a
regular one, of a bounded size, and names this kernel: a hash covers the name, the description and the code.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from ggpy.errors import GGPYError
from ggpy.paths import cache_dir

MOST_BYTES = 64 << 20  # of a file: a hundred times the largest kernel
_OPEN = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_OPEN |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no links; a FIFO is opened, and then refused
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def folder(*names: str) -> Path:
    """The folder of these names in the user's cache, created where missing; in a temporary folder where the cache
    cannot be written or others may write there. Files that the user's cache already holds are read either way."""
    if _unusable(names) is None:
        return cache_dir().joinpath(*names)
    path = temporary().joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _unusable(names: tuple[str, ...]) -> str | None:
    """The reason why code cannot be kept in the folder of these names, and the remedy; None where it can.

    Below the user's cache, which may be shared, folders are made readable by all (an image is built as root) and
    writable by us alone. If others may write a folder of ours (an umask of 002 makes such), that is taken from them.
    """
    place = cache_dir()
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            place = place / name
            place.mkdir(mode=0o755, exist_ok=True)
            found = place.stat()
            if _is_ours(found.st_uid) and found.st_mode & _WRITABLE:
                with contextlib.suppress(OSError):
                    place.chmod(0o700)
                found = place.stat()
            if os.name != "posix":
                continue
            if not _is_ours(found.st_uid):
                return (
                    f"{place} belongs to another user, whose code would be run: set GGPY_CACHE to a folder of your own"
                )
            if found.st_mode & _WRITABLE:
                return f"others may write {place}, and so put code there: set GGPY_CACHE to a folder of your own"
        if os.access(place, os.W_OK):
            return None
    except OSError:
        pass
    return f"{cache_dir()} cannot be written: set GGPY_CACHE to a folder that can"


def _is_ours(uid: int) -> bool:
    return os.name != "posix" or uid in (os.geteuid(), 0)


def why_not_kept(path: Path) -> str:
    """The reason why a `folder` is temporary, and the remedy."""
    return _unusable(path.relative_to(temporary()).parts) or f"{path} is temporary"


@lru_cache(maxsize=1)
def temporary() -> Path:
    """A folder in place of a cache that cannot be written, removed when this process ends."""
    import shutil

    try:
        path = Path(tempfile.mkdtemp(prefix="ggpy-"))
    except OSError as error:
        raise GGPYError(
            f"Neither {cache_dir()} nor a temporary folder can be written ({error}); set GGPY_CACHE to one that can."
        ) from None
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not what it forks
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove)
    return path


def is_kept(path: Path) -> bool:
    """True where other processes find the files in a `folder`."""
    return not temporary.cache_info().currsize or temporary() not in path.parents


def _places(path: Path) -> list[Path]:
    """The places of a kernel's file: where it is written, and in a cache that can only be read."""
    return [path] if is_kept(path) else [path, cache_dir() / path.relative_to(temporary())]


def exists(path: Path) -> bool:
    """True where there is a file to `read`."""
    return any(place.is_file() for place in _places(path))


def read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """A kernel as `write` stored it; None where it is missing, damaged, another kernel's, or another user's."""
    return next(filter(None, map(_read, _places(path))), None)


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    try:
        digest, content = _content(path).split(b"\n", 1)
        if hashlib.sha256(content).hexdigest().encode() != digest:
            return None
        head, code = content.split(b"\n", 1)
        about = json.loads(head)
        return (about, code) if about.pop("is") == _name(path) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _content(path: Path) -> bytes:
    with open(os.open(path, _OPEN), "rb") as file:
        found = os.fstat(file.fileno())
        safe = _is_ours(found.st_uid) and (os.name != "posix" or not found.st_mode & _WRITABLE)
        if not (stat.S_ISREG(found.st_mode) and safe and found.st_size <= MOST_BYTES):
            raise OSError(f"{path} is no kernel's file")
        return file.read(found.st_size)


def _name(path: Path) -> str:
    """The name that a kernel's file states in its header; the folder in it tells versions of the code apart."""
    return f"{path.parent.name}/{path.name}"


def write(path: Path, about: dict[str, Any], code: bytes) -> None:
    """Write machine code behind a line with a hash and a line of JSON; the file appears whole or not at all."""
    content = json.dumps({**about, "is": _name(path)}).encode() + b"\n" + code
    with contextlib.suppress(OSError):  # a full disk costs the next start a compilation, nothing else
        file, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(file, "wb") as out:
                out.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            if os.name == "posix":
                os.chmod(partial, 0o644)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)


def discard(path: Path) -> None:
    """Remove a kernel's file that cannot be loaded."""
    for place in _places(path):
        with contextlib.suppress(OSError):
            place.unlink()
