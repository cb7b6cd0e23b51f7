"""The blocks of a GGUF row, read one by one: codes, scales and minima of 32 columns. `raw` is the row's address, `i`
the block.

`size` is the bytes of one of the file's own blocks, of 32 or 256 columns, `skip` those before its codes.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from ggpy.cpu.memory import f16_to_f32, load_i8, load_u8, load_u16, load_u32

# ---- the 32 codes, by format


@njit(inline="always")
def _nibbles(at, codes):  # type: ignore[no-untyped-def]
    for j in range(16):
        byte = load_u8(at + types.uint64(j))
        codes[j] = byte & 15
        codes[j + 16] = byte >> 4


@njit
def codes_q4(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    _nibbles(raw + types.uint64(i * size + skip), codes)


@njit
def codes_q5(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size + skip)
    high = load_u32(at)
    _nibbles(at + types.uint64(4), codes)
    for j in range(32):
        codes[j] |= types.uint8(((high >> types.uint32(j)) & types.uint32(1)) << types.uint32(4))


@njit
def codes_q8(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size + skip)
    for j in range(32):
        codes[j] = load_u8(at + types.uint64(j))


@njit
def codes_q4_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    sub = i % 8
    at = raw + types.uint64(i // 8 * size + 16 + sub // 2 * 32)
    shift = types.uint8(4 * (sub % 2))
    for j in range(32):
        codes[j] = (load_u8(at + types.uint64(j)) >> shift) & 15


@njit
def codes_q5_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    sub = i % 8
    high = raw + types.uint64(i // 8 * size + 16)
    at = high + types.uint64(32 + sub // 2 * 32)
    shift = types.uint8(4 * (sub % 2))
    for j in range(32):
        bit = (load_u8(high + types.uint64(j)) >> types.uint8(sub)) & 1
        codes[j] = ((load_u8(at + types.uint64(j)) >> shift) & 15) | (bit << 4)


@njit
def codes_q6_k(raw, i, skip, size, codes):  # type: ignore[no-untyped-def]
    half, quarter = i % 8 // 4, i % 4
    top = raw + types.uint64(i // 8 * size)
    low = top + types.uint64(64 * half + 32 * (quarter % 2))
    high = top + types.uint64(128 + 32 * half)
    for j in range(32):
        nibble = (load_u8(low + types.uint64(j)) >> types.uint8(4 * (quarter // 2))) & 15
        codes[j] = nibble | (((load_u8(high + types.uint64(j)) >> types.uint8(2 * quarter)) & 3) << 4)


CODES: dict[str, tuple[Any, int]] = {  # the reader of a type, and its `skip`
    "Q4_0": (codes_q4, 2),
    "Q4_1": (codes_q4, 4),
    "Q5_0": (codes_q5, 2),
    "Q5_1": (codes_q5, 4),
    "Q8_0": (codes_q8, 2),
    "Q4_K": (codes_q4_k, 0),
    "Q5_K": (codes_q5_k, 0),
    "Q6_K": (codes_q6_k, 0),
}


# ---- scales and minima


@njit
def k_scale(scales, sub, minimum):  # type: ignore[no-untyped-def]
    """The 6-bit scale or minimum of one of eight blocks, from the 12 bytes in which K formats keep them."""
    if sub < 4:
        return load_u8(scales + types.uint64(sub + 4 * minimum)) & 63
    low = (load_u8(scales + types.uint64(sub + 4)) >> types.uint8(4 * minimum)) & 15
    return low | ((load_u8(scales + types.uint64(sub - 4 + 4 * minimum)) >> types.uint8(6)) << 4)


@njit
def levels_plain(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    """(scale of the first 16 columns, of the last 16, what is added)."""
    at = raw + types.uint64(i * size)
    scale = f16_to_f32(load_u16(at))
    return scale, scale, f16_to_f32(load_u16(at + types.uint64(2))) if n_minima else types.float32(0.0)


@njit
def levels_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    scale = f16_to_f32(load_u16(top)) * types.float32(k_scale(top + types.uint64(4), i % 8, 0))
    minimum = f16_to_f32(load_u16(top + types.uint64(2))) * types.float32(k_scale(top + types.uint64(4), i % 8, 1))
    return scale, scale, -minimum


@njit
def levels_q6_k(raw, i, size, n_minima):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    d = f16_to_f32(load_u16(top + types.uint64(208)))
    at = top + types.uint64(192 + 2 * (i % 8))
    first, second = types.float32(load_i8(at)), types.float32(load_i8(at + types.uint64(1)))
    return d * first, d * second, types.float32(0.0)
