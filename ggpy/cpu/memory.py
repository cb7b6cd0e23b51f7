"""Memory of a program on the CPU: buffers between operations, activations, caches and other state of the slots, and
what threads work in. Everything that a record points at is allocated here, and lives as long as this does."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu.isa.layout import LINE
from ggpy.cpu.sizes import WorkingSizes, position_bytes, round_up, row_stride, state_bytes
from ggpy.gguf.slices import read_vector
from ggpy.graph.batch import side_by_side
from ggpy.graph.state import SPAN, KVState, State

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.program import Buffer, Program, Region
    from ggpy.graph.rope import Rope

ANGLES_AT_ONCE = 512  # positions


def allocate(n_bytes: int) -> np.ndarray:
    """Zeroed bytes on their own pages, large pages where the system grants them; untouched pages cost no memory."""
    # private: a child made by fork has a cache of its own, and goes on sharing the weights, which nobody writes
    options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    memory = mmap.mmap(-1, max(n_bytes, mmap.PAGESIZE), **options)
    if hasattr(mmap, "MADV_HUGEPAGE") and n_bytes >= 2 << 20:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


class Cells:
    """Keys and values of a layer's attention: for each head a row of cells, in which a slot has a range.

    starts: int64 [n_slots], where each slot's range begins. size: cells of a head, a multiple of 16. most: the most
    cells of a slot; where that is less than the context, it is a ring.
    """

    def __init__(self, state: KVState, starts: np.ndarray, size: int, most: int, cache_type: str) -> None:
        self.state, self.starts, self.size, self.most = state, starts, size, most
        # uint8 [n_head_kv, bytes of a head's cells], of keys and of values, or of keys that are both
        self.parts = [
            allocate(size * n_bytes)[: size * n_bytes].reshape(state.n_head_kv, -1)
            for n_bytes in position_bytes(state, cache_type)
        ]

    def of(self, slot: int, n: int | None = None) -> list[np.ndarray]:
        """The first n cells of a slot, in whole blocks of 16, or all of a ring's: views [n_head_kv, bytes]."""
        n = self.most if n is None else min(self.most, round_up(n, 16))
        return self.range(int(self.starts[slot]), n)

    def range(self, start: int, n: int) -> list[np.ndarray]:
        per_cell = [part.shape[1] // self.size for part in self.parts]
        return [part[:, start * b : (start + n) * b] for part, b in zip(self.parts, per_cell, strict=True)]


class SlotStates:
    """The state of every slot: keys and values, and what convolutions and recurrent layers carry on.

    kv_cells: cells that the slots share in layers that keep every position, a multiple of SPAN; `move` says which are
    whose. None: each slot has the whole context.
    """

    def __init__(
        self, states: list[State], n_ctx: int, n_slots: int, n_batch: int, cache_type: str, kv_cells: int | None = None
    ) -> None:
        self._cells: dict[int, Cells] = {}  # by layer
        self._floats: dict[State, np.ndarray] = {}  # uint8 [n_slots, bytes of a slot]
        whole = round_up(n_ctx, SPAN)
        slots = np.arange(n_slots, dtype=np.int64)
        self._starts = slots * (0 if kv_cells else whole)  # of all layers that keep every position
        self._step_starts = np.zeros(n_slots, np.int64)  # of layers that keep no position: see `place`
        self._places = any(isinstance(state, KVState) and not state.causal for state in states)
        shared: list[Cells] = []
        self._keeping: list[Cells] = []  # what a slot can be cut back from
        self._passing: list[Cells] = []  # rings that go round
        for state in states:
            if not isinstance(state, KVState):
                (size,) = state_bytes(state, n_ctx, n_batch, cache_type)
                self._floats[state] = allocate(n_slots * size)[: n_slots * size].reshape(n_slots, size)
                continue
            most = state.n_cells(n_ctx, n_batch)
            if state.grows(n_ctx, n_batch):
                cells = Cells(state, self._starts, kv_cells or n_slots * whole, most, cache_type)
                self._keeping.append(cells)
            elif state.causal:
                cells = Cells(state, slots * most, n_slots * most, most, cache_type)
                self._passing.append(cells)
            else:  # of a step alone, which layers share, and nobody comes back to
                sizes = position_bytes(state, cache_type)
                found = next((other for other in shared if position_bytes(other.state, cache_type) == sizes), None)
                size = KVState.step_cells(n_slots, n_batch)
                cells = found or Cells(state, self._step_starts, size, most, cache_type)
                shared += [] if found else [cells]
            self._cells[state.layer] = cells

    def cache(self, layer: int) -> dict[str, int]:
        """Where the keys and the values of a layer lie, for records."""
        cells = self._cells[layer]
        return {
            "cache_k": address(cells.parts[0]),
            "cache_v": address(cells.parts[-1]),
            "n_ctx": cells.most,
            "starts": address(cells.starts),
            "head_cells": cells.size,
        }

    def place(self, segments: np.ndarray) -> None:
        """Where layers keep no position, put a step's sequences side by side: int32 [n][slot, first token, tokens,
        position of the first], each whole and in a slot of its own."""
        if not self._places:
            return
        self._step_starts[segments[:, 0]] = side_by_side(segments)

    def floats(self, state: State) -> tuple[int, int]:
        """Where a convolution's or recurrent layer's state lies, and the bytes from slot to slot."""
        memory = self._floats[state]
        return address(memory), memory.strides[0]

    def move(self, slot: int, start: int, n: int) -> None:
        """Have a slot's range begin at another cell, in layers that keep every position; its first n tokens come with
        it."""
        if start == self._starts[slot]:
            return
        for cells in self._keeping:
            for to, of in zip(cells.range(start, round_up(n, 16)), cells.of(slot, n), strict=True):
                to[:] = of  # numpy sees where they overlap
        self._starts[slot] = start

    def copy(self, source: int, target: int, n: int) -> None:
        """Make a slot's state that of another one: keys and values of the first n tokens, and all of what passes."""
        for to, of in zip(self._parts(target, n), self._parts(source, n), strict=True):
            to[:] = of

    def _parts(self, slot: int, n: int) -> Iterator[np.ndarray]:
        """Views of a slot's state: of keys and values what n tokens have filled, and all of what passes."""
        for cells in self._keeping:
            yield from cells.of(slot, n)
        yield from self._passing_parts(slot)

    def _passing_parts(self, slot: int) -> Iterator[np.ndarray]:
        for cells in self._passing:
            yield from cells.of(slot)
        for memory in self._floats.values():
            yield memory[slot]

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state, keys and values of the first n tokens: uint8 arrays whose sizes follow from n."""
        return [part.copy().reshape(-1) for part in self._parts(slot, n)]

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        """Put back the first n of the n_kept tokens that `save` gave, into any slot. Raises ValueError where an array
        is of another size."""
        for cells in self._keeping:
            for to in cells.of(slot, n):
                n_bytes = to.shape[1] // min(cells.most, round_up(n, 16)) * min(cells.most, round_up(n_kept, 16))
                to[:] = next(kept).reshape(len(to), n_bytes)[:, : to.shape[1]]
        for to in self._passing_parts(slot):
            to[:] = next(kept).reshape(to.shape)

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of what a slot of n tokens cannot be cut back from: rings that go round, convolutions' inputs,
        matrices. It has these of its own length alone."""
        return [part.copy() for part in self._passing_parts(slot)]

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `checkpoint` gave of n tokens for a sequence that the slot still holds the beginning of."""
        for part in self._passing_parts(slot):
            part[:] = next(kept)


class Memory:
    """Buffers, states and working memory of a program, for steps of up to `n_batch` tokens."""

    def __init__(
        self,
        program: Program,
        file: GGUFFile,
        n_ctx: int,
        n_slots: int,
        n_batch: int,
        n_threads: int,
        cache_type: str,
        kv_cells: int | None = None,
    ) -> None:
        self.program, self.file, self.n_batch = program, file, n_batch
        self.n_ctx, self.n_ctx_asked = round_up(n_ctx, SPAN), n_ctx
        self._vectors: list[np.ndarray] = []  # keeps what records point at alive
        sizes = WorkingSizes(program, n_ctx, n_batch, n_threads)
        self._buffers = {buffer: allocate(size) for buffer, size in sizes.buffers.items()}
        self._angles = {
            rope: np.zeros(size // 4, np.float32).reshape(self.n_ctx, -1, 2) for rope, size in sizes.angles.items()
        }
        self.n_angles = 0  # positions that the tables reach
        self.states = SlotStates(program.states, self.n_ctx, n_slots, n_batch, cache_type, kv_cells)
        self.token_bytes, self.private_stride = sizes.token_bytes, sizes.private_stride
        self.scratch_stride, self.max_parts = sizes.scratch_stride, sizes.max_parts
        self.activations, self.scratch, self.parts = map(allocate, (sizes.activations, sizes.scratch, sizes.parts))
        self.groups, self.pairs, self.places = map(allocate, (sizes.groups, sizes.pairs, sizes.places))
        widest = max(max(m.shape[-2:]) for m in program.matrices())
        widest = max(widest, *(buffer.n_cols for buffer in program.buffers)) + 64
        self.zeros, self.ones = np.zeros(widest, np.float32), np.ones(widest, np.float32)
        self._counters, self._n_counters = np.zeros(LINE * len(program.ops), np.uint8), 0

    @staticmethod
    def stride(buffer: Buffer) -> int:
        """Bytes from row to row."""
        return row_stride(buffer.n_cols)

    def address(self, region: Region) -> int:
        return address(self._buffers[region.buffer]) + 4 * region.first

    def rows(self, region: Region) -> np.ndarray:
        """The rows of a region, float32 [n_batch, n_cols]."""
        rows = self._buffers[region.buffer].view(np.float32)[: self.n_batch * self.stride(region.buffer) // 4]
        return rows.reshape(self.n_batch, -1)[:, region.first : region.first + region.n_cols]

    def keep(self, values: np.ndarray) -> int:
        """The address of a small array, padded with zeros to what kernels may read, whose rows stay where they are."""
        padded = np.zeros(round_up(values.size, 32) + 32, np.float32)
        padded[: values.size] = values.reshape(-1)
        self._vectors.append(padded)
        return address(padded)

    def vector(self, info: TensorInfo | None, missing: np.ndarray | None = None) -> int:
        """The address of a small tensor as float32, or `missing`'s."""
        if info is None:
            assert missing is not None
            return address(missing)
        return self.keep(read_vector(self.file, info))

    def counter(self) -> int:
        """The address of a counter for one operation, on a cache line of its own."""
        self._n_counters += 1
        return address(self._counters) + LINE * (self._n_counters - 1)

    def reset_counters(self) -> None:
        self._counters[:] = 0

    def angles(self, rope: Rope) -> int:
        """The address of a rope's table."""
        return address(self._angles[rope])

    def turn_to(self, position: int) -> None:
        """Extend the rope tables up to a position: only as far as needed, as a long context may never be filled."""
        end = min(self.n_ctx, round_up(position + 1, ANGLES_AT_ONCE))
        for rope, table in self._angles.items():
            table[self.n_angles : end] = rope.table(self.n_angles, end, self.n_ctx_asked)
        self.n_angles = end
