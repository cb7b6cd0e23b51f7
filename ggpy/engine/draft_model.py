"""Drafts by a second, smaller model of the same vocabulary.

It chooses each token as the request's sampler would from its logits, with the random number that the sampler will use
there: where the two models' distributions are alike, so are the tokens drawn, at any temperature. What the text becomes
does not depend on it. Its steps are measured as the large model's are; what the two cost, and how often drafts come
true by how sure the small model was, say how many tokens are drafted, or whether any are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cache import Cache, Checkpoint, Slot, SlotState
from ggpy.engine.drafts import GAIN, Draft, HitRates, StepCost, StepTimes

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.runtime.runtime import Integers

#: Probabilities that the small model gave its token: from each on, drafts have a rate of their own.
GRADES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99)
SHARE = 0.3  # of a large model's step, a small model's, where it is not measured yet
PROBES = 0.01  # of the time without drafts, how much goes into seeing whether they would pay by now
WORTH_COPYING = 64  # tokens that another slot holds for a request, beyond its own
CATCHING_UP = 32  # tokens to read before drafting, beyond those of the last step, that have to be made up for
AHEAD = 256  # tokens that a request without a limit is taken to be long


class DraftRuntime(SlotState, Protocol):
    """The interface that drafting needs of the small model's runtime."""

    n_ctx: int
    n_batch: int
    n_vocab: int

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> NDArray[np.float32]: ...


class DraftModel:
    """Drafts of a small model, which has a slot for each of the large one's. n_vocab: the large model's."""

    def __init__(self, runtime: DraftRuntime, n_vocab: int) -> None:
        self.runtime, self._n_vocab = runtime, n_vocab
        self.cache = Cache(runtime)
        self.times = StepTimes()
        self._rates = HitRates([0.15 + 0.8 * grade for grade in GRADES])
        self._overall = HitRates([0.7])
        self._ways: dict[Slot, Checkpoint] = {}  # back to where a draft began, where state is carried
        self._held: dict[Slot, tuple[Request, int]] = {}  # the tokens of a request that a slot is known to hold
        self._made: dict[Request, tuple[int, Draft, list[int]]] = {}  # where a draft began, and its tokens' grades
        self._idle = 0.0  # seconds of steps without drafts since drafts were tried last

    # ---- drafts

    def draft(self, requests: Sequence[Request], rooms: Sequence[int], cost: StepCost) -> list[Draft]:
        drafts = {request: Draft() for request in requests}
        self._made = {}
        able = {request: room for request, room in zip(requests, rooms, strict=True) if self._has_room(request, room)}
        if able and cost.times.known:
            self._draft(able, drafts, len(requests), cost)
        return list(drafts.values())

    def _has_room(self, request: Request, room: int) -> bool:
        return room > 0 and len(request.tokens) < self.runtime.n_ctx

    def _draft(self, rooms: dict[Request, int], drafts: dict[Request, Draft], n_requests: int, cost: StepCost) -> None:
        pending = {request: self._prepare(request) for request in rooms}
        deepest = self._depth(pending, rooms, n_requests, cost)
        if not deepest:
            return
        began = time.perf_counter()
        active, rows = self._read(pending)
        expected = float(n_requests)
        chances = dict.fromkeys(active, 1.0)
        made = 0
        for depth in range(deepest):
            if depth and active:
                rate = expected / (time.perf_counter() - began + cost.seconds(made))
                active = self._worth_going_on(active, rooms, drafts, cost, rate, made)
                chunks = [(self._slot(request), drafts[request].tokens[-1:]) for request in active]
                rows = self._step(chunks, len(chunks)) if chunks else rows[:0]
            for request, logits in zip(active, rows, strict=True):
                token, grade = self._choose(request, logits, depth)
                chances[request] *= self._rates.rate(grade)
                expected += chances[request]
                made += 1
                drafts[request].tokens.append(token)
                drafts[request].chances.append(chances[request])
                _, _, grades = self._made.setdefault(request, (len(request.tokens), drafts[request], []))
                grades.append(grade)

    def _depth(
        self, pending: dict[Request, list[int]], rooms: dict[Request, int], n_requests: int, cost: StepCost
    ) -> int:
        """The most tokens to draft for a request: 0 where none would pay, and 1 to see whether that is still so."""
        plain, n = cost.seconds(0), len(pending)
        step = self.times.estimate(n) if self.times.known else SHARE * plain
        rate, expected, best, most = self._overall.rate(0), float(n_requests), 0.0, max(rooms.values())
        for depth in range(1, most + 1):
            expected += n * rate**depth
            best = max(best, expected / (cost.seconds(n * depth) + depth * step))
        n_pending = sum(map(len, pending.values()))
        reading = self.times.estimate(n_pending) if self.times.known else step * n_pending / 8
        if best < GAIN * n_requests / plain:
            self._idle += plain
            trial = reading + cost.seconds(n) - plain
            if PROBES * self._idle < trial:
                return 0
            self._idle = 0.0
            return 1
        if n_pending > n * CATCHING_UP:
            ahead = sum(min(AHEAD, (request.params.max_tokens or AHEAD) - request.n_chosen) for request in pending)
            if reading > ahead * (plain / n_requests - 1 / best):
                return 0
        return most

    def _worth_going_on(
        self,
        active: list[Request],
        rooms: dict[Request, int],
        drafts: dict[Request, Draft],
        cost: StepCost,
        rate: float,
        made: int,
    ) -> list[Request]:
        """The requests of which one more drafted token gives more than `rate`, tokens a second."""
        n = len(active)
        more = (self.times.estimate(n) + cost.seconds(made + n) - cost.seconds(made)) / n
        usual = self._overall.rate(0)
        return [
            request
            for request in active
            if len(drafts[request].tokens) < rooms[request]
            and len(self._slot(request).tokens) < self.runtime.n_ctx
            and drafts[request].chances[-1] * usual > rate * more
        ]

    def _choose(self, request: Request, logits: NDArray[np.float32], ahead: int) -> tuple[int, int]:
        """The token that may follow, and the grade of its probability."""
        n = min(len(logits), self._n_vocab)
        if n < self._n_vocab:  # rows of padding that this model has not
            wider = np.full(self._n_vocab, -np.inf, np.float32)
            wider[:n] = logits
            logits = wider
        logits = logits[: self._n_vocab]
        token = request.sampler.foresee(logits, ahead)
        with np.errstate(invalid="ignore", over="ignore"):
            chance = 1 / float(np.exp(logits - logits[token]).sum())
        return token, sum(chance >= grade for grade in GRADES[1:])

    # ---- what was chosen

    def learn(self, requests: Sequence[Request]) -> None:
        for request, (n, draft, grades) in self._made.items():
            for token, grade, chosen in zip(draft.tokens, grades, request.tokens[n:], strict=False):
                self._rates.learn(grade, token == chosen)
                self._overall.learn(0, token == chosen)
                if token != chosen:
                    break
        self._made = {}

    # ---- the small model's slots

    def _slot(self, request: Request) -> Slot:
        assert request.slot is not None
        return self.cache.slots[request.slot.index]

    def _prepare(self, request: Request) -> list[int]:
        """Cut a request's slot back to what it holds of the request's tokens, and return those that it does not."""
        slot, tokens = self._slot(request), request.tokens
        owner, n = self._held.get(slot, (None, 0))
        if owner is not request or n > len(tokens):  # of which some were dropped since
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
        self._held[slot] = request, len(slot.tokens)
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
            owner, n = self._held[slot]
            self._held[slot] = owner, n + len(chunk)
        if self.cache.reach.carried:
            self._ways.update((slot, self.cache.way_back(slot)) for slot, _ in chunks)
        return read, logits

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
