"""What runs a program: the interface that every device and combination of devices has."""

from __future__ import annotations

from collections.abc import Sequence
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


class StageExecutor(Executor, Protocol):
    """Runs a stage of a program. One that gives rows to another has no logits."""

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        """Have the next step, of n tokens, begin with the rows that the stage before this one gives."""
        ...

    def send_hidden(self, n: int) -> np.ndarray:
        """What the last step, of n tokens, has left for the stage after this one: float32 [n, n_cols] on the host,
        valid until the next step."""
        ...


def either_cut(executors: Sequence[Executor]) -> tuple[bool, bool]:
    """`Executor.cut` of several together."""
    keys, values = zip(*(executor.cut for executor in executors), strict=True)
    return any(keys), any(values)
