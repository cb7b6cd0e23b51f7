"""Drafts by n-gram look-up: where a request's last tokens stand earlier in it, or in an answer to another request, what
follows there may follow here.

Text that repeats its prompt (code that is edited, a document that is quoted), itself or other answers is foreseen so,
without a model. How often that comes true depends most on how long the match is, so each length has a rate of its own,
which every token measures, drafted or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.engine.drafts import LEAST_SLOPE, Draft, HitRates, StepCost

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch

CANDIDATES = 8  # earlier places that are looked at: the latest ones
POOL = 1 << 16  # tokens of answers that are kept for other requests; some 200 bytes each
BREAK = -1  # between two answers


def first_rates(least: int, most: int) -> list[float]:
    """The rates after matches of `least` to `most` tokens: 0.27 after two, 0.72 after four, 0.97 after twelve. Of those
    tried on a small chat model's answers they made copies the shortest, and other texts longer by 1 % at most."""
    return [0.97 - 0.7 * 0.6 ** max(0, n - 2) for n in range(least, most + 1)]


@dataclass(frozen=True)
class Match:
    """The place after a match of a text's last tokens, in a text, and the match's length."""

    place: int
    n: int


class NGramIndex:
    """The places of n-grams in a text that grows. least, most: the shortest match that counts, and the longest that is
    told from a longer one."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.tokens: list[int] = []
        self.gram: tuple[int, ...] = ()  # the last `least` tokens
        self._latest: dict[tuple[int, ...], int] = {}  # an n-gram of `least` tokens: where it ended last
        self._before: list[int] = []  # for each length, where the n-gram that ends there ended before; -1: nowhere

    def append(self, token: int) -> None:
        seen, i = self.tokens, len(self.tokens)
        before = -1
        if i >= self.least:  # the n-gram before this token has something that follows it now
            before = self._latest.get(self.gram, -1)
            self._latest[self.gram] = i
        self._before.append(before)
        seen.append(token)
        self.gram = tuple(seen[-self.least :])

    def find(self, text: Sequence[int], gram: tuple[int, ...]) -> Match | None:
        """The longest match of the last tokens of `text`, the latest of equals. gram: the last `least` of them."""
        place = self._latest.get(gram, -1)
        if place < 0:
            return None
        seen, end = self.tokens, len(text)
        best: Match | None = None
        for _ in range(CANDIDATES):
            if place < 0:
                break
            n = self.least
            while n < self.most and n < place and n < end and seen[place - 1 - n] == text[end - 1 - n]:
                n += 1
            if best is None or n > best.n:
                best = Match(place, n)
                if n == self.most:
                    break
            place = self._before[place]
        return best


class NGramPool:
    """Answers that were written, for requests that come to write alike."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self._index, self._older = NGramIndex(least, most), NGramIndex(least, most)
        self.rates = HitRates(first_rates(least, most))

    def add(self, tokens: Sequence[int]) -> None:
        """Take an answer, with the end of its prompt before it. The older half goes when there is no more room."""
        if len(self._index.tokens) + len(tokens) > POOL // 2:
            self._older, self._index = self._index, NGramIndex(self.least, self.most)
        for token in (BREAK, *tokens[-POOL // 2 :]):
            self._index.append(token)

    def find(self, text: Sequence[int], gram: tuple[int, ...]) -> tuple[Sequence[int], Match] | None:
        """The longest match as of `NGramIndex.find`, and the text that it is in."""
        best: tuple[Sequence[int], Match] | None = None
        for index in (self._index, self._older):
            match = index.find(text, gram)
            if match and index.tokens[match.place] != BREAK and (best is None or match.n > best[1].n):
                best = index.tokens, match
        return best


class NGramLookup:
    """The look-up for one request. n_prompt: tokens that teach no rate, as no model chose them. shared: the rates of
    all requests, with which this one's begin. pool: other requests' answers."""

    def __init__(self, n_prompt: int, shared: HitRates, pool: NGramPool) -> None:
        self._n_prompt, self._shared, self._pool = n_prompt, shared, pool
        self._own = HitRates(shared.rates())
        self._index = NGramIndex(pool.least, pool.most)
        self._found: Match | None = None  # of the last tokens, in this request
        self._pooled: tuple[Sequence[int], Match] | None = None  # in others

    def extend(self, tokens: Sequence[int]) -> None:
        """Take the request's tokens, of which earlier calls have seen the beginning."""
        index, pool, least = self._index, self._pool, self._index.least
        for token in tokens[len(index.tokens) :]:
            if self._found is not None:
                hit = index.tokens[self._found.place] == token
                for rates in (self._own, self._shared):
                    rates.learn(self._found.n - least, hit)
            if self._pooled is not None:
                text, match = self._pooled
                pool.rates.learn(match.n - least, text[match.place] == token)
            index.append(token)
            if len(index.tokens) >= self._n_prompt:
                self._found, self._pooled = index.find(index.tokens, index.gram), pool.find(index.tokens, index.gram)

    def draft(self, n_tokens: int) -> Draft:
        """Up to so many tokens that may follow, after whichever match comes true more often."""
        least = self._index.least
        own = self._own.rate(self._found.n - least) if self._found else 0.0
        if self._pooled is not None and self._pool.rates.rate(self._pooled[1].n - least) > own:
            text, match, rates = *self._pooled, self._pool.rates
        elif self._found is not None:
            text, match, rates = self._index.tokens, self._found, self._own
        else:
            return Draft()
        draft, chance, end = Draft(), 1.0, len(text)
        for i in range(n_tokens):
            at = match.place + i
            if at >= end and text is not self._index.tokens:
                break
            token = text[at] if at < end else draft.tokens[at - end]  # what repeats itself goes on so
            if token == BREAK:
                break
            chance *= rates.rate(match.n - least + i)
            if chance < LEAST_SLOPE:
                break
            draft.tokens.append(token)
            draft.chances.append(chance)
        return draft


class NGramDrafter:
    """Drafts by look-up for an engine's requests. least, most: as of `NGramIndex`."""

    def __init__(self, least: int, most: int) -> None:
        self._pool = NGramPool(least, most)
        self._shared = HitRates(first_rates(least, most))

    def draft(self, requests: Sequence[Request], rooms: Sequence[int], cost: StepCost) -> list[Draft]:
        drafts = []
        for request, room in zip(requests, rooms, strict=True):
            if request.lookup is None:
                request.lookup = NGramLookup(len(request.prompt), self._shared, self._pool)
            request.lookup.extend(request.tokens)
            drafts.append(request.lookup.draft(room))
        return drafts

    def observe(self, batch: Batch) -> None:
        """See `drafts.Drafter`."""

    def learn(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.finish_reason in ("stop", "length"):
                self._pool.add(request.tokens[max(0, len(request.prompt) - self._pool.most) :])
