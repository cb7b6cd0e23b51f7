"""numba, as this project uses it: the CPU it compiles for, and how one kernel body serves many formats.

Importing this module imports numba (0.5 s), so only code that is about to compile imports it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

from ggpy.codegen.native import kernel_cache

# A tier forced below what the CPU has is compiled for a CPU that has no more.
if os.environ.get("GGPY_ISA") == "avx2" and "numba" not in sys.modules:
    os.environ.setdefault("NUMBA_CPU_NAME", "haswell")
    os.environ.setdefault("NUMBA_CPU_FEATURES", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2,+ssse3")

import numba
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Functions decorated with numba's `cache=True` inside this block keep their machine code in `kernel_cache()`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_cache())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def compiled(function: F | None = None, **options: Any) -> Any:
    """`numba.njit` with the GIL released and the machine code cached by numba; extra `options` go to numba."""

    def decorate(fn: F) -> Any:
        with cached():
            return njit(cache=True, nogil=True, error_model="numpy", **options)(fn)

    return decorate if function is None else decorate(function)


def specialized(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of `template` called `name`, whose global `names` are replaced: how one kernel body serves many
    formats."""
    function = FunctionType(template.__code__, {**template.__globals__, **names}, name, template.__defaults__)
    function.__qualname__ = name
    function.__module__ = template.__module__
    return function
