"""Cells that slots share: many short requests or few long ones in the same memory, over a runtime that fails where
ranges overlap or a cell outside one is touched, and whose logits betray a cell that was lost in a move."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from ggpy.engine import scheduler
from ggpy.engine.beam_requests import BeamSearchRequest, run_searches
from ggpy.engine.beam_search import BeamSearchOutput, BeamSearchParams
from ggpy.engine.cache import Slot
from ggpy.engine.cells import Cells
from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.runtime.host_memory import HostMemory
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import BOS, ByteTokenizer, FakeRuntime, PassingRuntime

KINDS: dict[str, Any] = {
    "full": FakeRuntime,
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
}


def engine_of(kind: str = "full", parked: int = 0, **given: Any) -> Engine:
    runtime = KINDS[kind](**given)
    return Engine(runtime, ByteTokenizer(), host_memory=HostMemory(1 << 20, parked))  # type: ignore[arg-type]


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def greedy(n: int | None) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True).resolved()


def ask(engine: Engine, n_prompt: int, n: int | None, seed: int = 0, priority: int = 0) -> Request:
    request = engine.request(tokens(n_prompt, seed), greedy(n), priority)
    engine.add(request)
    return request


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def alone(kind: str, request: Request) -> list[int]:
    """A request's answer with nobody else."""
    engine = engine_of(kind, n_ctx=request._n_ctx, n_slots=1)
    again = engine.request(request.prompt, request.params)
    engine.add(again)
    finish(engine)
    return again.token_ids


@pytest.mark.parametrize("seed", range(4))
def test_ranges_at_random(seed: int) -> None:
    """Grown, shrunk, given up in any order: none overlaps another, and each keeps what it holds (`FakeRuntime`)."""
    rng, runtime = np.random.default_rng(seed), FakeRuntime(n_ctx=1024, n_slots=5, kv_cells=1024)
    slots = [Slot(i) for i in range(5)]
    cells = Cells(runtime, slots)
    held: dict[int, list[int]] = {}
    for _ in range(300):
        slot, n = slots[rng.integers(5)], int(rng.integers(0, 500))
        room = cells.n_free + slot.capacity
        given = cells.resize(slot, n)
        assert given == (-(-n // 64) * 64 <= room)
        if given:
            del slot.tokens[n:]
            new = rng.integers(0, 256, rng.integers(0, n - len(slot.tokens) + 1)).tolist()
            runtime.of(slot.index)[0][len(slot.tokens) : len(slot.tokens) + len(new)] = new
            slot.tokens += new
        held[slot.index] = list(slot.tokens)
        for other in slots:
            assert runtime.of(other.index, len(other.tokens))[0].tolist() == held.get(other.index, [])
    assert runtime.moved > 0


def test_many_short_requests_or_few_long_ones() -> None:
    engine = engine_of(n_ctx=512, n_slots=8, kv_cells=512)
    for i in range(8):
        ask(engine, 40, 25, i)  # the last token has no cell
    engine.step()
    assert len(engine.scheduler.running) == 8
    finish(engine)
    long = [ask(engine, 300, 100, i) for i in range(2)]
    engine.step()
    assert engine.scheduler.running == long[:1]  # the other waits for its cells
    finish(engine)
    assert [request.finish_reason for request in long] == ["length"] * 2
    assert [request.token_ids for request in long] == [alone("full", request) for request in long]


def test_none_overtakes_one_that_waits_for_cells() -> None:
    engine = engine_of(n_ctx=512, n_slots=4, kv_cells=512)
    order: list[Request] = []
    first, large, small = ask(engine, 100, 200, 1), ask(engine, 200, 100, 2), ask(engine, 10, 10, 3)
    while engine.has_work:
        order += [request for request in engine.step() if request.n_chosen == 1]
    assert order == [first, large, small]


def test_what_never_fits_is_refused() -> None:
    engine = engine_of(n_ctx=256, n_slots=4, kv_cells=512)
    with pytest.raises(GGPYError, match="300 tokens, but the context holds 256"):
        engine.request(tokens(300), greedy(5))
    with pytest.raises(GGPYError, match="3 beams of 240 tokens need a cache of 768 tokens, but it has 512"):
        BeamSearchRequest(engine, tokens(200), BeamSearchParams(3, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_without_an_end_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has cells for a while; where no more are free, the last one waits, and its answer is the same."""
    monkeypatch.setattr(scheduler, "GROWTH", 64)
    engine = engine_of(kind, n_ctx=320, n_slots=3, kv_cells=448, n_batch=64)
    requests = [ask(engine, 100 + 10 * i, None, i) for i in range(2)]
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    assert most == 2
    for request in requests:
        assert request.reached_context
        assert len(request.tokens) == 321
        assert request.token_ids == alone(kind, request)


@pytest.mark.parametrize("parked", [0, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_many_at_random_equal_each_alone(kind: str, parked: int) -> None:
    """Shared beginnings, priorities and aborts over scarce cells."""
    rng = np.random.default_rng(3)
    engine = engine_of(kind, parked, n_slots=6, n_ctx=400, kv_cells=576)
    bases = [tokens(150, i) for i in range(3)]
    requests: list[Request] = []
    while len(requests) < 40 or engine.has_work:
        if len(requests) < 40 and rng.random() < 0.4:
            prompt = [*bases[rng.integers(3)][: rng.integers(1, 150)], BOS, *tokens(int(rng.integers(1, 60)))]
            n = None if rng.random() < 0.05 else int(rng.integers(1, 40))
            requests.append(engine.request(prompt, greedy(n), int(rng.integers(-1, 2))))
            engine.add(requests[-1])
        if engine.has_work:
            engine.step()
        if requests and rng.random() < 0.03:
            engine.abort(requests[-1])
    for request in requests:
        if request.finish_reason != "abort":
            assert request.token_ids == alone(kind, request)
    runtime: Any = engine.runtime
    assert runtime.copied > 0
    assert (runtime.loaded > 0) == bool(parked)


def test_a_conversation_in_a_slot_gives_way_and_comes_back() -> None:
    engine = engine_of(parked=1 << 20, n_ctx=512, n_slots=4, kv_cells=512)
    first = ask(engine, 200, 8)
    finish(engine)
    ask(engine, 400, 8, seed=1)
    finish(engine)
    before = engine.n_evaluated
    again = engine.request([*first.tokens, 7, 8], greedy(8))
    engine.add(again)
    finish(engine)
    assert engine.n_evaluated - before == 3 + 7
    assert again.token_ids == alone("full", again)


@pytest.mark.parametrize("kind", ["full", "carried"])
def test_beams_beside_a_request(kind: str) -> None:
    engine = engine_of(kind, n_ctx=256, n_slots=5, kv_cells=512)
    running = ask(engine, 100, 60)
    for _ in range(20):
        engine.step()
    params = BeamSearchParams(3, 12, ignore_eos=True)

    def searched(engine: Engine) -> list[BeamSearchOutput]:
        searches = [BeamSearchRequest(engine, prompt, params) for prompt in (tokens(50, 5), tokens(60, 6))]
        run_searches(engine, threading.RLock(), searches)
        return [search.output() for search in searches]

    assert searched(engine) == searched(engine_of(kind, n_ctx=256, n_slots=5))
    assert all(slot.request is None for slot in engine.slots if slot is not running.slot)
    finish(engine)
    assert running.token_ids == alone(kind, running)
