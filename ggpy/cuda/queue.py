"""Queues the launches of a step: which kernel, which grid, which addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggpy.cuda.layout import SUMS, ActivationLayout, AttentionShape, CacheLayout, round_up
from ggpy.cuda.lower import Attention, Embed, Product, RopeStore, Step, SwiGLU
from ggpy.cuda.weights import layout_of

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.weights import Matrix, Weights
    from ggpy.program import Buffer, Region

Place = tuple[int, int]  # the address of the first row, and bytes from row to row

LOG2_E = 1.4426950408889634
ROPE_WARPS = 4
MATVEC_WARPS = 8
PARTIAL = 4 * MATVEC_WARPS * 16


class Memory:
    """Where working memory lies on the GPU."""

    activations = parts = angles = header = 0
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
        """Room for the results of several products side by side."""
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
    """`small` queues a step of few tokens. With `collect` nothing is launched: it receives the kernels' names."""

    def __init__(
        self,
        device: Device,
        weights: Weights,
        steps: list[Step],
        cache: CacheLayout,
        shape: AttentionShape,
        memory: Memory | None,
        collect: Callable[[str], None] | None,
    ) -> None:
        self.device, self.weights, self.steps, self.cache, self.shape = device, weights, steps, cache, shape
        self.memory, self._collect = memory, collect
        self._places: dict[int, Place] = {}
        self._first = True

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
        """Where a value is written for the first time: its own buffer, whatever lay elsewhere before."""
        assert region is not None
        self._places.pop(region.buffer.index, None)
        return self._place(region)

    def small(self, n: int, head: bool) -> Place | None:
        """Queue a step of n tokens, a number that matrix-vector products are compiled for; returns where the logits
        are, if they are wanted."""
        self._places, self._first = {}, True
        logits = None
        for index, step in enumerate(self.steps):
            if isinstance(step, Embed):
                self._embed(step, n)
            elif isinstance(step, Product):
                if step.outputs_only and not head:
                    continue
                self._product(step, n)
                if step.outputs_only:
                    assert step.linears[0].dst is not None
                    logits = self._place(step.linears[0].dst)
            elif isinstance(step, RopeStore):
                self._rope_store(step, n)
            elif isinstance(step, Attention):
                following = self.steps[index + 1]
                self._attention(step, n, joined=not (isinstance(following, Product) and self._takes_parts(following, n)))
            else:
                self._swiglu(step, n)
        return logits

    # ---- one method a kind of step

    def _matrix_planes(self, matrix: Matrix | None) -> tuple[int, ...]:
        return matrix.planes if matrix else (0,) * 8

    def _embed(self, step: Embed, n: int) -> None:
        layout = layout_of([step.weight])
        planes = (0,) * 8
        tokens = 0
        if self.memory:
            planes = self.weights.matrix([step.weight]).planes
            tokens = self.memory.inputs("tokens")
        name = f"embed.{layout.packed.name}"
        self._launch(name, n, tokens, *planes, layout.n_blocks, layout.n_cols, *self._fresh(step.dst))

    def _takes_parts(self, product: Product, n: int) -> bool:
        """Whether a product joins attention's parts by itself."""
        return n == 1 and bool(product.prepare.params["attention"]) and self.cache.head_dim % 4 == 0

    def _product(self, step: Product, n: int) -> None:
        prepare, layout = step.prepare, layout_of(step.infos)
        memory = self.memory
        planes = self.weights.matrix(step.infos).planes if memory else (0,) * 8
        source = self._place(prepare.srcs[0])
        norm = self.weights.vector(prepare.weights.get("weight")) if memory else 0
        eps, parts = prepare.params["eps"], 0
        x, x_stride, levels, level_stride = source[0], 0, 0, 0
        if n == 1:
            inputs = "norm" if eps >= 0 else "plain"
            if self._takes_parts(step, n):
                inputs, parts = "parts", self.shape.splits(1, self.device.n_multiprocessors)
                x = memory.parts if memory else 0
        else:
            inputs = "ready"
            x, x_stride, levels, level_stride = self._prepare(step, n)
        if step.swiglu:
            to, n_rows, half_rows = self._fresh(step.swiglu), step.swiglu.n_cols, step.swiglu.n_cols
        else:
            to, n_rows, half_rows = self._results(step), layout.n_rows, 0
        bias = self._bias(step) if memory else 0
        warps, grid = self._sharing(n_rows, layout.n_blocks * layout.code_bytes, bool(step.swiglu))
        shared = SUMS + (PARTIAL if warps > 1 else 0)
        if n == 1:
            shared += layout.n_blocks * (128 if layout.packed.is_float else 32 + 8)
        name = f"matvec.{layout.packed.name}.{n}.{inputs}.{'swiglu' if step.swiglu else 'rows'}.{warps}"
        self._launch(
            name, grid, *planes, n_rows, layout.n_blocks, layout.n_cols, half_rows,
            x, x_stride, levels, level_stride, norm, eps,
            self.cache.head_dim, parts, self.cache.part_bytes, bias, *to, step.accumulate,
            shared=shared,
        )  # fmt: skip

    def _bias(self, step: Product) -> int:
        biases = [op.weights.get("bias") for op in step.linears]
        return self.weights.vector(*biases, sizes=[info.shape[0] for info in step.infos])

    def load_vectors(self) -> None:
        """Bring small tensors to the GPU: while a graph is recorded nothing can be allocated."""
        for step in self.steps:
            if isinstance(step, Product):
                self.weights.vector(step.prepare.weights.get("weight"))
                self._bias(step)
            elif isinstance(step, RopeStore):
                for name in ("q_norm", "k_norm"):
                    self.weights.vector(step.op.weights[name])

    def _sharing(self, n_rows: int, row_bytes: int, pair: bool) -> tuple[int, int]:
        """How many warps take a row together, and how many blocks of threads there are."""
        n_sm = self.device.n_multiprocessors
        warps = 1
        while warps < 4 and n_rows * warps < 24 * n_sm and row_bytes > 512 * warps:
            warps *= 2
        return warps, min(-(-n_rows * warps // MATVEC_WARPS), 4 * n_sm)

    def _prepare(self, step: Product, n: int) -> tuple[int, int, int, int]:
        """Activations as products of n tokens read them: address, stride, address and stride of the levels."""
        prepare, memory = step.prepare, self.memory
        source = self._place(prepare.srcs[0])
        n_cols, form = prepare.srcs[0].n_cols, prepare.params["form"]
        layout = ActivationLayout(form, n, n_cols)
        at = memory.activations if memory else 0
        levels = at + layout.levels_at
        if not step.shares_activations:
            rows = memory.inputs("outputs") if memory and prepare.params["select"] else 0
            norm = self.weights.vector(prepare.weights.get("weight")) if memory else 0
            self._launch(
                f"activations.{form}", n, *source, rows, norm, prepare.params["eps"], n_cols,
                layout.padded_cols // 32, at, layout.code_stride, levels, layout.level_stride, shared=SUMS,
            )  # fmt: skip
        return at, layout.code_stride, levels, layout.level_stride

    def _results(self, step: Product) -> Place:
        """Where the products go; of several, each one's buffer is from now on its columns of a wide one."""
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
            self._places[region.buffer.index] = (at, stride)
            at += 4 * region.n_cols
        return address, stride

    def _rope_store(self, step: RopeStore, n: int) -> None:
        op, memory, cache = step.op, self.memory, self.cache
        p = op.params
        (q, q_stride), (k, k_stride), (v, v_stride) = (self._place(region) for region in op.srcs)
        norms = [self.weights.vector(op.weights[name]) if memory else 0 for name in ("q_norm", "k_norm")]
        heads = p["n_head"] + p["n_head_kv"]
        rope = p["rope"]
        self._launch(
            "rope_store", (-(-heads // ROPE_WARPS), n), q, k, v, q_stride, k_stride, v_stride, *norms, p["eps"],
            memory.angles if memory else 0, p["n_head"], p["n_head_kv"], p["head_dim"], rope.n_rot // 2,
            rope.style == "neox", *self._batch(), *self._cells(p["layer"]), cache.head_bytes, 2 * cache.head_pad,
        )  # fmt: skip

    def _batch(self) -> tuple[int, int, int]:
        """Addresses of the header, the slots and the positions."""
        memory = self.memory
        return (memory.header, memory.inputs("slots"), memory.inputs("positions")) if memory else (0, 0, 0)

    def _cells(self, layer: int) -> tuple[int, int]:
        return (self.memory.keys[layer], self.memory.values[layer]) if self.memory else (0, 0)

    def _attention(self, step: Attention, n: int, joined: bool) -> None:
        p, cache, shape, memory = step.params, self.cache, self.shape, self.memory
        splits = shape.splits(n, self.device.n_multiprocessors)
        parts = memory.parts if memory else 0
        q, q_stride = self._place(step.op.srcs[0])
        scale = p["head_dim"] ** -0.5 * LOG2_E
        self._launch(
            shape.kernel, (splits, shape.n_head // shape.group, n), q, q_stride, *self._cells(p["layer"]),
            *self._batch(), shape.n_head, cache.n_head_kv, cache.head_dim, 2 * cache.head_pad, cache.head_bytes,
            p["window"], scale, parts, cache.part_bytes, shared=shape.shared_bytes,
        )  # fmt: skip
        if joined:
            to = self._fresh(step.op.dst)
            self._launch("join", (shape.n_head, n), parts, splits, cache.part_bytes, cache.head_dim, *to)

    def _swiglu(self, step: SwiGLU, n: int) -> None:
        assert step.op.dst is not None
        (gate, gate_stride), (up, up_stride) = (self._place(region) for region in step.op.srcs)
        n_cols = step.op.dst.n_cols
        grid = (-(-n_cols // 256), n)
        self._launch("swiglu", grid, gate, gate_stride, up, up_stride, *self._fresh(step.op.dst), n_cols)
