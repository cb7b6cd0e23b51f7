"""The CPU executor: gives a program's operations their kernels, addresses
and barriers, and runs it on the thread team."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ggpy.cpu import kernels
from ggpy.cpu.isa.layout import (
    LINE,
    OP,
    PART,
    SPAN,
    STEP,
    TOKEN_BLOCK_BYTES,
    attention_scratch_bytes,
    cache_types,
    cell_bytes,
    part_bytes,
    planes,
)
from ggpy.cpu.needed import compile_missing, kernel_name, program_kernels
from ggpy.cpu.threads import Team
from ggpy.gguf.slices import read_halves, read_vector
from ggpy.graph.batch import token_segments
from ggpy.graph.operations import (
    Attend,
    Attention,
    Elementwise,
    Embed,
    JoinAttention,
    Linear,
    Norm,
    Operation,
    QuantizeActivations,
    RopeStore,
    SelectOutputs,
)
from ggpy.graph.program import Buffer, Op, Program, Region
from ggpy.host import forks
from ggpy.quant.packed import PACKED, ROWS, packed_format

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.executor import StageExecutor

# Up to so many tokens every thread prepares all activations for itself, and attention's parts are work of their own.
SMALL_STEP = 4
ANGLES_AT_ONCE = 512  # positions
PACK_BYTES = 1 << 20  # of GGUF data a thread packs at a time: in its own cache between being read and packed


def allocate(n_bytes: int) -> np.ndarray:
    """Zeroed bytes on their own pages, large pages where the system grants them; untouched pages cost no memory."""
    # private: a child made by fork has a cache of its own, and goes on sharing the weights, which nobody writes
    options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    memory = mmap.mmap(-1, max(n_bytes, mmap.PAGESIZE), **options)
    if hasattr(mmap, "MADV_HUGEPAGE") and n_bytes >= 2 << 20:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass
class Embedding:
    """Embedding rows of a step's tokens, read from the file as they occur: 2 us a token, and no memory. A table of a
    type without a packed form is converted once, to half precision."""

    file: GGUFFile
    info: TensorInfo
    halves: np.ndarray | None  # uint8 [n_vocab, row bytes]
    rows: np.ndarray  # uint8 [n_batch, row bytes], what the kernel reads
    views: list[memoryview]  # of each row

    def read(self, tokens: np.ndarray, n: int) -> None:
        """Fill rows[:n] with the embedding rows of the tokens."""
        if self.halves is not None:
            self.rows[:n] = self.halves[tokens[:n]]
            return
        start, size, read, views = self.info.offset, self.rows.shape[1], self.file.read_into, self.views
        for i in range(n):
            read(views[i], start + int(tokens[i]) * size)


class CpuExecutor:
    """Executor of one program, or of a stage of one. `run` evaluates the batch in its arrays and returns logits."""

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
    ) -> None:
        self.program, self.file = program, file
        self.n_ctx, self.n_slots, self.n_batch, self.n_threads = round_up(n_ctx, SPAN), n_slots, n_batch, n_threads
        self._cache_type = cache_type
        names = program_kernels(program, cache_type)
        compile_missing(names, notify)
        for name in names:
            kernels.kernel(name)  # before threads ask for them
        self._weights = self._place_weights(notify)
        self._vectors: list[np.ndarray] = []  # keeps what records point at alive
        # Rows are read and written in whole vectors, also those that begin within a buffer.
        self._buffers = {b: allocate(n_batch * self._stride(b) + 64) for b in program.buffers}
        ropes = dict.fromkeys(attention.rope for attention in program.attentions)
        self._angles = {rope: np.zeros((self.n_ctx, rope.n_rot // 2, 2), np.float32) for rope in ropes}
        self._n_angles = 0  # positions that the tables reach
        self._allocate_scratch()
        self._embedding: Embedding | None = None
        self._ops = np.zeros(len(program.ops), OP)
        self._counters, self._n_counters = np.zeros(LINE * len(program.ops), np.uint8), 0
        for i, op in enumerate(program.ops):
            self._record(op, self._ops[i : i + 1])
        self._place_barriers()
        self._allocate_inputs()
        self._result = self._rows(program.result)
        self._hidden_in = self._rows(program.hidden_in) if program.hidden_in else None
        self._team = Team(n_threads, self._ops, self._step)
        self._start_packing()
        forks.watch(self)

    # ---- preparation

    def _place_weights(self, notify: Callable[[str], None]) -> dict[str, int]:
        """One arena for the packed stripes of every matrix; returns the matrices' addresses in it."""
        matrices = self.program.matrices()
        foreign = sorted({m.type_name for m in matrices if m.type_name not in PACKED})
        if foreign:
            notify(
                f"no packed kernels yet for {', '.join(foreign)}: it runs as half precision, "
                "slower and larger in memory"
            )
        sizes = [round_up(packed_format(m).matrix_bytes(*m.shape), 64) for m in matrices]
        self._arena = allocate(sum(sizes))
        starts = self._arena.ctypes.data + np.cumsum([0, *sizes[:-1]])
        return {m.name: int(start) for m, start in zip(matrices, starts, strict=True)}

    def _start_packing(self) -> None:
        """Start packing the weights in threads of their own, while the caller goes on; `finish_packing` waits for them.
        The file's pages are released as they are done."""
        self._packers = ThreadPoolExecutor(self.n_threads, "ggpy-pack")
        self._packing: list[Future[None]] = [
            self._packers.submit(self._pack_piece, info, self._weights[info.name], first, last)
            for info in self.program.matrices()
            for first, last in self._pieces(info)
        ]

    def before_fork(self) -> None:
        """Finish packing before a fork: a child has no packing threads, but shares the packed weights."""
        with contextlib.suppress(Exception):  # which the first step raises
            self.finish_packing()

    def after_fork(self, in_child: bool) -> None:
        if in_child:
            self._counters[:] = 0  # of a step that another thread was in
            self._team.lose_threads()

    def finish_packing(self) -> None:
        """Wait until the weights are packed; the first step does so. Raises the error of a packing thread, every
        time: a step whose wait was interrupted, or failed, must not leave the next one with half the weights."""
        for job in self._packing:
            job.result()
        self.file.check_unchanged()
        self._stop_packing()

    def _stop_packing(self) -> None:
        self._packers.shutdown(cancel_futures=True)
        self._packing = []

    @staticmethod
    def _pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
        n_stripes = -(-info.shape[0] // ROWS)
        step = max(1, PACK_BYTES * n_stripes // max(1, info.nbytes))
        for first in range(0, n_stripes, step):
            yield first, min(n_stripes, first + step)

    def _pack_piece(self, info: TensorInfo, out: int, first: int, last: int) -> None:
        packed = packed_format(info)
        n_rows, n_cols = info.shape
        stripe = packed.stripe_bytes(n_cols)
        row_bytes = info.nbytes // n_rows
        n = min(n_rows, last * ROWS) - first * ROWS
        rows = self.file.read(info.name, first * ROWS * row_bytes, n * row_bytes)
        pack = kernels.kernel(f"pack.{packed.name}").call
        codes = np.empty(64, np.uint8).ctypes
        if info.type_name not in PACKED:
            rows, row_bytes = read_halves(self.file, info, rows.reshape(n, row_bytes)), 2 * n_cols
        pack(rows.ctypes.data, out + first * stripe, n, n_cols, row_bytes, stripe, 0, last - first, codes.data)

    def _allocate_scratch(self) -> None:
        heads = self.program.attention
        n_head, n_head_kv, head_dim = heads.n_head, heads.n_head_kv, heads.head_dim
        head_pad = round_up(head_dim, 16)
        self._token_bytes: dict[tuple[int, str], int] = {}
        for op in self.program.ops:
            if isinstance(op.operation, QuantizeActivations):
                n_cols, dtype = op.srcs[0].n_cols, op.operation.dtype
                size = round_up(n_cols, 8) * 4 if dtype == "f32" else n_cols // 32 * TOKEN_BLOCK_BYTES
                self._token_bytes[n_cols, dtype] = size
        widest = max(planes(dtype) * size for (_, dtype), size in self._token_bytes.items())
        self._private_stride = round_up(SMALL_STEP * widest, 4096)
        self._activations = allocate(max(self.n_batch * widest, self.n_threads * self._private_stride))
        joined_row = part_bytes(head_pad) + round_up(n_head * head_dim, 32) * 4
        self._scratch_stride = round_up(max(attention_scratch_bytes(head_dim, head_pad), joined_row), 4096)
        self._scratch = allocate(self.n_threads * self._scratch_stride)
        self._max_parts = -(-self.n_ctx // PART)
        self._parts = allocate(SMALL_STEP * n_head * self._max_parts * part_bytes(head_pad))
        cells = self.n_slots * n_head_kv * self.n_ctx
        cache_k, cache_v = cache_types(self._cache_type)
        layers = self.program.layers
        self._keys = {layer: allocate(cells * cell_bytes(cache_k, head_dim)) for layer in layers}
        self._values = {layer: allocate(cells * cell_bytes(cache_v, head_pad)) for layer in layers}
        widest_matrix = max(max(m.shape) for m in self.program.matrices())
        self._zeros = np.zeros(widest_matrix + 64, np.float32)
        self._ones = np.ones(widest_matrix + 64, np.float32)

    @staticmethod
    def _stride(buffer: Buffer) -> int:
        return round_up(buffer.n_cols, 16) * 4

    def _address(self, region: Region) -> int:
        return self._buffers[region.buffer].ctypes.data + 4 * region.first

    def _rows(self, region: Region) -> np.ndarray:
        """The rows of a region, float32 [n_batch, n_cols]."""
        rows = self._buffers[region.buffer].view(np.float32)[: self.n_batch * self._stride(region.buffer) // 4]
        return rows.reshape(self.n_batch, -1)[:, region.first : region.first + region.n_cols]

    def _vector(self, info: TensorInfo | None, missing: np.ndarray | None = None) -> int:
        """The address of a small tensor as float32, padded with zeros to what kernels may read, or `missing`'s."""
        if info is None:
            assert missing is not None
            return missing.ctypes.data
        values = read_vector(self.file, info)
        padded = np.zeros(round_up(len(values), 32) + 32, np.float32)
        padded[: len(values)] = values
        self._vectors.append(padded)
        return padded.ctypes.data

    def _record(self, op: Op, r: np.ndarray) -> None:
        """Fill the record `r` [1] of an operation."""
        r["kernel"] = kernels.kernel(kernel_name(op.operation, self._cache_type)).address
        r["outputs_only"] = op.outputs_only
        r["private_stride"] = self._private_stride
        r["scratch"], r["scratch_stride"] = self._scratch.ctypes.data, self._scratch_stride
        if op.dst:
            r["dst"], r["dst_stride"] = self._address(op.dst), self._stride(op.dst.buffer)
        for region, (at, stride) in zip(
            op.srcs, (("src", "src_stride"), ("src2", "src2_stride"), ("src3", "src3_stride")), strict=False
        ):
            r[at], r[stride] = self._address(region), self._stride(region.buffer)
        record = next(record for kind, record in self._RECORD.items() if isinstance(op.operation, kind))
        record(self, op, op.operation, r)

    def _record_embed(self, op: Op, embed: Embed, r: np.ndarray) -> None:
        weight = embed.table
        n_rows, n_cols = weight.shape
        if weight.type_name in PACKED:
            halves, row_bytes = None, weight.nbytes // n_rows
        else:
            rows = np.asarray(self.file.data(weight.name)).reshape(n_rows, -1)
            halves, row_bytes = read_halves(self.file, weight, rows).view(np.uint8), 2 * n_cols
        rows = np.zeros((self.n_batch, row_bytes), np.uint8)
        self._embedding = Embedding(self.file, weight, halves, rows, [row.data for row in rows])
        r["weight"], r["weight_stride"], r["n_cols"] = rows.ctypes.data, row_bytes, n_cols

    def _record_quantize(self, op: Op, quantize: QuantizeActivations, r: np.ndarray) -> None:
        n_cols = op.srcs[0].n_cols
        r["n_cols"] = n_cols
        r["token_bytes"] = self._token_bytes[n_cols, quantize.dtype]
        r["dst"] = self._activations.ctypes.data
        norm = quantize.norm
        r["eps"] = norm.eps if norm else -1.0
        r["weight"] = self._vector(norm.weight if norm else None, self._ones)
        r["select"] = quantize.select
        if quantize.joins:
            self._record_heads(quantize.joins, r)
            r["combine"], r["src2"] = 1, self._parts.ctypes.data

    def _record_linear(self, op: Op, linear: Linear, r: np.ndarray) -> None:
        weight = linear.weight
        packed = packed_format(weight)
        n_rows, n_cols = weight.shape
        r["src"] = self._activations.ctypes.data
        r["weight"], r["bias"] = self._weights[weight.name], self._vector(linear.bias, self._zeros)
        r["n_cols"], r["n_stripes"] = packed.padded(n_cols), -(-n_rows // ROWS)
        r["stripe_bytes"] = packed.stripe_bytes(n_cols)
        r["token_bytes"] = self._token_bytes[n_cols, linear.dtype]
        r["accumulate"], r["next"] = linear.accumulate, self._counter()

    def _counter(self) -> int:
        """The address of a counter for one operation, on a cache line of its own."""
        self._n_counters += 1
        return int(self._counters.ctypes.data) + LINE * (self._n_counters - 1)

    def _record_heads(self, a: Attention, r: np.ndarray) -> None:
        r["n_head"], r["n_head_kv"], r["head_dim"] = a.n_head, a.n_head_kv, a.head_dim
        r["head_pad"] = round_up(a.head_dim, 16)
        r["max_parts"] = self._max_parts
        r["n_ctx"], r["window"] = self.n_ctx, a.window
        r["cache_k"], r["cache_v"] = self._keys[a.layer].ctypes.data, self._values[a.layer].ctypes.data

    def _record_rope_store(self, op: Op, store: RopeStore, r: np.ndarray) -> None:
        attention = store.attention
        self._record_heads(attention, r)
        rope = attention.rope
        r["n_rot"], r["neox"], r["angles"] = rope.n_rot, rope.style == "neox", self._angles[rope].ctypes.data
        for norm, at in ((attention.q_norm, "weight"), (attention.k_norm, "weight2")):
            if norm:
                r[at], r["eps"] = self._vector(norm.weight), norm.eps

    def _record_attend(self, op: Op, attend: Attend, r: np.ndarray) -> None:
        self._record_heads(attend.attention, r)
        r["scale"] = attend.attention.scale
        r["src2"], r["next"] = self._parts.ctypes.data, self._counter()

    def _record_join(self, op: Op, join: JoinAttention, r: np.ndarray) -> None:
        self._record_heads(join.attention, r)
        r["src2"] = self._parts.ctypes.data

    def _record_select(self, op: Op, select: SelectOutputs, r: np.ndarray) -> None:
        r["n_cols"] = op.srcs[0].n_cols

    def _record_norm(self, op: Op, norm: Norm, r: np.ndarray) -> None:
        r["n_cols"], r["eps"], r["weight"] = op.srcs[0].n_cols, norm.eps, self._vector(norm.weight)

    def _record_elementwise(self, op: Op, elementwise: Elementwise, r: np.ndarray) -> None:
        assert op.dst is not None
        r["n_stripes"], r["scale"] = -(-op.dst.n_cols // ROWS), elementwise.constant
        if len(op.srcs) == 1:
            r["src2"], r["src2_stride"] = r["src"], r["src_stride"]

    _RECORD: ClassVar[dict[type[Operation], Callable[..., None]]] = {
        Embed: _record_embed,
        QuantizeActivations: _record_quantize,
        Linear: _record_linear,
        RopeStore: _record_rope_store,
        Attend: _record_attend,
        JoinAttention: _record_join,
        SelectOutputs: _record_select,
        Norm: _record_norm,
        Elementwise: _record_elementwise,
    }

    # ---- barriers

    def _accesses(self, op: Op, small: bool) -> list[tuple[Any, bool, str]]:
        """Memory that an operation reads or writes: (memory, True for a write, the rule by which threads divide it).
        Under the same rule, no thread touches another thread's part."""
        everyone, own = "everyone", "own"

        def regions(items: tuple[Region, ...], writes: bool, share: str) -> list[tuple[Any, bool, str]]:
            return [(r.buffer, writes, share) for r in items]

        dst = (op.dst,) if op.dst else ()
        operation = op.operation
        if isinstance(operation, Embed):
            return regions(dst, True, "tokens")
        if isinstance(operation, QuantizeActivations):
            rows = "outputs" if op.outputs_only else "tokens"
            reads = [*regions(op.srcs, False, everyone if small else rows)]
            if operation.joins:
                reads.append(("parts", False, everyone))
            return [*reads, ("activations", True, own if small else rows)]
        if isinstance(operation, Linear):
            assert op.dst is not None
            rows = f"stripes of {op.dst.buffer.n_cols}" if small else everyone
            return [("activations", False, own if small else everyone), *regions(dst, True, rows)]
        if isinstance(operation, JoinAttention):
            return [("parts", False, everyone), *regions(dst, True, everyone)]
        if isinstance(operation, SelectOutputs):
            return [*regions(op.srcs, False, everyone), *regions(dst, True, "outputs")]
        if isinstance(operation, Norm):
            rows = "outputs" if op.outputs_only else "tokens"
            return [*regions(op.srcs, False, rows), *regions(dst, True, rows)]
        if isinstance(operation, Elementwise):
            assert op.dst is not None
            rows = f"stripes of {op.dst.n_cols}"
            return [*regions(op.srcs, False, rows), *regions(dst, True, rows)]
        assert isinstance(operation, (RopeStore, Attend))
        layer = ("cache", operation.attention.layer)
        if isinstance(operation, RopeStore):
            return [*regions(op.srcs, True, everyone), (layer, True, everyone)]
        return [
            *regions(op.srcs, False, everyone),
            (layer, False, everyone),
            *regions(dst, True, everyone),
            ("parts", True, everyone),
        ]

    def _place_barriers(self) -> None:
        """Place a barrier before each operation that accesses memory which another
        thread may have touched since the last barrier."""
        for bit, small in ((1, True), (2, False)):
            since: list[tuple[Any, bool, str]] = []
            for record, op in zip(self._ops, self.program.ops, strict=True):
                mine = self._accesses(op, small)
                clash = any(
                    memory == other and (writes or wrote) and not (share == shared and share != "everyone")
                    for memory, writes, share in mine
                    for other, wrote, shared in since
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

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        """Set the hidden states, from the stage before this one, that the next step of n tokens begins with."""
        assert self._hidden_in is not None
        self._hidden_in[:n] = before.send_hidden(n)

    def send_hidden(self, n: int) -> np.ndarray:
        """Hidden states of the last step's n tokens, for the stage after this one: float32 [n, n_cols], a view."""
        return self._result[:n]

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """Evaluate the batch described in `tokens`, `slots`, `positions` [:n] and `outputs` [:m]. `generated` makes
        no difference here: no token's result depends on the rest of the batch.

        Returns the logits, float32 [m, n_vocab]: a view of working memory, valid until the next step. A stage with
        another one after it has none.
        """
        if self._packing:
            self.finish_packing()
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
        if last >= self._n_angles:
            self._turn_to(last)
        if self._embedding:
            self._embedding.read(self.tokens, n)
        counts = self._counts
        counts[0], counts[1], counts[2], counts[3] = n, m, n <= SMALL_STEP, n_segments
        self._team.run()
        return self._result[: m if self.program.logits else 0]

    def _turn_to(self, position: int) -> None:
        """Extend the rope tables up to a position: only as far as needed, as a long context may never be filled."""
        end = min(self.n_ctx, round_up(position + 1, ANGLES_AT_ONCE))
        for rope, table in self._angles.items():
            table[self._n_angles : end] = rope.table(self._n_angles, end)
        self._n_angles = end

    def close(self) -> None:
        self._stop_packing()
        self._team.close()
