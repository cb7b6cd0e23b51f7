"""Encoders of the formats of one weight a block and of 32, for numba to compile: F32 F16 BF16, Q4_0 Q4_1, Q5_0 Q5_1,
Q8_0 (`ggpy.quant.block_format.BlockFormat.encoder`).

The arithmetic and its roundings are those of ggml's reference (`quantize_row_*_ref` in ggml-quants.c), without fused
multiply-adds. A block so small that the reciprocal of its scale overflows stores codes of 0, which is what the
reference's conversions give.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types

from ggpy.codegen.scalars import bf16_to_f32, bits_of_f32, f16_to_f32, f32_to_f16, pointer_to, round_to_bf16, store_u16
from ggpy.quant.vector import bounds, clear, encode_4_bits, encode_5_bits, encode_8_bits, largest

__all__ = ["around_zero", "encode_4_bits", "encode_5_bits", "encode_8_bits", "from_smallest"]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_FP16_INFINITY = np.uint32(0x7C00)
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
as_floats, as_halves = pointer_to(types.float32), pointer_to(types.uint16)
_LARGEST = np.float32(3.4028234663852886e38)


def widen_fp16(source, target, n, scratch):  # type: ignore[no-untyped-def]
    """Bits of fp16 [n] → float32 [n]."""
    x, out = carray(as_halves(source), n), carray(as_floats(target), n)
    for i in range(n):
        out[i] = f16_to_f32(x[i])
    return -1


def widen_bf16(source, target, n, scratch):  # type: ignore[no-untyped-def]
    """Bits of bfloat16 [n] → float32 [n]."""
    x, out = carray(as_halves(source), n), carray(as_floats(target), n)
    for i in range(n):
        out[i] = bf16_to_f32(x[i])
    return -1


def narrow_fp16(source, target, n, scratch):  # type: ignore[no-untyped-def]
    """float32 [n] → bits of fp16 [n]; 0 where a value is not finite there."""
    x, out = carray(as_floats(source), n), carray(as_halves(target), n)
    worst = np.uint32(0)
    for i in range(n):
        bits = f32_to_f16(x[i])
        worst = max(worst, np.uint32(bits & np.uint32(0x7FFF)))
        out[i] = bits
    return -1 if worst < _FP16_INFINITY else 0


def narrow_bf16(source, target, n, scratch):  # type: ignore[no-untyped-def]
    """float32 [n] → bits of bfloat16 [n]; 0 where a value is not finite there."""
    x, out = carray(as_floats(source), n), carray(as_halves(target), n)
    worst = np.uint32(0)
    for i in range(n):
        bits = bits_of_f32(x[i])
        worst = max(worst, np.uint32(bits & _MAGNITUDE))
        out[i] = round_to_bf16(bits)
    return -1 if worst < np.uint32(0x7F7F8000) else 0  # what rounds up to infinity is infinite already


def copy_finite(source, target, n, scratch):  # type: ignore[no-untyped-def]
    """float32 [n] → float32 [n]; 0 where a value is not finite."""
    x, out = carray(as_floats(source), n), carray(as_floats(target), n)
    worst = np.uint32(0)
    for i in range(n):
        worst = max(worst, np.uint32(bits_of_f32(x[i]) & _MAGNITUDE))
        out[i] = x[i]
    return -1 if worst < _INFINITY else 0


@njit(inline="always")
def _reciprocal(d):  # type: ignore[no-untyped-def]
    return np.float32(_ONE / d) if d != _ZERO else _ZERO


@njit(inline="always")
def _overflows(half):  # type: ignore[no-untyped-def]
    return np.uint32(half & np.uint32(0x7FFF)) >= _FP16_INFINITY


def around_zero(type_size: int, encode: Any, divisor: float) -> Any:
    """The encoder of blocks of 32 weights d · code: d, fp16, is the weight of largest size over `divisor`, or its size
    where that is positive; then codes, as `encode` writes them."""
    signed, shift, n_codes = divisor < 0, np.float32(0.5 - divisor), type_size - 2
    by = np.float32(divisor)

    def quantize(x, out, n, scratch):  # type: ignore[no-untyped-def]
        for b in range(n):
            at, to = np.uint64(x + np.uint64(b * 128)), np.uint64(out + np.uint64(b * type_size))
            found = largest(at)
            d = np.float32((found if signed else abs(found)) / by)
            half, inverse = f32_to_f16(d), _reciprocal(d)
            if _overflows(half):
                return b
            store_u16(to, half)
            if (abs(inverse) if signed else inverse) <= _LARGEST:
                encode(at, np.uint64(to + np.uint64(2)), _ZERO, inverse, shift)
            else:
                clear(np.uint64(to + np.uint64(2)), n_codes)
        return -1

    return quantize


def from_smallest(type_size: int, encode: Any, n_steps: float) -> Any:
    """The encoder of blocks of 32 weights d · code + m: m, fp16, is the smallest, d a part of `n_steps` of what the
    largest has above it; then codes, as `encode` writes them."""
    n_codes, steps = type_size - 4, np.float32(n_steps)

    def quantize(x, out, n, scratch):  # type: ignore[no-untyped-def]
        for b in range(n):
            at, to = np.uint64(x + np.uint64(b * 128)), np.uint64(out + np.uint64(b * type_size))
            low, high = bounds(at)
            d = np.float32(np.float32(high - low) / steps) if high != low else _ZERO
            half, minimum, inverse = f32_to_f16(d), f32_to_f16(low), _reciprocal(d)
            if _overflows(half) or _overflows(minimum):
                return b
            store_u16(to, half)
            store_u16(np.uint64(to + np.uint64(2)), minimum)
            if inverse <= _LARGEST:
                encode(at, np.uint64(to + np.uint64(4)), low, inverse, _HALF)
            else:
                clear(np.uint64(to + np.uint64(4)), n_codes)
        return -1

    return quantize
