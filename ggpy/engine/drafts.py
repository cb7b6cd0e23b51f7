"""The parts that every way to draft tokens needs: how often drafts come true, and what steps cost."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch

GAIN = 1.05  # tokens a second over those without drafts, below which drafts are not worth it
SLOPE = 0.1  # the time of one more token, in steps of one: 0.06 to 0.12 measured on CPUs, for up to 32 tokens
LEAST_SLOPE = 0.03  # below that a measurement was disturbed; and a less likely token is never worth its time
KEPT = 6  # times of each size of a step, the least of which counts, as others' work only ever adds to it
TRUSTED = 3  # times of a size that count for more than what the other sizes make likely
FRESH = 300  # steps after which a time is forgotten: contexts grow, and machines change their speed
FORGETS_EVERY = 16  # steps; to look at all sizes in each took as long as the look-up itself
FORGETS = 0.97  # of what was seen, how much counts after one more look
PRIOR = 8.0  # looks that rates begin with


@dataclass
class Draft:
    """Tokens that may follow a request's last one, and the chance of each that it and all before it do."""

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)


class Drafter(Protocol):
    """A way to draft tokens."""

    def draft(self, requests: Sequence[Request], rooms: Sequence[int], cost: StepCost) -> list[Draft]:
        """A draft for each request, of as many tokens as there is room for at most. cost: of the step that evaluates
        them, in which all are in."""
        ...

    def observe(self, batch: Batch) -> None:
        """Look at a batch that the model has just evaluated, before tokens are chosen."""
        ...

    def learn(self, requests: Sequence[Request]) -> None:
        """Take in what was chosen in the step that the last drafts, these requests', were made for."""
        ...


class HitRates:
    """How often what was foreseen came true, by how good it looked: for each grade, from what was seen of late. rates:
    those to begin with."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._hits = [PRIOR * rate for rate in rates]
        self._looks = [PRIOR] * len(rates)

    def rates(self) -> list[float]:
        return [hits / looks for hits, looks in zip(self._hits, self._looks, strict=True)]

    def rate(self, grade: int) -> float:
        """The rate of a grade, or of the best one where it is beyond."""
        i = min(grade, len(self._hits) - 1)
        return self._hits[i] / self._looks[i]

    def learn(self, grade: int, hit: bool) -> None:
        i = min(grade, len(self._hits) - 1)
        self._hits[i] = FORGETS * self._hits[i] + hit
        self._looks[i] = FORGETS * self._looks[i] + 1


class StepTimes:
    """The times that steps of generated tokens took, by their number of tokens."""

    def __init__(self) -> None:
        self._n_steps = 0
        self._times: dict[int, deque[tuple[float, int]]] = {}  # seconds, and in which step
        self._least: dict[int, float] = {}  # of each size: it is asked for many times a step
        self._known: list[int] = []  # sizes, ascending

    @property
    def known(self) -> bool:
        """True once a step was measured."""
        return bool(self._times)

    def learn(self, n_tokens: int, seconds: float) -> None:
        self._n_steps += 1
        times = self._times.get(n_tokens)
        if times is None:
            times = self._times[n_tokens] = deque(maxlen=KEPT)
            insort(self._known, n_tokens)
        times.append((seconds, self._n_steps))
        self._least[n_tokens] = min(times)[0]
        if self._n_steps % FORGETS_EVERY == 0:
            self._forget()

    def _forget(self) -> None:
        for n, times in list(self._times.items()):
            while times and times[0][1] < self._n_steps - FRESH:
                times.popleft()
            if times:
                self._least[n] = min(times)[0]
            else:
                del self._times[n], self._least[n]
                self._known.remove(n)

    def estimate(self, n_tokens: int) -> float:
        """The time of a step: the least that was measured, or what the nearest measured sizes make likely, where that
        is less and few were measured: on a busy machine most steps take longer than they need."""
        least = self._least.get(n_tokens)
        if least is None:
            return self._likely(n_tokens)
        return least if len(self._times[n_tokens]) >= TRUSTED else min(least, self._likely(n_tokens))

    def _likely(self, n_tokens: int) -> float:
        """The time of a step by the nearest other sizes."""
        known, i = self._known, bisect_left(self._known, n_tokens)
        near = [*known[max(0, i - 1) : i], *known[i + (n_tokens in self._least) :][:1]]
        if not near:
            return 1 + SLOPE * n_tokens if n_tokens not in self._least else float("inf")
        first = self._least[near[0]]
        if len(near) == 1:
            return first * (1 + SLOPE * n_tokens) / (1 + SLOPE * near[0])
        return first + (self._least[near[1]] - first) * (n_tokens - near[0]) / (near[1] - near[0])


@dataclass
class StepCost:
    """The cost of a step of `n_known` tokens and some drafted ones. carried: what slots hold cannot be cut back, so
    that tokens which were kept of a draft that failed are evaluated again."""

    times: StepTimes
    n_known: int
    carried: bool = False

    @cached_property
    def least(self) -> float:
        """Seconds of the step without drafts."""
        return self.times.estimate(self.n_known)

    def seconds(self, n_more: int) -> float:
        return max(self.times.estimate(self.n_known + n_more), self.least * (1 + LEAST_SLOPE * n_more))

    def worth(self, n_requests: int, chances: Sequence[float], spent: float = 0.0) -> int:
        """How many of the drafted tokens, the likeliest first, give the most tokens a second. spent: seconds that went
        into drafting, and are gone in any case; where nothing did, drafts have to be better than none by GAIN."""
        best, worth, expected = (1.0 if spent else GAIN) * n_requests / (spent + self.least), 0, float(n_requests)
        for n, chance in enumerate(chances, 1):
            expected += chance
            seconds = self.seconds(n)
            if self.carried:
                seconds += (1 - chance) * (seconds - self.least)
            if expected / (spent + seconds) > best:
                best, worth = expected / (spent + seconds), n
        return worth
