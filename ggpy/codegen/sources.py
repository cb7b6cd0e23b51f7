"""The sources that compiled kernels are made of, and their fingerprint. Kernels inline functions and constants of
whatever their modules import, so the sources are found by following imports: a list kept by hand goes stale.

Every start does this, so imports are found by a pattern, in a millisecond. (Python's parser would take fifty; the tests
compare with it.) A line that only looks like an import costs a file too many.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import ggpy

_FOR_TYPES = re.compile(rb"\nif TYPE_CHECKING:(?:\n[ \t]+.*|\n(?=\n|[ \t]))*")  # what type checkers alone run
_IMPORT = re.compile(rb"\n[ \t]*(?:from|import) (ggpy[\w.]*)(?: import (\([^)]*\)|.*))?")
_NAME = re.compile(rb"\w+")


def fingerprint(roots: Iterable[str], made_by: Iterable[object]) -> str:
    """A hash of the `sources` of these modules, the versions of Python and numba, and whatever else compiles them."""
    digest = hashlib.sha256()
    for name, text in sources(roots).items():
        digest.update(f"{name} {len(text)}\0".encode() + text)
    digest.update(repr((sys.version, _numba_version(), *made_by)).encode())
    return digest.hexdigest()[:16]


def sources(roots: Iterable[str]) -> dict[str, bytes]:
    """The modules of this package that `roots` are and import, inside functions too, with the packages they lie in:
    text by name, in the order of names."""
    found: dict[str, bytes] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name == "ggpy":  # which loads its names when they are asked for
            continue
        path = _file(name)
        if path is not None:
            found[name] = _read(path)
            waiting += [name.rpartition(".")[0], *_imports(found[name])]
    return dict(sorted(found.items()))


def modules_in(package: str) -> list[str]:
    """The modules of a package of ggpy, as those that are imported by name alone are found by following nothing."""
    path = _file(package)
    assert path is not None
    files = (entry.name for entry in os.scandir(os.path.dirname(path)))
    return [f"{package}.{name[:-3]}" for name in sorted(files) if name.endswith(".py") and name != "__init__.py"]


def _imports(text: bytes) -> Iterator[str]:
    for module, taken in _IMPORT.findall(_FOR_TYPES.sub(b"", b"\n" + text)):
        name = module.decode()
        yield name
        if taken and (name == "ggpy" or str(_file(name)).endswith("__init__.py")):
            for part in _NAME.findall(taken):  # of a package: modules, or what its own file defines
                yield f"{name}.{part.decode()}"


def _file(name: str) -> str | None:
    """The file of a module or package of ggpy; None for any other name."""
    for root in ggpy.__path__:
        place = os.path.join(root, *name.split(".")[1:])
        for path in (f"{place}.py", os.path.join(place, "__init__.py")):
            if os.path.isfile(path):
                return path
    return None


def _numba_version() -> bytes | str:
    """Bytes or text that differ between numba's releases, found without importing it."""
    found = find_spec("numba")
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return _read(os.path.join(os.path.dirname(found.origin), "_version.py"))  # type: ignore[union-attr, arg-type]
    from importlib.metadata import version  # which takes longer than all the rest of the fingerprint

    return version("numba")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
