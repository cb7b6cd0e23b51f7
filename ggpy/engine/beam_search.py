"""Beam search: the likeliest continuations of a prompt, found by following several at a time.

The definition is transformers' (`generation/utils.py`, `_beam_search`), the names are vLLM's. Here are logits to beams;
how these are evaluated is in `ggpy.engine.beam_requests`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggpy import arguments
from ggpy.errors import GGPYError
from ggpy.sampling.stages import largest

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamSearchParams:
    """Parameters of a beam search.

    beam_width: continuations followed at a time, and returned. max_tokens: the most tokens of one.
    ignore_eos: end tokens are never chosen. temperature: logits are divided by it; 0 leaves them as they are.
    length_penalty: finished texts are compared by their log-probability / (tokens ** length_penalty): above 0 favours
    long ones. early_stopping: True ends with the first `beam_width` finished texts; False once no running beam has a
    better score at its present length than the worst of them; "never" once none can get one up to max_tokens.

    Raises GGPYError on a value out of its range or of the wrong kind.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        arguments.whole("beam_width", self.beam_width, 1, 1024, "a whole number from 1 to 1024")
        arguments.whole("max_tokens", self.max_tokens, 1, 2**31 - 1, "a whole number from 1")
        arguments.flag("ignore_eos", self.ignore_eos)
        arguments.number("temperature", self.temperature, 0.0, 100.0, "from 0 (off) to 100")
        arguments.number("length_penalty", self.length_penalty, -10.0, 10.0, "from -10 to 10 (0 is off)")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise arguments.wrong("early_stopping", self.early_stopping, "True, False or 'never'")


@dataclass(frozen=True)
class BeamSearchSequence:
    """One text found. tokens, text: prompt and continuation; the end token is in `tokens` alone. cum_logprob: the sum
    of the continuation's log-probabilities; score: that with the length penalty. finish_reason: "stop" or "length"."""

    tokens: list[int]
    text: str
    cum_logprob: float
    score: float
    n_prompt: int
    output_text: str  # of the continuation alone
    finish_reason: str
    stop_reason: int | None

    @property
    def token_ids(self) -> list[int]:
        """The continuation, an end token included."""
        return self.tokens[self.n_prompt :]


@dataclass(frozen=True)
class BeamSearchOutput:
    """The continuations found for a prompt, the best score first."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True)
class Beam:
    """A continuation and its log-probability, float32 as transformers'; its score once it is finished."""

    tokens: list[int]
    logprob: np.float32
    score: float = 0.0


class BeamSearch:
    """The beams of one prompt, from logits to logits. max_tokens: `params.max_tokens`, or less where the context ends.
    ends: the tokens that end a text."""

    def __init__(self, params: BeamSearchParams, max_tokens: int, ends: Collection[int]) -> None:
        self.params, self.max_tokens, self.ends = params, max_tokens, frozenset(ends)
        self.running = [Beam([], np.float32(0))]  # best first, all of one length
        self.finished: list[Beam] = []  # best first
        self.done = False

    def advance(self, logits: NDArray[np.float32]) -> list[int]:
        """Take the logits [n_running, n_vocab] after each running beam, which may be written to. Returns, for each
        beam that runs now, which of those before it goes on from."""
        width, n_tokens = self.params.beam_width, len(self.running[0].tokens) + 1
        # Enough that `width` do not end, should every end token be among the best of each beam.
        found = self._best(logits, max(2, 1 + len(self.ends)) * width)
        whole = n_tokens == self.max_tokens
        penalty = n_tokens**self.params.length_penalty
        running: list[Beam] = []
        parents: list[int] = []
        finished = list(self.finished)
        for place, (logprob, parent, token) in enumerate(found):
            tokens = [*self.running[parent].tokens, token]
            if not whole and token not in self.ends:
                if len(running) < width:
                    running.append(Beam(tokens, logprob))
                    parents.append(parent)
            elif place < width:  # those further down only stand by to take the places of those that end
                finished.append(Beam(tokens, logprob, float(np.float32(logprob / penalty))))
        self.finished = sorted(finished, key=lambda beam: -beam.score)[:width]
        self.running = running
        self.done = not running or not self._may_improve(n_tokens)
        return [] if self.done else parents

    def _best(self, logits: NDArray[np.float32], n: int) -> list[tuple[np.float32, int, int]]:
        """The n likeliest (log-probability, beam, token), in descending order."""
        if self.params.temperature:
            logits = logits / np.float32(self.params.temperature)
        found = []
        for i, (beam, row) in enumerate(zip(self.running, logits, strict=True)):
            peak = row.max()
            if not np.isfinite(peak):
                raise GGPYError(f"The model gave no usable logits (the largest is {peak}): the file may be damaged.")
            total = peak + np.log(np.exp(row - peak).sum())
            if self.params.ignore_eos:
                row[list(self.ends)] = -np.inf
            best = largest(row, min(n, row.size))
            found += [(beam.logprob + (row[token] - total), i, int(token)) for token in best]
        return sorted((one for one in found if one[0] > -np.inf), key=lambda one: -one[0])[:n]

    def _may_improve(self, n_tokens: int) -> bool:
        """True where a running beam may still become better than a finished one."""
        params = self.params
        if len(self.finished) < params.beam_width:
            return True
        if params.early_stopping is True:
            return False
        longest = params.early_stopping == "never" and params.length_penalty > 0
        best = self.running[0].logprob / (self.max_tokens if longest else n_tokens) ** params.length_penalty
        return bool(best > self.finished[-1].score)
