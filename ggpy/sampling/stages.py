"""The stages between logits and a token, each a function from candidates to fewer candidates, or to the same ones with
other logits. None sorts the whole vocabulary. Knows nothing of models, text or files.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggpy.sampling.sample_spec import COLDEST

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


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


def top_n_sigma(c: Candidates, n: float) -> Candidates:
    """Top-nσ sampling (arXiv 2411.07641): the tokens whose logits are within n standard deviations of the largest.

    The deviation is that of all finite logits of the candidates.
    """
    if n <= 0.0 or c.logits.size <= 1:
        return c
    peak = float(c.logits.max())
    finite = c.logits if c.logits.min() > -np.inf else c.logits[c.logits > -np.inf]
    apart = finite - np.float32(finite.mean(dtype=np.float64))
    with np.errstate(over="ignore"):
        squares = float(np.dot(apart, apart))
    if math.isinf(squares):  # of biases as large as they may be
        squares = float(np.square(apart, dtype=np.float64).sum())
    deviation = math.sqrt(squares / apart.size)
    return c.take(np.flatnonzero(c.logits >= peak - n * deviation), descending=c.descending)


def xtc(c: Candidates, threshold: float) -> Candidates:
    """Exclude top choices: of the tokens at least `threshold` likely, all but the least likely are left out."""
    if threshold > 0.5 or c.logits.size < 2:
        return c
    probs = c.probs()
    above = np.flatnonzero(probs >= threshold)
    if above.size < 2:
        return c
    least = above[::-1][int(probs[above[::-1]].argmin())]  # of equal ones the last, as after a stable sort
    keep = np.ones(probs.size, np.bool_)
    keep[above] = False
    keep[least] = True
    return c.take(np.flatnonzero(keep), descending=c.descending)


def temperature(c: Candidates, t: float) -> Candidates:
    """Logits divided by t, relative to the largest so that a tiny t cannot overflow."""
    if t == 1.0:
        return c
    peak = c.logits[0] if c.descending else c.logits.max()
    with np.errstate(over="ignore"):
        return c._replace(logits=(c.logits - peak) / np.float32(max(t, COLDEST)))


def dynamic_temperature(c: Candidates, t: float, spread: float, exponent: float) -> Candidates:
    """Logits divided by a temperature from t - spread (not below 0) to t + spread: the entropy of the candidates, as a
    part of the largest that so many can have, to the power of `exponent`, says where between them."""
    n = int(np.count_nonzero(c.logits > -np.inf))
    if n <= 1:
        return c
    probs = c.probs().astype(np.float64)
    some = probs[probs > 0]
    entropy = -float(np.dot(some, np.log(some))) / math.log(n)
    low = max(0.0, t - spread)
    return temperature(c, low + (t + spread - low) * min(max(entropy, 0.0), 1.0) ** exponent)


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
