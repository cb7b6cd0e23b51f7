"""Packed layouts: weights as the CPU kernels read them, the same for every instruction set.

A matrix [n_rows, n_cols] is cut into *stripes* of 16 rows (the last one padded with zeros), each contiguous. One
description serves all kernels of a format: a quantized stripe is a run of 32-column blocks

    scales   16 x (32 / group) x (2-byte half, or one byte if there is a header): one value a row, side by side
    minima   the same size, if the format has them
    low      4 x 64 bytes   vector j: columns 4j..4j+3 in the low nibbles, 16+4j..16+4j+3 in the high; byte 4r+c is
             row r, column c of the four
    high     the bits above the fourth: vector p holds, in byte 4r+c, `field` bits for each of its 8 / field column
             groups

and an 8-bit stripe has 8 x 64 bytes, vector g holding columns 4g..4g+3, in place of low and high. Formats with two
levels of scales put 16 half precision super-scales (and super-minima) before every eight blocks. So a group of four
columns is one 64-byte load in which each 32-bit lane belongs to one row: what an 8-bit dot-product instruction sums
into that row's lane, with no sums across lanes.

A stripe of plain floats is [n_cols][16], its columns padded with zeros to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 16  # rows of a stripe
BLOCK = 32  # columns of a block


@dataclass(frozen=True)
class Packed:
    """One packed format: value = scale * (code - offset) [- minimum], or a float as it stands."""

    name: str  # the ggml type it is made from
    bits: int  # of a code; 16 and 32 for floats
    group: int = 32  # columns that share a scale
    offset: int = 0  # subtracted from an unsigned code
    signed: bool = False  # codes are two's complement
    minima: bool = False
    header: bool = False  # super-scales every 256 columns; block scales are then one byte
    signed_scales: bool = False
    minimum_sign: int = 1  # +1 where the format adds its minimum, -1 where it subtracts it

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def columns(self) -> int:
        """Columns must be a multiple of this."""
        return 1 if self.is_float else 256 if self.header else BLOCK

    @property
    def n_scales(self) -> int:
        return BLOCK // self.group

    @property
    def scale_bytes(self) -> int:
        return 1 if self.header else 2

    @property
    def header_bytes(self) -> int:
        return (2 + 2 * self.minima) * ROWS if self.header else 0

    @property
    def minima_at(self) -> int:
        """Offset of the minima in a block."""
        return ROWS * self.n_scales * self.scale_bytes

    @property
    def codes_at(self) -> int:
        return self.minima_at * (2 if self.minima else 1)

    @property
    def high_at(self) -> int:
        return self.codes_at + 4 * 64

    @property
    def high_bits(self) -> int:
        """Bits of a code above the low nibble, kept apart."""
        return self.bits - 4 if self.bits < 8 else 0

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
        Packed("Q4_K", 4, minima=True, header=True, minimum_sign=-1),
        Packed("Q5_K", 5, minima=True, header=True, minimum_sign=-1),
        Packed("Q6_K", 6, group=16, offset=32, header=True, signed_scales=True),
    )
}
