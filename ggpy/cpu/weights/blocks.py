"""The blocks of a GGUF row, read one by one: codes, scales and minima of 32 columns. `raw` is the row's address, `i`
the block.

A reader of codes fills the 32 bytes at the address `codes`, four at a time where it can; `size` is the bytes of one of
the file's own blocks, of 32, 64 or 256 columns, `skip` those before its codes. A reader of levels returns six numbers
as packed stripes keep them, halves as their bits: super-scale, super-minimum, scale of the first 16 columns and of the
last, minimum of the first and of the last.
Packing stores both; embedding computes with both, through `number_of` and `scale_of`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from ggpy.codegen.scalars import (
    f16_to_f32,
    f32_from_bits,
    f32_to_f16,
    load_i8,
    load_u8,
    load_u16,
    load_u32,
    store_u8,
    store_u32,
)
from ggpy.quant.packed import Packed

# ---- the 32 codes, by format


FOURS, TWOS, ONES = (np.uint32(0x01010101 * mask) for mask in (15, 3, 1))  # of four codes at a time, a byte each


@njit(inline="always")
def _word(at, j):  # type: ignore[no-untyped-def]
    return load_u32(at + types.uint64(4 * j))


@njit(inline="always")
def _put(codes, j, word):  # type: ignore[no-untyped-def]
    store_u32(codes + types.uint64(4 * j), word)


@njit(inline="always")
def _nibbles(at, codes):  # type: ignore[no-untyped-def]
    for j in range(4):
        word = _word(at, j)
        _put(codes, j, word & FOURS)
        _put(codes, j + 4, (word >> types.uint32(4)) & FOURS)


@njit
def codes_q4(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    _nibbles(raw + types.uint64(i * size + skip), codes)


@njit
def codes_q5(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size + skip)
    high = types.uint64(load_u32(at))
    for j in range(8):
        low = (_word(at + types.uint64(4), j % 4) >> types.uint32(j // 4 * 4)) & FOURS
        # four bits side by side become the fifth of four bytes: the factor repeats them 7 places apart
        four = (high >> types.uint64(4 * j)) & types.uint64(15)
        spread = types.uint32((four * types.uint64(0x00204081)) & types.uint64(0x01010101))
        _put(codes, j, low | (spread << types.uint32(4)))


@njit
def codes_q8(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size + skip)
    for j in range(8):
        _put(codes, j, _word(at, j))


@njit
def codes_q2_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i // 8 * size + skip + i % 8 // 4 * 32)
    shift = types.uint32(2 * (i % 4))
    for j in range(8):
        _put(codes, j, (_word(at, j) >> shift) & TWOS)


@njit
def codes_q3_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    codes_q2_k(raw, i, skip, size, codes)
    high = raw + types.uint64(i // 8 * size)
    shift = types.uint32(i % 8)
    for j in range(8):
        _put(codes, j, _word(codes, j) | (((_word(high, j) >> shift) & ONES) << types.uint32(2)))


@njit
def codes_q4_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    sub = i % 8
    at = raw + types.uint64(i // 8 * size + 16 + sub // 2 * 32)
    shift = types.uint32(4 * (sub % 2))
    for j in range(8):
        _put(codes, j, (_word(at, j) >> shift) & FOURS)


@njit
def codes_q5_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    sub = i % 8
    high = raw + types.uint64(i // 8 * size + 16)
    at = high + types.uint64(32 + sub // 2 * 32)
    shift = types.uint32(4 * (sub % 2))
    for j in range(8):
        bits = (_word(high, j) >> types.uint32(sub)) & ONES
        _put(codes, j, ((_word(at, j) >> shift) & FOURS) | (bits << types.uint32(4)))


@njit
def codes_q6_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    half, quarter = i % 8 // 4, i % 4
    top = raw + types.uint64(i // 8 * size)
    low = top + types.uint64(64 * half + 32 * (quarter % 2))
    high = top + types.uint64(128 + 32 * half)
    low_shift, high_shift = types.uint32(4 * (quarter // 2)), types.uint32(2 * quarter)
    for j in range(8):
        bits = (_word(high, j) >> high_shift) & TWOS
        _put(codes, j, ((_word(low, j) >> low_shift) & FOURS) | (bits << types.uint32(4)))


@njit
def codes_iq4_xs(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    _nibbles(raw + types.uint64(i // 8 * size + skip + i % 8 * 16), codes)


@njit
def codes_nvfp4(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i // 2 * size + skip + i % 2 * 16)
    for j in range(16):
        byte = load_u8(at + types.uint64(j))
        to = codes + types.uint64(j // 8 * 16 + j % 8)
        store_u8(to, byte & types.uint8(15))
        store_u8(to + types.uint64(8), byte >> types.uint8(4))


@njit
def codes_tq1_0(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    """Codes of TQ1_0, five base-3 digits a byte: it is a fraction of 256, each times 3 pushes out the next digit."""
    top = raw + types.uint64(i // 8 * size)
    for j in range(32):
        column = i % 8 * 32 + j
        at, digit = column % 32, column // 32
        if column >= 240:
            at, digit = 48 + column % 4, (column - 240) // 4
        elif column >= 160:
            at, digit = 32 + column % 16, (column - 160) // 16
        fraction = types.int64(load_u8(top + types.uint64(at)))
        for _ in range(digit):
            fraction = (fraction * 3) & 255
        store_u8(codes + types.uint64(j), types.uint8((fraction * 3) >> 8))


# ---- scales and minima


@njit
def levels_half(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size)
    scale = types.int64(load_u16(at))
    minimum = types.int64(load_u16(at + types.uint64(2))) if n_minima else 0
    return 0, 0, scale, scale, minimum, minimum


@njit
def levels_power(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    scale = types.int64(load_u8(raw + types.uint64(i * size)))
    return 0, 0, scale, scale, 0, 0


@njit
def _ue4m3_half(byte):  # type: ignore[no-untyped-def]
    """Half-precision bits of half a UE4M3 number (unsigned, 4 exponent and 3 fraction bits); 127, NaN, gives 0."""
    if byte == 127:
        return 0
    exponent, fraction = (byte >> 3) & 15, byte & 7
    if exponent == 0:
        return types.int64(f32_to_f16(types.float32(fraction) * types.float32(2.0**-10)))
    return ((exponent + 7) << 10) | (fraction << 7)


@njit
def levels_nvfp4(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i // 2 * size + 2 * (i % 2))
    first, second = types.int64(load_u8(at)), types.int64(load_u8(at + types.uint64(1)))
    return 0, 0, _ue4m3_half(first), _ue4m3_half(second), 0, 0


@njit
def levels_q2_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    d, dmin = types.int64(load_u16(top + types.uint64(80))), types.int64(load_u16(top + types.uint64(82)))
    at = top + types.uint64(2 * (i % 8))
    first, second = types.int64(load_u8(at)), types.int64(load_u8(at + types.uint64(1)))
    return d, dmin, first & 15, second & 15, first >> 4, second >> 4


@njit
def _q3_k_scale(scales, s):  # type: ignore[no-untyped-def]
    """One of 16 signed scales of six bits: nibbles of eight bytes, then pairs of four more."""
    low = (types.int64(load_u8(scales + types.uint64(s % 8))) >> (s // 8 * 4)) & 15
    high = (types.int64(load_u8(scales + types.uint64(8 + s % 4))) >> (s // 4 * 2)) & 3
    return (low | (high << 4)) - 32


@njit
def levels_q3_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    scales, s = top + types.uint64(96), 2 * (i % 8)
    return types.int64(load_u16(top + types.uint64(108))), 0, _q3_k_scale(scales, s), _q3_k_scale(scales, s + 1), 0, 0


@njit
def _k_scale(scales, sub, minimum):  # type: ignore[no-untyped-def]
    """The 6-bit scale or minimum of one of eight blocks, from the 12 bytes in which K formats keep them."""
    if sub < 4:
        return types.int64(load_u8(scales + types.uint64(sub + 4 * minimum)) & 63)
    low = (load_u8(scales + types.uint64(sub + 4)) >> types.uint8(4 * minimum)) & 15
    return types.int64(low | ((load_u8(scales + types.uint64(sub - 4 + 4 * minimum)) >> types.uint8(6)) << 4))


@njit
def levels_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    d, dmin = types.int64(load_u16(top)), types.int64(load_u16(top + types.uint64(2)))
    scale, minimum = _k_scale(top + types.uint64(4), i % 8, 0), _k_scale(top + types.uint64(4), i % 8, 1)
    return d, dmin, scale, scale, minimum, minimum


@njit
def levels_q6_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    at = top + types.uint64(192 + 2 * (i % 8))
    first, second = types.int64(load_i8(at)), types.int64(load_i8(at + types.uint64(1)))
    return types.int64(load_u16(top + types.uint64(208))), 0, first, second, 0, 0


@njit
def levels_iq4_xs(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top, sub = raw + types.uint64(i // 8 * size), i % 8
    low = (types.int64(load_u8(top + types.uint64(4 + sub // 2))) >> (4 * (sub % 2))) & 15
    high = (types.int64(load_u16(top + types.uint64(2))) >> (2 * sub)) & 3
    scale = (low | (high << 4)) - 32
    return types.int64(load_u16(top)), 0, scale, scale, 0, 0


@njit
def levels_tq1_0(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    """Levels of TQ1_0, whose super-scale comes last in the block."""
    d = types.int64(load_u16(raw + types.uint64((i // 8 + 1) * size - 2)))
    return d, 0, 0, 0, 0, 0


_READERS: dict[str, tuple[Any, int, Any]] = {  # codes, bytes before them, levels
    "Q4_0": (codes_q4, 2, levels_half),
    "Q4_1": (codes_q4, 4, levels_half),
    "Q5_0": (codes_q5, 2, levels_half),
    "Q5_1": (codes_q5, 4, levels_half),
    "Q8_0": (codes_q8, 2, levels_half),
    "Q2_K": (codes_q2_k, 16, levels_q2_k),
    "Q3_K": (codes_q3_k, 32, levels_q3_k),
    "Q4_K": (codes_q4_k, 0, levels_k),
    "Q5_K": (codes_q5_k, 0, levels_k),
    "Q6_K": (codes_q6_k, 0, levels_q6_k),
    "IQ4_NL": (codes_q4, 2, levels_half),
    "IQ4_XS": (codes_iq4_xs, 8, levels_iq4_xs),
    "MXFP4": (codes_q4, 1, levels_power),
    "NVFP4": (codes_nvfp4, 4, levels_nvfp4),
    "TQ1_0": (codes_tq1_0, 0, levels_tq1_0),
    "TQ2_0": (codes_q2_k, 0, levels_tq1_0),
}


def readers(name: str) -> tuple[Any, int, Any]:
    """(reader of codes, its `skip`, reader of levels) of a type."""
    if name not in _READERS:
        from ggpy.cpu.weights import codebooks

        return codebooks.READERS[name]
    return _READERS[name]


# ---- what codes and levels stand for


def number_of(p: Packed) -> Any:
    """`number(code)`: what a code stands for."""
    if p.table:
        table = np.array(p.table, np.int64)
        return njit(lambda code: table[code])
    offset, signed = p.offset, p.signed

    @njit
    def number(code):  # type: ignore[no-untyped-def]
        code = types.int64(code)
        return code - 256 if signed and code > 127 else code - offset

    return number


def scale_of(p: Packed) -> Any:
    """`scale(top, stored)`: float32 of a scale or minimum in its stored form, under the super-scale `top` (a float,
    already times the format's unit)."""
    form = p.scales

    @njit
    def scale(top, stored):  # type: ignore[no-untyped-def]
        stored = types.int64(stored)
        if form == "half":
            return f16_to_f32(types.uint16(stored))
        if form == "power":
            bits = (stored - 1) << 23 if stored > 1 else (stored + 1) << 21  # the two least are subnormal
            return f32_from_bits(types.uint32(bits))
        if form == "super":
            return top
        if form == "signed byte" and stored > 127:
            stored -= 256
        return top * types.float32(stored)

    return scale
