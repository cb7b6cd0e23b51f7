"""The blocks of a GGUF row, read one by one, as `ggpy.cpu.weights.blocks` does on the CPU: what packing them is made
of.

Readers take the address `top` of the file's own block, of 32, 64 or 256 columns, and which 32 columns of it are meant,
`sub`. `code(top, sub, column)` is the code of one of these. `levels(top, sub)` is six numbers as the planes keep them,
halves as their bits: super-scale, super-minimum, scale of the first 16 columns and of the last, their minima.
"""

from __future__ import annotations

from typing import Any

from ggpy.cuda.isa.device import at, f32, inline, u32
from ggpy.cuda.isa.instructions import f32_to_half, load_u8, load_u16
from ggpy.cuda.weights import codebooks
from ggpy.cuda.weights.block_words import NONE


def readers(name: str) -> tuple[Any, Any]:
    """The readers (`code`, `levels`) of a type."""
    if name in CODES:
        return CODES[name], LEVELS[name]
    return codebooks.readers(name)


# ---- codes


def _nibbles(skip: int, fifth: int = 0, size: int = 0) -> Any:
    """Reader of 4-bit codes after `skip` bytes, the first 16 columns in the low nibbles; the fifth bits in a word at
    `fifth`; `size`: bytes from 32 columns to the next."""

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        byte = load_u8(at(top, skip + size * sub + column % 16))
        value = byte >> u32(4) if column >= 16 else byte & u32(15)
        if fifth:
            value |= ((load_u8(at(top, fifth + column // 8)) >> u32(column % 8)) & u32(1)) << u32(4)
        return value

    return code


@inline
def _q8(top, sub, column):  # type: ignore[no-untyped-def]
    return load_u8(at(top, 2 + column))


def _k_nibbles(skip: int, fifth: int = 0) -> Any:
    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        value = (load_u8(at(top, skip + sub // 2 * 32 + column)) >> u32(4 * (sub % 2))) & u32(15)
        if fifth:
            value |= ((load_u8(at(top, fifth + column)) >> u32(sub)) & u32(1)) << u32(4)
        return value

    return code


def _k_pairs(skip: int, third: bool = False) -> Any:
    """Reader of 2-bit codes after `skip` bytes, with third bits at the start of the block where `third`."""

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        value = (load_u8(at(top, skip + sub // 4 * 32 + column)) >> u32(2 * (sub % 4))) & u32(3)
        if third:
            value |= ((load_u8(at(top, column)) >> u32(sub)) & u32(1)) << u32(2)
        return value

    return code


@inline
def _q6_k(top, sub, column):  # type: ignore[no-untyped-def]
    half, quarter = sub // 4, sub % 4
    low = load_u8(at(top, 64 * half + 32 * (quarter % 2) + column)) >> u32(4 * (quarter // 2))
    high = load_u8(at(top, 128 + 32 * half + column)) >> u32(2 * quarter)
    return (low & u32(15)) | ((high & u32(3)) << u32(4))


@inline
def _nvfp4(top, sub, column):  # type: ignore[no-untyped-def]
    """Code of NVFP4: runs of 16 columns, the first eight in the low nibbles."""
    byte = load_u8(at(top, 4 + 16 * sub + column // 16 * 8 + column % 8))
    return byte >> u32(4) if column % 16 >= 8 else byte & u32(15)


@inline
def _tq1_0(top, sub, column):  # type: ignore[no-untyped-def]
    """Code of TQ1_0: five base-3 digits a byte, which is a fraction of 256; each multiplication by 3 pushes the next
    digit out."""
    column += 32 * sub
    place, digit = column % 32, column // 32
    if column >= 240:
        place, digit = 48 + column % 4, (column - 240) // 4
    elif column >= 160:
        place, digit = 32 + column % 16, (column - 160) // 16
    fraction = load_u8(at(top, place))
    for _ in range(digit):
        fraction = (fraction * u32(3)) & u32(255)
    return (fraction * u32(3)) >> u32(8)


CODES: dict[str, Any] = {
    "Q4_0": _nibbles(2),
    "Q4_1": _nibbles(4),
    "Q5_0": _nibbles(6, fifth=2),
    "Q5_1": _nibbles(8, fifth=4),
    "Q8_0": _q8,
    "Q2_K": _k_pairs(16),
    "Q3_K": _k_pairs(32, third=True),
    "Q4_K": _k_nibbles(16),
    "Q5_K": _k_nibbles(48, fifth=16),
    "Q6_K": _q6_k,
    "IQ4_NL": _nibbles(2),
    "IQ4_XS": _nibbles(8, size=16),
    "MXFP4": _nibbles(1),
    "NVFP4": _nvfp4,
    "TQ1_0": _tq1_0,
    "TQ2_0": _k_pairs(0),
}


# ---- scales and minima


def _half(minima: bool = False) -> Any:
    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        scale = load_u16(top)
        minimum = load_u16(at(top, 2)) if minima else u32(NONE)
        return u32(NONE), u32(NONE), scale, scale, minimum, minimum

    return levels


@inline
def _power(top, sub):  # type: ignore[no-untyped-def]
    scale = load_u8(top)
    return u32(NONE), u32(NONE), scale, scale, u32(NONE), u32(NONE)


@inline
def _ue4m3_half(byte):  # type: ignore[no-untyped-def]
    """The bits, as a half, of half an unsigned float of 4 exponent and 3 fraction bits; 0 for 127, which is NaN."""
    exponent, fraction = (byte >> u32(3)) & u32(15), byte & u32(7)
    bits = ((exponent + u32(7)) << u32(10)) | (fraction << u32(7))
    if exponent == u32(0):
        bits = f32_to_half(f32(fraction) * f32(2.0**-10))
    return u32(0) if byte == u32(127) else bits


@inline
def _nvfp4_levels(top, sub):  # type: ignore[no-untyped-def]
    first, last = load_u8(at(top, 2 * sub)), load_u8(at(top, 2 * sub + 1))
    return u32(NONE), u32(NONE), _ue4m3_half(first), _ue4m3_half(last), u32(NONE), u32(NONE)


@inline
def _q2_k_levels(top, sub):  # type: ignore[no-untyped-def]
    first, last = load_u8(at(top, 2 * sub)), load_u8(at(top, 2 * sub + 1))
    d, dmin = load_u16(at(top, 80)), load_u16(at(top, 82))
    return d, dmin, first & u32(15), last & u32(15), first >> u32(4), last >> u32(4)


@inline
def _q3_k_scale(scales, s):  # type: ignore[no-untyped-def]
    """One of 16 signed scales of six bits: nibbles of eight bytes, then pairs of four more."""
    low = (load_u8(at(scales, s % 8)) >> u32(s // 8 * 4)) & u32(15)
    high = (load_u8(at(scales, 8 + s % 4)) >> u32(s // 4 * 2)) & u32(3)
    return (low | (high << u32(4))) - u32(32)


@inline
def _q3_k_levels(top, sub):  # type: ignore[no-untyped-def]
    scales = at(top, 96)
    first, last = _q3_k_scale(scales, 2 * sub), _q3_k_scale(scales, 2 * sub + 1)
    return load_u16(at(top, 108)), u32(NONE), first, last, u32(NONE), u32(NONE)


@inline
def _k_scale(scales, sub, minimum):  # type: ignore[no-untyped-def]
    """The 6-bit scale or minimum of one of eight blocks, from the 12 bytes in which K formats keep them."""
    if sub < 4:
        return load_u8(at(scales, sub + 4 * minimum)) & u32(63)
    low = (load_u8(at(scales, sub + 4)) >> u32(4 * minimum)) & u32(15)
    return low | ((load_u8(at(scales, sub - 4 + 4 * minimum)) >> u32(6)) << u32(4))


@inline
def _k_levels(top, sub):  # type: ignore[no-untyped-def]
    scale, minimum = _k_scale(at(top, 4), sub, 0), _k_scale(at(top, 4), sub, 1)
    return load_u16(top), load_u16(at(top, 2)), scale, scale, minimum, minimum


@inline
def _q6_k_levels(top, sub):  # type: ignore[no-untyped-def]
    first, last = load_u8(at(top, 192 + 2 * sub)), load_u8(at(top, 193 + 2 * sub))
    return load_u16(at(top, 208)), u32(NONE), first, last, u32(NONE), u32(NONE)


@inline
def _iq4_xs_levels(top, sub):  # type: ignore[no-untyped-def]
    low = (load_u8(at(top, 4 + sub // 2)) >> u32(4 * (sub % 2))) & u32(15)
    high = (load_u16(at(top, 2)) >> u32(2 * sub)) & u32(3)
    scale = (low | (high << u32(4))) - u32(32)
    return load_u16(top), u32(NONE), scale, scale, u32(NONE), u32(NONE)


def _one_at(offset: int) -> Any:
    """Reader of the super-scale alone, at `offset`."""

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        return load_u16(at(top, offset)), u32(NONE), u32(NONE), u32(NONE), u32(NONE), u32(NONE)

    return levels


LEVELS: dict[str, Any] = {
    "Q4_0": _half(),
    "Q4_1": _half(minima=True),
    "Q5_0": _half(),
    "Q5_1": _half(minima=True),
    "Q8_0": _half(),
    "Q2_K": _q2_k_levels,
    "Q3_K": _q3_k_levels,
    "Q4_K": _k_levels,
    "Q5_K": _k_levels,
    "Q6_K": _q6_k_levels,
    "IQ4_NL": _half(),
    "IQ4_XS": _iq4_xs_levels,
    "MXFP4": _power,
    "NVFP4": _nvfp4_levels,
    "TQ1_0": _one_at(52),
    "TQ2_0": _one_at(64),
}
