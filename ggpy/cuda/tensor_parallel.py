"""Several GPUs that share every matrix of a model behind the interface of one (`ggpy.graph.tensor_parallel`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.executor import CudaExecutor
from ggpy.errors import GGPYError
from ggpy.graph.executor import either_cut
from ggpy.sampling.sample_spec import SampledTokens, SampleSpecs

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.graph.executor import StageExecutor


def require_peers(devices: Sequence[Device]) -> None:
    """Raise GGPYError where GPUs cannot access each other's memory, or are of different kinds."""
    if len({device.cc for device in devices}) > 1:
        raise GGPYError(
            "Rows can be split over GPUs of one kind only, since all must round alike; split the model by layers "
            "(--split-mode layer)."
        )
    for device, other in permutations(devices, 2):
        if not device.reach(other):
            raise GGPYError(
                f"GPU {device.index} cannot reach the memory of GPU {other.index}, as splitting rows needs; split the "
                "model by layers (--split-mode layer)."
            )


class TensorParallelExecutor:
    """Executor of a model on several ranks. All of them get every step, evaluate it side by side, and hold the same
    residual stream, bit for bit; logits come from the first one, and so do the tokens that are chosen, which each rank
    chooses for itself."""

    max_top_k = CudaExecutor.max_top_k

    def __init__(self, ranks: Sequence[CudaExecutor]) -> None:
        self.ranks = list(ranks)
        first = self.ranks[0]
        self.max_sampled = first.max_sampled
        exchanges = [rank.exchange for rank in self.ranks if rank.exchange]
        for exchange in exchanges:
            exchange.connect(exchanges)
        self.tokens, self.slots, self.positions, self.outputs = (
            np.zeros_like(a) for a in (first.tokens, first.slots, first.positions, first.outputs)
        )
        self.types = np.zeros_like(first.types)

    def _describe(self, n: int, m: int) -> None:
        for rank in self.ranks:
            rank.tokens[:n], rank.slots[:n], rank.positions[:n] = self.tokens[:n], self.slots[:n], self.positions[:n]
            rank.outputs[:m], rank.types[:n] = self.outputs[:m], self.types[:n]

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """The logits of the batch described in this executor's arrays, float32 [m, n_vocab]: see `Executor.run`."""
        self._describe(n, m)
        first, *others = self.ranks
        # Nobody wants the others' logits, but more outputs than tokens are another way to queue a step (`start`), and
        # all must go the same. Side by side: a GPU takes only so many launches that wait for the others in between.
        theirs = m if m > n else 0
        for _ in zip_longest(first.start(n, m, generated), *(rank.start(n, theirs, generated) for rank in others)):
            pass
        return first.finish(m)

    def sample(self, n: int, specs: SampleSpecs) -> SampledTokens:
        """Queue a step and the choice of the token after each: see `CudaExecutor.sample`."""
        self._describe(n, 0)
        chosen = [rank.sample(n, specs) for rank in self.ranks]
        return chosen[0]

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        for rank in self.ranks:
            rank.receive_hidden(before, n)

    def send_hidden(self, n: int) -> np.ndarray:
        return self.ranks[0].send_hidden(n)

    @property
    def unpooled(self) -> bool:
        """See `Executor`."""
        return self.ranks[0].unpooled

    @unpooled.setter
    def unpooled(self, value: bool) -> None:
        for rank in self.ranks:
            rank.unpooled = value

    @property
    def cut(self) -> tuple[bool, bool]:
        return either_cut(self.ranks)

    def copy_state(self, source: int, target: int, n: int) -> None:
        for rank in self.ranks:
            rank.copy_state(source, target, n)

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        return [array for rank in self.ranks for array in rank.save(slot, n)]

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        for rank in self.ranks:
            rank.load(slot, kept, n, n_kept)

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        return [array for rank in self.ranks for array in rank.checkpoint(slot, n)]

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        for rank in self.ranks:
            rank.restore(slot, kept, n)

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
