"""Slots of the runtime's cache: which tokens each holds, which of them a new request can go on from, and checkpoints of
what cannot be cut back.

A request that begins like an earlier one is evaluated only from where they differ. Keys and values of the whole context
are simply cut there; a window's ring only reaches back so far, and convolutions and recurrent layers stand for one
length alone (`ggpy.graph.state.Reach`). Of those a checkpoint is taken where the next turn of a conversation is likely
to differ: before the last message of a prompt, which the model is to write, and, as it is cheap there, at its end.

What a slot holds when another conversation takes it is kept in host memory, as far as that is allowed, and put back
when its conversation goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ggpy.engine.cells import Cells, CellState, in_cells
from ggpy.graph.state import Reach
from ggpy.runtime.host_memory import CHECKPOINTS, CHECKPOINTS_ALONE, HostMemory

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.text.tokenizer import Tokenizer

WORTH_KEEPING = 64  # tokens of a slot that would be lost
CHECKPOINT_EVERY = 4096  # tokens of a prompt
LONG_PROMPT = 256  # tokens beside which a step of one is little


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that both begin with. Lists are compared piece by piece: most differ early."""
    n = min(len(a), len(b))
    start = 0
    while start < n and a[start] == b[start]:
        end = min(n, 2 * start + 64)
        if a[start:end] != b[start:end]:
            return next(i for i in range(start, end) if a[i] != b[i])
        start = end
    return start


class SlotState(CellState, Protocol):
    """The interface that the cache needs of a runtime."""

    n_slots: int
    reach: Reach

    def copy_state(self, source: int, target: int, n: int) -> None: ...
    def save(self, slot: int, n: int) -> list[np.ndarray]: ...
    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None: ...
    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]: ...
    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None: ...


@dataclass
class Checkpoint:
    """A slot's passing state when it held `length` tokens, and had been written as far as `written`."""

    length: int
    written: int
    kept: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.kept)


@dataclass(eq=False)
class Slot:
    """One request's place in the runtime's cache. `tokens[i]` is the token that cell i holds, of `capacity` cells from
    `start` on among those that slots share."""

    index: int
    tokens: list[int] = field(default_factory=list)
    n_prompt: int = 0  # of them, how many at the start were evaluated as a prompt's
    request: Request | None = None  # whose it is; None: free, and what it holds may be reused
    last_used: int = 0
    stands: int = 0  # the length that carried state is of; -1 after a step that was broken off
    written: int = 0  # the greatest length that cells were written for
    checkpoints: list[Checkpoint] = field(default_factory=list)
    start: int = 0
    capacity: int = 0

    def common_prefix(self, tokens: Sequence[int]) -> int:
        return common_prefix(self.tokens, tokens)

    def begin(self, n: int, n_new: int) -> None:
        """Record that a step is about to write n_new cells after the first n: should it be interrupted, the slot must
        not claim them."""
        self.truncate(n)
        self.written = max(self.written, n + n_new)
        self.stands = -1

    def extend(self, tokens: Sequence[int], of_prompt: bool) -> None:
        """Record that the next cells hold these tokens."""
        if of_prompt and self.n_prompt == len(self.tokens):
            self.n_prompt += len(tokens)
        self.tokens += tokens
        self.written = max(self.written, len(self.tokens))
        self.stands = len(self.tokens)

    def truncate(self, n: int) -> None:
        """Forget the cells from n on."""
        del self.tokens[n:]
        self.n_prompt = min(self.n_prompt, n)
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint.length <= n]


@dataclass(eq=False)
class Parked(Slot):
    """A slot's state in host memory, as `save` gave it."""

    kept: list[np.ndarray] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.kept) + sum(c.nbytes for c in self.checkpoints)


class Cache:
    """The slots of a runtime. host_memory: what may be kept beside them, of which the longest unused goes first."""

    def __init__(self, state: SlotState, host_memory: HostMemory = CHECKPOINTS_ALONE) -> None:
        self._state, self.host_memory = state, host_memory
        self.parked: list[Parked] = []
        self.reach = state.reach
        self.slots = [Slot(i) for i in range(state.n_slots)]
        self.cells = Cells(state, self.slots)
        self._clock = 0

    # ---- cells

    def admits(self, n: int) -> bool:
        """True where n more tokens find cells beside those of running requests."""
        taken = sum(slot.capacity for slot in self.slots if slot.request is not None)
        return not self.cells.total or taken + in_cells(n) <= self.cells.total

    def reserve(self, slot: Slot, n: int) -> bool:
        """Give a slot cells for n tokens, which it keeps as far as it holds them. What free slots hold gives way, the
        longest unused first, as far as it must: False where that is not enough, and then nothing has."""
        idle = sorted((s for s in self.slots if s.request is None and s is not slot), key=lambda s: s.last_used)
        if in_cells(n) - slot.capacity > self.cells.n_free + sum(other.capacity for other in idle):
            return not self.cells.total
        while not self.cells.resize(slot, n):
            self.clear(idle.pop(0))
        return True

    def clear(self, slot: Slot) -> None:
        """Empty a slot that is free; what it held is kept in host memory, if that is worth it."""
        self.park(slot, 0)
        self.rewind(slot, 0)
        if self.cells.total:
            self.cells.resize(slot, 0)

    def release(self, slot: Slot) -> None:
        """Make a slot free, with what it holds to be reused, and the cells behind that to be taken."""
        self.touch(slot)
        slot.request = None
        if self.cells.total:
            self.cells.resize(slot, len(slot.tokens))

    # ---- what slots hold

    def touch(self, slot: Slot) -> None:
        """Record that a slot was used just now."""
        self._clock += 1
        slot.last_used = self._clock

    def reusable(self, slot: Slot, n: int) -> int:
        """The greatest length up to n, of what the slot holds, that a sequence can go on from."""
        if self.reach.cuts(slot.stands, slot.written, n):
            return n
        return max((length for _, length in self._ways(slot, n)), default=0)

    def _ways(self, slot: Slot, n: int) -> Iterator[tuple[Checkpoint, int]]:
        """Checkpoints from which the slot can go on, and from which length."""
        for checkpoint in slot.checkpoints:
            length = min(checkpoint.length, n)
            if self.reach.cuts(checkpoint.length, checkpoint.written, length):
                yield checkpoint, length

    def rewind(self, slot: Slot, n: int) -> None:
        """Make a slot stand at a length that `reusable` gave."""
        if not self.reach.cuts(slot.stands, slot.written, n):
            checkpoint = next(found for found, length in self._ways(slot, n) if length == n)
            self._state.restore(slot.index, iter(checkpoint.kept), checkpoint.length)
            slot.written = checkpoint.written
        slot.truncate(n)
        slot.stands = n
        if n == 0:
            slot.written = 0

    def copy(self, source: Slot, target: Slot, n: int) -> None:
        """Make a free slot hold the first n tokens of another one, a length that `reusable` gave of it."""
        self._state.copy_state(source.index, target.index, n)
        target.tokens, target.n_prompt, target.checkpoints = [*source.tokens], source.n_prompt, [*source.checkpoints]
        target.stands, target.written = source.stands, source.written
        self.rewind(target, n)

    def park(self, slot: Slot, n: int) -> None:
        """Keep what a slot holds in host memory before it is cut back to n tokens, if that is worth it."""
        length = len(slot.tokens)
        if not self.host_memory.parked or length - n < WORTH_KEEPING or slot.stands != length:
            return
        parked = Parked(-1, [*slot.tokens], slot.n_prompt, None, slot.last_used, length, slot.written)
        parked.checkpoints = [*slot.checkpoints]
        parked.kept = self._state.save(slot.index, length)
        self.hold(parked)

    def hold(self, parked: Parked) -> None:
        """Add a conversation to those in host memory; what it goes on from is part of it, and the longest unused give
        way."""
        n = len(parked.tokens)
        self.parked = [other for other in self.parked if common_prefix(other.tokens, parked.tokens) < len(other.tokens)]
        if not any(common_prefix(other.tokens, parked.tokens) == n for other in self.parked):
            self.parked.append(parked)
        self.parked.sort(key=lambda other: other.last_used)
        room = self.host_memory.parked - sum(other.nbytes for other in self.parked)
        while room < 0 and self.parked:
            room += self.parked.pop(0).nbytes

    def fetch(self, parked: Parked, slot: Slot, n: int) -> None:
        """Make a free slot hold the first n tokens of a conversation in host memory, a length that `reusable` gave."""
        self._state.load(slot.index, iter(parked.kept), n, len(parked.tokens))
        slot.tokens, slot.n_prompt, slot.checkpoints = [*parked.tokens], parked.n_prompt, [*parked.checkpoints]
        slot.stands, slot.written = parked.stands, parked.written
        self.rewind(slot, n)

    def keep(self, slot: Slot) -> None:
        """Take a checkpoint of a slot as it stands."""
        self.touch(slot)
        length = len(slot.tokens)
        if any(checkpoint.length == length for checkpoint in slot.checkpoints):
            return
        slot.checkpoints.append(Checkpoint(length, slot.written, self._state.checkpoint(slot.index, length)))
        del slot.checkpoints[:-CHECKPOINTS]
        room = self.host_memory.checkpoints - sum(c.nbytes for s in self.slots for c in s.checkpoints)
        for other in sorted(self.slots, key=lambda s: s.last_used):
            while room < 0 and other.checkpoints:
                room += other.checkpoints.pop(0).nbytes

    def way_back(self, slot: Slot) -> Checkpoint:
        """A checkpoint of a slot as it stands, for `go_back` alone."""
        length = len(slot.tokens)
        return Checkpoint(length, slot.written, self._state.checkpoint(slot.index, length))

    def go_back(self, slot: Slot, checkpoint: Checkpoint) -> None:
        """Make a slot stand where it did."""
        self._state.restore(slot.index, iter(checkpoint.kept), checkpoint.length)
        slot.truncate(checkpoint.length)
        slot.stands, slot.written = checkpoint.length, checkpoint.written

    def stops(self, prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
        """The lengths of a prompt at which to take checkpoints, ascending: every so many tokens, before its last
        control token, where the message begins that the model is to write, and at its end. Of carried state that is
        before the last token of a long prompt, from which the same prompt can go on: it costs a step of one token."""
        if self.reach.everywhere:
            return []
        n = len(prompt)
        found = set(range(CHECKPOINT_EVERY, n, CHECKPOINT_EVERY))
        if self.reach.carried:  # a ring's checkpoint at the end reaches back that far
            last = next((i for i in range(n - 1, 0, -1) if tokenizer.is_control(prompt[i])), 0)
            found |= {last} - {0}
        return sorted(found | {n - 1 if self.reach.carried and n >= LONG_PROMPT else n})
