"""Mirostat (arXiv 2007.14966): the candidates are cut so that the text's surprise stays near a target, in bits.

`mu`, the largest surprise let through, starts at twice the target and follows what was drawn. As in llama.cpp, the
surprise that it follows is that of the token among the candidates left.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggpy.sampling.stages import Candidates, draw, largest

_ESTIMATED = 100  # the likeliest tokens that version 1 estimates the distribution's shape from


class Mirostat:
    """A choice of tokens with feedback.

    version: 1 cuts at a rank that Zipf's law gives, 2 by each token's surprise. target: tau, in bits. rate: eta, by
    which an error in surprise changes `mu`. n_vocab: the size of the vocabulary, which enters version 1.
    """

    def __init__(self, version: int, target: float, rate: float) -> None:
        self.version, self.target, self.rate = version, target, rate
        self.mu = 2.0 * target

    def cut(self, c: Candidates, n_vocab: int) -> Candidates:
        """The candidates to draw from, at least one."""
        if self.version == 1:
            keep = _rank(c.logits[largest(c.logits, _ESTIMATED)].astype(np.float64), self.mu, n_vocab)
            return c.take(largest(c.logits, max(1, min(keep, c.logits.size))), descending=True)
        rows = np.flatnonzero(c.probs() >= 2.0**-self.mu)
        return c.take(rows if rows.size else largest(c.logits, 1), descending=c.descending)

    def choose(self, c: Candidates, uniform: float, n_vocab: int) -> int:
        """The token at the given point, 0 <= uniform < 1, of what `cut` leaves; `mu` follows its surprise."""
        c = self.cut(c, n_vocab)
        token = draw(c, uniform)
        assert c.ids is not None
        prob = float(c.probs()[int(np.flatnonzero(c.ids == token)[0])])
        self.mu -= self.rate * (-math.log2(prob) - self.target)
        return token


def _rank(logits: NDArray[np.float64], mu: float, n_vocab: int) -> int:
    """How many of the likeliest tokens keep the surprise at `mu`, by the exponent of Zipf's law that fits best. logits:
    those of the likeliest, in descending order."""
    logits = logits[np.isfinite(logits)]
    if logits.size < 2:
        return 1
    ranks = np.arange(1, logits.size + 1)
    steps = np.log(ranks[1:] / ranks[:-1])
    exponent = float(np.dot(steps, logits[:-1] - logits[1:]) / np.dot(steps, steps))
    if exponent <= 0.0:
        return n_vocab  # all alike
    excess, size = exponent - 1.0, math.log(n_vocab)
    tail = -math.expm1(-excess * size) / excess if abs(excess) > 1e-9 else size  # (1 - n ** -excess) / excess
    return int(math.exp(min((mu * math.log(2) - math.log(tail)) / exponent, size + 1)))
