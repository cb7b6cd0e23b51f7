"""Packed layouts: weights as the CPU kernels read them, the same for every instruction set.

A matrix [n_rows, n_cols] is cut into *stripes* of 16 rows (the last one padded with zeros), each contiguous. One
description serves all kernels of a format: a quantized stripe is a run of 32-column blocks

    scales   16 x (32 / group) values, one a row side by side, in one of the forms of `SCALES`
    minima   the same size, if the format has them and they do not share the scales' bytes
    codes    one or two bit planes: b bits of every code in b vectors of 64 bytes. Byte 4r+c of a vector belongs to row
             r and to column c of each of its 8 / b groups of four columns; see `Plane.place`

Formats with two levels of scales put 16 half precision super-scales (and super-minima) before every eight blocks. So a
group of four columns is one 64-byte load in which each 32-bit lane belongs to one row: what an 8-bit dot-product
instruction sums into that row's lane, with no sums across lanes.

Formats that choose their weights from a codebook of vectors are packed as what the vectors are made of: six, eight or
sixteen different numbers, so three or four bits and a look-up table. They grow by that (IQ2_XXS from 2.06 to 3.31 bits
a weight, IQ3_S from 3.44 to 4.31), and need no gather from a table of kilobytes for every few weights.

A stripe of plain floats is [n_cols][16], its columns padded with zeros to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo
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

    name: str  # the ggml type it is made from
    bits: int  # of a code; 16 and 32 for floats
    group: int = 32  # columns that share a scale
    offset: int = 0  # a power of two that, added to the numbers, leaves none negative
    signed: bool = False  # numbers are two's complement bytes, too wide for such an offset
    table: tuple[int, ...] = ()  # the number of each code
    scales: str = "half"
    unit: float = 1.0  # what a super-scale is multiplied by, a power of two
    minima: bool = False
    minimum_sign: int = 1  # +1 where the format adds its minimum, -1 where it subtracts it

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def activation_dtype(self) -> str:
        """The form in which products with such weights read activations: "q8" or "f32"."""
        return "f32" if self.is_float else "q8"

    @property
    def header(self) -> bool:
        """True where super-scales stand before every 256 columns."""
        return SCALES[self.scales][1]

    @property
    def n_scales(self) -> int:
        return BLOCK // self.group

    @property
    def scale_bytes(self) -> int:
        return SCALES[self.scales][0]

    @property
    def header_bytes(self) -> int:
        return (2 + 2 * self.minima) * ROWS if self.header else 0

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
        return n_cols // BLOCK * self.block_bytes + (n_cols // 256 * self.header_bytes)

    def matrix_bytes(self, n_rows: int, n_cols: int) -> int:
        return -(-n_rows // ROWS) * self.stripe_bytes(n_cols)


def _either_sign(*magnitudes: int) -> tuple[int, ...]:
    """The table of codes whose highest bit is the sign."""
    return (*magnitudes, *(-m for m in magnitudes))


# The tables of ggml's `kvalues_iq4nl` and `kvalues_mxfp4` (4-bit floats, doubled), and the magnitudes in its grids.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = _either_sign(0, 1, 2, 3, 4, 6, 8, 12)
_IQ3_XXS = _either_sign(4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S = _either_sign(1, 3, 5, 7, 9, 11, 13, 15)
_IQ2 = _either_sign(8, 25, 43, 0)
_IQ1 = (-7, 1, 9, 0, -9, -1, 7, 0)  # eighths: -1, 0, 1, then an eighth more, or less

PACKED: dict[str, Packed] = {
    p.name: p
    for p in (
        Packed("F32", 32),
        Packed("F16", 16),
        Packed("BF16", 16),
        Packed("Q4_0", 4, offset=8),
        Packed("Q4_1", 4, minima=True),
        Packed("Q5_0", 5, offset=16),
        Packed("Q5_1", 5, minima=True),
        Packed("Q8_0", 8, signed=True),
        Packed("Q2_K", 2, group=16, scales="nibbles", minima=True, minimum_sign=-1),
        Packed("Q3_K", 3, group=16, scales="signed byte", offset=4),
        Packed("Q4_K", 4, scales="byte", minima=True, minimum_sign=-1),
        Packed("Q5_K", 5, scales="byte", minima=True, minimum_sign=-1),
        Packed("Q6_K", 6, group=16, scales="signed byte", offset=32),
        Packed("IQ4_NL", 4, table=_IQ4, signed=True),
        Packed("IQ4_XS", 4, scales="signed byte", table=_IQ4, signed=True),
        Packed("MXFP4", 4, scales="power", table=_FP4, offset=16),
        Packed("NVFP4", 4, group=16, table=_FP4, offset=32),
        Packed("TQ1_0", 2, scales="super", offset=1),
        Packed("TQ2_0", 2, scales="super", offset=1),
        Packed("IQ1_S", 3, scales="byte", unit=1 / 8, table=_IQ1, offset=16),
        Packed("IQ1_M", 3, group=16, scales="byte", unit=1 / 8, table=_IQ1, offset=32),
        Packed("IQ2_XXS", 3, scales="byte", unit=1 / 8, table=_IQ2, offset=64),
        Packed("IQ2_XS", 3, group=16, scales="byte", unit=1 / 8, table=_IQ2, offset=64),
        Packed("IQ2_S", 3, group=16, scales="byte", unit=1 / 8, table=_IQ2, offset=64),
        Packed("IQ3_XXS", 4, scales="byte", unit=1 / 4, table=_IQ3_XXS, offset=64),
        Packed("IQ3_S", 4, scales="byte", table=_IQ3_S, offset=16),
    )
}


def packed_format(info: TensorInfo) -> Packed:
    """The format that a weight runs in: its own, or half precision for types that have no packed form."""
    return PACKED.get(info.type_name, PACKED["F16"])


def packed_bytes(info: TensorInfo) -> int:
    """Bytes that a matrix, or a stack of matrices of the same shape, takes when packed."""
    *stack, n_rows, n_cols = info.shape
    return prod(stack) * packed_format(info).matrix_bytes(n_rows, n_cols)


def activation_dtype(info: TensorInfo, gives_logits: bool) -> str:
    """The form in which a product with this weight reads activations, be it the one that gives logits or not: "q8" or
    "f32"."""
    return packed_format(info).activation_dtype
