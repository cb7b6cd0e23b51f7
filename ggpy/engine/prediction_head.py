"""Drafts by the model's own head that predicts a further token (`ggpy.runtime.prediction_head`).

The head reads each token's hidden row together with the token after it, so that rows wait here until that is chosen;
from its own row it goes on for as long as that pays. It needs no slots of its own: its cells lie beside the model's.
Where a text goes on differently from what a slot held, one cell of it is of the token before, and a conversation that
comes back from host memory or a file comes without the head's cells: drafts, which are all that depends on them, are
the worse for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.model_drafter import ModelDrafter

if TYPE_CHECKING:
    from ggpy.engine.drafts import StepCost
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch
    from ggpy.runtime.runtime import Integers

Rows = NDArray[np.float32]


class Head(Protocol):
    """The interface that drafting needs of a head."""

    n_vocab: int

    def hidden(self, first: int, end: int) -> Rows: ...

    def step(
        self, hidden: Rows, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers
    ) -> tuple[Rows, Rows]: ...


class HeadDrafter(ModelDrafter):
    """Drafts of a head. n_ctx: of the model."""

    def __init__(self, head: Head, n_ctx: int) -> None:
        super().__init__(head.n_vocab)
        self.head, self._n_ctx = head, n_ctx
        self._waiting: dict[Request, tuple[int, Rows]] = {}  # hidden rows from a position on, whose next token is open
        self._last: dict[Request, Rows] = {}  # the row with which the head may go on
        self._rests = False  # where drafts did not pay last, the head reads nothing

    def observe(self, batch: Batch) -> None:
        """Keep the hidden rows of a step that was just run, and read those whose next token is known."""
        before, self._waiting = self._waiting, {}
        known: list[tuple[Request, int, Rows, list[int]]] = []
        end = 0
        for request, chunk in batch:
            n = len(chunk) + len(batch.drafts.get(request, ()))
            end += n
            start, rows = request.n_computed, self.head.hidden(end - n, end)
            first, older = before.get(request, (start, rows[:0]))
            if first < start == first + min(len(older), start - first):
                start, rows = first, np.concatenate([older[: start - first], rows])
            follow = request.tokens[start + 1 : request.n_computed + len(chunk) + 1]
            if follow and not (self._rests and request.generating):
                known.append((request, start, rows, follow))
            self._waiting[request] = start + len(follow), rows[len(follow) :]
        if known:
            self._step(known, 0)

    def _goes_on(self, request: Request, n_drafted: int) -> bool:
        if request not in self._waiting:
            return False
        first, rows = self._waiting[request]
        n = len(request.tokens)
        return n + n_drafted <= self._n_ctx and (n_drafted > 0 or first < n - 1 <= first + len(rows))

    def _prepare(self, request: Request) -> list[int]:
        return request.tokens[self._waiting[request][0] + 1 :]

    def _depth(
        self, pending: dict[Request, list[int]], rooms: dict[Request, int], n_requests: int, cost: StepCost
    ) -> int:
        depth = super()._depth(pending, rooms, n_requests, cost)
        self._rests = not depth
        return depth

    def _read(self, pending: dict[Request, list[int]]) -> tuple[list[Request], Rows]:
        self._last = {}
        read = [(request, *self._waiting[request], tokens) for request, tokens in pending.items()]
        for request, first, rows, tokens in read:
            self._waiting[request] = first + len(tokens), rows[len(tokens) :]
        return list(pending), self._step(read, len(read))

    def _go_on(self, drafts: list[tuple[Request, list[int]]]) -> Rows:
        going = [
            (request, len(request.tokens) - 2 + len(tokens), self._last[request], tokens[-1:])
            for request, tokens in drafts
        ]
        return self._step(going, len(going))

    def _step(self, reads: list[tuple[Request, int, Rows, list[int]]], n_outputs: int) -> Rows:
        """Read the tokens that follow hidden rows, from a position on; the logits after the last ones of the first
        `n_outputs`."""
        began = time.perf_counter()
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for request, first, _, follow in reads:
            assert request.slot is not None
            tokens += follow
            slots += [request.slot.index] * len(follow)
            positions += range(first, first + len(follow))
            ends.append(len(tokens) - 1)
        hidden = np.concatenate([rows[: len(follow)] for _, _, rows, follow in reads])
        logits, last = self.head.step(hidden, tokens, slots, positions, ends[:n_outputs])
        self._last.update((reads[i][0], last[i : i + 1]) for i in range(n_outputs))
        self.times.learn(len(tokens), time.perf_counter() - began)
        return logits
