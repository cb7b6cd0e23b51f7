"""Beam searches as requests of an engine: their beams are evaluated in its steps, beside everything else.

A search is one request until its prompt is evaluated, then one for each beam, which keep their slots until it is over.
Between two steps, when the logits of all its beams are there, a search chooses those that go on: a beam goes on in its
parent's slot, and those that branch off get copies, whatever kinds of state the model has, as all beams are of one
length, at which carried state stands too. What other requests wait for is `beam_width` slots, no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy import arguments
from ggpy.engine.beam_search import Beam, BeamSearch, BeamSearchOutput, BeamSearchParams, BeamSearchSequence
from ggpy.engine.cells import in_cells
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.text.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    from ggpy.engine.engine import Engine


class BeamRequest(Request):
    """A beam's place in the engine: its tokens, its slot, and the logits after its last token once they are there."""

    def __init__(self, engine: Engine, prompt: Sequence[int], max_tokens: int) -> None:
        # Nothing is drawn; log-probabilities are asked for so that logits come to the host. max_tokens: for its cells.
        params = SamplingParams(temperature=0, logprobs=0, max_tokens=max_tokens).resolved()
        super().__init__(prompt, params, engine.tokenizer, engine.runtime.n_ctx)
        self.row: NDArray[np.float32] | None = None

    @property
    def draftable(self) -> bool:
        return False  # what follows is chosen among all beams

    def advance(self, chosen: NDArray[np.float32] | int) -> None:
        assert not isinstance(chosen, int), "log-probabilities were asked for"
        self.row = chosen.copy()  # it is a view of what the next step writes over

    def go_on(self, tokens: list[int]) -> None:
        """Take the tokens of a beam, all but the last of which the slot holds."""
        self.tokens, self.n_computed, self.row = tokens, len(tokens) - 1, None


class BeamSearchRequest:
    """The search for the continuations of one prompt. Raises GGPYError where it could not run.

    on_finish: called once the search is over, by whichever thread steps the engine.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], params: BeamSearchParams, priority: int = 0) -> None:
        if not isinstance(params, BeamSearchParams):
            raise arguments.wrong("params", params, "BeamSearchParams")
        if params.beam_width > len(engine.slots):
            raise GGPYError(
                f"beam_width is {params.beam_width}, but the model was opened for {len(engine.slots)} sequences at a "
                f"time; open it with n_parallel={params.beam_width}."
            )
        engine.check(prompt, SamplingParams().resolved())
        self.engine, self.params = engine, params
        self.on_finish: Callable[[], None] = lambda: None
        room = engine.runtime.n_ctx - len(prompt) + 1  # the last token needs no cell
        self.search = BeamSearch(params, min(params.max_tokens, room), engine.tokenizer.eog)
        first = BeamRequest(engine, prompt, self.search.max_tokens)
        first.priority, first.stops = priority, engine.cache.stops(prompt, engine.tokenizer)
        self.prompt, self.requests = first.prompt, [first]  # those of the running beams, in their order, then others
        self.finished = False
        self.error: GGPYError | None = None
        total = engine.cache.cells.total
        if 0 < total < self.n_cells:
            raise GGPYError(
                f"{params.beam_width} beams of {len(prompt) + self.search.max_tokens} tokens need a cache of "
                f"{self.n_cells} tokens, but it has {total}; take fewer beams or a smaller max_tokens, or "
                "more memory (kv_memory)."
            )

    @property
    def n_cells(self) -> int:
        """The cells of all beams."""
        return self.params.beam_width * in_cells(self.engine.scheduler.n_cells(self.requests[0]))

    @property
    def active(self) -> list[BeamRequest]:
        """The requests of the running beams, in their order."""
        return self.requests[: len(self.search.running)]

    def settle(self) -> None:
        """Between two steps: go on to the next token, if all beams of this one are evaluated."""
        ended = next((request for request in self.requests if request.finished), None)
        if ended is not None:  # by whoever ends all requests
            self.end(ended.error or GGPYError("The beam search was aborted."))
            return
        try:
            rows = [request.row for request in self.active if request.row is not None]
            if len(rows) == len(self.active) and self._hold_slots():
                parents = self.search.advance(np.stack(rows))
                if self.search.done:
                    self.end()
                    return
                self._branch(parents)
        except GGPYError as error:
            for request in self.requests:  # whatever gave such logits is not to be built upon
                if request.slot is not None:
                    self.engine.cache.rewind(request.slot, 0)
            self.end(error)
            return
        except BaseException:  # an interruption: the beams may be half chosen
            self.end(GGPYError("The beam search was interrupted."))
            raise
        running = self.engine.scheduler.running
        for request in self.requests:
            wanted = request in self.active and request.row is None
            if wanted and request not in running and request.slot is not None:
                running.append(request)
            elif not wanted and request in running:
                running.remove(request)

    def _hold_slots(self) -> bool:
        """Take free slots with their cells for the beams to come; True where there is one for each."""
        free = [slot for slot in self.engine.slots if slot.request is None]
        for slot in sorted(free, key=lambda s: (len(s.tokens) > 0, s.last_used)):
            if len(self.requests) == self.params.beam_width:
                break
            other = BeamRequest(self.engine, self.prompt, self.search.max_tokens)
            self.engine.cache.clear(slot)
            if not self.engine.cache.reserve(slot, self.engine.scheduler.n_cells(other)):
                break
            other.priority, other.arrival = self.requests[0].priority, self.requests[0].arrival
            other.begin(slot, 0)
            self.requests.append(other)
        return len(self.requests) == self.params.beam_width

    def _branch(self, parents: list[int]) -> None:
        """Give every beam a slot that holds what its parent's does: the parent's own, or a copy in another one."""
        before, own = self.requests, set(parents)
        spare = [request for i, request in enumerate(before) if i not in own]
        self.requests = []
        for parent in parents:
            request = before[parent]
            if parent in own:
                own.remove(parent)
            else:
                source, request = request.slot, spare.pop(0)
                assert source is not None
                assert request.slot is not None
                self.engine.cache.copy(source, request.slot, len(source.tokens))
            self.requests.append(request)
        for request, beam in zip(self.requests, self.search.running, strict=True):
            request.go_on([*self.prompt, *beam.tokens])
        self.requests += spare

    def end(self, error: GGPYError | None = None) -> None:
        """End the search, early or not; its slots are free then. Harmless twice."""
        if self.finished:
            return
        self.finished, self.error = True, error
        for request in self.requests:
            self.engine.abort(request)
        self.on_finish()

    def output(self) -> BeamSearchOutput:
        """The continuations found, once the search is over. Raises its error."""
        if self.error is not None:
            raise self.error
        return BeamSearchOutput([self._sequence(beam) for beam in self.search.finished])

    def _sequence(self, beam: Beam) -> BeamSearchSequence:
        tokenizer, prompt, last = self.engine.tokenizer, self.prompt, beam.tokens[-1]
        stop = last if last in tokenizer.eog else None
        said = beam.tokens if stop is None else beam.tokens[:-1]
        decoder = StreamDecoder(tokenizer, skip_special=True)
        return BeamSearchSequence(
            tokens=[*prompt, *beam.tokens],
            text=tokenizer.detokenize([*prompt, *said]),
            cum_logprob=float(beam.logprob),
            score=beam.score,
            n_prompt=len(prompt),
            output_text="".join([decoder.push(token) for token in said]) + decoder.flush(),
            finish_reason="length" if stop is None else "stop",
            stop_reason=stop,
        )


class BeamSearches:
    """The searches of an engine. They begin in the order in which they came, as many as slots and cells hold beams of,
    so that none waits for what another one waits with."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[BeamSearchRequest] = []
        self._running: list[BeamSearchRequest] = []

    @staticmethod
    def of(engine: Engine) -> BeamSearches:
        """An engine's searches, which it settles after each step from now on."""
        if engine.beams is None:
            engine.beams = BeamSearches(engine)
        return engine.beams

    def add(self, search: BeamSearchRequest) -> None:
        """Have a search begin as soon as there is room."""
        self._waiting.append(search)
        self._begin()

    def settle(self) -> None:
        """Between two steps: have the searches go on, and those that wait begin."""
        for search in self._running:
            if not search.finished:
                search.settle()
        self._begin()

    def _begin(self) -> None:
        self._running = [search for search in self._running if not search.finished]
        self._waiting = [search for search in self._waiting if not search.finished]
        while self._waiting and self._fits(self._waiting[0]):
            search = self._waiting.pop(0)
            try:
                self._engine.add(search.requests[0])
            except GGPYError as error:  # too many requests wait
                search.end(error)
            else:
                self._running.append(search)

    def _fits(self, search: BeamSearchRequest) -> bool:
        """True where one more search finds slots and cells, once requests that are none leave them."""
        together, cells = [*self._running, search], self._engine.cache.cells
        enough = not cells.total or sum(one.n_cells for one in together) <= cells.total
        return enough and sum(one.params.beam_width for one in together) <= len(self._engine.slots)

    def end_all(self, error: GGPYError) -> None:
        for search in [*self._running, *self._waiting]:
            search.end(error)
        self._running, self._waiting = [], []


def run_searches(
    engine: Engine,
    lock: threading.RLock,
    searches: Sequence[BeamSearchRequest],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run searches to their ends by the caller's own thread. check: called before each step; its error ends them."""
    try:
        with lock:
            for search in searches:
                BeamSearches.of(engine).add(search)
        while not all(search.finished for search in searches):
            with lock:
                check()
                engine.step()
    finally:
        with lock:
            for search in searches:
                search.end()
