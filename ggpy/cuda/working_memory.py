"""Working memory on the GPU: places of a program's values, the cache, and what describes a step. Imports no numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggpy.cuda.weights.layout import round_up

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.lower import Product
    from ggpy.cuda.slot_states import SlotStates
    from ggpy.graph.program import Buffer
    from ggpy.graph.rope import Rope

Place = tuple[int, int]  # the address of the first row, and bytes from row to row


class WorkingMemory:
    """Addresses of working memory on the GPU."""

    activations = parts = zeros = 0
    order = tiles = 0  # of rows for chosen experts (`ggpy.cuda.ops.group_experts`)
    chosen = 0  # the address of the last token chosen for each slot
    header = 0  # the address of the number of tokens
    n_segments = max_tokens = 0  # of a prompt's step: runs of tokens in one slot, and the longest
    states: SlotStates
    angles: dict[Rope, int]
    vectors: dict[object, int]  # float32, by what they are made of: factors of queries, slopes of heads
    inputs: Callable[[str], int]  # the address of "tokens", "slots", …

    def __init__(self, device: Device, rows: int) -> None:
        self._device, self._rows = device, rows
        self._buffers: dict[int, Place] = {}
        self._wide: dict[tuple[int, ...], Place] = {}

    def _allocate(self, rows: int, n_cols: int) -> Place:
        stride = 4 * round_up(n_cols, 32)
        return self._device.allocate(rows * stride, zero=True), stride

    def buffer(self, buffer: Buffer, rows: int) -> None:
        self._buffers[buffer.index] = self._allocate(rows * buffer.n_used, buffer.n_cols)

    def wide(self, product: Product) -> None:
        """Allocate room for the results of several products side by side."""
        if len(product.linears) > 1 and product.place not in self._wide:
            self._wide[product.place] = self._allocate(self._rows * product.n_used, sum(product.widths))

    def of(self, product: Product) -> Place:
        return self._wide[product.place]

    def home(self, buffer: Buffer) -> Place:
        return self._buffers[buffer.index]
