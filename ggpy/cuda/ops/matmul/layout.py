"""How products of large steps cut their operands: tiles in shared memory, quantized activations. Free of numba.

A tile is some rows of a matrix (`cuda/weights/layout.py`), or some tokens, by COLUMNS columns. Each plane's part of a
weight tile lies in shared memory row after row, `pitch` bytes apart, so chosen that the rows and words that a warp
reads at once fall into different banks. A token's part is 128 bytes, its 16-byte pieces exchanged by `piece ^ token %
8`.

Activations are halves in an order of their own. Lane 4g + t of a warp works on row g of the weights and, of a block of
32 columns, on 4t .. 4t+3 and 16 + 4t .. 16 + 4t+3: one 32-bit word of 4-bit codes. Masks leave its codes in pairs, so
the halves come out as the columns

    (4t, 4t + 2)    (4t + 1, 4t + 3)    (16 + 4t, 16 + 4t + 2)    (16 + 4t + 1, 16 + 4t + 3)

and these four registers are what `mma` takes for columns 2t, 2t + 1 of four groups of eight. A sum does not mind the
order of its terms: it is enough that of 16 activations the even ones are stored before the odd ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.cuda.weights.layout import ALIGN, MatrixLayout, low_bits, round_up
from ggpy.quant.packed import BLOCK, Packed

COLUMNS = 64  # of a tile
PAIR = 2 * COLUMNS  # activations are padded to so many columns: Hopper's kernels take tiles in twos
BLOCKS = COLUMNS // BLOCK


@dataclass(frozen=True)
class TilePlane:
    """One plane's part of a tile. An 8-bit row's second run of codes counts as a plane, `last`."""

    name: str
    row_bytes: int  # of the tile; where these are less than a word, the word that they lie in is copied
    pitch: int  # bytes from row to row in shared memory
    piece: int  # bytes copied at once

    @property
    def pieces(self) -> int:
        """Pieces of a row."""
        return max(1, self.row_bytes // self.piece)


def tile_planes(packed: Packed) -> list[TilePlane]:
    layout = MatrixLayout(packed, 1, BLOCK)
    codes = BLOCKS * (layout.code_bytes // 2 if packed.bits == 8 else layout.code_bytes)
    # 8 rows are read at once: 8 bytes each of codes of 2 bits, 16 of more, 32 of half floats, 64 of floats; 128 in a
    # cycle
    pitch = codes + {2: 0, 4: 16, 8: 16, 16: 32, 32: 64}[low_bits(packed)]
    planes = [TilePlane("codes", codes, pitch, 16)]
    if packed.bits == 8:
        planes.append(TilePlane("last", codes, pitch, 16))
    for name, size in (("high", layout.high_bytes), ("scales", layout.scale_bytes)):
        if size:
            pitch = max(4, BLOCKS * size)
            planes.append(TilePlane(name, BLOCKS * size, pitch, min(16, pitch)))
    if packed.super_scales:
        planes.append(TilePlane("supers", 4, 4, 4))
    return planes


def plane_offsets(packed: Packed, n_rows: int) -> dict[str, int]:
    """Offset in shared memory of each plane of a tile of `n_rows` rows; "end" is their total size."""
    offsets, at = {}, 0
    for plane in tile_planes(packed):
        offsets[plane.name] = at
        at += -(-n_rows * plane.pitch // 128) * 128
    return {**offsets, "end": at}


@dataclass(frozen=True)
class Tiling:
    """One shape of the product's kernel: what a block of threads computes, and how its warps share it."""

    rows: int  # of the weights
    tokens: int
    row_warps: int
    token_warps: int
    stages: int  # tiles in shared memory at once, where there is room
    hopper: bool = False  # warp groups of four multiply straight from shared memory
    blocks: int = 1  # that a multiprocessor should hold at once
    paired: bool = False  # of Hopper's: two tiles between barriers, for small ones
    splits: int = 1  # teams of warps, each with every so-many-th tile of columns; their sums meet at the end

    @property
    def name(self) -> str:
        kind = "h" * self.hopper + "p" * self.paired
        return f"{self.rows}x{self.tokens}{kind}" + (f"s{self.splits}" if self.splits > 1 else "")

    @property
    def team(self) -> int:
        """Threads that work on the same tile."""
        return 32 * self.row_warps * self.token_warps

    @property
    def threads(self) -> int:
        return self.team * self.splits

    @property
    def row_fragments(self) -> int:
        """16-row pieces of a warp."""
        return self.rows // self.row_warps // 16

    @property
    def token_fragments(self) -> int:
        """8-token pieces of a warp."""
        return self.tokens // self.token_warps // 8

    def stage_bytes(self, packed: Packed) -> int:
        """Bytes of a stage: one tile of activations, then one of weights; activations start on a multiple of 1024."""
        return round_up(2 * COLUMNS * self.tokens + plane_offsets(packed, self.rows)["end"], 1024)

    def stages_of(self, packed: Packed) -> int:
        """Stages of a team: as many as wanted and as fit; a block of a Hopper GPU has 227 KiB, of others at least
        99."""
        room = ((227 << 10) // self.blocks - 1024 if self.hopper else 99 << 10) - self.vector_bytes
        fitting = min(self.stages, room // self.splits // self.stage_bytes(packed))
        return max(6, fitting // 2 * 2) if self.paired else max(3 if self.hopper else 2, fitting)

    @property
    def vector_bytes(self) -> int:
        """Bytes of the tokens' scales and the rows' bias, which follow the stages."""
        return 4 * (self.tokens + self.rows)

    def stages_bytes(self, packed: Packed) -> int:
        """Bytes of the stages of all teams."""
        return self.splits * self.stages_of(packed) * self.stage_bytes(packed)

    def shared_bytes(self, packed: Packed, experts: bool = False) -> int:
        """Bytes of shared memory of a block; of experts with the tokens in order."""
        return self.stages_bytes(packed) + self.vector_bytes + 4 * self.tokens * experts


@dataclass(frozen=True)
class HalfActivations:
    """Activations of a large step: halves [n_tokens][columns padded to PAIR], of 16 columns the even ones first, each
    token divided by a power of two that keeps it far from overflow; then that power, float32 [n_tokens]."""

    n_tokens: int
    n_cols: int

    @property
    def stride(self) -> int:
        """Bytes from token to token."""
        return 2 * round_up(self.n_cols, PAIR)

    @property
    def scales_at(self) -> int:
        return round_up(self.n_tokens * self.stride, ALIGN)

    @property
    def n_bytes(self) -> int:
        return self.scales_at + round_up(4 * self.n_tokens, ALIGN)
