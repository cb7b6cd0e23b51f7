"""From one row of logits to one token: the chain of stages that `ggpy.sampling.sampling_params` asks for.

The chain and its order are llama.cpp's: logit bias, penalties, top-k, typical, top-p, min-p, temperature, draw. Each
stage is a function from candidates to fewer candidates (or the same ones with other logits), and none sorts the whole
vocabulary. Knows nothing of models, text or files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggpy.errors import GGPYError
from ggpy.sampling.sample_spec import BANNED, COLDEST, SAMPLE_SPEC, TopKChain
from ggpy.sampling.sampling_params import SamplingParams

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]
Chain = Callable[[Floats, float], int]


class Candidates(NamedTuple):
    """The tokens still in play."""

    logits: Floats  # [n]
    ids: Indices | None  # [n]; None: the whole vocabulary, in order
    descending: bool  # whether `logits` falls from first to last

    def take(self, rows: Indices | slice, descending: bool) -> Candidates:
        ids = self.ids
        if ids is None:
            ids = np.arange(self.logits.size)[rows] if isinstance(rows, slice) else rows
        else:
            ids = ids[rows]
        return Candidates(self.logits[rows], ids, descending)

    def probs(self) -> Floats:
        """Softmax of the logits, float32 [n]."""
        weights = np.exp(self.logits - (self.logits[0] if self.descending else self.logits.max()))
        weights /= weights.sum()
        return weights


def largest(values: NDArray[Any], k: int) -> Indices:
    """Indices of the k largest values, in descending order; of equal values the lower index comes first.

    Folds the vector into columns and takes their maxima: each of the k best columns holds a value at least as large as
    the k-th best maximum, so that maximum is a floor under the k-th largest value, and few values pass it.
    """
    n = values.size
    columns = 1024 if k <= 256 else 4 * k
    if 4 * columns > n:
        return np.argsort(-values, kind="stable")[:k]
    rows = n // columns
    maxima = values[: rows * columns].reshape(rows, columns).max(axis=0)
    rest = values[rows * columns :]
    np.maximum(maxima[: rest.size], rest, out=maxima[: rest.size])
    maxima.partition(columns - k)
    candidates = np.flatnonzero(values >= maxima[columns - k])
    order = np.argsort(-values[candidates], kind="stable")[:k]
    return candidates[order]


def mass_prefix(keys: Floats, probs: Floats, p: float, over: bool) -> Indices:
    """Indices of the fewest smallest keys (from 0, in nats) whose mass reaches p (`over`: exceeds p), in index order.

    A histogram finds the bin in which the mass gets there, and only that bin is sorted. 4096 bins over 32 nats: keys
    beyond have almost no mass and share the last bin.
    """
    near = np.flatnonzero(keys < 10)
    if 4 * near.size < keys.size and probs[near].sum() > p:  # a peaked distribution: the far tokens play no part
        return near[mass_prefix(keys[near], probs[near], p, over)]
    side: Literal["left", "right"] = "right" if over else "left"
    bins = np.minimum(keys * np.float32(128), np.float32(4095)).astype(np.int32)
    below = np.cumsum(np.bincount(bins, weights=probs, minlength=4096))
    crossing = min(int(np.searchsorted(below, p, side)), 4095)
    keep = bins < crossing
    inside = np.flatnonzero(bins == crossing)
    inside = inside[np.argsort(keys[inside], kind="stable")]
    mass = np.cumsum(probs[inside]) + (below[crossing - 1] if crossing else 0.0)
    keep[inside[: int(np.searchsorted(mass, p, side)) + 1]] = True
    return np.flatnonzero(keep)


def penalize(
    logits: Floats, tokens: Indices, counts: Floats, repetition: float, frequency: float, presence: float
) -> None:
    """Penalize seen tokens in place: divide (multiply, below zero) by `repetition`, subtract the other penalties.

    tokens, counts [m]: the distinct tokens of the window and how often each occurs.
    """
    seen = logits[tokens]
    seen = np.where(seen <= 0, seen * repetition, seen / repetition)
    logits[tokens] = seen - counts * frequency - presence


def top_k(c: Candidates, k: int) -> Candidates:
    """The k likeliest tokens, in descending order."""
    if k <= 0 or k >= c.logits.size:
        return c
    return c.take(largest(c.logits, k), descending=True)


def typical(c: Candidates, p: float) -> Candidates:
    """Locally typical sampling (arXiv 2202.00666): the tokens whose surprise is nearest to the entropy, to mass p."""
    if p >= 1.0:
        return c
    probs = c.probs()
    surprise = -np.log(np.maximum(probs, np.finfo(np.float32).tiny))
    distance = np.abs(surprise - float(np.dot(probs, surprise)))
    return c.take(mass_prefix(distance, probs, p, over=True), descending=c.descending)


def top_p(c: Candidates, p: float) -> Candidates:
    """Nucleus sampling (arXiv 1904.09751): the fewest likeliest tokens whose mass reaches p; at least one."""
    if p >= 1.0:
        return c
    probs = c.probs()
    if c.descending:
        keep = int(np.searchsorted(np.cumsum(probs), p, side="left")) + 1
        return c.take(slice(keep), descending=True)
    return c.take(mass_prefix(c.logits.max() - c.logits, probs, p, over=False), descending=False)


def min_p(c: Candidates, p: float) -> Candidates:
    """The tokens at least p times as likely as the likeliest."""
    if p <= 0.0:
        return c
    peak = c.logits[0] if c.descending else c.logits.max()
    return c.take(np.flatnonzero(c.logits >= peak + np.float32(math.log(p))), descending=c.descending)


def temperature(c: Candidates, t: float) -> Candidates:
    """Logits divided by t, relative to the largest so that a tiny t cannot overflow."""
    if t == 1.0:
        return c
    peak = c.logits[0] if c.descending else c.logits.max()
    with np.errstate(over="ignore"):
        return c._replace(logits=(c.logits - peak) / np.float32(max(t, COLDEST)))


def draw(c: Candidates, uniform: float) -> int:
    """The token at the given point, 0 <= uniform < 1, of the cumulative distribution."""
    probs = c.probs().astype(np.float64)
    start, point = 0, uniform * float(probs.sum())
    if probs.size > 4096:
        # First the stretch that holds the point, so that the running sum is over one stretch and not the vocabulary.
        starts = np.arange(0, probs.size, 1024)
        mass = np.cumsum(np.add.reduceat(probs, starts))
        stretch = _index_at(mass, point)
        start, point = int(starts[stretch]), point - (float(mass[stretch - 1]) if stretch else 0.0)
        probs = probs[start : start + 1024]
    row = start + _index_at(np.cumsum(probs), point)
    return row if c.ids is None else int(c.ids[row])


def _index_at(mass: NDArray[np.float64], point: float) -> int:
    """The first index whose cumulative mass exceeds the point; where rounding leaves none, the last with any mass."""
    return min(int(np.searchsorted(mass, point, side="right")), int(np.searchsorted(mass, mass[-1])))


def _unusable(largest: float) -> GGPYError:
    return GGPYError(
        f"The model gave no usable logits (the largest is {largest}): the file may be damaged, "
        "or its numbers may not fit the arithmetic, which on a GPU is half precision in part: try --device cpu, "
        "`ggpy inspect`, or another quantization of it."
    )


class Sampler:
    """The chain for one sequence: its random numbers and the window of tokens that penalties look at.

    params: resolved. banned: tokens never chosen. n_ctx: what `repeat_last_n` -1 stands for. chain: all stages from
    top-k to draw in one function of logits and the point to draw at, for these parameters; it returns -1 where it
    leaves the choice to the stages here.
    """

    def __init__(
        self, params: SamplingParams, banned: Sequence[int] = (), n_ctx: int = 0, chain: Chain | None = None
    ) -> None:
        self.params = params
        self._chain, self._usual = chain, TopKChain.of(params)
        self.rng = np.random.default_rng(params.seed)
        self._uniforms: deque[float] = deque()  # drawn, and not yet used
        bias = dict(params.logit_bias or {}) | dict.fromkeys(banned, -math.inf)
        self._bias_tokens = np.fromiter(bias.keys(), np.intp, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        p = params
        penalizes = p.repetition_penalty != 1.0 or p.frequency_penalty != 0.0 or p.presence_penalty != 0.0
        last_n = p.repeat_last_n if p.repeat_last_n is not None else 0
        self._window_size = (n_ctx if last_n < 0 else last_n) if penalizes else 0
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens to the window of the penalties: the prompt once, then every token chosen."""
        if not self._window_size:
            return
        for token in tokens[-self._window_size :]:
            if len(self._window) == self._window_size:
                oldest = self._window.popleft()
                self._counts[oldest] -= 1
                if not self._counts[oldest]:
                    del self._counts[oldest]
            self._window.append(token)
            self._counts[token] = self._counts.get(token, 0) + 1

    def sample(self, logits: Floats) -> int:
        """One token from logits [n_vocab], which are restored before it returns (they must be writable).

        Raises GGPYError where they define no distribution.
        """
        if not self._bias.size and not self._counts:
            return self._sample(logits)
        touched = self._bias_tokens
        if self._counts:
            seen = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            touched = np.concatenate([touched, seen])
        before = logits[touched]  # far less than a copy of the whole vocabulary
        try:
            with np.errstate(invalid="ignore"):  # minus infinity on infinity: told where logits are looked at
                logits[self._bias_tokens] += self._bias
            if self._counts:
                p, times = self.params, np.fromiter(self._counts.values(), np.float32, len(self._counts))
                repetition, frequency, presence = p.repetition_penalty, p.frequency_penalty, p.presence_penalty
                penalize(logits, seen, times, repetition or 1.0, frequency or 0.0, presence or 0.0)
            return self._sample(logits)
        finally:
            logits[touched] = before

    def _draw(self) -> float:
        """The next random number, from 0 to below 1."""
        if not self._uniforms:
            self._upcoming(0)
        return self._uniforms.popleft()

    def _upcoming(self, ahead: int) -> float:
        """The random number of the token after `ahead` others. Many are drawn at a time: a call of numpy for
        each would be slow."""
        while len(self._uniforms) <= ahead:
            self._uniforms.extend(self.rng.random(64).tolist())
        return self._uniforms[ahead]

    def _sample(self, logits: Floats) -> int:
        p = self.params
        uniform = self._draw() if p.temperature else 0.0
        if self._chain and (token := self._chain(logits, uniform)) >= 0:
            return token
        best = int(logits.argmax())  # numpy's argmax finds NaN before any number
        if not math.isfinite(logits[best]):
            raise _unusable(logits[best])
        if not p.temperature:
            return best
        # `resolved` set every number; the `or` clauses only say so to the type checker.
        c = top_k(Candidates(logits, None, descending=False), p.top_k or 0)
        c = typical(c, 1.0 if p.typical_p is None else p.typical_p)
        c = top_p(c, 1.0 if p.top_p is None else p.top_p)
        c = min_p(c, p.min_p or 0.0)
        c = temperature(c, p.temperature)
        return draw(c, uniform)

    def spec(self, n_vocab: int, most: int, ahead: int = 0) -> NDArray[Any] | None:
        """The next choice as one SAMPLE_SPEC, for a device that keeps up to `most` candidates; None where a spec cannot
        express it. ahead: the number of tokens that are chosen before this one, and not known here yet.

        The random number remains reserved for this token until `take` gets the result.
        """
        chain, banned = self._usual, self._bias_tokens
        if chain is None or self._window_size or banned.size > BANNED or (self._bias > -math.inf).any():
            return None
        if chain.candidates > min(most, n_vocab - 1):
            return None
        row = np.zeros((), SAMPLE_SPEC)
        row["candidates"], row["temperature"], row["top_p"], row["least"] = chain
        row["n_banned"] = banned.size
        row["banned"][: banned.size] = banned
        if self.params.temperature:
            row["uniform"] = self._upcoming(ahead)
        return row

    def take(self, chosen: int) -> int:
        """Accept the token that a device chose (`ggpy.sampling.sample_spec.SampledTokens`). Raises GGPYError where its
        logits defined no distribution."""
        if chosen < 0:
            raise _unusable((math.nan, math.inf, -math.inf)[-1 - chosen])
        if self.params.temperature:
            self._draw()
        return chosen
