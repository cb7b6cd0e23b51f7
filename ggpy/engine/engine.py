"""Batches: many requests over one runtime.

`Engine.step` shows the data's way: schedule a batch (the next token of every request that is generating, then chunks
of prompts, up to `n_batch`), run it, choose tokens. A device that chooses tokens by itself is kept a step ahead: it
goes on without waiting for the host. Knows nothing of files, templates or terminals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cache import Cache, Slot, SlotState
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.sample_spec import SAMPLE_SPEC, SampledTokens, SampleSpecs, sampled_by_last_step
from ggpy.sampling.sampler import Chain
from ggpy.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ggpy.runtime.runtime import Integers
    from ggpy.text.tokenizer import Tokenizer


class RuntimeLike(SlotState, Protocol):
    """The interface that the engine needs of a runtime."""

    n_ctx: int
    n_batch: int
    n_vocab: int
    max_sampled: int  # tokens of a step that `sample` takes; 0 where there is no such way
    max_top_k: int  # that it can draw one token from
    by_kind: bool  # whether it evaluates generated tokens and prompts' in ways of their own

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> NDArray[np.float32]: ...

    def sample(self, tokens: Integers, slots: Integers, positions: Integers, specs: SampleSpecs) -> SampledTokens: ...


@dataclass
class Batch:
    """One step's tokens: those of `chunks[i]` are the next of `requests[i]`."""

    requests: list[Request] = field(default_factory=list)
    chunks: list[list[int]] = field(default_factory=list)
    n_in_flight: int = 0  # tokens of each request that the batch before is yet to sample: its chunk, or none
    specs: SampleSpecs | None = None  # how the device is to choose every request's next token; None: here, from logits
    # logits [m, n_vocab], a row for each request that has no token pending any more; or every request's token
    result: NDArray[np.float32] | SampledTokens | None = None

    def __iter__(self) -> Iterator[tuple[Request, list[int]]]:
        return zip(self.requests, self.chunks, strict=True)


class Engine:
    """An engine that runs requests over a runtime's slots. Not thread-safe.

    chain_for: a function that gives a faster sampler than numpy's for parameters (resolved), or None; see `Sampler`.
    """

    def __init__(
        self,
        runtime: RuntimeLike,
        tokenizer: Tokenizer,
        chain_for: Callable[[SamplingParams], Chain | None] = lambda params: None,
    ) -> None:
        self.runtime, self._chain_for = runtime, chain_for
        self.tokenizer = tokenizer
        self.cache = Cache(runtime)
        self.slots = self.cache.slots
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.n_evaluated = 0  # tokens that went through the runtime so far
        self._in_flight: Batch | None = None  # under way already

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def request(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        """A request for `add`, from token ids and resolved parameters. Raises GGPYError where it could not run."""
        self._check(prompt, "The prompt")
        wrong = next((token for token in params.logit_bias or () if not 0 <= token < self.runtime.n_vocab), None)
        if wrong is not None:
            raise GGPYError(f"logit_bias names the token id {wrong}, but ids are 0 to {self.runtime.n_vocab - 1}.")
        request = Request(prompt, params, self.tokenizer, self.runtime.n_ctx, self._chain_for(params))
        request.stops = self.cache.stops(request.prompt, self.tokenizer)
        return request

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """End a request early; its slot's cells can still be reused."""
        if not request.finished:
            request.finish("abort")
        self._retire(request)

    def step(self) -> list[Request]:
        """Evaluate one batch. Returns the requests that gained a token."""
        batch, self._in_flight = self._in_flight or self.run(self.schedule()), None
        following = self.schedule_overlapped(batch)
        if following is not None:
            self.run(following)
        advanced = self.postprocess(batch)
        if following is not None and not all(request.finished for request in following.requests):
            self._in_flight = following
        return advanced

    def schedule(self) -> Batch:
        """The batch of the next step: generating requests first, then prompts in order of arrival."""
        while self.waiting and (slot := self._slot_for(self.waiting[0])):
            request = self.waiting.popleft()
            n = self._n_reusable(slot, request)
            self.cache.rewind(slot, n)
            request.begin(slot, n)
            self.running.append(request)
        batch, room, by_kind = Batch(), self.runtime.n_batch, self.runtime.by_kind
        for request in self.running:
            if not request.n_pending:  # interrupted between evaluation and choice: evaluate the last token once more
                assert request.slot is not None
                request.n_computed = self.cache.reusable(request.slot, request.n_computed - 1)
                self.cache.rewind(request.slot, request.n_computed)
        for request in sorted(self.running, key=lambda s: not s.generating if by_kind else s.n_pending > 1):
            count = min(request.n_pending_of_kind if by_kind else request.n_pending, request.n_to_stop, room)
            if count:
                batch.requests.append(request)
                batch.chunks.append(request.tokens[request.n_computed : request.n_computed + count])
                room -= count
        if self.runtime.max_sampled:
            batch.specs = self._specs(batch)
        return batch

    def schedule_overlapped(self, batch: Batch) -> Batch | None:
        """The batch after one whose tokens the device chooses, if its requests simply go on; else None. If a request
        turns out to have ended, its token is evaluated in vain, in a cell that its slot never claims."""
        if batch.specs is None or (self.waiting and any(slot.request is None for slot in self.slots)):
            return None
        going = [request for request in batch.requests if not request.finished]
        if going != self.running or not all(request.goes_on for request in going):
            return None
        chunks = [[sampled_by_last_step(request.slot.index)] for request in going if request.slot is not None]
        following = Batch(going, chunks, n_in_flight=1)
        following.specs = self._specs(following)
        return following if following.specs is not None else None

    def _specs(self, batch: Batch) -> SampleSpecs | None:
        """Sample specs of the batch's tokens for the device; None where it cannot choose one of them."""
        if not 0 < len(batch.requests) <= self.runtime.max_sampled:
            return None
        rows = []
        for request in batch.requests:
            if not batch.n_in_flight and (request.n_pending > 1 or (self.runtime.by_kind and not request.generating)):
                return None
            row = request.sampler.spec(self.runtime.n_vocab, self.runtime.max_top_k, batch.n_in_flight)
            if row is None:
                return None
            rows.append(row)
        return np.array(rows, SAMPLE_SPEC)

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
            slot.begin(start, len(chunk))
            tokens += chunk
            slots += [slot.index] * len(chunk)
            positions += range(start, start + len(chunk))
            if len(chunk) == request.n_pending:
                outputs.append(len(tokens) - 1)
        if batch.specs is None:
            n_generated = sum(request.generating for request in batch.requests) if self.runtime.by_kind else 0
            batch.result = self.runtime.step(tokens, slots, positions, outputs, n_generated)
        else:
            batch.result = self.runtime.sample(tokens, slots, positions, batch.specs)
        self.n_evaluated += len(tokens)
        return batch

    def postprocess(self, batch: Batch) -> list[Request]:
        """Record what the cache now holds, and give every request whose last token was evaluated its next one. Requests
        that ended while the batch was in flight get nothing."""
        result = batch.result
        chosen = () if result is None else result if isinstance(result, np.ndarray) else result.tokens()
        complete = []
        for request, chunk in batch:
            start, end = request.n_computed, request.n_computed + len(chunk)
            if end == len(request.tokens):
                complete.append(request)
            if not request.finished:
                assert request.slot is not None
                request.slot.extend(request.tokens[start:end], of_prompt=not request.generating)
                request.n_computed = end
                if end in request.stops:
                    self.cache.keep(request.slot)
        advanced = []
        for request, one in zip(complete, chosen, strict=True):
            if request.finished:
                continue
            try:
                request.advance(one)
            except GGPYError:
                assert request.slot is not None
                self.cache.rewind(request.slot, 0)  # whatever gave such logits is not to be built upon
                request.finish("error")
                self._retire(request)
                raise
            advanced.append(request)
            if request.finished:
                self._retire(request)
        return advanced

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token, float32 [n_tokens, n_vocab].

        Borrows a slot: a free one, else that of the newest running request, which then evaluates its tokens again.
        """
        self._check(tokens, "The sequence of tokens")
        self._in_flight = None  # its requests may lose their slots; those tokens will be chosen again
        free = [slot for slot in self.slots if slot.request is None]
        if free:
            slot = min(free, key=lambda s: s.last_used)
            self.cache.touch(slot)
        else:
            displaced = self.running.pop()
            assert displaced.slot is not None
            slot, displaced.slot = displaced.slot, None
            slot.request, displaced.n_computed = None, 0
            self.waiting.appendleft(displaced)
        n, n_batch = len(tokens), self.runtime.n_batch
        ids = [int(token) for token in tokens]
        result = np.empty((n, self.runtime.n_vocab), np.float32)
        self.cache.rewind(slot, 0)
        for start in range(0, n, n_batch):
            end = min(start + n_batch, n)
            chunk, count = ids[start:end], end - start
            slot.begin(start, count)
            result[start:end] = self.runtime.step(chunk, [slot.index] * count, range(start, end), range(count))
            slot.extend(chunk, of_prompt=True)
            self.n_evaluated += count
        return result

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The vectors that a model which embeds gives for sequences of tokens: float32 [n_embd] each."""
        for tokens in prompts:
            self._check(tokens, "The sequence of tokens")
        found: list[NDArray[np.float32]] = []
        waiting = deque([int(token) for token in tokens] for tokens in prompts)
        for slot in self.slots:
            self.cache.rewind(slot, 0)
        while waiting:
            together = [waiting.popleft()]
            while waiting and len(together) < len(self.slots):
                if sum(map(len, together)) + len(waiting[0]) > self.runtime.n_batch:
                    break
                together.append(waiting.popleft())
            found += self._embed(together)
        return found

    def _embed(self, together: list[list[int]]) -> list[NDArray[np.float32]]:
        """The rows of some sequences, each in a slot of its own: in one step, or, of a single one that need not be
        whole, in several."""
        n_batch = self.runtime.n_batch
        tokens = [token for sequence in together for token in sequence]
        slots = [slot for slot, sequence in enumerate(together) for _ in sequence]
        positions = [position for sequence in together for position in range(len(sequence))]
        ends = np.cumsum([len(sequence) for sequence in together]) - 1
        for start in range(0, len(tokens), n_batch):
            end = min(start + n_batch, len(tokens))
            here = [int(last) - start for last in ends if start <= last < end]
            rows = self.runtime.step(tokens[start:end], slots[start:end], positions[start:end], here)
            self.n_evaluated += end - start
        return [row.copy() for row in rows]

    def _slot_for(self, request: Request) -> Slot | None:
        """The free slot that shares the longest prefix; of equal ones the longest unused."""
        free = [slot for slot in self.slots if slot.request is None]
        return max(free, key=lambda s: (self._n_reusable(s, request), -s.last_used), default=None)

    def _n_reusable(self, slot: Slot, request: Request) -> int:
        """The number of a slot's cells that the request can go on from: they hold its first tokens, but not the last,
        evaluated as they would be now."""
        n = min(slot.common_prefix(request.tokens), len(request.tokens) - 1)
        if self.runtime.by_kind:
            n = min(n, slot.n_prompt, len(request.prompt))
        return self.cache.reusable(slot, n)

    def _retire(self, request: Request) -> None:
        if request.slot is not None:
            self.cache.touch(request.slot)
            request.slot.request = None
            request.slot = None
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)

    def _check(self, tokens: Sequence[int], what: str) -> None:
        n_vocab, n_ctx = self.runtime.n_vocab, self.runtime.n_ctx
        if not len(tokens):
            raise GGPYError(f"{what} is empty; give at least one token.")
        if len(tokens) > n_ctx:
            raise GGPYError(
                f"{what} has {len(tokens)} tokens, but the context holds {n_ctx}; "
                "shorten it or ask for a larger context."
            )
        wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise GGPYError(
                f"{what} holds the token id {wrong}, but the model's vocabulary has ids 0 to {n_vocab - 1}."
            )
