"""Scalars at raw addresses, for kernels written as plain numba code: loads, stores, atomic changes, bit casts and half
precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

_LLVM = {
    types.int8: ir.IntType(8),
    types.uint8: ir.IntType(8),
    types.uint16: ir.IntType(16),
    types.int32: ir.IntType(32),
    types.uint32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
}


def _loader(kind: Any) -> Any:
    def load(typingctx: Any, address: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            value = b.load(b.inttoptr(args[0], _LLVM[kind].as_pointer()))
            value.align = 1
            return value

        return kind(types.uintp), codegen

    return intrinsic(load)


def _storer(kind: Any) -> Any:
    def store(typingctx: Any, address: Any, value: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            b.store(args[1], b.inttoptr(args[0], _LLVM[kind].as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.uintp, kind), codegen

    return intrinsic(store)


load_i8, load_u8, load_u16 = _loader(types.int8), _loader(types.uint8), _loader(types.uint16)
load_i32, load_u32, load_i64 = _loader(types.int32), _loader(types.uint32), _loader(types.int64)
load_f32, load_f64 = _loader(types.float32), _loader(types.float64)
store_i8, store_u8, store_u16 = _storer(types.int8), _storer(types.uint8), _storer(types.uint16)
store_i32, store_u32, store_i64 = _storer(types.int32), _storer(types.uint32), _storer(types.int64)
store_f32 = _storer(types.float32)


def _atomic(operation: str) -> Any:
    def change(typingctx: Any, address: Any, value: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.atomic_rmw(operation, b.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "seq_cst")

        return types.int64(types.uintp, types.int64), codegen

    return intrinsic(change)


# Old values; operations before and after keep their place on every CPU.
fetch_add, exchange = _atomic("add"), _atomic("xchg")


@intrinsic
def load_atomic(typingctx: Any, address: Any) -> tuple[Signature, Any]:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return b.load_atomic(b.inttoptr(args[0], ir.IntType(64).as_pointer()), "seq_cst", 8)

    return types.int64(types.uintp), codegen


def _bitcast(source: Any, target: Any) -> Any:
    def cast(typingctx: Any, value: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.bitcast(args[0], _LLVM[target])

        return target(source), codegen

    return intrinsic(cast)


f32_from_bits = _bitcast(types.uint32, types.float32)
bits_of_f32 = _bitcast(types.float32, types.uint32)


def pointer_to(kind: Any) -> Any:
    """An intrinsic: an address as a pointer to numbers or records of a numba type, for `numba.carray`."""

    def cast(typingctx: Any, address: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(kind)(types.uintp), codegen

    return intrinsic(cast)


# ---- half precision: with integers and selects alone, so that no CPU feature is asked for, and that LLVM turns a loop
# over them into vector code on any CPU

_SIGN, _MAGNITUDE, _INFINITY = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
_HALF, _HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)
_SMALLEST_NORMAL_F16 = np.uint32(0x38800000)  # 2^-14
_REBIAS = np.uint32(112 << 23)  # the exponents of float32 and half precision differ by 112
_F16_OVERFLOW = np.uint32(0x47800000)  # 2^16
_F16_INFINITY = np.uint32(0x0F800000)  # its exponent of all ones, moved by 13 bits
_F16_ONE_EXPONENT = np.uint32(1 << 23)
_F16_MIN = np.float32(2.0**-14)


@njit
def f16_to_f32(h):  # type: ignore[no-untyped-def]
    """The float32 of IEEE half-precision bits, exactly; infinities and NaN keep their kind."""
    size = np.uint32((np.uint32(h) & np.uint32(0x7FFF)) << np.uint32(13))
    sign = np.uint32((np.uint32(h) & np.uint32(0x8000)) << np.uint32(16))
    normal = np.uint32(size + _REBIAS)
    # A denormal's bits under the exponent of 2^-14 make 2^-14 more than its value. (Denormal float32 would be slow.)
    denormal = bits_of_f32(f32_from_bits(np.uint32(size + _REBIAS + _F16_ONE_EXPONENT)) - _F16_MIN)
    scaled = denormal if size < _F16_ONE_EXPONENT else normal
    scaled = np.uint32(size | _INFINITY) if size >= _F16_INFINITY else scaled
    return f32_from_bits(np.uint32(scaled | sign))


@njit
def f32_to_f16(x):  # type: ignore[no-untyped-def]
    """IEEE half-precision bits of a float32, rounded to nearest, ties to even; infinite beyond its range."""
    bits = bits_of_f32(np.float32(x))
    size = np.uint32(bits & _MAGNITUDE)
    # Below 2^-14 half precision steps by 2^-24, which is the spacing of float32 at 0.5: the addition does the rounding.
    small = np.uint32(bits_of_f32(f32_from_bits(size) + _HALF) - _HALF_BITS)
    rounded = np.uint32(size + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1)))
    normal = np.uint32((rounded - _REBIAS) >> np.uint32(13))
    result = small if size < _SMALLEST_NORMAL_F16 else normal
    result = np.uint32(0x7C00) if rounded >= _F16_OVERFLOW else result
    result = np.uint32(0x7E00) if size > _INFINITY else result
    return np.uint16(((bits & _SIGN) >> np.uint32(16)) | result)


@njit(inline="always")
def bf16_to_f32(b):  # type: ignore[no-untyped-def]
    """The float32 of bfloat16 bits: its upper half."""
    return f32_from_bits(types.uint32(b) << types.uint32(16))


@njit(inline="always")
def round_to_bf16(bits):  # type: ignore[no-untyped-def]
    """bfloat16 bits of a float32's bits, rounded to nearest, ties to even; NaN could become infinite."""
    odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit(inline="always")
def f32_to_bf16(x):  # type: ignore[no-untyped-def]
    """bfloat16 bits of a float32, rounded to nearest, ties to even."""
    bits = bits_of_f32(types.float32(x))
    if types.uint32(bits & types.uint32(0x7FFFFFFF)) > types.uint32(0x7F800000):
        return types.uint16(types.uint32(bits >> types.uint32(16)) | types.uint32(0x40))
    return round_to_bf16(bits)
