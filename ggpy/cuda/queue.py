"""The queueing of a step's launches: which kernel, which grid, which addresses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ggpy.cuda.l2_prefetch import L2Prefetch
from ggpy.cuda.lower import Attention, Embed, Product, RopeStore, Step, SwiGLU
from ggpy.cuda.ops.flash import launch as flash_launch
from ggpy.cuda.ops.matmul import launch as matmul_launch
from ggpy.cuda.weights.layout import (
    SUMS,
    ActivationLayout,
    AttentionShape,
    CacheLayout,
    MatvecShape,
    ring_kib,
    round_up,
)
from ggpy.cuda.weights.weights import layout_of

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.exchange import Exchange
    from ggpy.cuda.weights.weights import Weights
    from ggpy.graph import operations as ops
    from ggpy.graph.program import Buffer, Region

Place = tuple[int, int]  # the address of the first row, and bytes from row to row

MATVEC_SIZES = (1, 2, 4, 8)  # tokens that a matrix is multiplied with as vectors
MATVEC_TOKENS = MATVEC_SIZES[-1]
LOG2_E = 1.4426950408889634
ROPE_WARPS = 4


class Memory:
    """Addresses of working memory on the GPU."""

    activations = parts = angles = 0
    chosen = 0  # the address of the last token chosen for each slot
    header = 0  # the address of the number of tokens
    n_segments = max_tokens = 0  # of a prompt's step: runs of tokens in one slot, and the longest
    keys: dict[int, int]
    values: dict[int, int]
    inputs: Callable[[str], int]  # the address of "tokens", "slots", …

    def __init__(self, device: Device, rows: int) -> None:
        self._device, self._rows = device, rows
        self._buffers: dict[int, Place] = {}
        self._wide: dict[tuple[int, ...], Place] = {}

    def _allocate(self, rows: int, n_cols: int) -> Place:
        stride = 4 * round_up(n_cols, 32)
        return self._device.allocate(rows * stride, zero=True), stride

    def buffer(self, buffer: Buffer, rows: int) -> None:
        self._buffers[buffer.index] = self._allocate(rows, buffer.n_cols)

    def wide(self, product: Product) -> None:
        """Allocate room for the results of several products side by side."""
        key = _widths(product)
        if len(key) > 1 and key not in self._wide:
            self._wide[key] = self._allocate(self._rows, sum(key))

    def of(self, product: Product) -> Place:
        return self._wide[_widths(product)]

    def home(self, buffer: Buffer) -> Place:
        return self._buffers[buffer.index]


def _widths(product: Product) -> tuple[int, ...]:
    return tuple(info.shape[0] for info in product.infos)


class StepQueue:
    """A queue of steps for the GPU. `queue` queues a step; with `collect` nothing is launched, and `collect` receives
    the kernels' names."""

    def __init__(
        self,
        device: Device,
        weights: Weights,
        steps: list[Step],
        cache: CacheLayout,
        shape: AttentionShape,
        memory: Memory | None,
        collect: Callable[[str], None] | None = None,
        exchange: Exchange | None = None,
        batch_invariant: bool = False,
    ) -> None:
        self.device, self.weights, self.steps, self.cache, self.shape = device, weights, steps, cache, shape
        self.memory, self._collect = memory, collect
        self._places: dict[int, Place] = {}
        self._first, self._deep = True, False
        self._batch_invariant, self._as_vectors = batch_invariant, False  # how products of this step are made
        self._exchange, self._n_sums = exchange, 0  # sums over all ranks, and those of this step so far
        self._gated: tuple[Region, Place, Place] | None = None  # a SwiGLU left to whoever reads it, its gate and up
        self._prefetch = L2Prefetch(device, weights, steps)

    def _launch(self, name: str, grid: int | tuple[int, ...], *arguments: float, shared: int = 0) -> None:
        if self._collect:
            self._collect(name)
            return
        # What is queued before the first kernel is a copy, which no kernel can wait for by itself.
        self.device.kernel(name).launch(grid, *arguments, shared=shared, dependent=not self._first)
        self._first = False

    def _place(self, region: Region) -> Place:
        if self.memory is None:
            return 0, 0
        address, stride = self._places.get(region.buffer.index) or self.memory.home(region.buffer)
        return address + 4 * region.first, stride

    def _fresh(self, region: Region | None) -> Place:
        """The place where a value is written for the first time: its own buffer, whatever place it had before."""
        assert region is not None
        self._forget(region)
        return self._place(region)

    def _forget(self, region: Region) -> None:
        """Forget the place of this region's buffer, which is about to hold something else."""
        self._places.pop(region.buffer.index, None)
        if self._gated and self._gated[0].buffer == region.buffer:
            self._gated = None

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
        self._places, self._first, self._gated, self._n_sums = {}, True, None, 0
        self._deep, self._as_vectors = way == "deep", self._are_vectors(n, way)
        for index, step in enumerate(self.steps):
            if isinstance(step, Embed):
                self._embed(step, n)
            elif isinstance(step, Product):
                if not step.outputs_only:
                    self._product(step, n)
                    if step.partial:
                        yield
            elif isinstance(step, RopeStore):
                if way not in ("apart", "deep"):
                    self._rope_store(step, n)
            elif isinstance(step, Attention):
                if way == "prompt":
                    self._flash(step)
                    continue
                following = self.steps[index + 1]
                joined = not (isinstance(following, Product) and self._takes_parts(following, n))
                self._attention(step, n, way in ("apart", "deep"), joined)
            else:
                self._swiglu(step, n)

    def _are_vectors(self, n: int, way: str) -> bool:
        """True where matrices are multiplied with n tokens as vectors; False as tiles."""
        return way != "prompt" if self._batch_invariant else n <= MATVEC_TOKENS

    def queue_logits(self, n: int, way: str, first: int = 0) -> Place:
        """Queue the logits of outputs first .. first + n of a step that was queued in this way; returns their place."""
        step = self.steps[-1]
        assert isinstance(step, Product)
        self._as_vectors = self._are_vectors(n, way)
        if self._as_vectors and way == "prompt":  # of one token alone its own row would be taken
            n = next(size for size in MATVEC_SIZES if size >= max(2, n))
        self._product(step, n, 4 * first)
        assert step.linears[0].dst is not None
        return self._place(step.linears[0].dst)

    # ---- one method a kind of step

    def _embed(self, step: Embed, n: int) -> None:
        layout = layout_of([step.weight])
        planes = (0,) * 8
        tokens = chosen = 0
        if self.memory:
            planes = self.weights.matrix([step.weight]).planes
            tokens, chosen = self.memory.inputs("tokens"), self.memory.chosen
        name = f"embed.{layout.packed.name}"
        self._launch(name, n, tokens, chosen, *planes, layout.n_blocks, layout.n_cols, *self._fresh(step.dst))

    def _takes_parts(self, product: Product, n: int) -> bool:
        """True where a product joins attention's parts by itself."""
        return n == 1 and product.quantize.joins is not None and self.cache.head_dim % 4 == 0

    def _product(self, step: Product, n: int, rows_offset: int = 0) -> None:
        """Queue a product. rows_offset: bytes into the indices of outputs, where only outputs are wanted."""
        if not self._as_vectors:
            self._tiles(step, n, rows_offset)
            return
        prepare, layout, memory = step.prepare, step.layout, self.memory
        planes = self.weights.matrix(step.infos).planes if memory else (0,) * 8
        eps, norm = step.eps, self._norm(step)
        x, x_stride, levels, level_stride = self._place(prepare.srcs[0])[0], 0, 0, 0
        if n > 1:
            inputs = "ready"
            x, x_stride, levels, level_stride = self._activations(step, n, rows_offset)
        elif self._takes_parts(step, n):
            inputs = f"parts{self._splits(1)}x{self.cache.head_dim}"
            x = memory.parts if memory else 0
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
                grid, *planes, n_rows, half_rows, x + first * x_stride, x_stride, levels + first * level_stride,
                level_stride, norm, eps, self._bias(step), goal[0] + first * goal[1], goal[1], last, self._epochs,
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

    def _norm(self, step: Product) -> int:
        return self.weights.vector(step.quantize.norm.weight if step.quantize.norm else None) if self.memory else 0

    def _tiles(self, step: Product, n: int, rows_offset: int) -> None:
        """Queue a product of many tokens."""
        prepare, layout = step.prepare, step.layout
        if self._collect:
            for name in matmul_launch.kernel_names(layout, self.device.cc, self._batch_invariant):
                self._collect(name)
            if step.partial:
                self._sum(step, n, (0, 0), was_pushed=False)
            return
        memory, device = self.memory, self.device
        assert memory is not None
        source = prepare.srcs[0]
        if step.shares_activations:
            pass
        elif self._gated and self._gated[0] == source:
            (gate, gate_stride), (up, up_stride) = self._gated[1:]
            matmul_launch.swiglu_prepare(
                device, layout, gate=gate, gate_stride=gate_stride, up=up, up_stride=up_stride, n_tokens=n,
                activations=memory.activations,
            )  # fmt: skip
        else:
            src, stride = self._place(source)
            rows = memory.inputs("outputs") + rows_offset if step.quantize.select else 0
            matmul_launch.prepare(
                device, layout, src=src, src_stride=stride, rows=rows, weight=self._norm(step),
                eps=step.eps, n_tokens=n, activations=memory.activations,
            )  # fmt: skip
        to = address, stride = self._results(step)
        accumulate = step.accumulate
        if step.partial and self._exchange:
            (address, stride), accumulate = self._exchange.partial(self._n_sums), False
        if step.swiglu:
            self._gated = (step.swiglu, (address, stride), (address + 4 * step.swiglu.n_cols, stride))
        matmul_launch.matmul(
            device, layout, self.weights.matrix(step.infos).address, memory.activations, n_tokens=n,
            bias=self._bias(step), dst=address, dst_stride=stride, accumulate=accumulate,
            batch_invariant=self._batch_invariant,
        )  # fmt: skip
        if step.partial:
            self._sum(step, n, to, was_pushed=False)

    def _bias(self, step: Product) -> int:
        if self.memory is None:
            return 0
        biases = [linear.bias for linear in step.operations]
        return self.weights.vector(*biases, sizes=[info.shape[0] for info in step.infos])

    def load_vectors(self) -> None:
        """Bring small tensors to the GPU ahead: while a graph is recorded nothing can be allocated."""
        for step in self.steps:
            if isinstance(step, Product):
                self.weights.vector(step.quantize.norm.weight if step.quantize.norm else None)
                self._bias(step)
            elif isinstance(step, RopeStore):
                for norm in (step.attention.q_norm, step.attention.k_norm):
                    self.weights.vector(norm.weight if norm else None)

    def _activations(self, step: Product, n: int, rows_offset: int) -> tuple[int, int, int, int]:
        """Queue the activations that products of n tokens read: address, stride, address and stride of the levels."""
        prepare, memory = step.prepare, self.memory
        source = self._place(prepare.srcs[0])
        n_cols, form = prepare.srcs[0].n_cols, step.quantize.dtype
        layout = ActivationLayout(form, n, n_cols)
        at = memory.activations if memory else 0
        levels = at + layout.levels_at
        if not step.shares_activations:
            rows = memory.inputs("outputs") + rows_offset if memory and step.quantize.select else 0
            self._launch(
                f"activations.{form}.{n_cols}", n, *source, rows, self._norm(step), step.eps,
                at, layout.code_stride, levels, layout.level_stride, shared=SUMS,
            )  # fmt: skip
        return at, layout.code_stride, levels, layout.level_stride

    def _results(self, step: Product) -> Place:
        """The place for the products' results; of several, each one's buffer becomes its columns of a wide one."""
        memory = self.memory
        regions = [op.dst for op in step.linears]
        assert all(regions)
        if len(regions) == 1:
            assert regions[0] is not None
            return self._place(regions[0]) if step.accumulate else self._fresh(regions[0])
        if memory is None:
            return 0, 0
        address, stride = memory.of(step)
        at = address
        for region in regions:
            assert region is not None
            assert region.first == 0
            self._forget(region)
            self._places[region.buffer.index] = (at, stride)
            at += 4 * region.n_cols
        return address, stride

    def _rope_store(self, step: RopeStore, n: int) -> None:
        op, attention, cache = step.op, step.attention, self.cache
        (q, q_stride), (k, k_stride), (v, v_stride) = (self._place(region) for region in op.srcs)
        header, slots, positions = self._batch()
        heads = attention.n_head + attention.n_head_kv
        self._launch(
            f"rope_store.{cache.types}", (-(-heads // ROPE_WARPS), n),
            q, k, v, q_stride, k_stride, v_stride, *self._turning(attention),
            attention.n_head, attention.n_head_kv, attention.head_dim, header, slots, positions,
            *self._cells(attention.layer),
            cache.cells, cache.head_pad,
        )  # fmt: skip

    def _turning(self, attention: ops.Attention) -> tuple[float, ...]:
        """Arguments for rope: weights of the norms, their eps, the table of angles, its width, and which pairs
        rotate."""
        rope, memory, norms = attention.rope, self.memory, (attention.q_norm, attention.k_norm)
        assert rope
        weights = [self.weights.vector(norm.weight if norm else None) if memory else 0 for norm in norms]
        eps = next((norm.eps for norm in norms if norm), 0.0)
        angles = memory.angles if memory else 0
        return (*weights, eps, angles, rope.n_rot // 2, rope.style == "neox")

    def _batch(self) -> tuple[int, int, int]:
        """Addresses of the header, the slots and the positions."""
        memory = self.memory
        return (memory.header, memory.inputs("slots"), memory.inputs("positions")) if memory else (0, 0, 0)

    def _cells(self, layer: int) -> tuple[int, int]:
        return (self.memory.keys[layer], self.memory.values[layer]) if self.memory else (0, 0)

    def _attention(self, step: Attention, n: int, apart: bool, joined: bool) -> None:
        """Queue attention. apart: every token has a slot to itself, and keys and values are not yet in the cache."""
        attention, op, cache, shape, memory = step.attention, step.stored, self.cache, self.shape, self.memory
        splits = self._splits(n)
        parts = memory.parts if memory else 0
        places = [number for region in op.srcs for number in self._place(region)]
        scale = attention.scale * LOG2_E
        grid = splits, shape.n_head // shape.group, n
        n_warps = math.prod(grid) * shape.tile.threads // 32
        ahead = self._prefetch.of_attention(step, n_warps) if memory and n == 1 else (0, 0, 0)
        self._launch(
            shape.kernel(apart), grid, *places, *self._turning(attention),
            *self._batch(), shape.n_head, cache.n_head_kv, cache.head_dim, *self._cells(attention.layer),
            cache.cells, cache.head_pad, attention.window, scale, parts, cache.part_bytes, *ahead,
            shared=shape.shared_bytes,
        )  # fmt: skip
        if joined:
            to = self._fresh(step.op.dst)
            self._launch("join", (shape.n_head, n), parts, splits, cache.part_bytes, cache.head_dim, *to)

    def _splits(self, n: int) -> int:
        return self.shape.splits(n, self.device.n_multiprocessors, self._deep)

    def _flash(self, step: Attention) -> None:
        """Queue attention of many tokens."""
        cache, memory = self.cache, self.memory
        if self._collect:
            for name in flash_launch.kernel_names(cache, self.shape.n_head):
                self._collect(name)
            return
        assert memory is not None
        q, q_stride = self._place(step.op.srcs[0])
        dst, dst_stride = self._fresh(step.op.dst)
        keys, values = self._cells(step.attention.layer)
        flash_launch.attention(
            self.device, cache, q=q, q_stride=q_stride, keys=keys, values=values, segments=memory.inputs("segments"),
            n_segments=memory.n_segments, max_tokens=memory.max_tokens, dst=dst, dst_stride=dst_stride,
            n_head=self.shape.n_head, window=step.attention.window,
            scale=step.attention.scale,
        )  # fmt: skip

    def _swiglu(self, step: SwiGLU, n: int) -> None:
        assert step.op.dst is not None
        (gate, gate_stride), (up, up_stride) = (self._place(region) for region in step.op.srcs)
        n_cols = step.op.dst.n_cols
        grid = (-(-n_cols // 256), n)
        self._launch("swiglu", grid, gate, gate_stride, up, up_stride, *self._fresh(step.op.dst), n_cols)
