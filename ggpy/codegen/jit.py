"""numba, as this project uses it: the CPU it compiles for, how one kernel body serves many formats, and the object code
of a function.

Importing this module imports numba (0.5 s), so only code that is about to compile imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

from ggpy.codegen.native import ObjectCode

# A tier forced below what the CPU has is compiled for a CPU that has no more.
if os.environ.get("GGPY_ISA") == "avx2" and "numba" not in sys.modules:
    os.environ.setdefault("NUMBA_CPU_NAME", "haswell")
    os.environ.setdefault("NUMBA_CPU_FEATURES", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2,+ssse3")

from numba import cfunc, types

_TYPES = {"u": types.uintp, "i": types.intp, "v": types.void}


def specialized(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of `template` called `name`, whose global `names` are replaced: how one kernel body serves many
    formats."""
    function = FunctionType(
        template.__code__, {**template.__globals__, **names}, name, template.__defaults__, template.__closure__
    )
    function.__qualname__ = name
    function.__module__ = template.__module__
    return function


def compiled(function: Callable[..., Any], prototype: str) -> Any:
    """The numba `cfunc` of a function; `prototype` as in `ggpy.codegen.native.load`."""
    result, arguments = prototype.split(":")
    signature = _TYPES[result](*(_TYPES[a] for a in arguments))
    return cfunc(signature, error_model="numpy")(function)


def object_code(function: Any) -> ObjectCode:
    """A function that `compiled` made, as the object code that `ggpy.codegen.native` keeps on disk."""
    library = function._library
    needs = [f.name for f in library._final_module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    return ObjectCode(library._get_compiled_object(), function._wrapper_name, tuple(needs))
