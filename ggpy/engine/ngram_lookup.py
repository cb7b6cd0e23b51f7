"""Drafts by n-gram look-up: where a request's last tokens stand earlier in it, what follows there may follow here.

Text that repeats its prompt (code that is edited, a document that is quoted) or itself is foreseen so, without a model.
How often that comes true depends most on how long the match is, so each length has a rate of its own, which every token
measures, drafted or not.
"""

from __future__ import annotations

from collections.abc import Sequence

CANDIDATES = 8  # earlier places that are looked at: the latest ones
FORGETS = 0.97  # of what was seen, how much counts after one more look
PRIOR = 8.0  # looks that a request's rates begin with, at the rates of those before


class HitRates:
    """How often the token after a match of n tokens was the one foreseen, for n from `least` to `most`. Those of an
    engine begin with what answers of a small chat model show (0.3 after two tokens, 0.5 after four, 0.85 after twelve).
    """

    def __init__(self, least: int, most: int, like: HitRates | None = None) -> None:
        self.least, self.most = least, most
        rates = [0.9 - 0.6 * 0.78 ** max(0, n - 2) for n in range(least, most + 1)] if like is None else like.rates()
        self._hits = [PRIOR * rate for rate in rates]
        self._looks = [PRIOR] * len(rates)

    def rates(self) -> list[float]:
        return [hits / looks for hits, looks in zip(self._hits, self._looks, strict=True)]

    def rate(self, n: int) -> float:
        """The rate after a match of n tokens, `most` at most."""
        i = min(n, self.most) - self.least
        return self._hits[i] / self._looks[i]

    def learn(self, n: int, hit: bool) -> None:
        i = n - self.least
        self._hits[i] = FORGETS * self._hits[i] + hit
        self._looks[i] = FORGETS * self._looks[i] + 1


class NGramLookup:
    """The places of n-grams in one request's tokens. least, most: the shortest match that counts, and the longest that
    is told from a longer one. n_prompt: tokens that teach no rate, as no model chose them."""

    def __init__(self, least: int, most: int, n_prompt: int, shared: HitRates) -> None:
        self.least, self.most, self._n_prompt = least, most, n_prompt
        self._shared, self._own = shared, HitRates(least, most, shared)
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}  # an n-gram of `least` tokens: where it ended last
        self._before: list[int] = []  # for each length, where the n-gram that ends there ended before; -1: nowhere
        self._found: tuple[int, int] | None = None  # the match of the last tokens

    def extend(self, tokens: Sequence[int]) -> None:
        """Take the request's tokens, of which earlier calls have seen the beginning."""
        least, seen = self.least, self._tokens
        for i in range(len(seen), len(tokens)):
            token = tokens[i]
            if i >= self._n_prompt and self._found is not None:
                place, n = self._found
                hit = seen[place] == token
                self._own.learn(n, hit)
                self._shared.learn(n, hit)
            before = -1
            if i >= least:  # the n-gram before this token has something that follows it now
                gram = tuple(seen[i - least : i])
                before = self._latest.get(gram, -1)
                self._latest[gram] = i
            self._before.append(before)
            seen.append(token)
            self._found = self._find() if i >= self._n_prompt - 1 else None

    def draft(self, n_tokens: int) -> tuple[list[int], list[float]]:
        """Up to so many tokens that may follow, and the chance of each that it and all before it do."""
        if self._found is None:
            return [], []
        place, n = self._found
        tokens: list[int] = []
        chances: list[float] = []
        chance = 1.0
        end = len(self._tokens)
        for i in range(n_tokens):
            at = place + i
            tokens.append(self._tokens[at] if at < end else tokens[at - end])  # what repeats itself goes on so
            chance *= self._own.rate(n + i)
            chances.append(chance)
        return tokens, chances

    def _find(self) -> tuple[int, int] | None:
        """The place after the longest match of the last tokens, the latest of equals, and the match's length."""
        seen, end = self._tokens, len(self._tokens)
        place = self._latest.get(tuple(seen[end - self.least :]), -1) if end > self.least else -1
        best: tuple[int, int] | None = None
        for _ in range(CANDIDATES):
            if place < 0:
                break
            n = self.least
            while n < self.most and n < place and seen[place - 1 - n] == seen[end - 1 - n]:
                n += 1
            if best is None or n > best[1]:
                best = place, n
                if n == self.most:
                    break
            place = self._before[place]
        return best
