"""Declarations of where a file's block keeps its numbers, for every reader of it to be made from.

Almost all of ggml's blocks are arrays of a few bits at regular steps, so that a type is described by sizes and strides
alone, and one reader each for numpy (`ggpy.quant.dequantize`), CPUs (`ggpy.cpu.weights.blocks`) and GPUs
(`ggpy.cuda.weights.blocks`) serves all of them. Importing this module imports neither numpy nor numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Bits:
    """Some bits of each of many numbers, as a strided array.

    Number x, of `prod(shape)`, has the digits of x in the bases `shape`, powers of two, the last digit changing
    fastest. Its `bits` bits begin `at` bytes, `shift` bits and for each digit its stride, in bits, into the block;
    bytes are little-endian.
    """

    bits: int
    at: int
    shape: tuple[int, ...] = (1,)
    strides: tuple[int, ...] = (0,)
    shift: int = 0

    @property
    def digits(self) -> tuple[tuple[int, int, int, int], ...]:
        """For three digits, the fastest first: (place of its lowest bit in x, mask, stride in whole bytes, and in the
        bits that remain)."""
        found, place = [], 0
        for n, stride in [*zip(reversed(self.shape), reversed(self.strides), strict=True), (1, 0), (1, 0)][:3]:
            found.append((place, n - 1, stride // 8, stride % 8))
            place += n.bit_length() - 1
        return tuple(found)

    def place(self, x: int) -> tuple[int, int]:
        """(byte, bit from there) where number x begins, as strides of whole bytes and of bits add up."""
        picked = [(x >> place & mask, in_bytes, in_bits) for place, mask, in_bytes, in_bits in self.digits]
        return self.at + sum(d * n for d, n, _ in picked), self.shift + sum(d * n for d, _, n in picked)

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes, 1, 2 or 4, that hold a whole number from the byte that `place` gives."""
        most = self.place(self.count - 1)[1] + self.bits  # all digits are at their largest
        return next(n for n in (1, 2, 4) if most <= 8 * n)


@dataclass(frozen=True)
class Numbers:
    """Integers of a block: the bits of `parts`, the lowest first; then times * x + plus, or `table`[x]."""

    parts: tuple[Bits, ...]
    times: int = 1
    plus: int = 0
    table: tuple[int, ...] = ()


@dataclass(frozen=True)
class Codebook:
    """Codes of columns that are given `width` at a time, by the number of a row in a grid (`ggpy.quant.codebooks`):
    the place of each magnitude among those of the grid, with the sign as the bit above, one for each of eight columns.

    `signs` has 8 bits for eight columns, or 7 where the number of minus signs is even, or a single one for all.
    """

    grid: str
    rows: Numbers
    signs: Bits
    width: int = 8


@dataclass(frozen=True)
class Ternary:
    """Codes that are base-3 digits of bytes, which are fractions of 256: each multiplication by 3 pushes the next digit
    out. `runs`: (bytes, digits of each), one after the other from the block's start; in each the first digits of all
    bytes come first, then their second ones."""

    runs: tuple[tuple[int, int], ...]

    def place(self, x: int) -> tuple[int, int]:
        """The byte of code x, and which of its digits it is."""
        at = 0
        for n_bytes, n_digits in self.runs:
            if x < n_bytes * n_digits:
                return at + x % n_bytes, x // n_bytes
            at += n_bytes
            x -= n_bytes * n_digits
        raise IndexError("the block has fewer codes")

    @property
    def count(self) -> int:
        return sum(n_bytes * n_digits for n_bytes, n_digits in self.runs)


def half(at: int) -> Numbers:
    """One half-precision number."""
    return Numbers((Bits(16, at),))


def values(bits: int, at: int, shape: tuple[int, ...], strides: tuple[int, ...], shift: int = 0) -> Numbers:
    """Numbers whose bits lie together (`Bits`)."""
    return Numbers((Bits(bits, at, shape, strides, shift),))
