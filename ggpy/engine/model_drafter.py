"""Drafts by a model, token by token: how many, and of which requests.

Each token is chosen as the request's sampler would from the drafting model's logits, with the random number that the
sampler will use there: where the two distributions are alike, so are the tokens drawn, at any temperature. The text
does not depend on it. Drafting steps are measured as the model's own are; what the two cost, and how often
drafts come true by how sure their model was, say how many tokens are drafted, or whether any are.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.drafts import GAIN, Draft, HitRates, StepCost, StepTimes

if TYPE_CHECKING:
    from ggpy.engine.request import Request

#: Probabilities that the drafting model gave its token: from each on, drafts have a rate of their own.
GRADES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99)
SHARE = 0.3  # of a model's step, one that drafts for it, where it is not measured yet
PROBES = 0.01  # of the time without drafts, how much goes into seeing whether they would pay by now
CATCHING_UP = 32  # tokens to read before drafting, beyond those of the last step, that have to be made up for
AHEAD = 256  # tokens that a request without a limit is taken to be long


class ModelDrafter(ABC):
    """A drafting model, whatever kind it is. n_vocab: of the model whose tokens are drafted."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self.times = StepTimes()
        self._rates = HitRates([0.15 + 0.8 * grade for grade in GRADES])
        self._overall = HitRates([0.7])
        self._made: dict[Request, tuple[int, Draft, list[int]]] = {}  # where a draft began, and its tokens' grades
        self._idle = 0.0  # seconds of steps without drafts since drafts were tried last

    @abstractmethod
    def _goes_on(self, request: Request, n_drafted: int) -> bool:
        """True where so many tokens of a request may be followed by one more."""

    @abstractmethod
    def _prepare(self, request: Request) -> list[int]:
        """The tokens of a request that the model is yet to read before it can draft."""

    @abstractmethod
    def _read(self, pending: dict[Request, list[int]]) -> tuple[list[Request], NDArray[np.float32]]:
        """Read such tokens. Returns the requests of which that is done, and the logits of what follows."""

    @abstractmethod
    def _go_on(self, drafts: list[tuple[Request, list[int]]]) -> NDArray[np.float32]:
        """Read the last of each request's drafted tokens. Returns the logits of what follows."""

    def draft(self, requests: Sequence[Request], rooms: Sequence[int], cost: StepCost) -> list[Draft]:
        drafts = {request: Draft() for request in requests}
        self._made = {}
        asked = zip(requests, rooms, strict=True)
        able = {request: room for request, room in asked if room and self._goes_on(request, 0)}
        if able and cost.times.known:
            self._draft(able, drafts, len(requests), cost)
        return list(drafts.values())

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
                rows = self._go_on([(request, drafts[request].tokens) for request in active]) if active else rows[:0]
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
        plain, n = cost.least, len(pending)
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
            and self._goes_on(request, len(drafts[request].tokens))
            and drafts[request].chances[-1] * usual > rate * more
        ]

    def _choose(self, request: Request, logits: NDArray[np.float32], ahead: int) -> tuple[int, int]:
        """The token that may follow, and the grade of its probability."""
        n = min(len(logits), self._n_vocab)
        if n < self._n_vocab:  # rows of padding that a small model has not
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
