"""The choice of what the next step evaluates: which requests get slots, in which order, and how much of each prompt.

Generating requests come first, one token each, then chunks of prompts fill the step up to `n_batch` tokens, so that no
stream waits longer than one such chunk. Requests wait in the order of their priority, then of arrival, for a slot and
for cells: as many as the prompt and `max_tokens` take. One that says no `max_tokens` gets `GROWTH` at a time; where it
finds no more, the request that came last waits again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cache import Cache, Checkpoint, Parked, Slot, SlotState, common_prefix
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.sample_spec import SAMPLE_SPEC, SampledTokens, SampleSpecs, sampled_by_last_step

if TYPE_CHECKING:
    from ggpy.sampling.structured import Grammar

#: Tokens that a request has to share with one that is just being evaluated, beyond what a slot holds already, to wait
#: for it: less is evaluated sooner than waited for.
WORTH_WAITING = 32
#: Waiting requests that are looked at in a step, for each slot: as many may wait for one whose prompt they share.
LOOK_AHEAD = 4
#: Tokens for which a request that may go on to the context's end has cells beside those that it has.
GROWTH = 1024


class Limits(SlotState, Protocol):
    """The interface that the scheduler needs of a runtime."""

    n_ctx: int
    n_batch: int
    n_vocab: int
    max_sampled: int  # tokens of a step that `sample` takes; 0 where there is no such way
    max_top_k: int  # that it can draw one token from
    by_kind: bool  # whether it evaluates generated tokens and prompts' in ways of their own


class QueueFull(GGPYError):
    """Too many requests wait."""


@dataclass
class Batch:
    """One step's tokens: those of `chunks[i]` are the next of `requests[i]`."""

    requests: list[Request] = field(default_factory=list)
    chunks: list[list[int]] = field(default_factory=list)
    n_in_flight: int = 0  # tokens of each request that the batch before is yet to sample: its chunk, or none
    specs: SampleSpecs | None = None  # how the device is to choose every request's next token; None: here, from logits
    # Tokens that may follow a request's last one, evaluated with it; rows of logits follow its own, one for each.
    drafts: dict[Request, list[int]] = field(default_factory=dict)
    ways_back: dict[Request, Checkpoint] = field(default_factory=dict)  # from drafts, where state is carried
    # logits [m, n_vocab], every request's from its `first_row` on; or every request's token
    result: NDArray[np.float32] | SampledTokens | None = None

    def __iter__(self) -> Iterator[tuple[Request, list[int]]]:
        return zip(self.requests, self.chunks, strict=True)

    def grammars(self) -> list[Grammar]:
        """The grammars that say which token may follow those of this step."""
        complete = [request.sampler.grammar for request, chunk in self if len(chunk) == request.n_pending]
        return [grammar for grammar in complete if grammar is not None]


class Scheduler:
    """The requests of an engine, waiting and running. max_waiting: how many may wait; None: any number."""

    def __init__(self, limits: Limits, cache: Cache, max_waiting: int | None = None) -> None:
        self.limits, self.cache, self.max_waiting = limits, cache, max_waiting
        self.waiting: list[Request] = []  # in the order in which they get slots
        self.running: list[Request] = []
        self._arrivals = count()

    def add(self, request: Request) -> None:
        """Have a request wait for a slot. Raises QueueFull."""
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests wait already, the most that may; try again later.")
        if request.arrival is None:
            request.arrival = next(self._arrivals)
        self.waiting.append(request)
        self.waiting.sort(key=lambda r: (r.priority, r.arrival))

    def retire(self, request: Request) -> None:
        """Take a request out; its slot's cells can still be reused."""
        if request.slot is not None:
            self.cache.release(request.slot)
            request.slot = None
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)

    def displace(self) -> Slot:
        """Take the slot of the request that came last among those of the lowest priority; it waits, and will
        evaluate its tokens again."""
        request = max(self.running, key=lambda r: (r.priority, r.arrival or 0))
        slot = request.slot
        assert slot is not None
        self.retire(request)
        request.n_computed = 0
        self.waiting.insert(0, request)
        return slot

    def n_cells(self, request: Request) -> int:
        """The tokens that a request is given cells for, before or after it begins: the last one needs none."""
        n, most = len(request.tokens), request.params.max_tokens
        return min(self.limits.n_ctx, max(n, len(request.prompt) + most - 1) if most is not None else n + GROWTH)

    def _grow(self, request: Request) -> None:
        """Give a running request cells for its pending tokens, and some more."""
        while request.slot is not None and request.slot.capacity < len(request.tokens):
            if not any(self.cache.reserve(request.slot, n) for n in (self.n_cells(request), len(request.tokens))):
                self.displace()

    def schedule(self) -> Batch:
        """The batch of the next step."""
        for request in sorted(self.running, key=lambda r: (r.priority, r.arrival or 0)):
            self._grow(request)
        self._admit()
        batch, room, by_kind = Batch(), self.limits.n_batch, self.limits.by_kind
        for request in self.running:
            if not request.n_pending:  # interrupted between evaluation and choice: evaluate the last token once more
                assert request.slot is not None
                request.n_computed = self.cache.reusable(request.slot, request.n_computed - 1)
                self.cache.rewind(request.slot, request.n_computed)
        for request in sorted(self.running, key=lambda r: not r.generating if by_kind else r.n_pending > 1):
            n = min(request.n_pending_of_kind if by_kind else request.n_pending, request.n_to_stop, room)
            if n:
                batch.requests.append(request)
                batch.chunks.append(request.tokens[request.n_computed : request.n_computed + n])
                room -= n
        if self.limits.max_sampled:
            batch.specs = self._specs(batch)
        return batch

    def schedule_overlapped(self, batch: Batch) -> Batch | None:
        """The batch after one whose tokens the device chooses, if its requests simply go on; else None. If a request
        turns out to have ended, its token is evaluated in vain, in a cell that its slot never claims."""
        if batch.specs is None or (self.waiting and any(slot.request is None for slot in self.cache.slots)):
            return None
        going = [request for request in batch.requests if not request.finished]
        if going != self.running or not all(request.goes_on for request in going):
            return None
        chunks = [[sampled_by_last_step(request.slot.index)] for request in going if request.slot is not None]
        following = Batch(going, chunks, n_in_flight=1)
        following.specs = self._specs(following)
        return following if following.specs is not None else None

    def _admit(self) -> None:
        """Give free slots to waiting requests. One that begins like a request which is just being evaluated waits for
        it, and then has a copy of what they share."""
        for request in self.waiting[: LOOK_AHEAD * len(self.cache.slots)]:
            free = [slot for slot in self.cache.slots if slot.request is None]
            if not free:
                return
            reusable = self._reusable(request)
            n = max(reusable[slot] for slot in free)
            if any(self._will_share(other, request) >= n + WORTH_WAITING for other in self.running):
                continue
            if not self.cache.admits(self.n_cells(request)):
                return  # none overtakes it, else it might wait for ever
            self.waiting.remove(request)
            request.begin(*self.place(request, free, reusable))
            self.running.append(request)

    def place(
        self, request: Request, free: Sequence[Slot], reusable: Mapping[Slot, int] | None = None
    ) -> tuple[Slot, int]:
        """Make one of some free slots hold what is found anywhere of a request's first tokens. Returns it, and the
        number of these tokens, all but the last at most. reusable: what each slot has of them, if that is known."""
        reusable = reusable or self._reusable(request)
        slot = max(free, key=lambda s: (reusable[s], -s.last_used))
        n = reusable[slot]
        source = max(reusable, key=lambda s: reusable[s])
        copied = reusable[source] >= n + WORTH_WAITING  # from host memory or from a request that runs
        if copied:
            slot = min(free, key=lambda s: (len(s.tokens) > 0, s.last_used))
            n = 0
        self.cache.park(slot, n)
        self.cache.rewind(slot, n)
        if not self.cache.reserve(slot, self.n_cells(request)):
            raise ValueError("a request is placed that was not admitted")
        if copied:
            n = reusable[source]
            if isinstance(source, Parked):
                self.cache.fetch(source, slot, n)
            else:
                self.cache.copy(source, slot, n)
        return slot, n

    def _reusable(self, request: Request) -> dict[Slot, int]:
        """The number of a request's first tokens in each slot, and in each conversation in host memory."""
        return {slot: self._n_reusable(slot, request) for slot in (*self.cache.slots, *self.cache.parked)}

    def _n_reusable(self, slot: Slot, request: Request) -> int:
        """The number of a slot's cells that the request can go on from: they hold its first tokens, but not the last,
        evaluated as they would be now."""
        n = min(slot.common_prefix(request.tokens), request.most_reusable)
        if self.limits.by_kind:
            n = min(n, slot.n_prompt, request.n_prompt)
        return self.cache.reusable(slot, n)

    def _will_share(self, other: Request, request: Request) -> int:
        """How many tokens another request's slot will hold for this one, of which it is yet to evaluate some; 0 where
        it has them all."""
        n = min(common_prefix(other.tokens[: other.n_prompt], request.tokens), request.most_reusable)
        if n <= other.n_computed:
            return 0
        if not self.cache.reach.carried:
            return n
        return max((stop for stop in other.stops if other.n_computed < stop <= n), default=0)

    def _specs(self, batch: Batch) -> SampleSpecs | None:
        """Sample specs of the batch's tokens for the device; None where it cannot choose one of them."""
        if not 0 < len(batch.requests) <= self.limits.max_sampled:
            return None
        rows = []
        for request in batch.requests:
            if not batch.n_in_flight and (request.n_pending > 1 or (self.limits.by_kind and not request.generating)):
                return None
            row = request.sampler.spec(self.limits.n_vocab, self.limits.max_top_k, batch.n_in_flight)
            if row is None:
                return None
            rows.append(row)
        return np.array(rows, SAMPLE_SPEC)
