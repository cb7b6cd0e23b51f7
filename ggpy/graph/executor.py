"""Executors: the interface to run a program, the same for every device and combination of devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np


class Executor(Protocol):
    """An executor of a program, for a batch that is described in its arrays.

    tokens, slots, positions, outputs, types: int32 [n_batch]; types of tokens are 0 but where a step says otherwise.
    unpooled: True while steps give rows as they are, in place of those that a sequence's rows are pooled into.
    """

    unpooled: bool

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def slots(self) -> np.ndarray: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def outputs(self) -> np.ndarray: ...
    @property
    def types(self) -> np.ndarray: ...

    @property
    def cut(self) -> tuple[bool, bool]:
        """True for keys, and for values, where a finished step had one beyond the cache type's range, which was clipped
        to it."""
        ...

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """The logits of n tokens' m outputs, float32 [m, n_vocab], valid until the next step. With m = 0 it may return
        before the step is over. generated: the tokens were generated, each in a slot of its own, not part of a prompt:
        for an executor that evaluates the two kinds separately, so that neither depends on the rest of the batch."""
        ...

    def copy_state(self, source: int, target: int, n: int) -> None:
        """Make a slot's state that of another slot, keys and values at least of the first n tokens."""
        ...

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state of n tokens, on the host: uint8 arrays."""
        ...

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        """Put back at least the first n of the n_kept tokens whose state `save` gave, taken from `kept` in order, into
        any slot. Raises ValueError where an array is of another size than this executor's."""
        ...

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of the part of a slot's state of n tokens that cannot be cut back (`ggpy.graph.state.Reach`)."""
        ...

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `checkpoint` gave of n tokens, taken from `kept` in order; the slot still holds that sequence's
        beginning."""
        ...

    def close(self) -> None: ...


class StageExecutor(Executor, Protocol):
    """An executor of a stage of a program. One with another stage after it has no logits."""

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        """Set the hidden states, from the stage before this one, that the next step of n tokens begins with."""
        ...

    def send_hidden(self, n: int) -> np.ndarray:
        """Hidden states of the last step's n tokens, for the stage after this one: float32 [n, n_cols] on the host,
        valid until the next step."""
        ...


def either_cut(executors: Sequence[Executor]) -> tuple[bool, bool]:
    """`Executor.cut` of several executors together."""
    keys, values = zip(*(executor.cut for executor in executors), strict=True)
    return any(keys), any(values)
