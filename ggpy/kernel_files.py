"""Compiled kernels on disk, for whatever processor: their folder, and files that tell when they are damaged."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from ggpy.errors import GGPYError
from ggpy.paths import cache_dir


def folder(*names: str) -> Path:
    """The folder of these names in the user's cache, made where it is missing; where the cache cannot be written, in a
    temporary one. What the user's cache already holds is read either way."""
    path = cache_dir().joinpath(*names)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    path = temporary().joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    return path


@lru_cache(maxsize=1)
def temporary() -> Path:
    """What stands in for a cache that cannot be written: a folder that goes with this process."""
    import shutil

    try:
        path = Path(tempfile.mkdtemp(prefix="ggpy-"))
    except OSError as error:
        raise GGPYError(
            f"Neither {cache_dir()} nor a temporary folder can be written ({error}); set GGPY_CACHE to one that can."
        ) from None
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def is_kept(path: Path) -> bool:
    """Whether other processes find what lies in a `folder`."""
    return not temporary.cache_info().currsize or temporary() not in path.parents


def _places(path: Path) -> list[Path]:
    """Where a kernel's file may lie: where it is written, and in a cache that can only be read."""
    return [path] if is_kept(path) else [path, cache_dir() / path.relative_to(temporary())]


def exists(path: Path) -> bool:
    """Whether there is something to `read`."""
    return any(place.is_file() for place in _places(path))


def read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """What `write` wrote; None where that is nothing, or cut or damaged."""
    return next(filter(None, map(_read, _places(path))), None)


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    try:
        head, code = path.read_bytes().split(b"\n", 1)
        about = json.loads(head)
        return (about, code) if hashlib.sha256(code).hexdigest() == about.pop("sha256") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(path: Path, about: dict[str, Any], code: bytes) -> None:
    """Machine code behind a line of JSON, which appears whole or not at all."""
    head = json.dumps({**about, "sha256": hashlib.sha256(code).hexdigest()})
    with contextlib.suppress(OSError):  # a full disk costs the next start a compilation, nothing else
        file, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(file, "wb") as out:
                out.write(head.encode() + b"\n" + code)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)
