"""Speculation: tokens that may follow are evaluated together with the one that is known, and kept as far as they are
those that the sampler chooses.

A step reads all weights, whether for one token or for several, so that a few more tokens cost little. Every token is
still chosen from its own logits, with its own random number: the text is the same with and without. How many tokens are
worth their time is a matter of how likely they are (`ngram_lookup`), and of what steps of so many tokens have taken.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.engine.ngram_lookup import HitRates, NGramLookup
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch, Limits

GAIN = 1.05  # tokens a second over those without drafts, below which drafts are not worth it
SLOPE = 0.1  # the time of one more token, in steps of one: 0.07 to 0.12 measured on CPUs, for up to 32 tokens
LEAST_SLOPE = 0.03  # below that a measurement was disturbed
KEPT = 6  # times of each size of a step, the least of which counts, as others' work only ever adds to it
FRESH = 300  # steps after which a time is forgotten: contexts grow, and machines change their speed


@dataclass(frozen=True)
class SpeculativeConfig:
    """Settings of speculation; the names are vLLM's. num_speculative_tokens: the most tokens drafted for a request in a
    step. prompt_lookup_min: the shortest run of last tokens that is looked up; prompt_lookup_max: the longest."""

    method: str = "ngram"
    num_speculative_tokens: int = 24
    prompt_lookup_max: int = 12
    prompt_lookup_min: int = 2

    def __post_init__(self) -> None:
        if self.method != "ngram":
            raise arguments.wrong("speculative method", self.method, "'ngram', the one way to draft tokens here")
        for name, most in (("num_speculative_tokens", 256), ("prompt_lookup_min", 64), ("prompt_lookup_max", 64)):
            arguments.whole(name, getattr(self, name), 1, most, f"a whole number from 1 to {most}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise GGPYError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, but prompt_lookup_max is {self.prompt_lookup_max}; "
                "the least may not be above the most."
            )


def speculative_config(speculative: Any, config: Any) -> SpeculativeConfig | None:
    """The settings that two parameters of `LLM` ask for: a method's name, or a mapping with "method" and settings; None
    where both are None. Raises GGPYError for what they do not mean."""
    if speculative is not None and config is not None:
        raise GGPYError("speculative and speculative_config both say how to speculate; leave one of them out.")
    if speculative is not None:
        return SpeculativeConfig(arguments.text("speculative", speculative))
    if config is None:
        return None
    words = "a dict with 'method', and 'num_speculative_tokens', 'prompt_lookup_max' or 'prompt_lookup_min'"
    if not isinstance(config, Mapping) or not set(config) <= set(SpeculativeConfig.__dataclass_fields__):
        raise arguments.wrong("speculative_config", config, words)
    given = dict(config)
    low, high = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
    if isinstance(high, int) and low is None:
        given["prompt_lookup_min"] = min(high, SpeculativeConfig.prompt_lookup_min)
    if isinstance(low, int) and high is None:
        given["prompt_lookup_max"] = max(low, SpeculativeConfig.prompt_lookup_max)
    return SpeculativeConfig(**given)


class StepTimes:
    """The times that steps of generated tokens took, by their number of tokens."""

    def __init__(self) -> None:
        self._n_steps = 0
        self._times: dict[int, deque[tuple[int, float]]] = {}
        self._known: list[int] = []

    def learn(self, n_tokens: int, seconds: float) -> None:
        self._n_steps += 1
        self._times.setdefault(n_tokens, deque(maxlen=KEPT)).append((self._n_steps, seconds))
        for n, times in list(self._times.items()):
            if times[0][0] < self._n_steps - FRESH:
                times.popleft()
                if not times:
                    del self._times[n]
        self._known = sorted(self._times)

    def estimate(self, n_tokens: int) -> float:
        """The time of a step: the least that was measured, or what the nearest measured sizes make likely."""
        times = self._times.get(n_tokens)
        if times is not None:
            return min(seconds for _, seconds in times)
        i = bisect_left(self._known, n_tokens)
        near = self._known[max(0, i - 1) : i + 1]
        if not near:
            return 1 + SLOPE * n_tokens
        first = self.estimate(near[0])
        if len(near) == 1:
            return first * (1 + SLOPE * n_tokens) / (1 + SLOPE * near[0])
        return first + (self.estimate(near[1]) - first) * (n_tokens - near[0]) / (near[1] - near[0])


class Speculator:
    """The choice of drafts for an engine's batches."""

    def __init__(self, config: SpeculativeConfig, limits: Limits, n_ctx: int) -> None:
        self.config, self._limits, self._n_ctx = config, limits, n_ctx
        self.times = StepTimes()
        self._shared = HitRates(config.prompt_lookup_min, config.prompt_lookup_max)
        self._started: tuple[int, float] | None = None  # the batch under way: its tokens, and since when

    def add_drafts(self, batch: Batch) -> None:
        """Add to a batch of generated tokens those that may follow them, as far as they are worth their time."""
        self._started = None
        if not batch.requests or not all(request.draftable for request in batch.requests):
            return
        began = time.perf_counter()
        n_known = sum(map(len, batch.chunks))
        drafts = [self._draft(request, len(chunk)) for request, chunk in batch]
        chances = sorted(((chance, i) for i, (_, found) in enumerate(drafts) for chance in found), key=lambda c: -c[0])
        del chances[max(0, self._limits.n_batch - n_known) :]
        counts = [0] * len(drafts)
        for _, i in chances[: self._n_worth(len(batch.requests), n_known, [chance for chance, _ in chances])]:
            counts[i] += 1
        for request, (tokens, _), n in zip(batch.requests, drafts, counts, strict=True):
            if n:
                batch.drafts[request] = tokens[:n]
        self._started = n_known + sum(counts), began

    def learn(self) -> None:
        """Take in how long the batch took that `add_drafts` saw last, now that its tokens are chosen."""
        if self._started is not None:
            self.times.learn(self._started[0], time.perf_counter() - self._started[1])

    def _draft(self, request: Request, n_chunk: int) -> tuple[list[int], list[float]]:
        config = self.config
        if request.lookup is None:
            least, most = config.prompt_lookup_min, config.prompt_lookup_max
            request.lookup = NGramLookup(least, most, len(request.prompt), self._shared)
        request.lookup.extend(request.tokens)
        if n_chunk != request.n_pending:
            return [], []
        room = self._n_ctx - len(request.tokens)
        if request.params.max_tokens is not None:  # the last token is not evaluated
            room = min(room, request.params.max_tokens - request.n_chosen - 1)
        return request.lookup.draft(min(config.num_speculative_tokens, room))

    def _n_worth(self, n_requests: int, n_known: int, chances: list[float]) -> int:
        """How many of the drafted tokens, the likeliest first, give the most tokens a second."""
        least = self.times.estimate(n_known)
        best, worth, expected = GAIN * n_requests / least, 0, float(n_requests)
        for n, chance in enumerate(chances, 1):
            expected += chance
            seconds = max(self.times.estimate(n_known + n), least * (1 + LEAST_SLOPE * n))
            if self._limits.reach.carried:  # else the next step evaluates those again that are kept
                seconds += (1 - chance) * (seconds - least)
            if expected / seconds > best:
                best, worth = expected / seconds, n
        return worth
