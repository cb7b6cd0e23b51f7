"""numba kernels that write the formats of one weight a block and of 32: F16 BF16, Q4_0 Q4_1 Q5_0 Q5_1, Q8_0.

Each block kernel takes float32 blocks [n, 32] and uint8 output blocks [n, type_size]. It returns the number of the
first block it cannot store (a NaN, an infinity, or a scale beyond fp16), or −1.

The arithmetic and its roundings are those of ggml's reference (`quantize_row_*_ref` in ggml-quants.c), without fused
multiply-adds. A block so small that the reciprocal of its scale overflows stores codes of 0, which is what the
reference's conversions give.
"""

from __future__ import annotations

import numpy as np

from ggpy.codegen.jit import compiled
from ggpy.quant.scalar import bf16_bits, bits_float, float_bits, fp16_bits, fp16_value
from ggpy.quant.vector import bounds, clear, encode_4_bits, encode_5_bits, encode_8_bits, largest

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_FP16_INFINITY = np.uint32(0x7C00)
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LARGEST = np.float32(3.4028234663852886e38)


@compiled
def widen_fp16(x, out):  # type: ignore[no-untyped-def]
    """uint16 bits of fp16 [n] → float32 [n]."""
    for i in range(len(x)):
        out[i] = fp16_value(x[i])


@compiled
def widen_bf16(x, out):  # type: ignore[no-untyped-def]
    """uint16 bits of bfloat16 [n] → float32 [n]."""
    for i in range(len(x)):
        out[i] = bits_float(np.uint32(np.uint32(x[i]) << np.uint32(16)))


@compiled
def narrow_fp16(x, out):  # type: ignore[no-untyped-def]
    """float32 [n] → uint16 bits of fp16 [n]; True when every value is finite there."""
    worst = np.uint32(0)
    for i in range(len(x)):
        bits = fp16_bits(x[i])
        worst = max(worst, np.uint32(bits & np.uint32(0x7FFF)))
        out[i] = bits
    return worst < _FP16_INFINITY


@compiled
def narrow_bf16(x, out):  # type: ignore[no-untyped-def]
    """float32 [n] → uint16 bits of bfloat16 [n]; True when every value is finite there."""
    worst = np.uint32(0)
    for i in range(len(x)):
        worst = max(worst, np.uint32(float_bits(x[i]) & _MAGNITUDE))
        out[i] = bf16_bits(x[i])
    return worst < np.uint32(0x7F7F8000)  # what rounds up to infinity is infinite already


@compiled
def copy_finite(x, out):  # type: ignore[no-untyped-def]
    """float32 [n] → float32 [n]; True when every value is finite."""
    worst = np.uint32(0)
    for i in range(len(x)):
        worst = max(worst, np.uint32(float_bits(x[i]) & _MAGNITUDE))
        out[i] = x[i]
    return worst < _INFINITY


@compiled(inline="always")
def _reciprocal(d):  # type: ignore[no-untyped-def]
    return np.float32(_ONE / d) if d != _ZERO else _ZERO


@compiled(inline="always")
def _overflows(half):  # type: ignore[no-untyped-def]
    return np.uint32(half & np.uint32(0x7FFF)) >= _FP16_INFINITY


@compiled(inline="always")
def _store_half(block, at, bits):  # type: ignore[no-untyped-def]
    block[at] = np.uint8(bits & np.uint32(0xFF))
    block[at + 1] = np.uint8(bits >> np.uint32(8))


@compiled
def quantize_q4_0(x, out):  # type: ignore[no-untyped-def]
    source, target = np.uint64(x.ctypes.data), np.uint64(out.ctypes.data)
    for b in range(len(x)):
        at, to = np.uint64(source + np.uint64(b * 128)), np.uint64(target + np.uint64(b * 18))
        d = np.float32(largest(at) / np.float32(-8))
        half, inverse = fp16_bits(d), _reciprocal(d)
        if _overflows(half):
            return b
        _store_half(out[b], 0, half)
        if abs(inverse) <= _LARGEST:
            encode_4_bits(at, np.uint64(to + np.uint64(2)), _ZERO, inverse, np.float32(8.5))
        else:
            clear(np.uint64(to + np.uint64(2)), 16)
    return -1


@compiled
def quantize_q5_0(x, out):  # type: ignore[no-untyped-def]
    source, target = np.uint64(x.ctypes.data), np.uint64(out.ctypes.data)
    for b in range(len(x)):
        at, to = np.uint64(source + np.uint64(b * 128)), np.uint64(target + np.uint64(b * 22))
        d = np.float32(largest(at) / np.float32(-16))
        half, inverse = fp16_bits(d), _reciprocal(d)
        if _overflows(half):
            return b
        _store_half(out[b], 0, half)
        if abs(inverse) <= _LARGEST:
            encode_5_bits(at, np.uint64(to + np.uint64(2)), _ZERO, inverse, np.float32(16.5))
        else:
            clear(np.uint64(to + np.uint64(2)), 20)
    return -1


@compiled
def quantize_q4_1(x, out):  # type: ignore[no-untyped-def]
    source, target = np.uint64(x.ctypes.data), np.uint64(out.ctypes.data)
    for b in range(len(x)):
        at, to = np.uint64(source + np.uint64(b * 128)), np.uint64(target + np.uint64(b * 20))
        low, high = bounds(at)
        d = np.float32(np.float32(high - low) / np.float32(15)) if high != low else _ZERO
        half, minimum, inverse = fp16_bits(d), fp16_bits(low), _reciprocal(d)
        if _overflows(half) or _overflows(minimum):
            return b
        _store_half(out[b], 0, half)
        _store_half(out[b], 2, minimum)
        if inverse <= _LARGEST:
            encode_4_bits(at, np.uint64(to + np.uint64(4)), low, inverse, _HALF)
        else:
            clear(np.uint64(to + np.uint64(4)), 16)
    return -1


@compiled
def quantize_q5_1(x, out):  # type: ignore[no-untyped-def]
    source, target = np.uint64(x.ctypes.data), np.uint64(out.ctypes.data)
    for b in range(len(x)):
        at, to = np.uint64(source + np.uint64(b * 128)), np.uint64(target + np.uint64(b * 24))
        low, high = bounds(at)
        d = np.float32(np.float32(high - low) / np.float32(31)) if high != low else _ZERO
        half, minimum, inverse = fp16_bits(d), fp16_bits(low), _reciprocal(d)
        if _overflows(half) or _overflows(minimum):
            return b
        _store_half(out[b], 0, half)
        _store_half(out[b], 2, minimum)
        if inverse <= _LARGEST:
            encode_5_bits(at, np.uint64(to + np.uint64(4)), low, inverse, _HALF)
        else:
            clear(np.uint64(to + np.uint64(4)), 20)
    return -1


@compiled
def quantize_q8_0(x, out):  # type: ignore[no-untyped-def]
    source, target = np.uint64(x.ctypes.data), np.uint64(out.ctypes.data)
    for b in range(len(x)):
        at, to = np.uint64(source + np.uint64(b * 128)), np.uint64(target + np.uint64(b * 34))
        d = np.float32(abs(largest(at)) / np.float32(127))
        half, inverse = fp16_bits(d), _reciprocal(d)
        if _overflows(half):
            return b
        _store_half(out[b], 0, half)
        if inverse <= _LARGEST:
            encode_8_bits(at, np.uint64(to + np.uint64(2)), inverse)
        else:
            clear(np.uint64(to + np.uint64(2)), 32)
    return -1
