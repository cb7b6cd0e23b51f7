"""A program split over devices: executors, each of a part of it, run one after the other. What crosses is one float32
row a token, the residual stream. Knows nothing of the devices themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np


class Executor(Protocol):
    """Runs a program for a batch that is described in its arrays.

    tokens, slots, positions, outputs: int32 [n_batch].
    """

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def slots(self) -> np.ndarray: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def outputs(self) -> np.ndarray: ...

    @property
    def cut(self) -> tuple[bool, bool]:
        """Whether any key, and any value, of a step that is over was beyond what the cache holds, and was cut to
        that."""
        ...

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """The logits of n tokens' m outputs, float32 [m, n_vocab], valid until the next step. With m = 0 it may return
        before the step is over. generated: they were generated, each in a slot of its own, and are not a prompt's: for
        an executor that evaluates both in ways of their own, so that neither depends on what is beside it."""
        ...

    def close(self) -> None: ...


class PartExecutor(Executor, Protocol):
    """Runs a part of a program. One that gives rows to another has no logits."""

    def take(self, before: PartExecutor, n: int) -> None:
        """Have the next step, of n tokens, begin with the rows that the part before this one gives."""
        ...

    def give(self, n: int) -> np.ndarray:
        """What the last step, of n tokens, has left for the part after this one: float32 [n, n_cols] on the host,
        valid until the next step."""
        ...


class SplitExecutor:
    """The parts of one program as one executor."""

    def __init__(self, parts: Sequence[PartExecutor]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        self.tokens, self.slots, self.positions, self.outputs = (
            np.zeros_like(a) for a in (first.tokens, first.slots, first.positions, first.outputs)
        )

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """The logits of the batch described in this executor's arrays, float32 [m, n_vocab]: see `Executor.run`."""
        for part in self.parts:
            part.tokens[:n], part.slots[:n], part.positions[:n] = self.tokens[:n], self.slots[:n], self.positions[:n]
            part.outputs[:m] = self.outputs[:m]
        logits = self.parts[0].run(n, m, generated)
        for before, part in pairwise(self.parts):
            part.take(before, n)
            logits = part.run(n, m, generated)
        return logits

    @property
    def cut(self) -> tuple[bool, bool]:
        return either_cut(self.parts)

    def close(self) -> None:
        for part in self.parts:
            part.close()


def either_cut(executors: Sequence[Executor]) -> tuple[bool, bool]:
    """`Executor.cut` of several together."""
    keys, values = zip(*(executor.cut for executor in executors), strict=True)
    return any(keys), any(values)
