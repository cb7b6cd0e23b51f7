"""Drafts by a second, smaller model of the same vocabulary, whose slots follow the text by the cache's own means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cache import Cache, Checkpoint, Slot, SlotState
from ggpy.engine.model_drafter import ModelDrafter

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch
    from ggpy.runtime.runtime import Integers

WORTH_COPYING = 64  # tokens that another slot holds for a request, beyond its own


class DraftRuntime(SlotState, Protocol):
    """The interface that drafting needs of the small model's runtime."""

    n_ctx: int
    n_batch: int
    n_vocab: int

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> NDArray[np.float32]: ...


class DraftModel(ModelDrafter):
    """Drafts of a small model, which has a slot for each of the large one's. n_vocab: the large model's."""

    def __init__(self, runtime: DraftRuntime, n_vocab: int) -> None:
        super().__init__(n_vocab)
        self.runtime = runtime
        self.cache = Cache(runtime)
        self._ways: dict[Slot, Checkpoint] = {}  # back to where a draft began, where state is carried
        # The request of which a slot is known to hold tokens, how many of it were dropped then, and how many it holds.
        self._held: dict[Slot, tuple[Request, int, int]] = {}

    def observe(self, batch: Batch) -> None:
        """See `drafts.Drafter`."""

    def _goes_on(self, request: Request, n_drafted: int) -> bool:
        return len(request.tokens) + n_drafted <= self.runtime.n_ctx

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self.cache.slots[request.slot.index]

    def _prepare(self, request: Request) -> list[int]:
        """Cut a request's slot back to what it holds of the request's tokens, and return those that it does not."""
        slot, tokens = self._slot(request), request.tokens
        owner, n_dropped, n = self._held.get(slot, (None, 0, 0))
        if owner is not request or n_dropped != request.n_dropped:
            n = slot.common_prefix(tokens)
            source = max(self.cache.slots, key=lambda other: other.common_prefix(tokens))
            of_source = self.cache.reusable(source, min(source.common_prefix(tokens), len(tokens) - 1))
            if of_source >= n + WORTH_COPYING:
                self.cache.copy(source, slot, of_source)
                n = of_source
        while n < min(len(slot.tokens), len(tokens)) and slot.tokens[n] == tokens[n]:
            n += 1
        n = min(n, len(tokens) - 1)
        way, found = self._ways.pop(slot, None), self.cache.reusable(slot, n)
        if way is not None and found < way.length <= n:
            self.cache.go_back(slot, way)
        else:
            self.cache.rewind(slot, found)
        self._held[slot] = request, request.n_dropped, len(slot.tokens)
        return tokens[len(slot.tokens) :]

    def _read(self, pending: dict[Request, list[int]]) -> tuple[list[Request], NDArray[np.float32]]:
        """Evaluate what was said since, as much as a step holds. Returns the requests of which all is, and the logits
        of what follows."""
        room, chunks, read = self.runtime.n_batch, [], []
        for request, tokens in sorted(pending.items(), key=lambda item: len(item[1])):
            chunk = tokens[:room]
            room -= len(chunk)
            if chunk:
                chunks.append((self._slot(request), chunk))
            if len(chunk) == len(tokens):
                read.append(request)
        logits = self._step(chunks, len(read))
        for slot, chunk in chunks:
            owner, n_dropped, n = self._held[slot]
            self._held[slot] = owner, n_dropped, n + len(chunk)
        if self.cache.reach.carried:
            self._ways.update((slot, self.cache.way_back(slot)) for slot, _ in chunks)
        return read, logits

    def _go_on(self, drafts: list[tuple[Request, list[int]]]) -> NDArray[np.float32]:
        return self._step([(self._slot(request), tokens[-1:]) for request, tokens in drafts], len(drafts))

    def _step(self, chunks: list[tuple[Slot, list[int]]], n_outputs: int) -> NDArray[np.float32]:
        """Evaluate the next tokens of slots; the logits after the last ones of the first `n_outputs`."""
        began = time.perf_counter()
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for slot, chunk in chunks:
            start = len(slot.tokens)
            slot.begin(start, len(chunk))
            tokens += chunk
            slots += [slot.index] * len(chunk)
            positions += range(start, start + len(chunk))
            ends.append(len(tokens) - 1)
        logits = self.runtime.step(tokens, slots, positions, ends[:n_outputs])
        for slot, chunk in chunks:
            slot.extend(chunk, of_prompt=False)
        self.times.learn(len(tokens), time.perf_counter() - began)
        return logits
