"""Requests run to their ends, few at a time, and what becomes of the others when a step fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ggpy.engine.engine import Engine
from ggpy.engine.follow import at_once, follow
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import ByteTokenizer, FakeRuntime

GREEDY = SamplingParams(temperature=0, max_tokens=5).resolved()


def engine_of(**given: Any) -> Engine:
    return Engine(FakeRuntime(**given), ByteTokenizer())  # type: ignore[arg-type]


def requests(engine: Engine, n: int, made: list[Request]) -> Iterator[Request]:
    for i in range(n):
        made.append(engine.request([i, i + 1, i + 2], GREEDY))
        yield made[-1]


def fail(engine: Engine, steps: set[int]) -> None:
    """Have the engine's steps of these numbers fail."""
    run, count = engine.runtime.step, iter(range(1000))

    def step(*args: Any, **keywords: Any) -> Any:
        if next(count) in steps:
            raise ValueError("a bus fell off")
        return run(*args, **keywords)

    engine.runtime.step = step  # type: ignore[method-assign]


def test_requests_are_drawn_when_it_is_their_turn() -> None:
    engine = engine_of(n_slots=2)
    made: list[Request] = []
    texts: dict[int, str] = {}
    for index, request, text in follow(engine, threading.RLock(), requests(engine, 40, made), at_once(engine)):
        texts[index] = texts.get(index, "") + text
        assert request is made[index]
        assert sum(not one.finished for one in made) <= 4
        assert len(engine.scheduler.waiting) <= 4
    assert sorted(texts) == list(range(40))
    assert [texts[i] for i in range(40)] == [request.text for request in made]
    assert {request.finish_reason for request in made} == {"length"}


def test_who_leaves_ends_what_runs() -> None:
    engine = engine_of(n_slots=2)
    made: list[Request] = []
    running = follow(engine, threading.RLock(), requests(engine, 40, made), 3)
    next(running)
    running.close()
    assert [request.finish_reason for request in made] == ["abort"] * 3
    assert not engine.has_work


def test_a_failed_step_is_raised() -> None:
    engine = engine_of()
    fail(engine, {3})
    with pytest.raises(ValueError, match="bus"):
        list(follow(engine, threading.RLock(), requests(engine, 4, [])))
    assert not engine.has_work


def test_a_failed_step_ends_those_that_ran() -> None:
    engine, whole = engine_of(n_slots=2), engine_of(n_slots=2)
    fail(engine, {3})
    made: list[Request] = []
    expected: list[Request] = []
    list(follow(whole, threading.RLock(), requests(whole, 9, expected), 4))
    list(follow(engine, threading.RLock(), requests(engine, 9, made), 4, keep_going=True))
    failed = [i for i, request in enumerate(made) if request.error is not None]
    assert failed == [0, 1]
    assert str(made[0].error) == "The runtime failed: a bus fell off."
    assert [r.text for i, r in enumerate(made) if i > 1] == [r.text for i, r in enumerate(expected) if i > 1]


def test_a_runtime_that_only_fails_is_given_up() -> None:
    engine = engine_of(n_slots=2)
    fail(engine, set(range(3, 1000)))
    made: list[Request] = []
    with pytest.raises(GGPYError, match="The runtime failed: a bus fell off"):
        list(follow(engine, threading.RLock(), requests(engine, 40, made), 4, keep_going=True))
    assert len(made) <= 6
    assert not engine.has_work


def test_errors_of_a_request_alone_are_its_own() -> None:
    engine = engine_of()
    bad = engine.request([7], SamplingParams(temperature=0, max_tokens=5).resolved())
    good = engine.request([8], GREEDY)

    def refuse(chosen: Any) -> None:
        raise GGPYError("The logits are no numbers.")

    bad.advance = refuse  # type: ignore[method-assign]
    list(follow(engine, threading.RLock(), [bad, good]))
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
