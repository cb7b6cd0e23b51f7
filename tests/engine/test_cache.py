"""Requests over state that cannot be cut back: what is evaluated again, and that nothing goes on from a wrong state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ggpy.engine import cache
from ggpy.engine.cache import Cache
from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.graph.state import ConvState, KVState, Reach, RecurrentState
from ggpy.runtime.host_memory import HostMemory
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import BOS, EOS, ByteTokenizer, PassingRuntime, saying

KINDS: dict[str, dict[str, Any]] = {
    "carried": {"carried": True},
    "ring": {"carried": False, "n_cells": 64, "window": 24},
    "both": {"carried": True, "n_cells": 48, "window": 24},
}


def engine_of(kind: str, **options: Any) -> tuple[Engine, PassingRuntime]:
    runtime = PassingRuntime(**{"n_batch": 16, "n_slots": 1, **KINDS[kind], **options})
    return Engine(runtime, ByteTokenizer()), runtime  # type: ignore[arg-type]


def answer(engine: Engine, prompt: list[int], n: int = 8, **params: Any) -> Request:
    request = engine.request(prompt, SamplingParams(max_tokens=n, temperature=0.0, **params).resolved())
    engine.add(request)
    while not request.finished:
        engine.step()
    return request


def turn(role: str, text: str) -> list[int]:
    return [BOS, *f"{role}:{text}".encode(), EOS]


ASKS = [BOS, *b"assistant:"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_goes_on_from_its_end(kind: str) -> None:
    """The answer comes back as it was given: only what is new is evaluated."""
    engine, _ = engine_of(kind, script=saying("fine"))
    prompt = turn("user", "a question that is longer than a step takes at once") + ASKS
    first = answer(engine, prompt)
    assert first.text == "fine"
    done = engine.n_evaluated
    following = first.tokens + turn("user", "and now?") + ASKS
    second = answer(engine, following)
    assert engine.n_evaluated - done == len(following) - len(first.tokens) + 1 + len(second.token_ids) - 1
    assert second.timings.n_reused == len(first.tokens) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_comes_back_changed(kind: str) -> None:
    """Thoughts left out of the history, with the tag that opened them: the next turn goes on from the checkpoint before
    the answer, or as far as the ring reaches back from the one at the prompt's end."""
    engine, runtime = engine_of(kind)
    prompt = [*turn("system", "x" * 30), *turn("user", "a question"), *ASKS]
    answer(engine, [*prompt, *b"<think>"], 60)
    following = [*prompt, *b"short", EOS, *turn("user", "and now?"), *ASKS]
    alone, _ = engine_of(kind)
    second = answer(engine, following)
    assert second.timings.n_reused == len(prompt) - (len(ASKS) if runtime.reach.carried else 0)
    assert runtime.restored == 1
    assert second.token_ids == answer(alone, following).token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_again(kind: str) -> None:
    engine, _ = engine_of(kind)
    prompt = turn("user", "a question") + ASKS
    first, second = answer(engine, prompt, 40), answer(engine, prompt, 40)
    assert first.token_ids == second.token_ids
    assert second.timings.n_reused > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_again(kind: str) -> None:
    """Without a control token in it: its last token alone is evaluated, or what a step of the ring does not reach."""
    engine, _ = engine_of(kind, n_ctx=600)
    prompt = [BOS, *np.random.default_rng(1).integers(0, 256, 400).tolist()]
    first, second = answer(engine, prompt, 60), answer(engine, prompt, 60)
    assert first.token_ids == second.token_ids
    assert second.timings.n_prompt == 1


def test_a_ring_is_cut_as_far_as_it_reaches() -> None:
    """Its cells beside those that the next token sees, without a checkpoint; further with one."""
    for back, restored in ((0, 0), (41, 0), (42, 1)):
        engine, runtime = engine_of("ring")
        tokens = answer(engine, turn("user", "x" * 60), 40).tokens
        again = answer(engine, [*tokens[: len(tokens) - 1 - back], 3], 1)
        assert again.timings.n_reused == len(tokens) - 1 - back
        assert runtime.restored == restored


@pytest.mark.parametrize("kind", KINDS)
def test_requests_at_random(kind: str) -> None:
    """Prompts that share beginnings in two slots, broken off now and then: each answer is that of a fresh engine."""
    rng = np.random.default_rng(5)
    engine, runtime = engine_of(kind, n_slots=2)
    known: list[list[int]] = [[BOS]]
    for _ in range(60):
        base = known[rng.integers(len(known))]
        cut = base[: rng.integers(1, len(base) + 1)]
        prompt = (cut + rng.integers(0, 258, rng.integers(1, 30)).tolist())[:200]
        requests = [
            engine.request(p, SamplingParams(max_tokens=int(rng.integers(1, 20)), temperature=0.0).resolved())
            for p in (prompt, prompt[: len(prompt) // 2 + 1])
        ]
        for request in requests:
            engine.add(request)
        steps = 0
        while not all(request.finished for request in requests):
            engine.step()
            steps += 1
            if steps == 3 and rng.random() < 0.2:
                engine.abort(requests[0])
        for request in requests:
            if request.finish_reason != "abort":
                fresh, _ = engine_of(kind)
                assert answer(fresh, request.prompt, request.params.max_tokens or 1).token_ids == request.token_ids
        known.append(requests[0].tokens)
    assert runtime.restored > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_step_leaves_no_wrong_state(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runtime = engine_of(kind)
    prompt = turn("user", "a question of some length, in several steps") + ASKS
    whole = answer(engine_of(kind)[0], prompt, 30)
    request = engine.request(prompt, SamplingParams(max_tokens=30, temperature=0.0).resolved())
    engine.add(request)
    step = runtime.step
    for broken in (2, 9, 15):

        def interrupted(*given: Any, **others: Any) -> Any:
            step(*given, **others)
            raise KeyboardInterrupt

        for _ in range(broken):
            engine.step()
        monkeypatch.setattr(runtime, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        monkeypatch.setattr(runtime, "step", step)
        engine.abort(request)
        again = engine.request(prompt, SamplingParams(max_tokens=30, temperature=0.0).resolved())
        request = again
        engine.add(request)
    while not request.finished:
        engine.step()
    assert request.token_ids == whole.token_ids


def test_checkpoints_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runtime = engine_of("carried", n_slots=2)
    monkeypatch.setattr(cache, "CHECKPOINT_EVERY", 8)
    for text in ("a" * 100, "b" * 100):
        answer(engine, turn("user", text) + ASKS)
    assert all(len(slot.checkpoints) == cache.CHECKPOINTS for slot in engine.slots)
    size = engine.slots[0].checkpoints[0].nbytes
    monkeypatch.setattr(engine.cache, "host_memory", HostMemory(3 * size))
    answer(engine, turn("user", "c" * 100) + ASKS)
    other, last = sorted(engine.slots, key=lambda slot: slot.last_used)
    assert (len(other.checkpoints), len(last.checkpoints)) == (0, 3)
    assert runtime.checkpoints > 20


def test_reach_of_states() -> None:
    full, window = KVState(0, 2, 64, 64), KVState(1, 2, 64, 64, window=100)
    assert Reach.of([full], 4096, 512).everywhere
    assert Reach.of([full, window], 4096, 512) == Reach(False, frozenset({(1024, 100)}))
    assert Reach.of([window], 1000, 512).everywhere  # a ring of as many cells as the context goes round never
    assert Reach.of([ConvState(0, 3, 64)], 4096, 512).carried
    assert Reach.of([RecurrentState(0, 2, 8, 8)], 4096, 512).carried
    reach = Reach(False, frozenset({(1024, 100)}))
    assert reach.cuts(-1, 2000, 1076)
    assert not reach.cuts(-1, 2000, 1000)
    assert reach.cuts(-1, 1024, 1)


def test_a_plain_model_takes_no_checkpoints() -> None:
    runtime = PassingRuntime(False)
    made = Cache(runtime)  # type: ignore[arg-type]
    assert made.stops([BOS] * 50, ByteTokenizer()) == []  # type: ignore[arg-type]
