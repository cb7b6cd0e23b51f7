"""Prefetch into the GPU's L2 cache, by a kernel of decoding, of weights for the kernels after it.

A product asks for its first weights when its blocks start, which is when the kernel ahead of it begins to work, and for
some more when that one has ended (`ggpy.cuda.ops.matvec`). In between, from a kernel's last read to its end, the memory
would be idle: the time in which it can fetch what follows those weights. Each warp asks for its piece once its own last
reads are on their way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from ggpy.cuda.lower import Attention, ExpertProduct, Product, Step
from ggpy.cuda.weights.layout import MatvecShape, ring_kib
from ggpy.cuda.weights.weights import layout_of

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.weights.weights import Weights

# Shares of the second cache that are brought there at a time: what the memory can read while it would be idle, which is
# longest during attention. More would be in the way of what the next kernel asks for itself.
BY_PRODUCT, BY_ATTENTION = 24, 8
LEAST = 256  # bytes of a warp: for fewer it is not worth asking
NOTHING = (0, 0, 0)


class L2Prefetch:
    """Prefetches for the steps of a program, the last of which is followed by the first, of the next token."""

    def __init__(self, device: Device, weights: Weights, steps: list[Step]) -> None:
        self._device, self._weights = device, weights
        self._steps = [step for step in steps if isinstance(step, Product | Attention)]

    def of_product(self, step: Product, n_warps: int) -> tuple[int, int, int]:
        """Prefetch by a product's kernel: two addresses, the second of which may be 0, and the size in bytes of a
        warp's piece from either on; the next warp's piece follows it."""
        following = self._after(step)
        if _is_known(following):  # of the next token's step nothing has started
            return self._pieces(following, n_warps, BY_PRODUCT, started=step is not self._steps[-1])
        # attention's cells are its own matter, and the product after it starts as soon as this one has ended
        return NOTHING

    def of_attention(self, step: Attention, n_warps: int) -> tuple[int, int, int]:
        following = self._after(step)
        if isinstance(following, Product):  # which asks for its weights while attention is at work
            following = self._after(following)
        if _is_known(following):
            return self._pieces(following, n_warps, BY_ATTENTION, started=False)
        return NOTHING

    def _after(self, step: Step) -> Step:
        index = next(i for i, one in enumerate(self._steps) if one is step)
        return self._steps[(index + 1) % len(self._steps)]

    def _pieces(self, product: Product, n_warps: int, share: int, started: bool) -> tuple[int, int, int]:
        """The pieces of a product's weights to prefetch. started: its blocks are already running, and load their first
        weights themselves."""
        layout, device = layout_of(product.infos), self._device
        if not device.can_overlap:
            return NOTHING
        shape = MatvecShape(layout.packed, layout.n_cols, 1, ring_kib(device.shared_limit))
        halves = 2 if product.swiglu else 1
        n_rows, first = layout.n_rows // halves, 0
        if started:
            n_round = shape.grid(n_rows, device.n_multiprocessors) * shape.threads // 32  # a row a warp
            first = min(n_rows, n_round * -(-shape.slots // (halves * shape.n_units)))
        stride = layout.codes.stride
        piece = min((n_rows - first) * stride, device.l2_bytes // share // halves) // n_warps // 16 * 16
        if piece < LEAST:
            return NOTHING
        address = self._weights.matrix(product.infos).planes[0] + first * stride
        return address, address + n_rows * stride if halves == 2 else 0, piece


def _is_known(step: Step) -> TypeGuard[Product]:
    """True for a product whose weights are known before the step runs: which experts are chosen is not."""
    return isinstance(step, Product) and not isinstance(step, ExpertProduct)
