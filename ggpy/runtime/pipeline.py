"""A program split over devices: executors, each of a stage of it, run one after the other. One float32 row a
token, the residual stream, goes from each to the next. Knows nothing of the devices themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ggpy.graph.executor import StageExecutor, either_cut


class PipelineExecutor:
    """The stages of one program as one executor."""

    def __init__(self, stages: Sequence[StageExecutor]) -> None:
        self.stages = list(stages)
        first = self.stages[0]
        self.tokens, self.slots, self.positions, self.outputs = (
            np.zeros_like(a) for a in (first.tokens, first.slots, first.positions, first.outputs)
        )
        self.types = first.types  # which the embedding alone reads

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """The logits of the batch described in this executor's arrays, float32 [m, n_vocab]: see `Executor.run`."""
        for stage in self.stages:
            stage.tokens[:n], stage.slots[:n], stage.positions[:n] = self.tokens[:n], self.slots[:n], self.positions[:n]
            stage.outputs[:m] = self.outputs[:m]
        logits = self.stages[0].run(n, m, generated)
        for before, stage in pairwise(self.stages):
            stage.receive_hidden(before, n)
            logits = stage.run(n, m, generated)
        return logits

    @property
    def unpooled(self) -> bool:
        """See `Executor`."""
        return self.stages[-1].unpooled

    @unpooled.setter
    def unpooled(self, value: bool) -> None:
        self.stages[-1].unpooled = value

    @property
    def cut(self) -> tuple[bool, bool]:
        return either_cut(self.stages)

    def copy_state(self, source: int, target: int, n: int) -> None:
        for stage in self.stages:
            stage.copy_state(source, target, n)

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        return [array for stage in self.stages for array in stage.save(slot, n)]

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        for stage in self.stages:
            stage.load(slot, kept, n, n_kept)

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        return [array for stage in self.stages for array in stage.checkpoint(slot, n)]

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        for stage in self.stages:
            stage.restore(slot, kept, n)

    def close(self) -> None:
        for stage in self.stages:
            stage.close()
