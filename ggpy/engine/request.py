"""One request on its way through the engine: its tokens, its text so far, and how it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy.errors import GGPYError
from ggpy.sampling import dry
from ggpy.sampling.logprobs import Logprob, logprobs_of, token_text
from ggpy.sampling.sampler import Chain, Sampler
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import Grammar
from ggpy.text.text_stream import TextStream

if TYPE_CHECKING:
    from ggpy.engine.cache import Slot
    from ggpy.engine.ngram_lookup import NGramLookup
    from ggpy.text.line_limits import LineWatch
    from ggpy.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Timings:
    """Counts in tokens, times in seconds. Rates are per second, or 0 where nothing was measured."""

    n_prompt: int  # prompt tokens evaluated
    n_reused: int  # prompt tokens that the cache already held
    prompt_s: float  # from the first batch that held the request to its first token
    n_decode: int  # tokens chosen
    decode_s: float  # from the first token to the last
    first_token_s: float  # from the request to its first token
    n_drafted: int = 0  # tokens evaluated in the hope that they follow, where the engine speculates
    n_accepted: int = 0  # of these, those that did

    @property
    def prompt_rate(self) -> float:
        return self.n_prompt / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second, without the first, which belongs to the prompt's time."""
        return (self.n_decode - 1) / self.decode_s if self.decode_s and self.n_decode > 1 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """The share of the drafted tokens that was kept."""
        return self.n_accepted / self.n_drafted if self.n_drafted else 0.0


class Request:
    """One request on its way: prompt, chosen tokens, text so far."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        n_ctx: int,
        chain: Chain | None = None,
    ) -> None:
        self.prompt = list(prompt)
        self.params = params
        self.tokens = list(prompt)  # in the context: prompt and chosen tokens, unless `drop` took some of them
        self.token_ids: list[int] = []  # the chosen tokens, an end token included
        self.n_prompt = len(prompt)  # of `tokens`, how many at the start are evaluated as a prompt's
        self.shifts = False  # goes on where the context is full: see `ggpy.engine.context_shift`
        self.n_dropped = 0  # tokens that `drop` took
        self.priority = 0  # the lower number first
        self.arrival: int | None = None  # the order in which requests came
        self.error: GGPYError | None = None  # why it ended as "error"
        self.n_computed = 0  # of `tokens`, how many the slot's cache holds
        self.stops: list[int] = []  # lengths of the prompt at which steps end, for checkpoints to be taken
        self.finish_reason: str | None = None  # "stop", "length", "abort" or "error"
        self.stop_reason: str | int | None = None  # the stop string or the token that ended it
        self.reached_context = False  # finished because the context was full
        self.slot: Slot | None = None
        self.reuses = True  # tokens that the cache holds are not evaluated again
        self.ends: LineWatch | None = None
        self._ends = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else tokenizer.eog)
        self._n_ctx = n_ctx
        self.sampler = _sampler(params, tokenizer, n_ctx, chain)
        self.sampler.accept(self.tokens, of_prompt=True)
        self._has_grammar = params.structured_outputs is not None
        self._tokenizer = tokenizer
        # For each chosen token, and each of the prompt, the first of which has none; None where they are not asked for.
        self.logprobs: list[dict[int, Logprob]] | None = [] if params.logprobs is not None else None
        self.cumulative_logprob = 0.0 if params.logprobs is not None else None  # of all chosen tokens
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.scoring = params.prompt_logprobs is not None and len(prompt) > 1  # whether some of those are yet to come
        self._stream = TextStream(
            tokenizer, tuple(params.stop or ()), params.skip_special_tokens, params.include_stop_str_in_output
        )
        self._deltas: list[str] = []
        self._n_taken = 0
        self._n_reused = 0
        self.lookup: NGramLookup | None = None  # where the engine speculates
        self.n_drafted = self.n_accepted = 0
        self._added = time.perf_counter()
        self._started = self._first = self._last = 0.0

    @property
    def n_chosen(self) -> int:
        return len(self.token_ids)

    @property
    def n_pending(self) -> int:
        """Tokens to evaluate before the next can be chosen."""
        return len(self.tokens) - self.n_computed

    @property
    def generating(self) -> bool:
        """True where the next token to evaluate was generated; else it is the prompt's."""
        return self.n_computed >= self.n_prompt

    @property
    def draftable(self) -> bool:
        """True where the tokens that may follow can be evaluated together with the last one."""
        return self.generating

    @property
    def n_pending_of_kind(self) -> int:
        """Tokens of one kind to evaluate next: the rest of the prompt, or one generated token, as at first."""
        return min(self.n_pending, 1 if self.generating else self.n_prompt - self.n_computed)

    @property
    def most_reusable(self) -> int:
        """Tokens that need not be evaluated where a slot's cells hold them: not the last, and none of a prompt that is
        scored, or that is to be read as if for the first time."""
        return 0 if self.scoring or not (self.reuses or self._started) else len(self.tokens) - 1

    def first_row(self, n: int) -> int:
        """The first of the next n tokens to evaluate whose logits are wanted, as those of all after it are; n: none."""
        return 0 if self.scoring else n - (len(self.tokens) - self.n_computed == n)

    def score(self, logits: NDArray[np.float32]) -> None:
        """Take the logits [n, n_vocab] of the next n tokens to evaluate, before they count as evaluated: they give the
        log-probabilities of the prompt's tokens that follow."""
        known, k = self.prompt_logprobs, self.params.prompt_logprobs or 0
        assert known is not None
        for i, row in enumerate(logits, self.n_computed + 1):
            if i == len(known) < len(self.prompt):  # some may be known from before the request lost its slot
                known.append(logprobs_of(row, self.prompt[i], k, self._tokenizer))
        self.scoring = len(known) < len(self.prompt)

    @property
    def mean_logprob(self) -> float:
        """`cumulative_logprob` a token, to compare answers by; nothing is worse than an answer that failed."""
        return -math.inf if self.error or not self.n_chosen else (self.cumulative_logprob or 0.0) / self.n_chosen

    @property
    def n_to_stop(self) -> int:
        """Tokens to evaluate before the next of `stops`, or all that are pending."""
        return next((stop for stop in self.stops if stop > self.n_computed), len(self.tokens)) - self.n_computed

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        return "".join(self._deltas)

    def take_text(self) -> str:
        """The text that came since the last call. Another thread may add some meanwhile, which the next call has."""
        before, self._n_taken = self._n_taken, len(self._deltas)
        return "".join(self._deltas[before : self._n_taken])

    def spelt(self, token: int) -> str:
        """The text of a token by itself."""
        return token_text(self._tokenizer, token)

    @property
    def seconds(self) -> float:
        """The time since it was given to the engine's first step, 0 before."""
        return time.perf_counter() - self._started if self._started else 0.0

    def keep_in_text(self, tokens: frozenset[int]) -> None:
        """Have the text hold these control tokens, for who parses it."""
        self._stream.keep(tokens)

    @property
    def timings(self) -> Timings:
        return Timings(
            n_prompt=len(self.prompt) - self._n_reused,
            n_reused=self._n_reused,
            prompt_s=self._first - self._started if self._first else 0.0,
            n_decode=self.n_chosen,
            decode_s=self._last - self._first,
            first_token_s=self._first - self._added if self._first else 0.0,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
        )

    def begin(self, slot: Slot, n_reused: int) -> None:
        """Take over a slot whose first `n_reused` cells hold this request's tokens, all but the last at most."""
        self.slot, slot.request = slot, self
        self.n_computed = n_reused
        if not self._started:
            self._started = time.perf_counter()
            self._n_reused = self.n_computed

    @property
    def goes_on(self) -> bool:
        """True where another token will be chosen after the next one, unless that ends the text."""
        return self.n_chosen + 1 != self.params.max_tokens and len(self.tokens) < self._n_ctx

    def advance(self, chosen: NDArray[np.float32] | int) -> None:
        """Take the next token, which a device chose or the logits [n_vocab] give, and those that a grammar then forces,
        and finish where one ends the text or nothing may follow."""
        if isinstance(chosen, int):
            token = self.sampler.take(chosen)
        else:
            forced = self.sampler.forced() if self.sampler.forces else None
            token = self.sampler.sample(chosen) if forced is None else forced
            if self.logprobs is not None and self.cumulative_logprob is not None:
                self.logprobs.append(logprobs_of(chosen, token, self.params.logprobs or 0, self._tokenizer))
                self.cumulative_logprob += self.logprobs[-1][token].logprob
        self._take(token)
        if self.sampler.forces and self.logprobs is None:  # which the logits of each token give
            while not self.finished and (forced := self.sampler.forced()) is not None:
                self._take(forced)

    def _take(self, token: int) -> None:
        """Go on by a token, and finish where it ends the text."""
        params = self.params
        self.sampler.accept((token,))
        self.tokens.append(token)
        self.token_ids.append(token)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        ends = token in self._ends
        if ends and not params.include_stop_str_in_output:
            self._deltas.append(self._stream.end(token))
        else:
            may_stop = not params.min_tokens or self.n_chosen > params.min_tokens
            self._deltas.append(self._stream.push(token, may_stop))
        if self.ends is not None and (end := self.ends.end_in(self._deltas[-1])) is not None:
            self._deltas[-1] = self._deltas[-1][:end]
            self._stream.finish()  # what may have begun a stop string is behind that
            self.finish("length")
        elif self._stream.stopped is not None:
            self.finish("stop", self._stream.stopped)
        elif ends:
            self.finish("stop", token)
        elif self._has_grammar and self.sampler.finished:
            self.finish("stop")
        elif self.n_chosen == params.max_tokens:
            self.finish("length")
        elif len(self.tokens) > self._n_ctx and not self.shifts:  # this token has no cell left to be evaluated in
            self.reached_context = True
            self.finish("length")

    def drop(self, first: int, n: int) -> None:
        """Take n tokens out of the context; what is left is a prompt to be evaluated, but for its last token."""
        del self.tokens[first : first + n]
        self.n_dropped += n
        self.n_prompt, self.stops, self.lookup = len(self.tokens) - 1, [first], None

    def finish(self, reason: str, stop_reason: str | int | None = None) -> None:
        self._deltas.append(self._stream.finish())
        self.stop_reason = stop_reason
        self.finish_reason = reason  # last: another thread takes a finished request's text for whole


def _sampler(params: SamplingParams, tokenizer: Tokenizer, n_ctx: int, chain: Chain | None) -> Sampler:
    """The sampler that parameters (resolved) ask for, with what it has to know of the vocabulary."""
    never = sorted(tokenizer.eog) if params.ignore_eos else ()
    bad_words: list[list[int]] = []
    for word in params.bad_words or ():
        # As the beginning of a word, and within one.
        for text in (word, " " + word.lstrip()):
            ids = tokenizer.tokenize(text, add_special=False, continues=True)
            bad_words += [ids] if ids and ids not in bad_words else []
    breakers = None
    if "dry" in params.active_samplers():
        breakers = dry.breakers(tokenizer, tuple(params.dry_sequence_breakers or ()))
    ends = [*tokenizer.eog, *(params.stop_token_ids or ())] if params.min_tokens else ()
    form = params.structured_outputs
    grammar = Grammar(tokenizer, form) if form is not None else None
    infill = None
    if "infill" in params.active_samplers():
        from functools import partial

        from ggpy.sampling.infill import Infill

        end = tokenizer.eos if tokenizer.eos is not None else min(tokenizer.eog, default=0)
        infill = Infill(partial(tokenizer.token_bytes, special=False), tokenizer.eog, end)
    return Sampler(
        params, never, n_ctx, chain, ends=ends, bad_words=bad_words, breakers=breakers, grammar=grammar, infill=infill
    )
