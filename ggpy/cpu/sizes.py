"""Memory that a program takes on the CPU, in bytes, known before anything of it is allocated.

`ggpy.cpu.memory` and `ggpy.cpu.packed_weights` allocate by the same figures, so that what is planned with is what is
taken. Not counted: Python and its libraries, the vocabulary, and rows of embedding tables, which stay in the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from ggpy.cpu.isa.layout import (
    GROUP_WORDS,
    LINE,
    OP,
    TOKEN_BLOCK_BYTES,
    attention_scratch_bytes,
    cache_types,
    cell_bytes,
    part_bytes,
    planes,
)
from ggpy.graph.operations import Embed, QuantizeActivations, Route
from ggpy.graph.state import PART, SPAN, ConvState, KVState, LatentState, RecurrentState, State
from ggpy.quant.formats import PACKED, packed_bytes

if TYPE_CHECKING:
    from ggpy.gguf.header import TensorInfo
    from ggpy.graph.program import Buffer, Program
    from ggpy.graph.rope import Rope

# Up to so many tokens every thread prepares all activations for itself, and attention's parts are work of their own.
SMALL_STEP = 4


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def row_stride(n_cols: int) -> int:
    """Bytes from row to row of a buffer of so many float32 columns."""
    return round_up(n_cols, 16) * 4


def pages(n_bytes: int) -> int:
    """Bytes of memory that begins on a page of its own."""
    return round_up(max(n_bytes, 1), mmap.PAGESIZE)


# ---- what stays


def arena_bytes(matrices: Iterable[TensorInfo]) -> list[int]:
    """Bytes of each packed matrix, or stack of them, in the arena where all lie one behind the other."""
    return [round_up(packed_bytes(info), 64) for info in matrices]


def weight_bytes(program: Program, beside: Program | None = None) -> int:
    """Bytes of a program's weights: packed matrices, small tensors as float32, and embedding tables of a type without
    kernels, which are kept in half precision. beside: a program of the same file, whose matrices are there already."""
    halves = sum(2 * prod(table.shape) for table in tables(program) if table.type_name not in PACKED)
    known = {matrix.name for matrix in beside.matrices()} if beside else set()
    matrices = [matrix for matrix in program.matrices() if matrix.name not in known]
    return pages(sum(arena_bytes(matrices))) + halves + _vector_bytes(program)


def tables(program: Program) -> list[TensorInfo]:
    """The embedding tables of a program, each once."""
    found = (op.operation.table for op in program.ops if isinstance(op.operation, Embed))
    return list({table.name: table for table in found}.values())


def table_bytes(program: Program) -> int:
    """Bytes of the file in which rows of embedding tables are looked up as tokens occur."""
    return sum(table.nbytes for table in tables(program) if table.type_name in PACKED)


def _vector_bytes(program: Program) -> int:
    """Bytes of norms, biases and other small tensors, one copy for each operation that uses it."""
    large = {info.name for info in (*program.matrices(), *tables(program))}
    found = (info for op in program.ops for info in op.operation.tensors if info.name not in large)
    return sum(4 * (round_up(prod(info.shape), 32) + 32) for info in found)


def state_bytes(state: State, n_ctx: int, n_batch: int, cache_type: str) -> tuple[int, ...]:
    """Bytes of one slot's state: of keys and of values, or of the floats that it is."""
    if isinstance(state, ConvState):
        return (4 * state.n_rows * round_up(state.n_cols, 16),)
    if isinstance(state, RecurrentState):
        return (4 * state.n_head * state.n_rows * round_up(state.n_cols, 16),)
    n_cells = state.n_cells(n_ctx, n_batch)
    return tuple(n_cells * size for size in position_bytes(state, cache_type))


def position_bytes(state: KVState, cache_type: str) -> tuple[int, ...]:
    """Bytes of the keys and of the values of one position, of all heads; of a latent cache, of what is both."""
    cache_k, cache_v = cache_types(cache_type)
    if isinstance(state, LatentState):
        return (state.n_head_kv * cell_bytes(cache_k, round_up(state.head_dim, 16)),)
    sizes = cell_bytes(cache_k, state.head_dim), cell_bytes(cache_v, round_up(state.v_head_dim, 16))
    return tuple(state.n_head_kv * size for size in sizes)


# ---- what steps work in


class WorkingSizes:
    """Sizes of what steps of up to `n_batch` tokens work in, on `n_threads` threads.

    n_ctx: tokens of a slot. `total`: bytes of all of it.
    """

    def __init__(self, program: Program, n_ctx: int, n_batch: int, n_threads: int) -> None:
        self.n_ctx = round_up(n_ctx, SPAN)
        # Rows are read and written in whole vectors, also those that begin within a buffer.
        self.buffers: dict[Buffer, int] = {b: n_batch * b.n_used * row_stride(b.n_cols) + 64 for b in program.buffers}
        self._size_activations(program, n_batch, n_threads)
        self._size_attention(program, n_batch, n_threads)
        self.angles: dict[Rope, int] = {
            a.rope: self.n_ctx * (a.rope.n_rot // 2) * 8 for a in program.attentions if a.rope
        }
        gathered = sum(n_batch * _row_bytes(table) for table in tables(program))
        inputs = n_batch * (4 + 4) * 4  # four numbers a token, and four of each run of them
        records = len(program.ops) * (OP.itemsize + LINE)
        self.logits = sum(size for buffer, size in self.buffers.items() if buffer.outputs_only)
        mapped = (
            *self.buffers.values(), self.activations, self.scratch, self.parts, self.groups, self.pairs, self.places
        )  # fmt: skip
        self.total = sum(map(pages, mapped)) + sum(self.angles.values()) + gathered + inputs + records

    def _size_activations(self, program: Program, n_batch: int, n_threads: int) -> None:
        self.token_bytes: dict[tuple[int, str], int] = {}  # of a row of so many columns, in that form
        rows, widest = 1, 0
        for op in program.ops:
            if isinstance(op.operation, QuantizeActivations):
                n_cols, dtype = op.srcs[0].n_cols, op.operation.dtype
                size = round_up(n_cols, 8) * 4 if dtype == "f32" else n_cols // 32 * TOKEN_BLOCK_BYTES
                self.token_bytes[n_cols, dtype] = size
                rows, widest = max(rows, op.n_used), max(widest, planes(dtype) * size)
        self.private_stride = round_up(SMALL_STEP * rows * widest, 4096)
        self.activations = max(n_batch * rows * widest, n_threads * self.private_stride)

    def _size_attention(self, program: Program, n_batch: int, n_threads: int) -> None:
        """Sizes of threads' own memory, of attention's parts, and of the order of experts' rows."""
        routes = [op.operation for op in program.ops if isinstance(op.operation, Route)]
        self.max_parts = -(-self.n_ctx // PART)
        self.parts, scratch = 0, 12 * max((route.n_experts for route in routes), default=64)
        for a in program.attentions:
            head_pad = round_up(a.v_head_dim, 16)
            joined_row = part_bytes(head_pad) + round_up(a.n_head * a.v_head_dim, 32) * 4
            scratch = max(scratch, attention_scratch_bytes(a.head_dim, head_pad), joined_row)
            self.parts = max(self.parts, SMALL_STEP * a.n_head * self.max_parts * part_bytes(head_pad))
        self.scratch_stride = round_up(scratch, 4096)
        self.scratch = n_threads * self.scratch_stride
        rows = n_batch * max((route.n_used for route in routes), default=0)
        n_groups = 1 + max((route.n_experts for route in routes), default=0)
        self.groups, self.pairs, self.places = 4 * GROUP_WORDS * n_groups, 4 * GROUP_WORDS * rows, 4 * rows


def _row_bytes(table: TensorInfo) -> int:
    return table.nbytes // table.shape[0] if table.type_name in PACKED else 2 * table.shape[1]


def slots_bytes(
    states: Iterable[State], n_ctx: int, n_slots: int, n_batch: int, cache_type: str, kv_cells: int | None = None
) -> int:
    """Bytes of all slots' states. kv_cells: cells that the slots have ranges of, in layers that keep every position;
    None: as many as all contexts have."""
    found = 0
    states = list(states)
    if kv_cells is not None:
        growing = [s for s in states if isinstance(s, KVState) and s.grows(n_ctx, n_batch)]
        found = sum(kv_cells * sum(position_bytes(state, cache_type)) for state in growing)
        states = [state for state in states if state not in growing]
    passing = [s for s in states if isinstance(s, KVState) and not s.causal]
    cells, sizes = KVState.step_cells(n_slots, n_batch), {position_bytes(state, cache_type) for state in passing}
    found += cells * sum(map(sum, sizes))
    states = [state for state in states if state not in passing]
    return found + n_slots * slot_bytes(states, n_ctx, n_batch, cache_type)


def checkpoint_bytes(states: Iterable[State], n_ctx: int, n_batch: int, cache_type: str) -> int:
    """Bytes of a copy of what one slot cannot be cut back from."""
    passing = (s for s in states if not isinstance(s, KVState) or (s.causal and not s.grows(n_ctx, n_batch)))
    return sum(sum(state_bytes(state, n_ctx, n_batch, cache_type)) for state in passing)


def slot_bytes(states: Iterable[State], n_ctx: int, n_batch: int, cache_type: str) -> int:
    """Bytes of one slot's states of every kind. Layers whose attention is not causal share one memory."""
    shared: set[tuple[int, ...]] = set()
    own = 0
    for state in states:
        sizes = state_bytes(state, n_ctx, n_batch, cache_type)
        if isinstance(state, KVState) and not state.causal:
            shared.add(sizes)
        else:
            own += sum(sizes)
    return own + sum(map(sum, shared))
