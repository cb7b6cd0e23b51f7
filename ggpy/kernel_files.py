"""Compiled kernels on disk, for whatever processor: their folder, and files that tell when they are damaged."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ggpy.paths import cache_dir


def folder(*names: str) -> Path:
    """The folder of these names in the user's cache, made where it is missing; where the cache cannot be written a
    temporary one, which goes with this process."""
    path = cache_dir().joinpath(*names)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    import shutil

    path = Path(tempfile.mkdtemp(prefix="ggpy-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def is_kept(path: Path) -> bool:
    """Whether other processes find what lies in a `folder`."""
    return cache_dir() in path.parents


def read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """What `write` wrote; None where that is nothing, or cut or damaged."""
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
