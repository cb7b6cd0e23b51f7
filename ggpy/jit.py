"""numba, as this project uses it: one place that decides the target CPU and where compiled code is cached.

Importing this module imports numba (0.5 s), so only code that is about to compute imports it.

The cache lives in the user's cache directory under a name that hashes every kernel source, the versions of numba and
llvmlite, and the instruction set: numba itself stamps only the file that holds the function, and would miss a change in
a helper it inlines.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from ggpy.errors import GGPYError
from ggpy.paths import cache_dir

# The tiers, best first, and what each asks of LLVM. `GGPY_ISA` forces one: the code generator is then told of a CPU
# that has no more.
ISAS: dict[str, str] = {
    "avx512vnni": "cascadelake",
    "avx2vnni": "alderlake",
    "avx2": "haswell",
    "plain": "",
}

if os.environ.get("GGPY_ISA") == "avx2" and "numba" not in sys.modules:
    os.environ.setdefault("NUMBA_CPU_NAME", "haswell")
    os.environ.setdefault("NUMBA_CPU_FEATURES", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2,+ssse3")

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@lru_cache(maxsize=1)
def isa() -> str:
    """The tier of kernels this process runs: read from LLVM's host features, or forced by `GGPY_ISA`."""
    features = llvmlite.binding.get_host_cpu_features()

    def has(*names: str) -> bool:
        return all(features.get(name, False) for name in names)

    available = ["plain"]
    if has("avx2", "fma", "f16c") or has("avx512f"):
        available.append("avx2")
        if has("avxvnni") or has("avx512vnni", "avx512vl"):
            available.append("avx2vnni")
        if has("avx512vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"):
            available.append("avx512vnni")
    forced = os.environ.get("GGPY_ISA")
    if not forced:
        return available[-1]
    if forced not in ISAS:
        raise GGPYError(f"GGPY_ISA={forced!r} is no instruction-set tier; choose one of {', '.join(ISAS)}.")
    if forced not in available:
        raise GGPYError(f"GGPY_ISA={forced!r}, but this CPU offers only {', '.join(reversed(available))}.")
    return forced


def _fingerprint() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    import ggpy.quant

    quant = Path(ggpy.quant.__path__[0])
    sources = [
        here / "jit.py",
        quant / "packed.py",
        *sorted((here / "cpu").glob("*.py")),
        *sorted(quant.glob("quantize*.py")),
    ]
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__, os.environ.get("GGPY_ISA", ""))
    digest.update(repr(versions).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def kernel_cache() -> Path:
    """The directory of compiled kernels for exactly these sources; a temporary
    one where the user's cache cannot be written."""
    path = cache_dir() / "kernels" / _fingerprint()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="ggpy-kernels-"))


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Functions decorated with numba's `cache=True` inside this block keep their machine code in `kernel_cache()`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_cache())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def compiled(function: F | None = None, *, signature: Any = None, **options: Any) -> Any:
    """`numba.njit` with the GIL released and the machine code cached; extra `options` go to numba.

    With a `signature` it compiles, or loads, at once, and for that one alone: a Python int is otherwise now this type,
    now that.
    """

    def decorate(fn: F) -> Any:
        with cached():
            dispatcher = njit(cache=True, nogil=True, error_model="numpy", **options)(fn)
            if signature is not None:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return decorate if function is None else decorate(function)


def specialized(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of `template` called `name`, whose global `names` are replaced: how one kernel body serves many formats.

    Globals rather than closure cells, because numba caches by name and signature, and would hash a cell's contents,
    which differ in each process.
    """
    function = FunctionType(template.__code__, {**template.__globals__, **names}, name, template.__defaults__)
    function.__qualname__ = name
    function.__module__ = template.__module__
    return function
