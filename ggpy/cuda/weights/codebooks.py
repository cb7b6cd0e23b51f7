"""The blocks of the codebook formats (`ggpy.cpu.weights.codebooks` has the same for the CPU): readers as in
`ggpy.cuda.weights.blocks`.

Codes are a weight's place among the magnitudes of its grid, with the sign, which the formats keep apart, as the highest
bit (in IQ1 formats that bit is the eighth which a group's weights are shifted by). Scales are odd numbers, 2 s + 1.
"""

from __future__ import annotations

from typing import Any

from ggpy.cuda.isa.device import at, i32, inline, u32
from ggpy.cuda.isa.instructions import constants, load_u8, load_u16
from ggpy.cuda.weights.block_words import NONE, load_u32_of_halves
from ggpy.quant.codebooks import grid


def _places(name: str) -> Any:
    """`place(row, k)`: index, among the magnitudes of its grid, of weight k of a row."""
    rows = grid(name)
    bits = 2 if rows.max() < 4 else 4
    words = [sum(int(place) << bits * k for k, place in enumerate(row)) for row in rows]
    lookup = constants(f"ggpy_grid_{name}", words)

    @inline
    def place(row, k):  # type: ignore[no-untyped-def]
        return (lookup(i32(row)) >> u32(bits * k)) & u32(2**bits - 1)

    return place


@inline
def _sign(seven, k):  # type: ignore[no-untyped-def]
    """Sign of weight k of eight whose signs are given as seven bits: the eighth makes the number of minus signs
    even."""
    folded = seven ^ (seven >> u32(4))
    folded ^= folded >> u32(2)
    folded ^= folded >> u32(1)
    return ((seven | ((folded & u32(1)) << u32(7))) >> u32(k)) & u32(1)


def _iq1_s() -> tuple[Any, Any]:
    place = _places("IQ1_S")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        k, high = column // 8, load_u16(at(top, 34 + 2 * sub))
        row = load_u8(at(top, 2 + 4 * sub + k)) | (((high >> u32(3 * k)) & u32(7)) << u32(8))
        return place(row, column % 8) | ((high >> u32(15)) << u32(2))

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        scale = ((load_u16(at(top, 34 + 2 * sub)) >> u32(11)) & u32(14)) + u32(1)
        return load_u16(top), u32(NONE), scale, scale, u32(NONE), u32(NONE)

    return code, levels


def _iq1_m() -> tuple[Any, Any]:
    place = _places("IQ1_S")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        k = 4 * sub + column // 8
        high = load_u8(at(top, 32 + k // 2)) >> u32(4 * (k % 2))
        row = load_u8(at(top, k)) | ((high & u32(7)) << u32(8))
        return place(row, column % 8) | (((high >> u32(3)) & u32(1)) << u32(2))

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        """Levels of IQ1_M: four words of four 3-bit scales each, whose top four bits together are the super-scale."""
        d = u32(0)
        for word in range(4):
            d |= (load_u16(at(top, 48 + 2 * word)) >> u32(12)) << u32(4 * word)
        scales = load_u16(at(top, 48 + sub // 2 * 2)) >> u32(6 * (sub % 2))
        first, last = (scales & u32(7)) * u32(2) + u32(1), ((scales >> u32(3)) & u32(7)) * u32(2) + u32(1)
        return d, u32(NONE), first, last, u32(NONE), u32(NONE)

    return code, levels


def _word_levels(skip: int, step: int) -> Any:
    """Levels of IQ2_XXS and IQ3_XXS: the scale is above the signs of 32 weights, in a word."""

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        scale = (load_u16(at(top, skip + step * sub + 2)) >> u32(12)) * u32(2) + u32(1)
        return load_u16(top), u32(NONE), scale, scale, u32(NONE), u32(NONE)

    return levels


def _byte_levels(skip: int) -> Any:
    """Levels of IQ2_XS and IQ2_S: two scales a byte."""

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        byte = load_u8(at(top, skip + sub))
        first, last = (byte & u32(15)) * u32(2) + u32(1), (byte >> u32(4)) * u32(2) + u32(1)
        return load_u16(top), u32(NONE), first, last, u32(NONE), u32(NONE)

    return levels


def _iq2_xxs() -> tuple[Any, Any]:
    place = _places("IQ2_XXS")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        here, k = at(top, 2 + 8 * sub), column // 8
        signs = (load_u32_of_halves(at(here, 4)) >> u32(7 * k)) & u32(127)
        return place(load_u8(at(here, k)), column % 8) | (_sign(signs, column % 8) << u32(2))

    return code, _word_levels(6, 8)


def _iq2_xs() -> tuple[Any, Any]:
    place = _places("IQ2_XS")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        word = load_u16(at(top, 2 + 8 * sub + column // 8 * 2))
        return place(word & u32(511), column % 8) | (_sign(word >> u32(9), column % 8) << u32(2))

    return code, _byte_levels(66)


def _iq2_s() -> tuple[Any, Any]:
    place = _places("IQ2_S")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        k = column // 8
        high = (load_u8(at(top, 66 + sub)) >> u32(2 * k)) & u32(3)
        row = load_u8(at(top, 2 + 4 * sub + k)) | (high << u32(8))
        sign = (load_u8(at(top, 34 + 4 * sub + k)) >> u32(column % 8)) & u32(1)
        return place(row, column % 8) | (sign << u32(2))

    return code, _byte_levels(74)


def _iq3_xxs() -> tuple[Any, Any]:
    place = _places("IQ3_XXS")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        signs = (load_u32_of_halves(at(top, 66 + 4 * sub)) >> u32(column // 8 * 7)) & u32(127)
        row = load_u8(at(top, 2 + 8 * sub + column // 4))
        return place(row, column % 4) | (_sign(signs, column % 8) << u32(3))

    return code, _word_levels(66, 4)


def _iq3_s() -> tuple[Any, Any]:
    place = _places("IQ3_S")

    @inline
    def code(top, sub, column):  # type: ignore[no-untyped-def]
        four = column // 4
        high = (load_u8(at(top, 66 + sub)) >> u32(four)) & u32(1)
        row = load_u8(at(top, 2 + 8 * sub + four)) | (high << u32(8))
        sign = (load_u8(at(top, 74 + 4 * sub + column // 8)) >> u32(column % 8)) & u32(1)
        return place(row, column % 4) | (sign << u32(3))

    @inline
    def levels(top, sub):  # type: ignore[no-untyped-def]
        scale = ((load_u8(at(top, 106 + sub // 2)) >> u32(4 * (sub % 2))) & u32(15)) * u32(2) + u32(1)
        return load_u16(top), u32(NONE), scale, scale, u32(NONE), u32(NONE)

    return code, levels


def readers(name: str) -> tuple[Any, Any]:
    """The readers (`code`, `levels`) of a type."""
    makers = {
        "IQ1_S": _iq1_s, "IQ1_M": _iq1_m, "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s,
        "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    }  # fmt: skip
    return makers[name]()
