"""The engine: many requests over one runtime.

`Engine.step` shows the data's way: schedule a batch, run it, choose tokens. A device that chooses tokens by itself is
kept a step ahead: it goes on without waiting for the host. Knows nothing of files, templates or terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cache import Cache, Checkpoint, Parked, Slot, common_prefix
from ggpy.engine.request import Request
from ggpy.engine.scheduler import Batch, Limits, Scheduler
from ggpy.engine.token_ids import check_token_ids
from ggpy.errors import GGPYError
from ggpy.runtime.host_memory import CHECKPOINTS_ALONE, HostMemory
from ggpy.sampling.masks import computed_meanwhile
from ggpy.sampling.sample_spec import SampledTokens, SampleSpecs
from ggpy.sampling.sampler import Chain
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import Grammar

if TYPE_CHECKING:
    from ggpy.engine.beam_requests import BeamSearches
    from ggpy.engine.context_shift import ContextShift
    from ggpy.engine.draft_model import DraftRuntime
    from ggpy.engine.prediction_head import Head
    from ggpy.engine.speculative import SpeculativeConfig, Speculator
    from ggpy.runtime.runtime import Integers
    from ggpy.text.tokenizer import Tokenizer


class RuntimeLike(Limits, Protocol):
    """The interface that the engine needs of a runtime."""

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> NDArray[np.float32]: ...

    def sample(self, tokens: Integers, slots: Integers, positions: Integers, specs: SampleSpecs) -> SampledTokens: ...


def speculates(runtime: Limits) -> bool:
    """True where tokens can be drafted for a runtime. A device that samples by itself goes on without waiting for the
    host, which would have to look at each token."""
    return not runtime.max_sampled and not runtime.by_kind


class Engine:
    """An engine that runs requests over a runtime's slots. Not thread-safe.

    chain_for: a function that gives a faster sampler than numpy's for parameters (resolved), or None; see `Sampler`.
    max_waiting: how many requests may wait for a slot; None: any number. host_memory: limits for checkpoints and for
    conversations whose slot another one takes. speculative: how to draft tokens, where the runtime leaves the choice to
    the host; draft: the runtime of the small model that drafts them, with a slot for each of `runtime`'s; head: the
    model's own. context_shift: how answers go on where their context is full; None: they end.
    """

    def __init__(
        self,
        runtime: RuntimeLike,
        tokenizer: Tokenizer,
        chain_for: Callable[[SamplingParams], Chain | None] = lambda params: None,
        max_waiting: int | None = None,
        host_memory: HostMemory = CHECKPOINTS_ALONE,
        speculative: SpeculativeConfig | None = None,
        draft: DraftRuntime | None = None,
        context_shift: ContextShift | None = None,
        head: Head | None = None,
    ) -> None:
        self.runtime, self._chain_for, self._context_shift = runtime, chain_for, context_shift
        self.tokenizer = tokenizer
        self.cache = Cache(runtime, host_memory)
        self.slots = self.cache.slots
        self.scheduler = Scheduler(runtime, self.cache, max_waiting)
        self.speculator: Speculator | None = None
        if speculative and speculates(runtime):
            from ggpy.engine.speculative import Speculator

            self.speculator = Speculator(speculative, runtime, runtime.n_ctx, draft, head)
        self.beams: BeamSearches | None = None  # from the first search on
        self.n_evaluated = 0  # tokens that went through the runtime so far
        self._in_flight: Batch | None = None  # under way already

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def request(self, prompt: Sequence[int], params: SamplingParams, priority: int = 0) -> Request:
        """A request for `add`, from token ids and resolved parameters; of those that wait, the one of the lowest number
        of `priority` is first. Raises GGPYError where it could not run."""
        self.check(prompt, params)
        request = Request(prompt, params, self.tokenizer, self.runtime.n_ctx, self._chain_for(params))
        request.priority = priority
        request.stops = self.cache.stops(request.prompt, self.tokenizer)
        request.shifts = self._context_shift is not None
        return request

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise GGPYError where a request for this could not run."""
        self._check(prompt, "The prompt")
        wrong = next((token for token in params.logit_bias or () if not 0 <= token < self.runtime.n_vocab), None)
        if wrong is not None:
            raise GGPYError(f"logit_bias names the token id {wrong}, but ids are 0 to {self.runtime.n_vocab - 1}.")
        if params.structured_outputs is not None:
            Grammar(self.tokenizer, params.structured_outputs)

    def add(self, request: Request) -> None:
        """Have a request wait for a slot. Raises `scheduler.QueueFull`."""
        self.scheduler.add(request)

    def abort(self, request: Request) -> None:
        """End a request early; its slot's cells can still be reused."""
        if not request.finished:
            request.finish("abort")
        self.scheduler.retire(request)

    def step(self) -> list[Request]:
        """Evaluate one batch. Returns the requests that gained a token."""
        batch, self._in_flight = self._in_flight or self.run(self._schedule()), None
        following = self.scheduler.schedule_overlapped(batch)
        if following is not None:
            self.run(following)
        advanced = self.postprocess(batch)
        if following is not None and not all(request.finished for request in following.requests):
            self._in_flight = following
        if self.speculator is not None:
            self.speculator.learn()
        if self.beams is not None:
            self.beams.settle()
        return advanced

    def _schedule(self) -> Batch:
        batch = self.scheduler.schedule()
        if self.speculator is not None:
            self.speculator.add_drafts(batch)
            for request, draft in batch.drafts.items():
                assert request.slot is not None
                del draft[max(0, request.slot.capacity - len(request.tokens)) :]
        return batch

    def run(self, batch: Batch) -> Batch:
        """Evaluate the batch: its `result` is set, and may still be in flight on the device."""
        if not batch.requests:
            return batch
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        outputs: list[int] = []
        for request, chunk in batch:
            slot, start = request.slot, request.n_computed + batch.n_in_flight
            assert slot is not None, "a scheduled request has a slot"
            draft = batch.drafts.get(request, [])
            if draft and self.cache.reach.carried:
                batch.ways_back[request] = self.cache.way_back(slot)
            n = len(chunk) + len(draft)
            slot.begin(start, n)
            tokens += chunk
            tokens += draft
            slots += [slot.index] * n
            positions += range(start, start + n)
            outputs += range(len(tokens) - n + request.first_row(len(chunk)), len(tokens))
        if batch.specs is None:
            n_generated = sum(request.generating for request in batch.requests) if self.runtime.by_kind else 0
            with computed_meanwhile(batch.grammars()):
                batch.result = self.runtime.step(tokens, slots, positions, outputs, n_generated)
            if self.speculator is not None:
                self.speculator.observe(batch)
        else:
            batch.result = self.runtime.sample(tokens, slots, positions, batch.specs)
        self.n_evaluated += len(tokens)
        return batch

    def postprocess(self, batch: Batch) -> list[Request]:
        """Record what the cache now holds, and give every request whose last token was evaluated its next one. Requests
        that ended while the batch was in flight get nothing."""
        result = batch.result
        logits = result if isinstance(result, np.ndarray) else None
        # For each request that is evaluated to its end, its next token, or the logits of that and of drafts.
        chosen: list[Any] = []
        if result is not None and not isinstance(result, np.ndarray):
            chosen = [[token] for token in result.tokens()]
        complete, row = [], 0
        for request, chunk in batch:
            start, end = request.n_computed, request.n_computed + len(chunk)
            n_drafted = len(batch.drafts.get(request, ()))
            if logits is not None:
                first, row = row, row + len(chunk) - request.first_row(len(chunk)) + n_drafted
                if request.scoring:
                    request.score(logits[first:row])
            if end == len(request.tokens):
                complete.append(request)
                if logits is not None:
                    chosen.append(logits[row - 1 - n_drafted : row])
            if not request.finished:
                assert request.slot is not None
                request.slot.extend(request.tokens[start:end], of_prompt=not request.generating)
                request.n_computed = end
                if end in request.stops:
                    self.cache.keep(request.slot)
        advanced = []
        for request, following in zip(complete, chosen, strict=True):
            if request.finished:
                continue
            try:
                self._advance(request, following, batch.drafts.get(request, []), batch.ways_back.get(request))
            except GGPYError as error:  # this request's alone
                assert request.slot is not None
                self.cache.rewind(request.slot, 0)  # whatever gave such logits is not to be built upon
                request.error = error
                request.finish("error")
            advanced.append(request)
            if request.finished:
                self.scheduler.retire(request)
        return advanced

    def _advance(
        self,
        request: Request,
        chosen: Sequence[int] | NDArray[np.float32],
        draft: list[int],
        way_back: Checkpoint | None,
    ) -> None:
        """Give a request its next token, and those after it as long as they are as drafted."""
        slot, n_accepted = request.slot, 0
        assert slot is not None
        while True:
            n = len(request.tokens)
            request.advance(chosen[n_accepted])
            gained = request.tokens[n:]  # several where a grammar forces some
            n_same = common_prefix(gained, draft[n_accepted:])
            n_accepted += n_same
            if request.finished or not gained or n_same < len(gained):  # none: a beam, which waits for the others
                break
        request.n_drafted += len(draft)
        request.n_accepted += n_accepted
        if n_accepted == len(draft) or way_back is None:
            slot.extend(draft[:n_accepted], of_prompt=False)
            request.n_computed += n_accepted
        else:  # the state has gone too far: those that were kept are evaluated again
            self.cache.go_back(slot, way_back)
            request.n_computed = way_back.length
        if not request.finished and len(request.tokens) > self.runtime.n_ctx:
            self._shift(request)

    def _shift(self, request: Request) -> None:
        """Have a request go on whose context is full."""
        slot, shift = request.slot, self._context_shift
        assert slot is not None
        assert shift is not None
        n_keep = shift.shift(request, self.tokenizer, self.runtime.n_ctx)
        if self.cache.reach.everywhere:
            request.stops = []  # no checkpoint is needed to come back to
        request.n_computed = self.cache.reusable(slot, n_keep)
        self.cache.rewind(slot, request.n_computed)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token, float32 [n_tokens, n_vocab].

        Borrows a slot: a free one, else a running request's, which then waits, and evaluates its tokens again.
        """
        self._check(tokens, "The sequence of tokens")
        self.drop_in_flight()
        slot = self.borrow()
        self.cache.rewind(slot, 0)
        self.make_room(slot, len(tokens))
        n, n_batch = len(tokens), self.runtime.n_batch
        ids = [int(token) for token in tokens]
        result = np.empty((n, self.runtime.n_vocab), np.float32)
        for start in range(0, n, n_batch):
            end = min(start + n_batch, n)
            result[start:end] = self._evaluate(slot, ids[start:end], range(end - start))
        return result

    def last_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after the last token, float32 [n_vocab]. Borrows a slot as `logits` does, and goes on from what it
        holds of the same beginning."""
        self._check(tokens, "The sequence of tokens")
        self.drop_in_flight()
        ids = [int(token) for token in tokens]
        slot, n_batch = self.borrow(), self.runtime.n_batch
        shared = min(common_prefix(slot.tokens, ids), len(ids) - 1)
        kept = shared if self.cache.reach.everywhere else 0
        self.cache.rewind(slot, kept)
        self.make_room(slot, len(ids))
        logits = np.empty(0, np.float32)
        for start in range(kept, len(ids), n_batch):
            chunk = ids[start : start + n_batch]
            outputs = (len(chunk) - 1,) if start + len(chunk) == len(ids) else ()
            logits = self._evaluate(slot, chunk, outputs)
        return logits[0].copy()

    def _evaluate(self, slot: Slot, tokens: list[int], outputs: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate the next tokens of a borrowed slot, as a prompt's. Returns the logits after those at `outputs`:
        float32 [m, n_vocab], a view valid until the next step."""
        start, n = len(slot.tokens), len(tokens)
        slot.begin(start, n)
        logits = self.runtime.step(tokens, [slot.index] * n, range(start, start + n), outputs)
        slot.extend(tokens, of_prompt=True)
        self.n_evaluated += n
        return logits

    def drop_in_flight(self) -> None:
        """Forget a batch that is under way: its requests may lose their slots, and its tokens will be chosen again."""
        self._in_flight = None

    def borrow(self) -> Slot:
        """A slot for what is no request: a free one, or a running request's. It has no cells yet: see `make_room`."""
        free = [slot for slot in self.slots if slot.request is None]
        slot = min(free, key=lambda s: s.last_used) if free else self.scheduler.displace()
        self.cache.touch(slot)
        return slot

    def make_room(self, slot: Slot, n: int) -> None:
        """Give a borrowed slot cells for n tokens; where they are too few, requests that run wait again."""
        while not self.cache.reserve(slot, n):
            if not self.scheduler.running:
                raise GGPYError("A beam search holds the cache; try again when it is over.")
            self.scheduler.displace()

    def saved(self, tokens: Sequence[int] | None = None) -> Parked:
        """A copy of the state of the slot that was used last, or that holds the longest beginning of `tokens`. Raises
        GGPYError where none holds any."""
        able = [slot for slot in self.slots if slot.tokens and slot.stands == len(slot.tokens)]
        if tokens is not None:
            able = [slot for slot in able if slot.common_prefix(tokens)]
        if not able:
            raise GGPYError("Nothing is evaluated yet that could be saved; answer a prompt first.")
        slot = max(able, key=lambda s: (s.common_prefix(tokens) if tokens is not None else 0, s.last_used))
        parked = Parked(-1, [*slot.tokens], slot.n_prompt, stands=slot.stands, written=slot.written)
        parked.kept = self.runtime.save(slot.index, len(slot.tokens))
        return parked

    def load(self, parked: Parked) -> None:
        """Put a saved conversation into a free slot. Raises ValueError where the state is of another shape."""
        slot = self.borrow()
        self.cache.clear(slot)
        self.make_room(slot, len(parked.tokens))
        try:
            self.cache.fetch(parked, slot, len(parked.tokens))
        except (ValueError, StopIteration) as error:
            self.cache.rewind(slot, 0)
            raise ValueError("a state of another shape") from error

    def _check(self, tokens: Sequence[int], what: str) -> None:
        check_token_ids(tokens, self.runtime.n_ctx, self.runtime.n_vocab, what)
