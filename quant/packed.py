"""Packed layouts: weights as the CPU kernels read them, the same for every instruction set.

A matrix [n_rows, n_cols] is cut into *stripes* of 16 rows (the last one padded with zeros), each contiguous. One
description serves all kernels of a format: a quantized stripe is a run of 32-column blocks

    scales   16 x (32 / group) values, one a row side by side, in one of the forms of `SCALES`
    minima   the same size, if the format has them and they do not share the scales' bytes
    codes    one or two bit planes: b bits of every code in b vectors of 64 bytes. Byte 4r+c of a vector belongs to row
             r and to column c of each of its 8 / b groups of four columns; see `Plane.place`

Formats whose scales are multiples of super-scales put 16 of these (and super-minima), in half precision, before every
eight blocks. So a group of four columns is one 64-byte load in which each 32-bit lane belongs to one row: what an 8-bit
dot-product instruction sums into that row's lane, with no sums across lanes.

Formats that choose their weights from a codebook of vectors are packed as what the vectors are made of: six, eight or
sixteen different numbers, so three or four bits and a look-up table. They grow by that (IQ2_XXS from 2.06 to 3.31 bits
a weight, IQ3_S from 3.44 to 4.31), and need no gather from a table of kilobytes for every few weights.

A stripe of plain floats is [n_cols][16], its columns padded with zeros to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

ROWS = 16  # rows of a stripe
BLOCK = 32  # columns of a block

# Forms of a block's scales: bytes of one, and whether it multiplies a super-scale that stands before eight blocks.
SCALES = {
    "half": (2, False),
    "power": (1, False),  # e stands for 2 ** (e - 128)
    "byte": (1, True),
    "signed byte": (1, True),
    "nibbles": (1, True),  # the scale in the low four bits, the minimum in the high
    "super": (0, True),  # the super-scale alone
}


@dataclass(frozen=True)
class Plane:
    """Some bits of every code of a block, in as many vectors."""

    bits: int
    shift: int  # place of the lowest of them in the code
    at: int  # offset in the block

    def place(self, group: int) -> tuple[int, int]:
        """(vector, bit) where the codes of the group of four columns, 0..7, begin. The fours lie as in ggml's blocks:
        columns of the first half in the low nibbles."""
        if self.bits == 4:
            return group % 4, group // 4 * 4
        return group * self.bits // 8, group * self.bits % 8


@dataclass(frozen=True)
class Packed:
    """One packed format: value = scale * number [± minimum] where number = code - offset, or table[code], or the
    code's own two's complement; or a float as it stands."""

    bits: int  # of a code; 16 and 32 for floats
    group: int = 32  # columns that share a scale
    offset: int = 0  # a power of two that, added to the numbers, leaves none negative
    signed: bool = False  # numbers are two's complement bytes, too wide for such an offset
    table: tuple[int, ...] = ()  # the number of each code
    scales: str = "half"
    unit: float = 1.0  # what a super-scale is multiplied by, a power of two
    minima: bool = False
    minimum_sign: int = 1  # +1 where the format adds its minimum, -1 where it subtracts it
    name: str = ""  # the ggml type it is made from, whose class fills this in

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def activation_dtype(self) -> str:
        """The form in which products with such weights read activations: "q8" or "f32"."""
        return "f32" if self.is_float else "q8"

    @property
    def super_scales(self) -> bool:
        """True where super-scales stand before every 256 columns."""
        return SCALES[self.scales][1]

    @property
    def n_scales(self) -> int:
        return BLOCK // self.group

    @property
    def scale_bytes(self) -> int:
        return SCALES[self.scales][0]

    @property
    def super_bytes(self) -> int:
        return (2 + 2 * self.minima) * ROWS if self.super_scales else 0

    @property
    def minima_at(self) -> int:
        """Offset of the minima in a block; 0 where they share the scales' bytes."""
        return 0 if self.scales == "nibbles" else ROWS * self.n_scales * self.scale_bytes

    @property
    def codes_at(self) -> int:
        apart = self.minima and self.scales != "nibbles"
        return ROWS * self.n_scales * self.scale_bytes * (2 if apart else 1)

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        low = min(self.bits, next(b for b in (8, 4, 2) if b <= self.bits))
        planes = [Plane(low, 0, self.codes_at)]
        if self.bits > low:
            planes.append(Plane(self.bits - low, low, self.codes_at + 64 * low))
        return tuple(planes)

    @property
    def block_bytes(self) -> int:
        return self.codes_at + ROWS * BLOCK * self.bits // 8

    def padded(self, n_cols: int) -> int:
        """Columns as stored: floats are padded with zeros to a multiple of 8."""
        return -(-n_cols // 8) * 8 if self.is_float else n_cols

    def stripe_bytes(self, n_cols: int) -> int:
        if self.is_float:
            return self.padded(n_cols) * ROWS * self.bits // 8
        return n_cols // BLOCK * self.block_bytes + (n_cols // 256 * self.super_bytes)

    def matrix_bytes(self, n_rows: int, n_cols: int) -> int:
        return -(-n_rows // ROWS) * self.stripe_bytes(n_cols)


def either_sign(*magnitudes: int) -> tuple[int, ...]:
    """The table of codes whose highest bit is the sign."""
    return (*magnitudes, *(-m for m in magnitudes))
