"""The part of queueing that all kinds of steps share: launches, places of values, activations that products read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggpy.cuda.l2_prefetch import L2Prefetch
from ggpy.cuda.lower import ExpertProduct, Product, Step
from ggpy.cuda.ops.matmul import launch as matmul_launch
from ggpy.cuda.weights.layout import SUMS, ActivationLayout

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.rowwise import Launch
    from ggpy.cuda.weights.weights import Weights
    from ggpy.cuda.working_memory import Place, WorkingMemory
    from ggpy.graph.program import Region


class LaunchQueue:
    """A queue of launches for one step after the other. With `collect` nothing is launched, and `collect` receives the
    kernels' names; there is no `memory` then."""

    def __init__(
        self,
        device: Device,
        weights: Weights,
        steps: list[Step],
        memory: WorkingMemory | None,
        collect: Callable[[str], None] | None,
        batch_invariant: bool,
    ) -> None:
        self.device, self.weights, self.steps = device, weights, steps
        self.memory, self._collect = memory, collect
        self._prefetch = L2Prefetch(device, weights, steps)
        self._batch_invariant = batch_invariant
        self._begin()

    def _begin(self) -> None:
        """Begin another step: no value has a place yet."""
        self._places: dict[int, Place] = {}
        self._gated: dict[int, tuple[Place, Place]] = {}  # SwiGLUs left to who reads them: their gates and ups
        self._first = True

    def _launch(self, name: str, grid: int | tuple[int, ...], *arguments: float, shared: int = 0) -> None:
        if self._collect:
            self._collect(name)
            return
        # What is queued before the first kernel is a copy, which no kernel can wait for by itself.
        self.device.kernel(name).launch(grid, *arguments, shared=shared, dependent=not self._first)
        self._first = False

    def _queue(self, launch: Launch) -> None:
        self._launch(launch.name, launch.grid, *launch.arguments, shared=launch.shared)

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
        self._gated.pop(region.buffer.index, None)

    # ---- what products read and write

    def _norm(self, step: Product) -> int:
        norm = step.quantize.norm
        if norm is None or self.memory is None:
            return 0
        return self.weights.vector(norm.weight) or self.weights.ones(step.layout.n_cols)

    def _bias(self, step: Product) -> int:
        if self.memory is None:
            return 0
        biases = [linear.bias for linear in step.operations]
        n_experts = step.route.n_experts if isinstance(step, ExpertProduct) and step.route else 1
        return self.weights.vector(*biases, sizes=step.widths, n_experts=n_experts)

    def _activations(self, step: Product, n: int, rows_offset: int) -> tuple[int, int, int, int]:
        """Queue the activations that products of n tokens read: address, stride, address and stride of the scales."""
        (region,), memory, dtype = step.activations.srcs, self.memory, step.quantize.dtype
        source, n_cols = self._place(region), region.n_cols
        layout = ActivationLayout(dtype, n, n_cols)
        at = memory.activations if memory else 0
        scales = at + layout.scales_at
        if not step.shares_activations:
            rows = memory.inputs("outputs") + rows_offset if memory and step.quantize.select else 0
            self._launch(
                f"activations.{dtype}.{n_cols}{'' if step.aligned else '.unaligned'}",
                n, *source, rows, self._norm(step), step.eps,
                at, layout.code_stride, scales, layout.scale_stride, shared=SUMS,
            )  # fmt: skip
        return at, layout.code_stride, scales, layout.scale_stride

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

    def _half_activations(self, step: Product, n: int, rows_offset: int) -> None:
        """Queue the activations that tiles of n rows are made from, in half precision."""
        (source,), memory = step.activations.srcs, self.memory
        assert memory is not None
        if step.shares_activations:
            pass
        elif source.buffer.index in self._gated:
            (gate, gate_stride), (up, up_stride) = self._gated[source.buffer.index]
            matmul_launch.quantize_swiglu(
                self.device, step.layout, gate=gate, gate_stride=gate_stride, up=up, up_stride=up_stride, n_tokens=n,
                activations=memory.activations,
            )  # fmt: skip
        else:
            src, stride = self._place(source)
            rows = memory.inputs("outputs") + rows_offset if step.quantize.select else 0
            matmul_launch.quantize_activations(
                self.device, step.layout, src=src, src_stride=stride, rows=rows, weight=self._norm(step),
                eps=step.eps, n_tokens=n, activations=memory.activations,
            )  # fmt: skip
