"""A text that is given, evaluated after its prompt for the probabilities of its tokens: nothing is chosen.

It goes through the engine as any request does, beside others and in chunks. The prompt is evaluated once for all texts
that go on from it: they begin alike, and the scheduler has those that wait begin from a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.logprobs import log_total
from ggpy.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ggpy.engine.engine import Engine

#: What comes after is of no interest; log-probabilities are asked for so that logits come to the host.
_PARAMS = SamplingParams(temperature=0, max_tokens=1, logprobs=0).resolved()


class ScoredRequest(Request):
    """A prompt and a continuation, each of a token at least, for the log-probability of the continuation. Raises
    GGPYError where it could not run.

    score_end: the log-probability that the text then ends is wanted too.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], continuation: Sequence[int], score_end: bool) -> None:
        tokens = [*prompt, *continuation]
        engine.check(tokens, _PARAMS)
        self.continuation = list(continuation)
        self._start = len(prompt)  # of the tokens, the first one that is scored
        super().__init__(tokens, _PARAMS, engine.tokenizer, engine.runtime.n_ctx)
        # Checkpoints of state that cannot be cut back, for the next continuation: where this one's rows begin.
        self.stops = engine.cache.stops(tokens[: self._start - 1], engine.tokenizer)
        self.scoring = True
        self._known: list[float | None] = [None] * len(continuation)
        self._score_end, self._end = score_end, 0.0

    @property
    def logprob(self) -> float:
        """The log-probability of the whole continuation, once the request is finished."""
        return math.fsum(one for one in self._known if one is not None) + self._end

    @property
    def most_reusable(self) -> int:
        """The last token before the continuation is evaluated again: its logits are those of the first token."""
        return self._start - 1

    def first_row(self, n: int) -> int:
        return min(n, max(0, self._start - 1 - self.n_computed))

    def score(self, logits: NDArray[np.float32]) -> None:
        first = max(self._start - 1, self.n_computed) + 1  # of the tokens, the one that the first row is about
        for at, row in enumerate(logits[: len(self.tokens) - first], first):
            self._known[at - self._start] = _log_probability(row, [self.tokens[at]])

    def advance(self, chosen: NDArray[np.float32] | int) -> None:
        assert not isinstance(chosen, int), "log-probabilities were asked for"
        if self._score_end:
            self._end = _log_probability(chosen, sorted(self._ends))
        self.finish("stop")


def _log_probability(logits: NDArray[np.float32], tokens: Sequence[int]) -> float:
    """The logarithm of the probability that one of some tokens follows, by logits [n_vocab]."""
    total = log_total(logits)
    if not math.isfinite(total):
        raise GGPYError(f"The model gave no usable logits (their sum is {total}): the file may be damaged.")
    some = logits[list(tokens)].astype(np.float64)
    peak = float(some.max())
    return peak - total + math.log(float(np.exp(some - peak).sum())) if peak > -math.inf else -math.inf
