"""Single numbers between float32 and the 16-bit formats, for use inside numba kernels.

Written with integers and selects only, so that LLVM turns a loop over them into vector code on any CPU: numba has no
fp16 arithmetic there. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ggpy.codegen.jit import compiled

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_HALF = np.float32(0.5)
_HALF_BITS = np.uint32(0x3F000000)
_SMALLEST_NORMAL_FP16 = np.uint32(0x38800000)  # 2^-14
_REBIAS = np.uint32(112 << 23)  # the exponents of float32 and fp16 differ by 112
_FP16_OVERFLOW = np.uint32(0x47800000)  # 2^16
_FP16_INFINITY = np.uint32(0x0F800000)  # fp16's exponent of all ones, moved by 13 bits
_FP16_ONE_EXPONENT = np.uint32(1 << 23)
_FP16_MIN = np.float32(2.0**-14)


@intrinsic
def float_bits(typing_context: Any, value: Any) -> Any:
    """float32 → the uint32 of its bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def bits_float(typing_context: Any, bits: Any) -> Any:
    """The uint32 of its bits → float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@compiled(inline="always")
def fp16_bits(value):  # type: ignore[no-untyped-def]
    """float32 → uint32 holding the nearest fp16 (ties to even); beyond its range infinite. NaN is not expected."""
    bits = float_bits(value)
    size = np.uint32(bits & _MAGNITUDE)
    # Below 2^-14 fp16 steps by 2^-24, which is the spacing of float32 at 0.5: the addition does the rounding.
    small = np.uint32(float_bits(bits_float(size) + _HALF) - _HALF_BITS)
    rounded = np.uint32(size + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1)))
    normal = np.uint32((rounded - _REBIAS) >> np.uint32(13))
    result = small if size < _SMALLEST_NORMAL_FP16 else normal
    result = np.uint32(0x7C00) if rounded >= _FP16_OVERFLOW else result
    return np.uint32(((bits & _SIGN) >> np.uint32(16)) | result)


@compiled(inline="always")
def fp16_value(half):  # type: ignore[no-untyped-def]
    """uint16 bits of an fp16 → float32, exactly; infinities and NaN keep their kind."""
    size = np.uint32((np.uint32(half) & np.uint32(0x7FFF)) << np.uint32(13))
    sign = np.uint32((np.uint32(half) & np.uint32(0x8000)) << np.uint32(16))
    normal = np.uint32(size + _REBIAS)
    # A denormal's bits under the exponent of 2^-14 make 2^-14 more than its value. (Denormal float32 would be slow.)
    denormal = float_bits(bits_float(np.uint32(size + _REBIAS + _FP16_ONE_EXPONENT)) - _FP16_MIN)
    scaled = denormal if size < _FP16_ONE_EXPONENT else normal
    scaled = np.uint32(size | _INFINITY) if size >= _FP16_INFINITY else scaled
    return bits_float(np.uint32(scaled | sign))


@compiled(inline="always")
def bf16_bits(value):  # type: ignore[no-untyped-def]
    """float32 → uint32 holding the nearest bfloat16 (ties to even). NaN is not expected."""
    bits = float_bits(value)
    return np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
