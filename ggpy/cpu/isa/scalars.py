"""Scalars at raw addresses, for kernels written as plain numba code: loads, stores, atomic changes, bit casts and half
precision."""

from __future__ import annotations

from typing import Any

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
load_i32, load_u32 = _loader(types.int32), _loader(types.uint32)
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


@njit(inline="never")
def f16_to_f32(h):  # type: ignore[no-untyped-def]
    """The float32 of IEEE half-precision bits, by integer arithmetic: no CPU feature is asked for."""
    sign = types.uint32(h & 0x8000) << types.uint32(16)
    exponent = types.uint32((h >> 10) & 0x1F)
    fraction = types.uint32(h & 0x3FF)
    if exponent == 31:
        return f32_from_bits(types.uint32(sign | types.uint32(0x7F800000) | (fraction << types.uint32(13))))
    if exponent == 0:
        value = types.float32(fraction) * types.float32(5.9604644775390625e-08)
        return -value if sign else value
    return f32_from_bits(
        types.uint32(sign | ((exponent + types.uint32(112)) << types.uint32(23)) | (fraction << types.uint32(13)))
    )


@njit(inline="never")
def f32_to_f16(x):  # type: ignore[no-untyped-def]
    """IEEE half-precision bits of a float32, rounded to nearest, ties to even."""
    bits = bits_of_f32(types.float32(x))
    sign = types.uint32((bits >> types.uint32(16)) & types.uint32(0x8000))
    magnitude = types.uint32(bits & types.uint32(0x7FFFFFFF))
    if magnitude > types.uint32(0x7F800000):
        return types.uint16(sign | types.uint32(0x7E00))
    if magnitude >= types.uint32(0x47800000):
        return types.uint16(sign | types.uint32(0x7C00))
    if magnitude < types.uint32(0x38800000):
        # subnormal: adding 0.5 shifts the fraction into place with the FPU's own rounding
        shifted = bits_of_f32(types.float32(f32_from_bits(magnitude) + types.float32(0.5)))
        return types.uint16(sign | types.uint32(shifted - types.uint32(0x3F000000)))
    odd = types.uint32((magnitude >> types.uint32(13)) & types.uint32(1))
    rounded = types.uint32(magnitude + types.uint32(0xC8000FFF) + odd)
    return types.uint16(sign | (rounded >> types.uint32(13)))


@njit(inline="always")
def bf16_to_f32(b):  # type: ignore[no-untyped-def]
    """The float32 of bfloat16 bits: its upper half."""
    return f32_from_bits(types.uint32(b) << types.uint32(16))


@njit(inline="always")
def f32_to_bf16(x):  # type: ignore[no-untyped-def]
    """bfloat16 bits of a float32, rounded to nearest, ties to even."""
    bits = bits_of_f32(types.float32(x))
    if types.uint32(bits & types.uint32(0x7FFFFFFF)) > types.uint32(0x7F800000):
        return types.uint16(types.uint32(bits >> types.uint32(16)) | types.uint32(0x40))  # rounding could end NaN
    odd = types.uint32((bits >> types.uint32(16)) & types.uint32(1))
    return types.uint16(types.uint32(bits + types.uint32(0x7FFF) + odd) >> types.uint32(16))
