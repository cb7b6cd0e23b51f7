"""How the GPU keeps weights and activations. One description serves packing, kernels and tests. Free of
numba and of any device.

A matrix [n_rows, n_cols] is a few *planes*, each [n_rows][row bytes] with every row on a 16-byte boundary, so that a
warp reads one row of one plane as one run of 16-byte loads. A quantized row is cut into blocks of 32 columns:

    codes    16 bytes a block: byte j holds column j in its low nibble and column 16 + j in its high one; an 8-bit
             row is two such runs, columns 0..15 of every block and then columns 16..31 of every block
    high     the bits above the fourth, 4 bytes a block and bit: in word p, byte c, `field` bits for each of the
             8 / field groups of four columns; bits field * k of it belong to column 4 * (8 / field * p + k) + c
    scales   scales and minima of a block in one of the forms of `ggpy.quant.packed.SCALES`: a scale and its minimum
             side by side, or the scales of the first and the last 16 columns
    supers   what the bytes of `scales` are multiples of, every 256 columns: one half, or two (scales, minima)

So the 32-bit word w of a block holds columns 4w .. 4w+3 in its low nibbles and 16 + 4w .. in its high ones: the operand
of an 8-bit dot product, and the fragment that lane w of a row holds in `mma.m16n8k32`. Floats are one plane, `codes`.

Codes of up to four bits that stand for any `numbers` are looked up four at a time by the instruction that permutes
bytes, which takes the lowest four nibbles of a word for places in a table. So their nibbles follow each other:

    codes    4 bits: nibble k of word w is column 4w + k, nibble 4 + k column 16 + 4w + k. 2 and 3 bits, 8 bytes a
             block: word p has the lowest two bits of the words 2p (in the low half of its nibbles) and 2p + 1
    high     the third bit, 4 bytes a block: that of word w is bit w of its nibble

Columns are padded with zeros to a multiple of 32. Codes stay unsigned where the format's are; `offset` is the kernel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggpy.quant.packed import BLOCK, Packed

ALIGN = 256  # bytes between the starts of planes and of matrices
SUPER = 256  # columns under one super-scale
MOST_CHUNKS = 4  # of 512 bytes of codes that a warp has brought to shared memory at a time
ROW_THREADS = 512  # that make a token's activations, wherever that is done: its norm is summed in one order
ELEMENTWISE_THREADS = 256  # each of which makes a number of a row
HEAD_PRODUCT_THREADS, HEAD_PRODUCT_TOKENS = 128, 8  # of a block of `ggpy.cuda.ops.head_linear`, but for one token
CONV_THREADS = 64  # each of which has a column of a convolution with state: few, so that many blocks have some
CONV_TOKENS = 128  # of a run, that such a block has
STATE_LANES = 8  # that share a column of a recurrent layer's matrices
STATE_THREADS = 128  # of a block that carries some of these on
ALL_REDUCE_THREADS = 128  # of a block that adds up what ranks have
SUMS = 128  # bytes of shared memory for sums over a block, before whatever else a kernel keeps there


def low_bits(packed: Packed) -> int:
    """Bits of a code in the plane `codes`."""
    return packed.bits if packed.is_float else packed.planes[0].bits


def bits_above(packed: Packed) -> int:
    """Bits of a code above those in `codes`, kept in the plane `high`."""
    return packed.bits - low_bits(packed)


def numbers(packed: Packed) -> tuple[int, ...]:
    """The 4, 8 or 16 numbers that codes stand for, where kernels look them up; none where that is code - offset."""
    if packed.table or packed.bits > 3:
        return packed.table
    return tuple(code - packed.offset for code in range(1 << packed.bits))


def table_words(values: Sequence[int], bias: int = 0) -> list[int]:
    """Numbers as bytes, four a word, plus a bias where they must not be negative."""
    return [int(word) for word in np.array([v + bias for v in values], np.int16).astype(np.uint8).view("<u4")]


def ring_kib(shared_bytes: int) -> int:
    """KiB of shared memory that a product with few tokens has for weights in flight, on a GPU whose blocks may have
    `shared_bytes`: less than half of it, so that the next product's kernel fits too."""
    return max(16, shared_bytes * 43 // 100 >> 14 << 4)


READ_THREADS, READ_BLOCKS = 256, 4  # of a block and of a multiprocessor, to see how fast memory is read
LOG2_E = 1.4426950408889634


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def route_bytes(n_experts: int, n_used: int, n_groups: int) -> int:
    """Bytes of shared memory of `ggpy.cuda.ops.route`: sums over the block, scores, weights of the chosen, the groups'
    two highest scores."""
    return 2 * SUMS + 4 * round_up(n_experts, 32) + 4 * n_used + 8 * n_groups


@dataclass(frozen=True)
class Plane:
    """One array of a matrix: `offset` from the matrix's address, `stride` from row to row, both in bytes."""

    offset: int
    stride: int


@dataclass(frozen=True)
class MatrixLayout:
    """The planes of one matrix. Planes that its format lacks have stride 0."""

    packed: Packed
    n_rows: int
    n_cols: int

    @property
    def padded_cols(self) -> int:
        return round_up(self.n_cols, BLOCK)

    @property
    def n_blocks(self) -> int:
        """Blocks of a row."""
        return self.padded_cols // BLOCK

    @property
    def code_bytes(self) -> int:
        """Bytes of a block in the plane `codes`."""
        return BLOCK * low_bits(self.packed) // 8

    @property
    def high_bytes(self) -> int:
        """Bytes of a block in the plane `high`."""
        return 4 * bits_above(self.packed)

    @property
    def scale_bytes(self) -> int:
        """Bytes of a block in the plane `scales`."""
        p = self.packed
        if p.is_float:
            return 0
        return p.n_scales * p.scale_bytes * (2 if p.minima and p.scales != "nibbles" else 1)

    @property
    def super_bytes(self) -> int:
        """Bytes of 256 columns in the plane `supers`."""
        return (2 + 2 * self.packed.minima) if self.packed.super_scales else 0

    def _planes(self) -> tuple[Plane, Plane, Plane, Plane]:
        planes, at = [], 0
        n_supers = -(-self.padded_cols // SUPER)
        for row in (
            self.n_blocks * self.code_bytes,
            self.n_blocks * self.high_bytes,
            self.n_blocks * self.scale_bytes,
            n_supers * self.super_bytes,
        ):
            stride = round_up(row, 16)
            planes.append(Plane(at, stride))
            at += round_up(stride * self.n_rows, ALIGN)
        first, second, third, fourth = planes
        return first, second, third, fourth

    @property
    def codes(self) -> Plane:
        return self._planes()[0]

    @property
    def high(self) -> Plane:
        return self._planes()[1]

    @property
    def scales(self) -> Plane:
        return self._planes()[2]

    @property
    def supers(self) -> Plane:
        return self._planes()[3]

    @property
    def n_bytes(self) -> int:
        """Bytes of the matrix: a multiple of ALIGN."""
        last = self.supers
        return last.offset + round_up(last.stride * self.n_rows, ALIGN)


@dataclass(frozen=True)
class ActivationLayout:
    """Activations of a small step as products read them, [n_tokens, n_cols]; every array starts on ALIGN bytes.

    "q8":  codes int8 [token][2][block][16], columns 0..15 of all blocks and then 16..31; scales [token][block] of 8
           bytes: the scale as float32, and the sums of the first and the last 16 codes as int16
    "f32": float32 [token][padded columns]
    """

    dtype: str
    n_tokens: int
    n_cols: int

    @property
    def padded_cols(self) -> int:
        return round_up(self.n_cols, BLOCK)

    @property
    def code_stride(self) -> int:
        return self.padded_cols * (4 if self.dtype == "f32" else 1)

    @property
    def scales_at(self) -> int:
        return round_up(self.n_tokens * self.code_stride, ALIGN)

    @property
    def scale_stride(self) -> int:
        return 0 if self.dtype == "f32" else self.padded_cols // BLOCK * 8

    @property
    def n_bytes(self) -> int:
        return self.scales_at + round_up(self.n_tokens * self.scale_stride, ALIGN)


@dataclass(frozen=True)
class MatvecShape:
    """The division of a product of a matrix with few tokens (`ggpy.cuda.ops.matvec`).

    A lane reads *items*, 16 bytes of codes each: a block of 32 columns, or as many floats. 32 lanes' are a *chunk*;
    a warp has some chunks of a row, a *unit*, copied to shared memory at a time, several units ahead.
    """

    packed: Packed
    n_cols: int
    n_tokens: int
    ring: int  # KiB of shared memory of a multiprocessor for weights on their way

    @property
    def threads(self) -> int:
        """Threads of a block: more where each needs fewer registers."""
        return ROW_THREADS if self.n_tokens == 1 else 256

    @property
    def blocks(self) -> int:
        """Blocks on a multiprocessor; one for a single token, so that a block of the next kernel fits beside it."""
        return 1 if self.n_tokens == 1 else 2

    def grid(self, n_rows: int, n_multiprocessors: int) -> int:
        return min(-(-n_rows // (self.threads // 32)), n_multiprocessors * self.blocks)

    @property
    def layout(self) -> MatrixLayout:
        return MatrixLayout(self.packed, 1, self.n_cols)

    @property
    def n_items(self) -> int:
        """Items of a row."""
        layout = self.layout
        return layout.padded_cols * self.packed.bits // 128 if self.packed.is_float else layout.n_blocks

    @property
    def chunks(self) -> int:
        """Chunks of a unit: a few, so that two units fit and little of a row's last unit is empty."""
        n = -(-self.n_items // 32)
        fitting = [c for c in range(MOST_CHUNKS, 1, -1) if 2 * sum(self._parts(c)) <= self.warp_bytes]
        return min([*fitting, 1], key=lambda c: -(-n // c) * (c + 0.5))

    @property
    def n_units(self) -> int:
        """Units of a row."""
        return -(-self.n_items // (32 * self.chunks))

    @property
    def padded_blocks(self) -> int:
        """Blocks of a single token's activations in shared memory: up to the end of the row's last unit."""
        blocks = self.layout.n_blocks
        return blocks if self.packed.is_float else 32 * self.chunks * self.n_units

    @property
    def warp_bytes(self) -> int:
        """Bytes of shared memory that a warp has for units."""
        return (self.ring << 10) // self.blocks // (self.threads // 32)

    def _parts(self, chunks: int = 0) -> tuple[int, int, int, int]:
        """Bytes of a unit of that many chunks, in the planes codes, high, scales and supers."""
        layout, chunks = self.layout, chunks or self.chunks
        if self.packed.is_float:
            return 512 * chunks, 0, 0, 0
        blocks = 32 * chunks
        sizes = layout.code_bytes * blocks, layout.high_bytes * blocks, layout.scale_bytes * blocks
        return (*sizes, round_up(layout.super_bytes * blocks // 8, 16))

    @property
    def high_at(self) -> int:
        """Offset of the plane `high` in a unit."""
        return self._parts()[0]

    @property
    def scales_at(self) -> int:
        return sum(self._parts()[:2])

    @property
    def supers_at(self) -> int:
        return sum(self._parts()[:3])

    @property
    def unit_bytes(self) -> int:
        return sum(self._parts())

    @property
    def slots(self) -> int:
        """Units of a warp in shared memory, one of them being multiplied."""
        return max(2, min(8, self.warp_bytes // self.unit_bytes))

    @property
    def activations_at(self) -> int:
        """Offset of a single token's activations in shared memory, after sums and units."""
        return SUMS + self.threads // 32 * self.slots * self.unit_bytes

    @property
    def shared_bytes(self) -> int:
        if self.n_tokens > 1:
            return self.activations_at
        dtype = "f32" if self.packed.is_float else "q8"
        return self.activations_at + ActivationLayout(dtype, 1, 32 * self.padded_blocks).n_bytes


@dataclass(frozen=True)
class ExpertShape:
    """The division of products of chosen experts with few tokens (`ggpy.cuda.ops.expert_matvec`), which has the kinds
    of `inputs`. A warp takes rows as those of a product with a single token."""

    packed: Packed
    n_cols: int
    n_used: int  # experts of a token
    inputs: str
    ring: int  # as `MatvecShape` has it

    @property
    def row(self) -> MatvecShape:
        return MatvecShape(self.packed, self.n_cols, 1, self.ring)

    @property
    def n_segments(self) -> int:
        """Rows of activations that every block of threads makes for itself."""
        return {"norm": 1, "plain": 1, "joined": self.n_used}.get(self.inputs, 0)

    @property
    def width(self) -> int:
        """Columns of float32 that a block makes activations of; joined rows are padded as buffers are."""
        return self.n_used * self.row.layout.padded_cols if self.inputs == "joined" else self.n_cols

    @property
    def x_blocks(self) -> int:
        """Blocks of 32 columns from one run of activations' codes to the other: those in shared memory go on to the end
        of the last row's last unit."""
        return max(0, self.n_segments - 1) * self.row.layout.n_blocks + (
            self.row.padded_blocks if self.n_segments else self.row.layout.n_blocks
        )

    @property
    def table_at(self) -> int:
        """Offset of the experts and their weights, 8 bytes each, in shared memory."""
        dtype = "f32" if self.packed.is_float else "q8"
        made = ActivationLayout(dtype, 1, 32 * self.x_blocks).n_bytes if self.n_segments else 0
        return self.row.activations_at + made

    def shared_bytes(self, n_tokens: int) -> int:
        return self.table_at + 8 * self.n_used * n_tokens
