"""The queueing of a step's launches: which kernel, which grid, which addresses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from ggpy.cuda import recurrent
from ggpy.cuda.lower import Attention, Embed, ExpertProduct, HeadProduct, Product, RopeStore, Rowwise, Step
from ggpy.cuda.ops.flash import launch as flash_launch
from ggpy.cuda.ops.flash.launch import FlashKind
from ggpy.cuda.ops.matmul import launch as matmul_launch
from ggpy.cuda.queue_experts import ExpertQueue
from ggpy.cuda.recurrent import Recurrent, Runs, launch_of
from ggpy.cuda.rowwise import launches_of, select, vectors_of
from ggpy.cuda.weights.cache_layout import WARP_HEAD, AttentionShape
from ggpy.cuda.weights.layout import HEAD_PRODUCT_THREADS, HEAD_PRODUCT_TOKENS, MatvecShape, ring_kib
from ggpy.cuda.weights.weights import layout_of
from ggpy.graph import operations as ops

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.exchange import Exchange
    from ggpy.cuda.weights.weights import Weights
    from ggpy.cuda.working_memory import Place, WorkingMemory
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Op

MATVEC_SIZES = (1, 2, 4, 8)  # tokens that a matrix is multiplied with as vectors
MATVEC_TOKENS = MATVEC_SIZES[-1]
ROPE_WARPS = 4


class StepQueue(ExpertQueue):
    """A queue of steps for the GPU. `queue` queues a step; with `collect` nothing is launched, and `collect` receives
    the kernels' names. shapes: those of each layer's attention; always_tiles: prompts are tiles however few tokens."""

    def __init__(
        self,
        device: Device,
        weights: Weights,
        steps: list[Step],
        shapes: Mapping[int, AttentionShape],
        memory: WorkingMemory | None,
        collect: Callable[[str], None] | None = None,
        exchange: Exchange | None = None,
        batch_invariant: bool = False,
        always_tiles: bool = False,
    ) -> None:
        super().__init__(device, weights, steps, memory, collect, batch_invariant)
        self.shapes = shapes
        # what makes logits of the last layer's rows
        kinds = Product | HeadProduct | Rowwise
        self._tail = [step for step in steps if isinstance(step, kinds) and step.outputs_only]
        self._deep, self._as_vectors = False, False  # how this step is queued
        self._always_tiles = always_tiles  # those of prompts
        self.pooled = True  # rows of a sequence are pooled where the program says so
        self._exchange, self._n_sums = exchange, 0  # sums over all ranks, and those of this step so far

    def queue(self, n: int, way: str) -> None:
        """Queue a step of n tokens up to, and without, its logits. way:

        "apart": every token has a slot to itself; "deep": the same, after many tokens; "together": few tokens that may
        see each other; "prompt": many.
        Up to MATVEC_TOKENS tokens (which must be one of MATVEC_SIZES) are multiplied as vectors, more as tiles. Where
        results shall not depend on how many there are, the way says which: tokens apart are vectors, MATVEC_TOKENS at a
        time, and those of prompts tiles.
        """
        for _ in self.pieces(n, way):
            pass

    def pieces(self, n: int, way: str) -> Iterator[None]:
        """Queue a step as `queue` does, piece by piece: each ends in a sum over all ranks, which waits for every rank's
        piece."""
        self._begin()
        self._n_sums = 0
        self._deep, self._as_vectors = way == "deep", self._are_vectors(n, way)
        apart = way in ("apart", "deep")
        for step in self.steps:
            if isinstance(step, Embed):
                self._embed(step, n)
            elif isinstance(step, RopeStore):
                if not _stored_by_attention(step.attention, apart):
                    self._rope_store(step, n)
            elif isinstance(step, Attention):
                if way == "prompt":
                    self._flash(step)
                else:
                    self._attention(step, n, _stored_by_attention(step.attention, apart))
            elif isinstance(step, Recurrent):
                self._recurrent(step, n, way)
            elif not step.outputs_only:
                if isinstance(step, Product):
                    self._product(step, n)
                    if step.partial:
                        yield
                elif isinstance(step, HeadProduct):
                    self._head_product(step, n)
                else:
                    self._rowwise(step, n)

    def _are_vectors(self, n: int, way: str) -> bool:
        """True where matrices are multiplied with n tokens as vectors; False as tiles."""
        return way != "prompt" if self._batch_invariant or self._always_tiles else n <= MATVEC_TOKENS

    def queue_logits(self, n: int, way: str, first: int = 0) -> Place:
        """Queue the logits of outputs first .. first + n of a step that was queued in this way; returns their place."""
        self._as_vectors, self._in_order = self._are_vectors(n, way), None
        if self._as_vectors and way == "prompt":  # of one token alone its own row would be taken
            n = next(size for size in MATVEC_SIZES if size >= max(2, n))
        for step in self._tail:
            if isinstance(step, Product):
                self._product(step, n, 4 * first)
            elif isinstance(step, HeadProduct):
                self._head_product(step, n)
            else:
                self._rowwise(step, n, 4 * first)
        last = self._tail[-1]
        logits = last.linears[0].dst if isinstance(last, Product) else last.op.dst  # of no product of experts
        assert logits is not None
        return self._place(logits)

    # ---- one method a kind of step

    def _embed(self, step: Embed, n: int) -> None:
        layout = layout_of([step.weight])
        planes = (0,) * 8
        tokens = chosen = 0
        if self.memory:
            planes = self.weights.matrix([step.weight]).planes
            tokens = self.memory.inputs({"token": "tokens", "position": "positions", "type": "types"}[step.index])
            chosen = self.memory.chosen
        name = f"embed.{layout.packed.name}"
        self._launch(name, n, tokens, chosen, *planes, layout.n_blocks, layout.n_cols, *self._fresh(step.dst))

    def _takes_parts(self, product: Product, n: int) -> bool:
        """True where a product joins attention's parts by itself."""
        return product.joins is not None and self._leaves_parts(product.joins, n)

    @staticmethod
    def _leaves_parts(step: Attention, n: int) -> bool:
        """True where an attention is left in parts, for the products that read it to join."""
        return n == 1 and step.in_parts and step.attention.v_head_dim % 4 == 0

    def _product(self, step: Product, n: int, rows_offset: int = 0) -> None:
        """Queue a product. rows_offset: bytes into the indices of outputs, where only outputs are wanted."""
        if isinstance(step, ExpertProduct):
            self._of_experts(step, n, rows_offset, self._as_vectors)
            return
        if not self._as_vectors:
            self._tiles(step, n, rows_offset)
            return
        source, layout, memory = step.activations.srcs[0], step.layout, self.memory
        planes = self.weights.matrix(step.infos).planes if memory else (0,) * 8
        eps, norm = step.eps, self._norm(step)
        x, x_stride, scales, scale_stride = self._place(source)[0], 0, 0, 0
        if step.joins and self._takes_parts(step, n):
            heads = step.joins.attention
            inputs = f"parts{self._splits(heads, 1)}x{heads.v_head_dim}"
            x = memory.parts if memory else 0
        elif n > 1 or step.separate or not step.aligned:
            inputs = "ready"
            x, x_stride, scales, scale_stride = self._activations(step, n, rows_offset)
        else:
            inputs = "norm" if eps >= 0 else "plain"
        n_rows, half_rows = layout.n_rows, 0
        if step.swiglu:
            n_rows = half_rows = step.swiglu.n_cols
        to = self._fresh(step.swiglu) if step.swiglu else self._results(step)
        outputs, goal, last = "swiglu" if step.swiglu else "rows", to, int(step.accumulate)
        at_once = min(n, MATVEC_TOKENS)
        if step.partial and self._exchange and n > at_once:
            goal, last = self._exchange.partial(self._n_sums), 0
        elif step.partial and self._exchange:
            outputs, last = f"push{self._exchange.rank.count}", self._n_sums
            goal = self._exchange.targets(last), self._exchange.token_stride
        shape = MatvecShape(layout.packed, layout.n_cols, at_once, ring_kib(self.device.shared_limit))
        grid = shape.grid(n_rows, self.device.n_multiprocessors)
        ahead = self._prefetch.of_product(step, grid * shape.threads // 32) if memory and n == 1 else (0, 0, 0)
        for first in range(0, n, at_once):
            self._launch(
                f"matvec.{layout.packed.name}.{layout.n_cols}.{at_once}.{inputs}.{outputs}.{shape.ring}",
                grid, *planes, n_rows, half_rows, x + first * x_stride, x_stride, scales + first * scale_stride,
                scale_stride, norm, eps, self._bias(step), goal[0] + first * goal[1], goal[1], last, self._epochs,
                *ahead, shared=shape.shared_bytes,
            )  # fmt: skip
        if step.partial:
            self._sum(step, n, to, was_pushed=n <= at_once)

    @property
    def _epochs(self) -> int:
        return self.memory.header + 8 if self.memory else 0

    def _sum(self, step: Product, n: int, to: Place, was_pushed: bool) -> None:
        """Queue the sum of a product over all ranks."""
        assert self._exchange is not None
        self._exchange.sum(self._launch, n, was_pushed, self._n_sums, self._epochs, to, step.accumulate)
        self._n_sums += 1

    def _tiles(self, step: Product, n: int, rows_offset: int) -> None:
        """Queue a product of many tokens."""
        layout = step.layout
        if self._collect:
            for name in matmul_launch.kernel_names(layout, self.device.cc, step.aligned, self._batch_invariant):
                self._collect(name)
            if step.partial:
                self._sum(step, n, (0, 0), was_pushed=False)
            return
        memory, device = self.memory, self.device
        assert memory is not None
        self._half_activations(step, n, rows_offset)
        to = address, stride = self._results(step)
        accumulate = step.accumulate
        if step.partial and self._exchange:
            (address, stride), accumulate = self._exchange.partial(self._n_sums), False
        if step.swiglu:
            self._forget(step.swiglu)
            self._gated[step.swiglu.buffer.index] = (address, stride), (address + 4 * step.swiglu.n_cols, stride)
        matmul_launch.matmul(
            device, layout, self.weights.matrix(step.infos).address, memory.activations, n_tokens=n,
            bias=self._bias(step), dst=address, dst_stride=stride, accumulate=accumulate,
            batch_invariant=self._batch_invariant,
        )  # fmt: skip
        if step.partial:
            self._sum(step, n, to, was_pushed=False)

    def load_vectors(self) -> None:
        """Bring small tensors to the GPU ahead: while a graph is recorded nothing can be allocated."""
        for step in self.steps:
            if isinstance(step, Product):
                self._norm(step)
                self._bias(step)
            elif isinstance(step, RopeStore):
                for norm in (step.attention.q_norm, step.attention.k_norm):
                    self.weights.vector(norm.weight if norm else None)
                self.weights.vector(step.attention.sinks)
            elif isinstance(step, Rowwise):
                for info, size in vectors_of(step.op):
                    self.weights.vector(info, sizes=[size])
            elif isinstance(step, Recurrent):
                for info, size in recurrent.vectors_of(step):
                    self.weights.vector(info, sizes=[size])

    def _rope_store(self, step: RopeStore, n: int) -> None:
        op, attention = step.op, step.attention
        if attention.kv_layer is not None and not (attention.rope or attention.q_norm or attention.temperature):
            return
        cache, n_head_kv = self.shapes[attention.layer].cache, attention.n_head_kv if attention.kv_layer is None else 0
        (q, q_stride), (k, k_stride), (v, v_stride) = self._operands(op)
        header, slots, positions = self._batch()
        own_cells = positions
        if self.memory and not attention.causal:  # the sequences of a step are in one slot, side by side
            slots, own_cells = self.memory.zeros, self.memory.inputs("cells")
        late = ".late" if attention.norm_after_rope else ""
        q_norm, k_norm, *turning = self._turning(attention)
        q_eps, k_eps = (norm.eps if norm else 0.0 for norm in (attention.q_norm, attention.k_norm))
        factors = self.memory.vectors[attention.temperature] if self.memory and attention.temperature else 0
        self._launch(
            f"rope_store.{cache.types}{late}", (-(-(attention.n_head + n_head_kv) // ROPE_WARPS), n),
            q, k, v, q_stride, k_stride, v_stride, q_norm, k_norm, q_eps, k_eps, *turning, attention.rope_first,
            factors, attention.n_head, n_head_kv, attention.head_dim, attention.v_head_dim, header, slots, positions,
            own_cells, *self._cells(attention), cache.cells, cache.head_pad, cache.value_pad,
        )  # fmt: skip

    def _operands(self, op: Op) -> list[Place]:
        """Places of an attention's queries, keys and values; nowhere for those that an earlier layer has stored."""
        return [self._place(region) for region in op.srcs] + [(0, 0)] * (3 - len(op.srcs))

    def _turning(self, attention: ops.Attention) -> tuple[float, ...]:
        """Arguments for rope: weights of the norms, the table of angles, its width, and which pairs rotate; none do
        where there is no rope."""
        rope, memory, norms = attention.rope, self.memory, (attention.q_norm, attention.k_norm)
        weights = [self.weights.vector(norm.weight if norm else None) if memory else 0 for norm in norms]
        if rope is None:
            return (*weights, 0, 0, True)
        return (*weights, memory.angles[rope] if memory else 0, rope.n_rot // 2, rope.style == "neox")

    def _batch(self) -> tuple[int, int, int]:
        """Addresses of the header, the slots and the positions."""
        memory = self.memory
        return (memory.header, memory.inputs("slots"), memory.inputs("positions")) if memory else (0, 0, 0)

    def _cells(self, attention: ops.Attention) -> tuple[int, int]:
        layer = attention.cache_layer
        return (self.memory.states.keys[layer], self.memory.states.values[layer]) if self.memory else (0, 0)

    def _sinks(self, attention: ops.Attention) -> int:
        return self.weights.vector(attention.sinks) if self.memory else 0

    def _slopes(self, attention: ops.Attention) -> int:
        return self.memory.vectors[attention.slopes] if self.memory and attention.alibi else 0

    def _attention(self, step: Attention, n: int, storing: bool) -> None:
        """Queue attention. storing: it turns queries and stores keys and values itself."""
        attention, memory, shape = step.attention, self.memory, self.shapes[step.attention.layer]
        cache, splits = shape.cache, self._splits(attention, n)
        parts = memory.parts if memory else 0
        if cache.wide:
            self._wide_parts(step, n, splits, parts)
        else:
            self._narrow_parts(step, n, splits, parts, storing)
        if not self._leaves_parts(step, n):
            to, sinks = self._fresh(step.op.dst), self._sinks(attention)
            self._launch("join", (shape.n_head, n), parts, splits, cache.part_bytes, cache.value_dim, sinks, *to)

    def _wide_parts(self, step: Attention, n: int, splits: int, parts: int) -> None:
        """Queue the parts of attention of heads that a block of threads reads."""
        attention, shape = step.attention, self.shapes[step.attention.layer]
        kind = FlashKind.of(attention)
        name, grid, shared = flash_launch.parts(self.device, shape.cache, shape.n_head, kind, n, splits)
        slopes = (self._slopes(attention),) if kind.alibi else ()
        self._launch(
            name, grid, *self._place(step.op.srcs[0]), *self._cells(attention), shape.cache.cells, *self._batch(),
            parts, splits, attention.chunk or attention.window,
            flash_launch.score_scale(attention.scale, attention.softcap), *slopes, shared=shared,
        )  # fmt: skip

    def _narrow_parts(self, step: Attention, n: int, splits: int, parts: int, storing: bool) -> None:
        """Queue the parts of attention of heads that a warp reads."""
        attention, memory, shape = step.attention, self.memory, self.shapes[step.attention.layer]
        cache, places = shape.cache, [number for place in self._operands(step.stored) for number in place]
        grid = splits, shape.n_head // shape.group, n
        n_warps = math.prod(grid) * shape.tile.threads // 32
        ahead = self._prefetch.of_attention(step, n_warps) if memory and n == 1 else (0, 0, 0)
        q_norm, k_norm, *turning = self._turning(attention)
        eps = attention.q_norm.eps if attention.q_norm else 0.0
        self._launch(
            shape.kernel(storing), grid, *places, q_norm, k_norm, eps, *turning,
            *self._batch(), shape.n_head, cache.n_head_kv, cache.head_dim, *self._cells(attention),
            cache.cells, cache.head_pad, attention.chunk or attention.window, attention.scale * shape.score_unit,
            self._slopes(attention), parts, cache.part_bytes, *ahead, shared=shape.shared_bytes,
        )  # fmt: skip

    def _splits(self, attention: ops.Attention, n: int) -> int:
        return self.shapes[attention.layer].splits(n, self.device.n_multiprocessors, self._deep)

    def _flash(self, step: Attention) -> None:
        """Queue attention of many tokens."""
        attention, memory, shape = step.attention, self.memory, self.shapes[step.attention.layer]
        kind = FlashKind.of(attention)
        if self._collect:
            for name in flash_launch.kernel_names(self.device, shape.cache, shape.n_head, kind):
                self._collect(name)
            return
        assert memory is not None
        q, q_stride = self._place(step.op.srcs[0])
        dst, dst_stride = self._fresh(step.op.dst)
        keys, values = self._cells(attention)
        flash_launch.attention(
            self.device, shape.cache, q=q, q_stride=q_stride, keys=keys, values=values,
            segments=memory.inputs("segments"), n_segments=memory.n_segments, max_tokens=memory.max_tokens,
            dst=dst, dst_stride=dst_stride, n_head=shape.n_head, window=attention.chunk or attention.window,
            scale=attention.scale, kind=kind, sinks=self._sinks(attention), slopes=self._slopes(attention),
        )  # fmt: skip

    def _head_product(self, step: HeadProduct, n: int) -> None:
        """Queue a product of each head's own matrix."""
        operation, layout, memory = step.op.operation, layout_of([step.info]), self.memory
        assert isinstance(operation, ops.Linear)
        n_head, n_rows, n_cols = operation.weight.shape
        planes = self.weights.matrix([step.info]).planes if memory else (0,) * 8
        src, stride = self._place(step.source)
        to = self._fresh(step.op.dst)
        overlaps = step.op.dst is not None and step.op.dst.buffer == step.source.buffer
        if self._collect or overlaps or src % 16:  # its rows elsewhere, on multiples of 16 bytes
            at, width = memory.activations if memory else 0, step.source.n_cols
            self._queue(select(width, n, (src, stride), (at, 4 * width), run=width, width=width, dst_run=width))
            src, stride = at, 4 * width
        lanes = min(32, 1 << (layout.n_blocks - 1).bit_length())
        rows = HEAD_PRODUCT_THREADS // lanes
        for tokens in (1, HEAD_PRODUCT_TOKENS) if self._collect else (1 if n == 1 else HEAD_PRODUCT_TOKENS,):
            self._launch(
                f"head_linear.{layout.packed.name}.{tokens}", (-(-n_rows // rows), n_head, -(-n // tokens)),
                *planes, n_cols // 32, lanes, src, stride, *to, n_rows, n,
            )  # fmt: skip

    def _rowwise(self, step: Rowwise, n: int, rows_offset: int = 0) -> None:
        """Queue an operation by itself, on a row for each expert that a token has chosen where its result has one.
        rows_offset: as `_product` has it."""
        n *= step.op.n_used
        srcs = [self._place(region) for region in step.op.srcs]
        outputs = self.memory.inputs("outputs") + rows_offset if self.memory else 0
        positions, dst = self.memory.inputs("positions") if self.memory else 0, self._fresh(step.op.dst)
        for pooled in (True, False) if self._collect else (self.pooled,):
            for launch in launches_of(step.op, n, srcs, dst, outputs, self._vector, positions if pooled else None):
                self._queue(launch)

    def _recurrent(self, step: Recurrent, n: int, way: str) -> None:
        """Queue an operation that carries state, by itself or with what it has absorbed."""
        memory, state, runs = self.memory, (0, 0), Runs(0, n, 1)
        if way == "prompt":
            for op in step.absorbed:
                self._rowwise(Rowwise(op), n)
        if memory:
            assert step.op.operation.state is not None
            state, segments = memory.states.carried(step.op.operation.state), memory.inputs("segments")
            runs = Runs(segments, n, MATVEC_TOKENS if way == "together" else 1)
            if way == "prompt":
                runs = Runs(segments, memory.n_segments, memory.max_tokens)
        srcs = [self._place(region) for region in (step.op.srcs if way == "prompt" else step.srcs)]
        dst = self._fresh(step.op.dst)
        self._queue(launch_of(step, way != "prompt", srcs, dst, state, runs, self._vector))

    def _vector(self, info: TensorInfo | None, size: int) -> int:
        """The address of a small tensor of so many entries, as `Weights.vector` gives it."""
        return self.weights.vector(info, sizes=[size]) if self.memory else 0


def _stored_by_attention(attention: ops.Attention, apart: bool) -> bool:
    """True where attention's kernel turns queries and stores keys and values itself, as it can where every token has a
    slot to itself, unless that is of a rare kind."""
    a = attention
    rare = a.v_head_dim != a.head_dim or a.head_dim > WARP_HEAD or a.latent or a.rope_first or a.temperature
    eps = [norm and norm.eps for norm in (a.q_norm, a.k_norm)]
    return apart and a.kv_layer is None and not rare and eps[0] == eps[1]
