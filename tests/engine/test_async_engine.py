"""The engine's own thread: callers of an event loop come, wait, leave and fail independently."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from ggpy.engine.async_engine import AsyncEngine
from ggpy.engine.beam_requests import BeamSearchRequest, run_searches
from ggpy.engine.beam_search import BeamSearchParams
from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.engine.scheduler import QueueFull
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import ByteTokenizer, FakeRuntime

GREEDY = SamplingParams(temperature=0, max_tokens=12).resolved()


def tokens(seed: int, n: int = 20) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def engine_of(**given: Any) -> Engine:
    max_waiting = given.pop("max_waiting", None)
    return Engine(FakeRuntime(**given), ByteTokenizer(), max_waiting=max_waiting)  # type: ignore[arg-type]


def run(engine: Engine, what: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    before = threading.enumerate()  # others' servers may have engines of their own

    async def main() -> None:
        made = AsyncEngine(engine)
        try:
            await asyncio.wait_for(what(made), 60)
        finally:
            made.close()

    asyncio.run(main())
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name == "ggpy-engine"]


async def text_of(engine: AsyncEngine, request: Request) -> str:
    return "".join([delta async for delta in engine.follow(request)])


def alone(prompt: list[int]) -> str:
    engine = engine_of()
    request = engine.request(prompt, GREEDY)
    engine.add(request)
    while not request.finished:
        engine.step()
    return request.text


@pytest.mark.parametrize("max_sampled", [0, 8])
def test_many_callers_at_once(max_sampled: int) -> None:
    engine = engine_of(n_slots=3, max_sampled=max_sampled)
    prompts = [tokens(i) for i in range(20)]

    async def many(made: AsyncEngine) -> None:
        async def one(i: int) -> str:
            await asyncio.sleep(0.001 * (i % 5))
            return await text_of(made, engine.request(prompts[i], GREEDY))

        assert await asyncio.gather(*map(one, range(20))) == [alone(prompt) for prompt in prompts]

    run(engine, many)
    assert not engine.has_work


def test_who_leaves_frees_the_slot() -> None:
    engine = engine_of(n_slots=1)
    endless = SamplingParams(temperature=0, max_tokens=200).resolved()
    step = engine.runtime.step

    def slow(*given: Any) -> Any:
        time.sleep(0.005)
        return step(*given)

    engine.runtime.step = slow  # type: ignore[method-assign]

    async def leave(made: AsyncEngine) -> None:
        left = engine.request(tokens(0), endless)
        deltas = made.follow(left)
        async for _ in deltas:
            break
        await deltas.aclose()
        for wait in (0, 0, 0.001, 0.02):  # before it is added, while it is, and while it runs
            cancelled = engine.request(tokens(1), endless)
            task = asyncio.create_task(text_of(made, cancelled))
            await asyncio.sleep(wait)
            task.cancel()
        assert await text_of(made, engine.request(tokens(2), GREEDY)) == alone(tokens(2))
        assert [left.finish_reason, cancelled.finish_reason] == ["abort", "abort"]

    run(engine, leave)


def test_an_abort_ends_the_iteration() -> None:
    engine = engine_of(n_slots=1)
    request = engine.request(tokens(0), SamplingParams(temperature=0, max_tokens=200).resolved())

    async def abort(made: AsyncEngine) -> None:
        async for _ in made.follow(request):
            made.abort(request)
        assert request.finish_reason == "abort"

    run(engine, abort)


def test_errors_reach_their_caller_alone() -> None:
    engine = engine_of(n_slots=2)
    step = engine.runtime.step
    bad, good = engine.request(tokens(0), GREEDY), engine.request(tokens(1), GREEDY)

    def damaged(*given: Any) -> Any:
        logits = step(*given)
        slots = [given[1][i] for i in given[3]]
        if bad.slot is not None and bad.slot.index in slots:
            logits[slots.index(bad.slot.index)] = np.nan
        return logits

    engine.runtime.step = damaged  # type: ignore[method-assign, assignment]

    async def both(made: AsyncEngine) -> None:
        results = await asyncio.gather(text_of(made, bad), text_of(made, good), return_exceptions=True)
        assert isinstance(results[0], GGPYError)
        assert results[1] == alone(good.prompt)

    run(engine, both)


def test_a_runtime_that_fails_fails_all_but_not_the_thread() -> None:
    engine = engine_of(n_slots=2)
    step = engine.runtime.step

    def broken(*given: Any) -> Any:
        raise OSError("no page")

    async def fail(made: AsyncEngine) -> None:
        engine.runtime.step = broken  # type: ignore[method-assign, assignment]
        asked = [text_of(made, engine.request(tokens(i), GREEDY)) for i in range(3)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(result) for result in results] == ["The runtime failed: no page"] * 3
        engine.runtime.step = step  # type: ignore[method-assign]
        assert await text_of(made, engine.request(tokens(4), GREEDY)) == alone(tokens(4))

    run(engine, fail)


def test_a_full_queue_is_the_callers_error() -> None:
    engine = engine_of(n_slots=1, max_waiting=1)

    async def full(made: AsyncEngine) -> None:
        tasks = [asyncio.create_task(text_of(made, engine.request(tokens(i), GREEDY))) for i in range(6)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, QueueFull)]
        assert 0 < len(refused) < 6
        assert all(isinstance(result, (str, QueueFull)) for result in results)

    run(engine, full)


def test_closing_ends_those_who_wait() -> None:
    engine = engine_of(n_slots=1)

    async def main() -> None:
        made = AsyncEngine(engine)
        endless = SamplingParams(temperature=0, max_tokens=230).resolved()
        requests = [engine.request(tokens(i), endless) for i in range(3)]
        tasks = [asyncio.create_task(text_of(made, request)) for request in requests]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(made.close)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(request.finished for request in requests)
        with pytest.raises(GGPYError, match="closed"):
            await text_of(made, engine.request(tokens(9), GREEDY))

    asyncio.run(main())


def test_a_beam_search_beside_requests() -> None:
    engine = engine_of(n_slots=3)
    params = BeamSearchParams(2, 9)
    lonely = BeamSearchRequest(engine_of(n_slots=3), tokens(7), params)
    run_searches(lonely.engine, threading.RLock(), [lonely])

    async def both(made: AsyncEngine) -> None:
        searches = [made.search(BeamSearchRequest(engine, tokens(7), params)) for _ in range(3)]
        texts = [text_of(made, engine.request(tokens(i), GREEDY)) for i in range(4)]
        results = await asyncio.gather(*searches, *texts)
        assert results == [*[lonely.output()] * 3, *[alone(tokens(i)) for i in range(4)]]
        endless = BeamSearchRequest(engine, tokens(8), BeamSearchParams(2, 200, ignore_eos=True))
        for wait in (0, 0.001, 0.02):
            task = asyncio.create_task(made.search(endless))
            await asyncio.sleep(wait)
            task.cancel()
        assert await text_of(made, engine.request(tokens(4), GREEDY)) == alone(tokens(4))
        assert endless.finished

    run(engine, both)
    assert not engine.has_work


def test_a_beam_search_fails_with_the_runtime_and_ends_with_the_engine() -> None:
    engine = engine_of(n_slots=2)
    step = engine.runtime.step

    def broken(*given: Any) -> Any:
        raise OSError("no page")

    async def fail(made: AsyncEngine) -> None:
        engine.runtime.step = broken  # type: ignore[method-assign, assignment]
        asked = [BeamSearchRequest(engine, tokens(i), BeamSearchParams(2, 200, ignore_eos=True)) for i in range(4)]
        results = await asyncio.gather(*map(made.search, asked[:2]), return_exceptions=True)
        assert [str(result) for result in results] == ["The runtime failed: no page"] * 2
        engine.runtime.step = step  # type: ignore[method-assign]
        tasks = [asyncio.create_task(made.search(one)) for one in asked[2:]]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(made.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all("The engine was closed" in str(result) for result in results)

    run(engine, fail)
