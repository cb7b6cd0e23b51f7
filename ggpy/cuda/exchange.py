"""A rank's memory for sums over all ranks (`ggpy.cuda.ops.all_reduce`), which the others write and read, and the
addresses of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.weights.layout import ALL_REDUCE_THREADS as THREADS
from ggpy.cuda.weights.layout import round_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggpy.cuda.driver import Device
    from ggpy.graph.tensor_parallel import Rank

SETS = 2  # of places, which sums take in turn


class Exchange:
    """Sums over all ranks, of up to `rows` tokens of `n_cols` columns; those of up to `few` tokens are pushed."""

    def __init__(self, device: Device, rank: Rank, n_cols: int, few: int, rows: int) -> None:
        self.rank, self.n_cols, self.few = rank, n_cols, few
        self.token_stride, self.row_stride = 8 * n_cols, 4 * round_up(n_cols, 32)
        self._device = device
        self._rank_stride = few * self.token_stride
        self._pushed = device.allocate(SETS * rank.count * self._rank_stride, zero=True)
        self._partials = device.allocate(SETS * rows * self.row_stride)
        self._marks = device.allocate(4 * rank.count, zero=True)
        self._tables = device.allocate(8 * rank.count * (2 * SETS + 1))
        self._set_bytes = rows * self.row_stride
        self.patience = device.patience

    @staticmethod
    def kernel_names(rank: Rank) -> list[str]:
        return [f"all_reduce.{way}.{rank.count}" for way in ("pushed", "pulled")]

    @staticmethod
    def n_bytes(rank: Rank, n_cols: int, few: int, rows: int) -> int:
        """Bytes of GPU memory that it takes."""
        return SETS * (rank.count * few * 8 * n_cols + rows * 4 * round_up(n_cols, 32))

    def connect(self, all_ranks: Sequence[Exchange]) -> None:
        """Give this rank the addresses of all ranks, itself included, in their order."""
        own = self.rank.index
        for other in all_ranks:
            self._device.reach(other._device)
        tables = [
            [other._pushed + (s * other.rank.count + own) * other._rank_stride for other in all_ranks]
            for s in range(SETS)
        ]
        tables += [[other._partials + s * other._set_bytes for other in all_ranks] for s in range(SETS)]
        tables += [[other._marks for other in all_ranks]]
        words = np.array(tables, np.uint64)
        self._device.use()
        self._device.upload(self._tables, words.ctypes.data, words.nbytes)
        self._device.synchronize()

    # ---- addresses

    def _table(self, index: int) -> int:
        return self._tables + 8 * self.rank.count * index

    def targets(self, number: int) -> int:
        """Address of the table of places, one in each rank, to which a product of few tokens sends its numbers."""
        return self._table(number % SETS)

    def partial(self, number: int) -> tuple[int, int]:
        """The place where a product of many tokens leaves its rows: the address, and bytes from row to row."""
        return self._partials + number % SETS * self._set_bytes, self.row_stride

    # ---- launches

    def sum(
        self,
        launch: Callable[..., None],
        n: int,
        was_pushed: bool,
        number: int,
        epochs: int,
        dst: tuple[int, int],
        accumulate: bool,
    ) -> None:
        """Queue the sum `number` of a step of n tokens. was_pushed: the product sent its numbers to `targets`, and did
        not leave them at `partial`; dst: the address of the first row, bytes from row to row."""
        pushed, pulled = self.kernel_names(self.rank)
        if was_pushed:
            pairs = self._pushed + number % SETS * self.rank.count * self._rank_stride
            launch(
                pushed, (-(-self.n_cols // (2 * THREADS)), n), pairs, self._rank_stride, self.token_stride, self.n_cols,
                epochs, number, *dst, accumulate, self.patience,
            )  # fmt: skip
        else:
            launch(
                pulled, (-(-self.n_cols // (4 * THREADS)), n), self._table(SETS + number % SETS), self._table(2 * SETS),
                self._marks, self.rank.index, self.row_stride, self.n_cols, epochs, number, *dst, accumulate,
                self.patience,
            )  # fmt: skip
