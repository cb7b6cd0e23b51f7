"""The queueing of products of chosen experts: which kernels, and where rows come from and go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.cuda.lower import ExpertProduct, Step
from ggpy.cuda.ops.matmul import launch as matmul_launch
from ggpy.cuda.ops.matmul.launch import ExpertRows
from ggpy.cuda.queue_base import LaunchQueue
from ggpy.cuda.rowwise import combine, elementwise
from ggpy.cuda.weights.layout import ExpertShape, ring_kib
from ggpy.graph import operations as ops

if TYPE_CHECKING:
    from ggpy.graph.program import Op

LEAST_TILE = 32  # tokens of a tile
MOST_JOINED = 1 << 14  # columns that a block of threads holds in its registers, however weights are packed


class ExpertQueue(LaunchQueue):
    """A queue of products of chosen experts. Few tokens are vectors, each multiplied with its experts' rows; of many,
    those of an expert are tiles."""

    def _begin(self) -> None:
        super()._begin()
        self._in_order: tuple[Op, int] | None = None  # the choice whose rows are, and the rows of a tile

    def _of_experts(self, step: ExpertProduct, n: int, rows_offset: int, as_vectors: bool) -> None:
        """Queue the products, and what they absorb. rows_offset: bytes into the indices of outputs, where only outputs
        are wanted."""
        if as_vectors:
            self._expert_vectors(step, n, rows_offset)
        else:
            self._expert_tiles(step, n, rows_offset)

    def _expert_vectors(self, step: ExpertProduct, n: int, rows_offset: int) -> None:
        layout, memory, route = step.layout, self.memory, step.route
        assert route is not None
        assert step.routed is not None
        inputs = self._inputs(step, n)
        shape = ExpertShape(layout.packed, layout.n_cols, step.n_used, inputs, ring_kib(self.device.shared_limit))
        activations: tuple[int, int, int, int] = self._place(step.activations.srcs[0])[0], 0, 0, 0
        if inputs in ("tokens", "rows"):
            activations = self._activations(step, n if inputs == "tokens" else n * step.n_used, rows_offset)
        expert_rows = layout.n_rows // route.n_experts
        outputs, n_rows, each, plus = "rows", expert_rows, step.n_used, (0, 0)
        if step.glu:
            assert isinstance(step.glu.operation, ops.GLU)
            outputs, n_rows, dst = step.glu.operation.function, expert_rows // 2, self._fresh(step.glu.dst)
        elif step.combine:
            plus = self._place(step.plus) if step.plus else (0, 0)
            outputs, each, dst = "sum", 1, self._fresh(step.summed)
        else:
            dst = self._results(step)
            plus = dst if step.accumulate else (0, 0)
        grid = shape.row.grid(n * each * n_rows, self.device.n_multiprocessors)
        ahead = self._prefetch.of_product(step, grid * shape.row.threads // 32) if memory and n == 1 else (0, 0, 0)
        self._launch(
            f"expert_matvec.{layout.packed.name}.{layout.n_cols}.{step.n_used}.{inputs}.{outputs}.{shape.ring}",
            grid, *(self.weights.matrix(step.infos).planes if memory else (0,) * 8),
            n, self._there(step), n_rows, expert_rows, *self._place(step.routed.srcs[0]), *activations,
            self._norm(step), step.eps, self._bias(step), *dst, *plus, *ahead, shared=shape.shared_bytes(n),
        )  # fmt: skip

    def _inputs(self, step: ExpertProduct, n: int) -> str:
        """How `expert_matvec` comes by its activations."""
        spread, layout = step.quantize.spread, step.layout
        if n == 1 and not step.separate and step.aligned:
            if spread:
                return "norm" if step.eps >= 0 else "plain"
            limit = self.device.shared_limit
            shape = ExpertShape(layout.packed, layout.n_cols, step.n_used, "joined", ring_kib(limit))
            if step.joined and step.eps < 0 and shape.width <= MOST_JOINED and shape.shared_bytes(1) <= limit:
                return "joined"
        return "tokens" if spread else "rows"

    def _there(self, step: ExpertProduct) -> int:
        """The address of how many tokens a recorded step has, fewer than its size; 0 where rows are outputs."""
        return self.memory.header if self.memory and not step.outputs_only else 0

    def _expert_tiles(self, step: ExpertProduct, n: int, rows_offset: int) -> None:
        layout, memory, route, device = step.layout, self.memory, step.route, self.device
        assert route is not None
        if self._collect:
            self._collect("group_experts")
            for name in matmul_launch.kernel_names(layout, device.cc, step.aligned, self._batch_invariant, True):
                self._collect(name)
        to = self._results(step)
        if memory:
            rows = ExpertRows(
                route.n_experts, n, step.n_used, step.quantize.spread, order=memory.order, tiles=memory.tiles
            )
            self._half_activations(step, rows.n_activations, rows_offset)
            tiling = matmul_launch.expert_tiling(device, layout, rows, self._batch_invariant)
            self._group(step, rows, tiling.tokens)
            matmul_launch.expert_matmul(
                device, layout, self.weights.matrix(step.infos).address, memory.activations, tiling, rows,
                bias=self._bias(step), dst=to[0], dst_stride=to[1], accumulate=step.accumulate,
            )  # fmt: skip
        if step.glu:
            gate, up = (self._place(region) for region in step.glu.srcs)
            dst = self._fresh(step.glu.dst)
            if step.left:
                self._gated[step.glu.dst.buffer.index] = gate, up  # type: ignore[union-attr]
            else:
                self._queue(elementwise(step.glu, n * step.n_used, gate, up, dst))
        if step.combine:
            y, chosen = (self._place(region) for region in step.combine.srcs)
            plus = self._place(step.plus) if step.plus else (0, 0)
            self._queue(combine(step.combine, n, y, chosen, plus, self._fresh(step.summed)))

    def _group(self, step: ExpertProduct, rows: ExpertRows, tile: int) -> None:
        """Queue the order of rows by expert, where it does not stand yet, or for tiles of another size."""
        assert step.routed is not None
        if self._in_order and self._in_order[0] is step.routed and self._in_order[1] == tile:
            return
        self._in_order = step.routed, tile
        self._launch(
            "group_experts", 1, *self._place(step.routed.srcs[0]), rows.n_used, rows.n_tokens, self._there(step),
            rows.n_experts, tile, rows.order, rows.tiles, shared=8 * rows.n_experts,
        )  # fmt: skip


def order_bytes(steps: list[Step], n_tokens: int) -> tuple[int, int]:
    """Bytes of the order of rows of so many tokens by expert, and of their tiles; 0 where there are no experts."""
    routes = [step.route for step in steps if isinstance(step, ExpertProduct) and step.route]
    order = max((4 * n_tokens * route.n_used for route in routes), default=0)
    most = (matmul_launch.most_tiles(n_tokens * r.n_used, r.n_experts, LEAST_TILE) for r in routes)
    return order, max((16 * (n + 1) for n in most), default=0)
