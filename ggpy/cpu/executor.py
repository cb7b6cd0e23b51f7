"""The CPU executor: gives a program's operations their kernels, addresses and barriers, and runs it on the thread
team."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu import kernels
from ggpy.cpu.access import EVERYONE, SOURCES, Access, Places
from ggpy.cpu.embedding import Embeddings
from ggpy.cpu.isa.layout import OP, STEP
from ggpy.cpu.lowering import lowering_of
from ggpy.cpu.memory import Memory, address
from ggpy.cpu.needed import compile_missing, program_kernels
from ggpy.cpu.packed_weights import PackedWeights
from ggpy.cpu.sizes import SMALL_STEP
from ggpy.cpu.threads import Team
from ggpy.graph.batch import token_segments
from ggpy.graph.program import Op, Program
from ggpy.host import forks

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.graph.executor import StageExecutor


class CpuExecutor:
    """Executor of one program, or of a stage of one. `run` evaluates the batch in its arrays and returns logits.

    team: the threads of another executor, whose steps and this one's take turns, and which is closed after this one;
    weights: those of another one over the same file."""

    def __init__(
        self,
        program: Program,
        file: GGUFFile,
        *,
        n_ctx: int,
        n_slots: int,
        n_batch: int,
        n_threads: int,
        cache_type: str,
        notify: Callable[[str], None],
        team: Team | None = None,
        kv_cells: int | None = None,
        weights: PackedWeights | None = None,
    ) -> None:
        self.program, self.file = program, file
        self.n_batch, self.n_threads = n_batch, n_threads
        self._cache_type = cache_type
        names = program_kernels(program, cache_type)
        compile_missing(names, notify)
        for name in names:
            kernels.kernel(name)  # before threads ask for them
        self.weights = PackedWeights(program.matrices(), file, n_threads, notify, weights)
        self._memory = Memory(program, file, n_ctx, n_slots, n_batch, n_threads, cache_type, kv_cells)
        states = self._memory.states
        self.copy_state, self.move, self.save, self.load = states.copy, states.move, states.save, states.load
        self.checkpoint, self.restore = states.checkpoint, states.restore
        self._embeddings = Embeddings(file, n_ctx, n_batch)
        # Attention that sees a whole sequence is not summed in parts that depend on a token's position alone.
        self._small_step = 0 if program.two_way else SMALL_STEP
        self._ops = np.zeros(len(program.ops), OP)
        for i, op in enumerate(program.ops):
            self._record(op, self._ops[i : i + 1])
        self._place_barriers()
        self._allocate_inputs()
        self._result = self._memory.rows(program.result)
        self._hidden_in = self._memory.rows(program.hidden_in) if program.hidden_in else None
        self._residual = self._memory.rows(program.residual) if program.residual else None
        self.team, self._owns_team = team or Team(n_threads), team is None
        self._args = self._ops.ctypes.data, len(self._ops), self._step.ctypes.data
        self.weights.start()
        forks.watch(self)

    # ---- preparation

    def before_fork(self) -> None:
        """Finish packing before a fork: a child has no packing threads, but shares the packed weights."""
        with contextlib.suppress(Exception):  # which the first step raises
            self.weights.finish()

    def after_fork(self, in_child: bool) -> None:
        if in_child:
            self._memory.reset_counters()  # of a step that another thread was in
            self.team.lose_threads()

    def _record(self, op: Op, r: np.ndarray) -> None:
        """Fill the record `r` [1] of an operation."""
        memory, lowering = self._memory, lowering_of(op.operation)
        r["kernel"] = kernels.kernel(lowering.kernel(op.operation, self._cache_type)).address
        r["outputs_only"], r["n_used"] = op.outputs_only, op.n_used
        r["private_stride"] = memory.private_stride
        r["scratch"], r["scratch_stride"] = address(memory.scratch), memory.scratch_stride
        if op.dst:
            r["dst"], r["dst_stride"] = memory.address(op.dst), memory.stride(op.dst.buffer)
        for region, (at, stride) in zip(op.srcs, SOURCES, strict=False):
            r[at], r[stride] = memory.address(region), memory.stride(region.buffer)
        lowering.record(op, op.operation, Places(memory, self.weights, self._embeddings), r)

    def _place_barriers(self) -> None:
        """Place a barrier before each operation that accesses memory which another thread may have touched since the
        last barrier."""
        for bit, small in ((1, True), (2, False)):
            since: list[Access] = []
            for record, op in zip(self._ops, self.program.ops, strict=True):
                mine = lowering_of(op.operation).accesses(op, op.operation, small)
                clash = any(
                    here.memory == before.memory
                    and (here.writes or before.writes)
                    and not (here.share == before.share and here.share != EVERYONE)
                    for here in mine
                    for before in since
                )
                if clash:
                    record["barrier"] |= bit
                    since = []
                since += mine

    # ---- a step

    def _allocate_inputs(self) -> None:
        """The arrays that describe a batch; kernels read them where they are."""
        n = self.n_batch
        self.tokens, self.slots, self.positions, self.outputs = (np.zeros(n, np.int32) for _ in range(4))
        self.types = np.zeros(n, np.int32)  # of tokens, behind the step's own all 0
        self._segments = np.zeros((n, 4), np.int32)
        self._step = np.zeros(1, STEP)
        for name in ("slots", "positions", "outputs"):
            self._step[name] = getattr(self, name).ctypes.data
        self._step["segments"] = self._segments.ctypes.data
        # Between two tokens little Python may run: single numbers go through views that know no numpy.
        self._counts = self._step.view(np.int64).data[:4]  # n_tokens, n_outputs, small, n_segments
        self._first_segment = self._segments.reshape(-1).data[:4]
        at = STEP.fields["cut_keys"][1] // 8  # type: ignore[index]
        self._cut = self._step.view(np.int64).data[at : at + 2]

    @property
    def cut(self) -> tuple[bool, bool]:
        """See `Executor.cut`."""
        keys, values = self._cut
        return keys != 0, values != 0

    @property
    def unpooled(self) -> bool:
        """True while steps give rows as they are, in place of those that a sequence's rows are pooled into."""
        return bool(self._step["unpooled"][0])

    @unpooled.setter
    def unpooled(self, value: bool) -> None:
        self._step["unpooled"] = value

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        """Set the hidden states, from the stage before this one, that the next step of n tokens begins with."""
        assert self._hidden_in is not None
        self._hidden_in[:n] = before.send_hidden(n)

    def set_hidden(self, rows: np.ndarray) -> None:
        """Set the rows [n, n_cols] that another program made for the next step's n tokens."""
        assert self._hidden_in is not None
        self._hidden_in[: len(rows)] = rows

    def residual(self, n: int) -> np.ndarray:
        """The rows that logits are made from, of all n tokens of the last step: float32 [n, n_embd], a view."""
        assert self._residual is not None
        return self._residual[:n]

    def send_hidden(self, n: int) -> np.ndarray:
        """Hidden states of the last step's n tokens, for the stage after this one: float32 [n, n_cols], a view."""
        return self._result[:n]

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """Evaluate the batch described in `tokens`, `slots`, `positions` [:n] and `outputs` [:m]. `generated` makes
        no difference here: no token's result depends on the rest of the batch.

        Returns the logits, float32 [m, n_vocab]: a view of working memory, valid until the next step. A stage with
        another one after it has none.
        """
        if self.weights.packing:
            self.weights.finish()
        if n == 1:
            last = int(self.positions[0])
            segment = self._first_segment
            segment[0], segment[1], segment[2], segment[3] = int(self.slots[0]), 0, 1, last
            n_segments = 1
        else:
            last = int(self.positions[:n].max())
            segments = token_segments(self.slots[:n], self.positions[:n])
            n_segments = len(segments)
            self._segments[:n_segments] = segments
        self._memory.states.place(self._segments[:n_segments])
        if last >= self._memory.n_angles:
            self._memory.turn_to(last)
        self._embeddings.read(self.tokens, self.positions, self.types, n)
        counts = self._counts
        counts[0], counts[1], counts[2], counts[3] = n, m, n <= self._small_step, n_segments
        self.team.run(*self._args)
        return self._result[: m if self.program.logits else 0]

    def close(self) -> None:
        self.weights.stop()
        if self._owns_team:
            self.team.close()
