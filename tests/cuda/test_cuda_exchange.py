"""Sums over ranks, on emulated GPUs: both ways, of several ranks, and what happens to one that waits in vain."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ggpy.cuda.exchange import SETS, Exchange
from ggpy.graph.tensor_parallel import Rank
from tests.cuda.test_cuda import need_compiler

N_COLS, FEW, ROWS = 36, 2, 5  # columns that are no whole number of threads' shares


class Ranks:
    """Exchanges of emulated GPUs, each with a matrix to add to."""

    def __init__(self, count: int) -> None:
        from tests.support.emulated_device import EmulatedDevice

        self.devices: list[Any] = [EmulatedDevice(index) for index in range(count)]
        self.exchanges = [
            Exchange(device, Rank(index, count), N_COLS, FEW, ROWS) for index, device in enumerate(self.devices)
        ]
        for exchange in self.exchanges:
            exchange.connect(self.exchanges)
        self.stride = self.exchanges[0].row_stride
        self.dst = [device.allocate(ROWS * self.stride, zero=True) for device in self.devices]
        self.epochs = [device.allocate(4, zero=True) for device in self.devices]

    def write(self, address: int, values: np.ndarray) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def leave(self, rank: int, number: int, epoch: int, values: np.ndarray) -> None:
        """Do as a product does: leave partial sums, float32 [n, N_COLS], where the sum looks for them."""
        exchange, n = self.exchanges[rank], len(values)
        self.write(self.epochs[rank], np.array([epoch], np.int32))
        if n > FEW:
            address, stride = exchange.partial(number)
            for t in range(n):
                self.write(address + t * stride, values[t])
            return
        table = (ctypes.c_uint64 * len(self.devices)).from_address(exchange.targets(number))
        for target in table:
            for t in range(n):
                pairs = np.stack([values[t].view(np.uint32), np.full(N_COLS, epoch + number, np.uint32)], 1)
                self.write(target + t * exchange.token_stride, np.ascontiguousarray(pairs))

    def add_up(self, rank: int, n: int, number: int, accumulate: bool) -> None:
        device = self.devices[rank]

        def launch(name: str, grid: Any, *arguments: float) -> None:
            device.kernel(name).launch(grid, *arguments)

        to = self.dst[rank], self.stride
        self.exchanges[rank].sum(launch, n, n <= FEW, number, self.epochs[rank], to, accumulate)

    def result(self, rank: int, n: int) -> np.ndarray:
        self.devices[rank].synchronize()
        raw = (ctypes.c_uint8 * (n * self.stride)).from_address(self.dst[rank])
        return np.frombuffer(raw, np.float32).reshape(n, -1)[:, :N_COLS].copy()


@pytest.mark.parametrize("n", [1, FEW, ROWS])
@pytest.mark.parametrize("count", [2, 3])
def test_sums_over_ranks(count: int, n: int) -> None:
    """Several in turn, over both sets of places and with an epoch that passes the largest number; the ranks come in
    another order each time."""
    need_compiler()
    ranks, rng = Ranks(count), np.random.default_rng(0)
    expected = np.zeros((n, N_COLS), np.float32)
    epoch = (1 << 31) - 3
    for number in range(2 * SETS + 2):
        values = rng.normal(size=(count, n, N_COLS)).astype(np.float32)
        accumulate = number != 3
        expected = expected if accumulate else np.zeros_like(expected)
        for part in values:
            expected = expected + part
        for rank in np.roll(range(count), number):
            ranks.leave(rank, number, epoch - (1 << 32) if epoch >= 1 << 31 else epoch, values[rank])
            ranks.add_up(rank, n, number, accumulate)
        found = [ranks.result(rank, n) for rank in range(count)]
        assert np.array_equal(found[0], expected)
        assert all(np.array_equal(a, b) for a, b in pairwise(found))


@pytest.mark.parametrize("n", [1, ROWS])
def test_a_rank_left_alone_gives_up(n: int) -> None:
    need_compiler()
    ranks = Ranks(2)
    ranks.leave(0, 0, 1, np.ones((n, N_COLS), np.float32))
    ranks.add_up(0, n, 0, False)
    with pytest.raises(AssertionError, match="what nobody will write"):
        ranks.result(0, n)
