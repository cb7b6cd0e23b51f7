"""Who gets a slot, in which order, and what requests share: over a runtime whose logits betray a mix-up of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.engine.scheduler import QueueFull
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import BOS, ByteTokenizer, FakeRuntime, PassingRuntime, finish

GREEDY = SamplingParams(temperature=0, max_tokens=8).resolved()
KINDS: dict[str, Any] = {
    "full": FakeRuntime,
    "by kind": lambda **given: FakeRuntime(by_kind=True, **given),
    "on the device": lambda **given: FakeRuntime(max_sampled=8, **given),
    "carried": lambda **given: PassingRuntime(True, **given),
    "carried, on the device": lambda **given: PassingRuntime(True, max_sampled=8, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
}


def engine_of(kind: str = "full", max_waiting: int | None = None, **given: Any) -> Engine:
    return Engine(KINDS[kind](**given), ByteTokenizer(), max_waiting=max_waiting)  # type: ignore[arg-type]


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def test_priority_comes_before_arrival() -> None:
    engine = engine_of(n_slots=1)
    order = []
    requests = [engine.request(tokens(5, i), GREEDY, priority) for i, priority in enumerate((5, 0, 5, -3))]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        order += [requests.index(r) for r in engine.step() if r.n_chosen == 1]
    assert order == [3, 1, 0, 2]


def test_a_full_queue_refuses() -> None:
    engine = engine_of(n_slots=1, max_waiting=2)
    for i in range(2):
        engine.add(engine.request(tokens(5, i), GREEDY))
    with pytest.raises(QueueFull, match="2 requests wait already"):
        engine.add(engine.request(tokens(5, 9), GREEDY))
    engine.step()
    engine.add(engine.request(tokens(5, 9), GREEDY))


def test_one_failure_is_its_own() -> None:
    engine = engine_of(n_slots=3)
    step = engine.runtime.step
    bad, good, late = (engine.request(tokens(6, i), GREEDY) for i in range(3))

    def damaged(*given: Any) -> Any:
        logits = step(*given)
        slots = [given[1][i] for i in given[3]]
        if bad.slot is not None and bad.n_chosen == 2 and bad.slot.index in slots:
            logits[slots.index(bad.slot.index)] = np.nan
        return logits

    engine.runtime.step = damaged  # type: ignore[method-assign, assignment]
    finish(engine, bad, good, late)
    assert bad.finish_reason == "error"
    with pytest.raises(GGPYError, match="no usable logits"):
        raise bad.error or AssertionError
    alone = engine_of().request(good.prompt, GREEDY)
    finish(engine_of(), alone)
    assert good.token_ids == alone.token_ids
    assert late.finish_reason == "length"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_one_prompt_evaluate_it_once(kind: str) -> None:
    engine = engine_of(kind, n_slots=4, n_ctx=512)
    prompt = [*tokens(150), BOS, *b"assistant:"]
    requests = [engine.request(prompt, GREEDY) for _ in range(4)]
    finish(engine, *requests)
    alone = engine_of(kind, n_ctx=512)
    one = alone.request(prompt, GREEDY)
    finish(alone, one)
    assert [request.token_ids for request in requests] == [one.token_ids] * 4
    again = len(b"assistant:") + 1 if kind.startswith("carried") else 1  # from the last checkpoint, or the last token
    assert engine.n_evaluated <= len(prompt) + 3 * again + 4 * 7 + 4
    assert engine.runtime.copied > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["full", "ring", "on the device"])
def test_a_system_prompt_is_copied_from_a_busy_slot(kind: str) -> None:
    engine = engine_of(kind, n_slots=2, n_ctx=512)
    system = tokens(100)
    long = engine.request([*system, *tokens(20, 1)], SamplingParams(temperature=0, max_tokens=60).resolved())
    engine.add(long)
    for _ in range(20):
        engine.step()
    done = engine.n_evaluated
    other = engine.request([*system, *tokens(30, 2)], GREEDY)
    finish(engine, other)
    assert engine.n_evaluated - done < 30 + 3 * GREEDY.max_tokens  # type: ignore[operator]
    while not long.finished:
        engine.step()
    for request in (long, other):
        fresh = engine_of(kind, n_ctx=512)
        alone = fresh.request(request.prompt, request.params)
        finish(fresh, alone)
        assert alone.token_ids == request.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_random_equal_each_alone(kind: str) -> None:
    """Shared beginnings, priorities and aborts over few slots."""
    rng = np.random.default_rng(3)
    engine = engine_of(kind, n_slots=3, n_ctx=400)
    bases = [tokens(80, i) for i in range(3)]
    requests: list[Request] = []
    while len(requests) < 40 or engine.has_work:
        if len(requests) < 40 and rng.random() < 0.4:
            base = bases[rng.integers(3)][: rng.integers(1, 81)]
            prompt = [*base, BOS, *rng.integers(0, 256, rng.integers(1, 60)).tolist()]
            params = SamplingParams(temperature=0, max_tokens=int(rng.integers(1, 12))).resolved()
            requests.append(engine.request(prompt, params, int(rng.integers(-1, 2))))
            engine.add(requests[-1])
        if engine.has_work:
            engine.step()
        if requests and rng.random() < 0.03:
            engine.abort(requests[-1])
    for request in requests:
        if request.finish_reason != "abort":
            fresh = engine_of(kind, n_ctx=400)
            alone = fresh.request(request.prompt, request.params)
            finish(fresh, alone)
            assert alone.token_ids == request.token_ids


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_stream_gains_a_token_with_every_step(kind: str) -> None:
    """However many long prompts come: no stream waits longer than one step, which is at most a chunk."""
    engine = engine_of(kind, n_slots=4)
    streams = [engine.request(tokens(3, i), SamplingParams(temperature=0, max_tokens=40).resolved()) for i in range(2)]
    for request in streams:
        engine.add(request)
    while not all(request.n_chosen for request in streams):
        engine.step()
    for i in range(6):
        engine.add(engine.request(tokens(100, 10 + i), GREEDY))
    while not any(request.finished for request in streams):
        before = [request.n_chosen for request in streams]
        engine.step()
        assert [request.n_chosen for request in streams] == [n + 1 for n in before]
    assert max(engine.runtime.batches) <= engine.runtime.n_batch  # type: ignore[attr-defined]
