"""From one row of logits to one token: the chain of stages that `ggpy.sampling.sampling_params` asks for.

First come logit biases and bans, then the samplers in the order asked for, or llama.cpp's, then the draw. Knows nothing
of models, text or files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.errors import GGPYError
from ggpy.sampling import stages
from ggpy.sampling.dry import Breakers, Dry
from ggpy.sampling.mirostat import Mirostat
from ggpy.sampling.sample_spec import BANNED, SAMPLE_SPEC, TopKChain
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.stages import Candidates, Floats, Indices, penalize
from ggpy.sampling.structured import Grammar
from ggpy.sampling.thoughts import ThoughtWatch


class Chain(Protocol):
    """A function of logits, the point to draw at, and a bit for each token that may be chosen: see `Sampler`."""

    def __call__(self, logits: Floats, uniform: float, bits: NDArray[np.int32] | None = None) -> int: ...


Change = Callable[[Floats], tuple[Indices, Any]]
Stage = Callable[[Candidates], Candidates]

#: For each byte of a mask what its eight tokens' logits gain: nothing, or minus infinity.
_BIASES = np.where((np.arange(256)[:, None] >> np.arange(8)) & 1, 0, -np.inf).astype(np.float32)

_PENALTIES = ("penalties", "dry")  # the samplers that leave all candidates in


def _unusable(largest: float) -> GGPYError:
    return GGPYError(
        f"The model gave no usable logits (the largest is {largest}): the file may be damaged, "
        "or its numbers may not fit the arithmetic, which on a GPU is half precision in part: try --device cpu, "
        "`ggpy inspect`, or another quantization of it."
    )


def _none_left() -> GGPYError:
    return GGPYError("No token is left that the structured output allows: biases, bad_words or min_tokens forbid all.")


class Sampler:
    """The chain for one sequence: its random numbers, and the tokens that penalties look at.

    params: resolved. banned: tokens never chosen. ends: tokens not chosen before `min_tokens` others. bad_words:
    sequences whose last token is never chosen after their others, which were generated. breakers: DRY's. infill: the
    stage of that name. grammar: which tokens may follow. n_ctx: what a window of -1 tokens stands for. chain: all
    stages from top-k to draw in one function of logits, the point to draw at and the grammar's bits, for these
    parameters; it returns -1 where it leaves the choice to the stages here.
    """

    def __init__(
        self,
        params: SamplingParams,
        banned: Sequence[int] = (),
        n_ctx: int = 0,
        chain: Chain | None = None,
        ends: Collection[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        breakers: Breakers | None = None,
        grammar: Grammar | None = None,
        infill: Stage | None = None,
    ) -> None:
        self.params = p = params
        self._chain, self._usual = chain, TopKChain.of(params)
        self.rng = np.random.default_rng(params.seed)
        self._uniforms: deque[float] = deque()  # drawn, and not yet used
        self._n_chosen = 0
        self._grammar, self._infill = grammar, infill
        #: Watches thoughts, in which a grammar does not hold.
        self.thoughts: ThoughtWatch | None = None
        self._masked = np.empty(0, np.float32)  # the logits that the grammar leaves
        never = [*banned, *(word[0] for word in bad_words if len(word) == 1)]
        bias = dict(params.logit_bias or {}) | dict.fromkeys(never, -math.inf)
        self._bias_tokens = np.fromiter(bias.keys(), np.intp, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._ends = np.array(sorted(set(ends) - bias.keys()), np.intp) if p.min_tokens else np.empty(0, np.intp)
        self._bad_words = [tuple(word) for word in bad_words if len(word) > 1]
        self._recent: deque[int] = deque(maxlen=max((len(word) - 1 for word in self._bad_words), default=0))

        last_n = p.repeat_last_n or 0
        self._window_size = (n_ctx if last_n < 0 else last_n) if p.penalizes else 0
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}
        names = params.active_samplers()
        self._draws_more = "xtc" in names or bool(p.mirostat)
        self._dry: Dry | None = None
        if "dry" in names:
            last_n = n_ctx if p.dry_penalty_last_n == -1 else p.dry_penalty_last_n or 0
            allowed = p.dry_allowed_length or 0
            self._dry = Dry(p.dry_multiplier or 0.0, p.dry_base or 1.0, allowed, last_n, breakers or {})
        self._mirostat: Mirostat | None = None
        if p.mirostat and p.temperature:
            self._mirostat = Mirostat(p.mirostat, p.mirostat_tau or 0.0, p.mirostat_eta or 0.0)

        # Penalties that come first change the logits in place, at few tokens, before even a chain of another kind.
        n_first = next((i for i, name in enumerate(names) if name not in _PENALTIES), len(names))
        self._changes = self._changes_before(names[:n_first])
        self._stages = [self._stage(name) for name in names[n_first:]]
        self._spec: NDArray[Any] | None = None  # kept, for all but the random number is the same for every token
        self._fits_spec = not (self._window_size or self._dry or self._bad_words or grammar)
        self._fits_spec &= p.logprobs is None and not (self._bias > -math.inf).any()

    def accept(self, tokens: Sequence[int], of_prompt: bool = False) -> None:
        """Add tokens to the text that penalties look at: the prompt once, then every token chosen."""
        if not of_prompt:
            self._n_chosen += len(tokens)
            if self._bad_words:
                self._recent.extend(tokens)
            for token in tokens if self._grammar is not None or self.thoughts is not None else ():
                if (grammar := self.grammar) is not None:
                    grammar.accept(token)
                if self.thoughts is not None:
                    self.thoughts.accept(token)
        if self._dry is not None:
            self._dry.accept(tokens)
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
        only: Indices | None = None
        bits: NDArray[np.int32] | None = None
        if (grammar := self.grammar) is not None:
            only, bits = grammar.mask()
            if only is not None:
                only = only[only < logits.size]
        token = self._sample_changed(logits, only, bits)
        if self._grammar is not None and self.thoughts is not None:
            return self.thoughts.instead_of(token)
        return token

    def _masked_by(self, bits: NDArray[np.int32], logits: Floats) -> Floats:
        """A copy of logits [n_vocab], minus infinity where a token's bit is not set, or not there."""
        if self._masked.size != logits.size:
            self._masked = np.empty_like(logits)
        n = min(32 * bits.size, logits.size)
        bias = _BIASES.take(bits.view(np.uint8), axis=0, mode="clip").reshape(-1)
        with np.errstate(invalid="ignore"):  # infinity and NaN: reported where logits are looked at
            np.add(logits[:n], bias[:n], out=self._masked[:n])
        self._masked[n:] = -np.inf
        return self._masked

    def _sample_changed(self, logits: Floats, only: Indices | None, bits: NDArray[np.int32] | None) -> int:
        if not self._changes:
            return self._sample(logits, only, bits)
        before: list[tuple[Indices, Floats]] = []  # far less than a copy of the whole vocabulary
        try:
            for change in self._changes:
                tokens, values = change(logits)
                if tokens.size:
                    before.append((tokens, logits[tokens]))
                    logits[tokens] = values
            return self._sample(logits, only, bits)
        finally:
            for tokens, values in reversed(before):
                logits[tokens] = values

    def foresee(self, logits: Floats, ahead: int) -> int:
        """The token that `sample` would choose from logits [n_vocab] `ahead` tokens later, with the random number that
        is then next. A guess: what the tokens in between change (penalties), a grammar and choices that draw several
        numbers or learn as they go are left out. The logits may be changed."""
        for change in self._changes:
            tokens, values = change(logits)
            logits[tokens] = values
        best = int(logits.argmax())
        p = self.params
        if not p.temperature or self._draws_more or not math.isfinite(logits[best]):
            return best
        uniform = self._upcoming(ahead)
        if self._chain and (token := self._chain(logits, uniform)) >= 0:
            return token
        c = Candidates(logits, None, descending=False)
        for stage in self._stages:
            c = stage(c)
        return stages.draw(c, uniform)

    @property
    def forces(self) -> bool:
        """True where a token may follow that nobody chooses."""
        return self._grammar is not None or (self.thoughts is not None and self.thoughts.chooses)

    def forced(self) -> int | None:
        """The next token, where thoughts have to end or a grammar leaves only one text to go on with; None where it is
        to be chosen."""
        if self.thoughts is not None and (closing := self.thoughts.forced()) is not None:
            return closing
        grammar = self.grammar
        following = grammar.forced() if grammar is not None else ()
        return following[0] if following else None

    @property
    def finished(self) -> bool:
        """True where a grammar lets nothing follow."""
        return (grammar := self.grammar) is not None and grammar.finished

    @property
    def grammar(self) -> Grammar | None:
        """The grammar, where it holds."""
        return None if self.thoughts is not None and self.thoughts.inside else self._grammar

    def _changes_before(self, penalties: Sequence[str]) -> list[Change]:
        """Functions that give tokens and their new logits, in the order in which they are applied."""
        changes: list[Change] = []
        if self._bias.size:
            changes.append(self._biased)
        if self._ends.size:
            changes.append(lambda logits: (self._ends[: self._ends.size * self._too_early()], -np.inf))
        if self._bad_words:
            changes.append(lambda logits: (self._completing(), -np.inf))
        for name in penalties:
            changes.append(partial(self._penalized, name))
        return changes

    def _biased(self, logits: Floats) -> tuple[Indices, Floats]:
        with np.errstate(invalid="ignore"):  # minus infinity on infinity: reported where logits are looked at
            return self._bias_tokens, logits[self._bias_tokens] + self._bias

    def _too_early(self, ahead: int = 0) -> bool:
        """True where the token after `ahead` others may not be an end."""
        return self._n_chosen + ahead < self.params.min_tokens

    def _completing(self) -> Indices:
        """The tokens that would complete a bad word."""
        recent = tuple(self._recent)
        found = [word[-1] for word in self._bad_words if recent[len(recent) - len(word) + 1 :] == word[:-1]]
        return np.array(found, np.intp)

    def _penalized(self, name: str, logits: Floats) -> tuple[Indices, Floats]:
        """The tokens that a penalty changes in logits [n_vocab], and their new logits."""
        tokens, amounts = self._penalized_tokens(name)
        values = logits[tokens]
        self._penalize(name, values, np.arange(tokens.size), amounts)
        return tokens, values

    def _penalized_tokens(self, name: str) -> tuple[Indices, Floats]:
        """The tokens that a penalty changes, and by how much: times seen, or what comes off."""
        if name == "dry":
            assert self._dry is not None
            return self._dry.penalties()
        n = len(self._counts)
        return np.fromiter(self._counts.keys(), np.intp, n), np.fromiter(self._counts.values(), np.float32, n)

    def _penalize(self, name: str, logits: Floats, rows: Indices, amounts: Floats) -> None:
        """Change logits in place, at rows of tokens that `_penalized_tokens` gave."""
        if name == "dry":
            logits[rows] -= amounts
        else:
            p = self.params
            repetition, frequency, presence = p.repetition_penalty, p.frequency_penalty, p.presence_penalty
            penalize(logits, rows, amounts, repetition or 1.0, frequency or 0.0, presence or 0.0)

    def _penalty(self, name: str, c: Candidates) -> Candidates:
        """A penalty that comes after other stages."""
        tokens, amounts = self._penalized_tokens(name)
        rows: Indices = tokens
        if c.ids is not None:
            _, rows, which = np.intersect1d(c.ids, tokens, assume_unique=True, return_indices=True)
            amounts = amounts[which]
        logits = c.logits.copy()
        self._penalize(name, logits, rows, amounts)
        return Candidates(logits, c.ids, descending=False)

    def _stage(self, name: str) -> Stage:
        """A sampler as a function of candidates."""
        # `resolved` set every number; the `or` clauses only say so to the type checker.
        p = self.params
        if name in _PENALTIES:
            return partial(self._penalty, name)
        if name == "infill":
            return self._infill or (lambda c: c)
        if name == "xtc":
            chance, threshold = p.xtc_probability or 0.0, p.xtc_threshold or 0.0
            return lambda c: stages.xtc(c, threshold) if self._draw() < chance else c
        if name == "temperature" and p.dynatemp_range and not p.mirostat:
            t, spread, exponent = p.temperature or 0.0, p.dynatemp_range, p.dynatemp_exponent
            exponent = 1.0 if exponent is None else exponent
            return lambda c: stages.dynamic_temperature(c, t, spread, exponent)
        functions: dict[str, tuple[Callable[[Candidates, Any], Candidates], Any]] = {
            "top_n_sigma": (stages.top_n_sigma, p.top_n_sigma),
            "top_k": (stages.top_k, p.top_k),
            "typ_p": (stages.typical, p.typical_p),
            "top_p": (stages.top_p, p.top_p),
            "min_p": (stages.min_p, p.min_p),
            "temperature": (stages.temperature, p.temperature),
        }
        function, value = functions[name]
        return lambda c: function(c, value)

    def _draw(self) -> float:
        """The next random number, from 0 to below 1."""
        if not self._uniforms:
            self._upcoming(0)
        return self._uniforms.popleft()

    def _upcoming(self, ahead: int) -> float:
        """The random number of the token after `ahead` others. Many are drawn at a time: a call of numpy for
        each would be slow."""
        uniforms = self._uniforms
        while len(uniforms) <= ahead:
            uniforms.extend(self.rng.random(64).tolist())
        return uniforms[ahead]

    def _sample(self, logits: Floats, only: Indices | None, bits: NDArray[np.int32] | None) -> int:
        """One token by logits [n_vocab], or by those alone of some ids, or whose bits are set."""
        p, n_vocab = self.params, logits.size
        uniform = self._draw() if p.temperature else 0.0
        if only is not None:
            if not only.size:
                raise _none_left()
            logits = logits[only]
        elif self._chain and (p.temperature or bits is not None) and (token := self._chain(logits, uniform, bits)) >= 0:
            return token  # (of all logits numpy finds the largest faster)
        if bits is not None:
            logits = self._masked_by(bits, logits)
        best = int(logits.argmax())  # numpy's argmax finds NaN before any number
        if not math.isfinite(logits[best]):
            if self.grammar is not None and logits[best] == -math.inf:
                raise _none_left()
            raise _unusable(logits[best])
        if not p.temperature:
            return best if only is None else int(only[best])
        c = Candidates(logits, only, descending=False)
        for stage in self._stages:
            c = stage(c)
        if self._mirostat is not None:
            return self._mirostat.choose(c, uniform, n_vocab)
        return stages.draw(c, uniform)

    def spec(self, n_vocab: int, most: int, ahead: int = 0) -> NDArray[Any] | None:
        """The next choice as one SAMPLE_SPEC, for a device that keeps up to `most` candidates; None where a spec cannot
        express it. ahead: the number of tokens that are chosen before this one, and not known here yet.

        The random number remains reserved for this token until `take` gets the result. The next call changes the row:
        making another for every token took 3 us.
        """
        if self.thoughts is not None and self.thoughts.chooses:
            return None
        row = self._spec
        if row is None or self._ends.size:
            row = self._spec = self._fixed_spec(n_vocab, most, ahead)
            if row is None:
                return None
        if self.params.temperature:
            row["uniform"] = self._upcoming(ahead)
        return row

    def _fixed_spec(self, n_vocab: int, most: int, ahead: int) -> NDArray[Any] | None:
        """A spec without its random number."""
        chain, banned = self._usual, self._bias_tokens
        if chain is None or not self._fits_spec or chain.candidates > min(most, n_vocab - 1):
            return None
        if self._ends.size and self._too_early(ahead):
            banned = np.concatenate([banned, self._ends])
        if banned.size > BANNED:
            return None
        row = np.zeros((), SAMPLE_SPEC)
        row["candidates"], row["temperature"], row["top_p"], row["least"] = chain
        row["n_banned"] = banned.size
        row["banned"][: banned.size] = banned
        return row

    def take(self, chosen: int) -> int:
        """Accept the token that a device chose (`ggpy.sampling.sample_spec.SampledTokens`). Raises GGPYError where its
        logits defined no distribution."""
        if chosen < 0:
            raise _unusable((math.nan, math.inf, -math.inf)[-1 - chosen])
        if self.params.temperature:
            self._draw()
        return chosen
