"""Memory of a program on the CPU: buffers between operations, activations, caches and other state of the slots, and
what threads work in. Everything that a record points at is allocated here, and lives as long as this does."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu.isa.layout import LINE
from ggpy.cpu.sizes import WorkingSizes, round_up, row_stride, state_bytes
from ggpy.gguf.slices import read_vector
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


class SlotStates:
    """The state of every slot: keys and values, and what convolutions and recurrent layers carry on."""

    def __init__(self, states: list[State], n_ctx: int, n_slots: int, n_batch: int, cache_type: str) -> None:
        self._n_slots = n_slots
        self._memory: dict[State, list[np.ndarray]] = {}  # uint8 [n_slots, bytes of a slot]
        self._cells: dict[int, tuple[KVState, int]] = {}
        shared: dict[tuple[int, ...], list[np.ndarray]] = {}
        for state in states:
            sizes = state_bytes(state, n_ctx, n_batch, cache_type)
            made = shared.get(sizes) if isinstance(state, KVState) and not state.causal else None
            if made is None:
                made = [allocate(n_slots * size)[: n_slots * size].reshape(n_slots, size) for size in sizes]
            if isinstance(state, KVState):
                self._cells[state.layer] = state, state.n_cells(n_ctx, n_batch)
                if not state.causal:
                    shared[sizes] = made
            self._memory[state] = made
        # what a slot cannot be cut back from: a ring that goes round, a convolution's inputs, a recurrent matrix
        self._passing = [
            state
            for state in self._memory
            if not isinstance(state, KVState) or (state.causal and self._cells[state.layer][1] < n_ctx)
        ]

    def cache(self, layer: int) -> tuple[int, int, int]:
        """Where the keys and the values of a layer lie, and how many cells a slot has there."""
        state, n_cells = self._cells[layer]
        memory = self._memory[state]  # of keys and of values, or of keys that are both
        return address(memory[0]), address(memory[-1]), n_cells

    def floats(self, state: State) -> tuple[int, int]:
        """Where a convolution's or recurrent layer's state lies, and the bytes from slot to slot."""
        (memory,) = self._memory[state]
        return address(memory), memory.strides[0]

    def copy(self, source: int, target: int, n: int) -> None:
        """Make a slot's state that of another one: keys and values of the first n tokens, and all of what passes."""
        for state, memory in self._memory.items():
            for part in memory:
                self._cells_of(state, part[target], n)[:] = self._cells_of(state, part[source], n)

    def _cells_of(self, state: State, slot: np.ndarray, n: int) -> np.ndarray:
        """The part of a slot's state that n tokens have filled, where that is known."""
        if not isinstance(state, KVState) or state in self._passing:
            return slot
        _, n_cells = self._cells[state.layer]
        heads = slot.reshape(state.n_head_kv, -1)  # each [position / 16]([16 positions])
        return heads[:, : min(n_cells, round_up(n, 16)) * heads.shape[1] // n_cells]

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state, keys and values of the first n tokens: uint8 arrays whose sizes follow from n."""
        return [
            self._cells_of(state, part[slot], n).copy().reshape(-1)
            for state, memory in self._memory.items()
            for part in memory
        ]

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `save` gave, into any slot. Raises ValueError where an array is of another size."""
        for state, memory in self._memory.items():
            for part in memory:
                cells = self._cells_of(state, part[slot], n)
                cells[:] = next(kept).reshape(cells.shape)

    def checkpoint(self, slot: int) -> list[np.ndarray]:
        """A copy of what a slot cannot be cut back from."""
        return [part[slot].copy() for state in self._passing for part in self._memory[state]]

    def restore(self, slot: int, kept: Iterator[np.ndarray]) -> None:
        """Put back what `checkpoint` gave for a sequence that the slot still holds the beginning of."""
        for state in self._passing:
            for part in self._memory[state]:
                part[slot] = next(kept)


class Memory:
    """Buffers, states and working memory of a program, for steps of up to `n_batch` tokens."""

    def __init__(
        self, program: Program, file: GGUFFile, n_ctx: int, n_slots: int, n_batch: int, n_threads: int, cache_type: str
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
        self.states = SlotStates(program.states, self.n_ctx, n_slots, n_batch, cache_type)
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
