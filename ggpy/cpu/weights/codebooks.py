"""The blocks of the codebook formats: four or eight neighbouring weights are a row of a grid, given by its number.

Codes are a weight's place among the magnitudes of its grid, with the sign, which the formats keep apart, as the highest
bit (in IQ1 formats that bit is the eighth which a group's weights are shifted by, up or down). The grids are those of
`ggpy.quant.codebooks`. Readers are as in `ggpy.cpu.weights.blocks`; scales are odd numbers, 2 s + 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import quants
from numba import njit, types

from ggpy.codegen.scalars import load_u8, load_u16, load_u32, store_u8
from ggpy.quant.codebooks import grid

_IQ1, _IQ2_XXS, _IQ2_XS, _IQ2_S, _IQ3_XXS, _IQ3_S = (
    grid(name) for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
)
_SIGNS = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)  # of eight weights, from seven bits: an even number is negative


@njit(inline="always")
def _byte(at, offset):  # type: ignore[no-untyped-def]
    return types.int64(load_u8(at + types.uint64(offset)))


@njit(inline="always")
def _eight(codes, k, grid, row, signs):  # type: ignore[no-untyped-def]
    for j in range(8):
        store_u8(codes + types.uint64(8 * k + j), types.uint8(grid[row, j] | (((signs >> j) & 1) << 2)))


@njit(inline="always")
def _two_fours(codes, k, grid, first, second, signs):  # type: ignore[no-untyped-def]
    for j in range(4):
        at = codes + types.uint64(8 * k + j)
        store_u8(at, types.uint8(grid[first, j] | (((signs >> j) & 1) << 3)))
        store_u8(at + types.uint64(4), types.uint8(grid[second, j] | (((signs >> (4 + j)) & 1) << 3)))


@njit
def codes_iq1_s(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    high = types.int64(load_u16(top + types.uint64(34 + 2 * (i % 8))))
    for k in range(4):
        row = _byte(top, 2 + 4 * (i % 8) + k) | (((high >> (3 * k)) & 7) << 8)
        _eight(codes, k, _IQ1, row, -(high >> 15))


@njit
def codes_iq1_m(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    for k in range(4):
        at = 4 * (i % 8) + k
        high = _byte(top, 32 + at // 2) >> (4 * (at % 2))
        _eight(codes, k, _IQ1, _byte(top, at) | ((high & 7) << 8), -((high >> 3) & 1))


@njit
def codes_iq2_xxs(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i // 8 * size + 2 + 8 * (i % 8))
    word = types.int64(load_u32(at + types.uint64(4)))
    for k in range(4):
        _eight(codes, k, _IQ2_XXS, _byte(at, k), _SIGNS[(word >> (7 * k)) & 127])


@njit
def codes_iq2_xs(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i // 8 * size + 2 + 8 * (i % 8))
    for k in range(4):
        word = types.int64(load_u16(at + types.uint64(2 * k)))
        _eight(codes, k, _IQ2_XS, word & 511, _SIGNS[word >> 9])


@njit
def codes_iq2_s(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    top, sub = raw + types.uint64(i // 8 * size), i % 8
    high = _byte(top, 66 + sub)
    for k in range(4):
        row = _byte(top, 2 + 4 * sub + k) | (((high >> (2 * k)) & 3) << 8)
        _eight(codes, k, _IQ2_S, row, _byte(top, 34 + 4 * sub + k))


@njit
def codes_iq3_xxs(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    top, sub = raw + types.uint64(i // 8 * size), i % 8
    word = types.int64(load_u32(top + types.uint64(66 + 4 * sub)))
    for k in range(4):
        first, second = _byte(top, 2 + 8 * sub + 2 * k), _byte(top, 3 + 8 * sub + 2 * k)
        _two_fours(codes, k, _IQ3_XXS, first, second, _SIGNS[(word >> (7 * k)) & 127])


@njit
def codes_iq3_s(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    top, sub = raw + types.uint64(i // 8 * size), i % 8
    high = _byte(top, 66 + sub)
    for k in range(4):
        first = _byte(top, 2 + 8 * sub + 2 * k) | (((high >> (2 * k)) & 1) << 8)
        second = _byte(top, 3 + 8 * sub + 2 * k) | (((high >> (2 * k + 1)) & 1) << 8)
        _two_fours(codes, k, _IQ3_S, first, second, _byte(top, 74 + 4 * sub + k))


@njit
def levels_iq1_s(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    s = (types.int64(load_u16(top + types.uint64(34 + 2 * (i % 8)))) >> 12) & 7
    return types.int64(load_u16(top)), 0, 2 * s + 1, 2 * s + 1, 0, 0


@njit
def levels_iq1_m(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    """Levels of IQ1_M: four words of four 3-bit scales, whose highest four bits together are the super-scale."""
    at = raw + types.uint64(i // 8 * size + 48)
    d = types.int64(0)
    for word in range(4):
        d |= (types.int64(load_u16(at + types.uint64(2 * word))) >> 12) << (4 * word)
    scales = types.int64(load_u16(at + types.uint64(i % 8 // 2 * 2))) >> (6 * (i % 2))
    return d, 0, 2 * (scales & 7) + 1, 2 * ((scales >> 3) & 7) + 1, 0, 0


@njit
def levels_word(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    """Levels of IQ2_XXS and IQ3_XXS: bits above the signs of 32 weights, in one of eight words at the block's end or
    between its codes."""
    top = raw + types.uint64(i // 8 * size)
    at = 6 + 8 * (i % 8) if size == 66 else 66 + 4 * (i % 8)
    s = types.int64(load_u32(top + types.uint64(at))) >> 28
    return types.int64(load_u16(top)), 0, 2 * s + 1, 2 * s + 1, 0, 0


@njit
def levels_iq2(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    """Levels of IQ2_XS and IQ2_S: two scales a byte, in the last eight bytes."""
    top = raw + types.uint64(i // 8 * size)
    byte = _byte(top, size - 8 + i % 8)
    return types.int64(load_u16(top)), 0, 2 * (byte & 15) + 1, 2 * (byte >> 4) + 1, 0, 0


@njit
def levels_iq3_s(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    s = (_byte(top, 106 + i % 8 // 2) >> (4 * (i % 2))) & 15
    return types.int64(load_u16(top)), 0, 2 * s + 1, 2 * s + 1, 0, 0


READERS: dict[str, tuple[Any, int, Any]] = {  # codes, bytes before them (the readers know), levels
    "IQ1_S": (codes_iq1_s, 0, levels_iq1_s),
    "IQ1_M": (codes_iq1_m, 0, levels_iq1_m),
    "IQ2_XXS": (codes_iq2_xxs, 0, levels_word),
    "IQ2_XS": (codes_iq2_xs, 0, levels_iq2),
    "IQ2_S": (codes_iq2_s, 0, levels_iq2),
    "IQ3_XXS": (codes_iq3_xxs, 0, levels_word),
    "IQ3_S": (codes_iq3_s, 0, levels_iq3_s),
}
