"""Beam search, held against transformers' and against a search that evaluates every beam anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, BeamSearchParams, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.engine.beam_requests import BeamSearches, BeamSearchRequest, run_searches
from ggpy.engine.beam_search import BeamSearch, BeamSearchOutput
from ggpy.engine.engine import Engine
from tests.support import hf_beams
from tests.support.doubles import BOS, EOS, ByteTokenizer, FakeRuntime, PassingRuntime

RUNTIMES: dict[str, Any] = {
    "full": FakeRuntime,
    "by kind": lambda **given: FakeRuntime(by_kind=True, **given),
    "on the device": lambda **given: FakeRuntime(max_sampled=8, **given),
    "small steps": lambda **given: FakeRuntime(**{**given, "n_batch": 3}),
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("beams")


@pytest.fixture(params=hf_beams.WRITERS)
def opened(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, LLM]]:
    path = folder / f"{request.param}.gguf"
    if not path.exists():
        hf_beams.write(folder / request.param, request.param)
        convert(folder / request.param, "f32", path)
    with LLM(path, n_ctx=2304, n_threads=2, n_parallel=5) as llm:  # more than the cells of a ring
        yield request.param, llm


def engine_of(kind: str = "full", **given: Any) -> Engine:
    return Engine(RUNTIMES[kind](**{"n_slots": 4, **given}), ByteTokenizer())  # type: ignore[arg-type]


def plainly(engine: Engine, prompt: list[int], params: BeamSearchParams) -> list[list[int]]:
    """The continuations found where every step evaluates every beam from its beginning."""
    search = BeamSearch(params, min(params.max_tokens, engine.runtime.n_ctx - len(prompt) + 1), engine.tokenizer.eog)
    while not search.done:
        rows = [engine.logits([*prompt, *beam.tokens])[-1] for beam in search.running]
        search.advance(np.stack(rows))
    return [beam.tokens for beam in search.finished]


def outputs(engine: Engine, prompts: list[list[int]], params: BeamSearchParams) -> list[BeamSearchOutput]:
    searches = [BeamSearchRequest(engine, prompt, params) for prompt in prompts]
    run_searches(engine, threading.RLock(), searches)
    assert not engine.has_work
    assert all(slot.request is None for slot in engine.slots)
    return [search.output() for search in searches]


def found(engine: Engine, prompt: list[int], params: BeamSearchParams) -> list[list[int]]:
    (output,) = outputs(engine, [prompt], params)
    return [sequence.token_ids for sequence in output.sequences]


def test_the_beams_are_transformers(opened: tuple[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, llm = opened
    monkeypatch.setattr(llm.tokenizer, "eog", frozenset(hf_beams.ENDS))
    for case in hf_beams.recorded():
        if case["kind"] == kind:
            names = ("beam_width", "max_tokens", "length_penalty", "early_stopping")
            params = BeamSearchParams(**{name: case[name] for name in names})
            (output,) = llm.beam_search(hf_beams.PROMPT, params)
            assert [sequence.token_ids for sequence in output.sequences] == case["tokens"], case
            np.testing.assert_allclose([s.score for s in output.sequences], case["scores"], rtol=1e-3, atol=1e-4)


def test_the_prompt_is_evaluated_once(opened: tuple[str, LLM]) -> None:
    """And beams of a prompt longer than any window are those that are evaluated from their beginning each time."""
    _, llm = opened
    prompt = np.random.default_rng(0).integers(0, 456, 1100).tolist()
    params = BeamSearchParams(beam_width=3, max_tokens=6)
    before = llm.engine.n_evaluated
    (output,) = llm.beam_search(prompt, params)
    assert llm.engine.n_evaluated - before <= len(prompt) + 3 * 5
    assert [s.token_ids for s in output.sequences] == plainly(llm.engine, prompt, params)


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_no_beam_goes_on_from_anothers_state(kind: str, width: int) -> None:
    engine = engine_of(kind)
    prompt = [BOS, *b"a prompt that is longer than one of these steps"]
    params = BeamSearchParams(width, 12, ignore_eos=width == 2)
    beams = found(engine, prompt, params)
    assert len(beams) == width
    if kind != "by kind":  # there the plain search evaluates what was generated as a prompt
        assert beams == plainly(engine_of(kind), prompt, params)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_prompts_are_searched_together(kind: str) -> None:
    engine = engine_of(kind)
    prompts = [[BOS, *text.encode()] for text in ("one", "another", "and a third", "one and more")]
    params = BeamSearchParams(2, 6)
    together = [[s.token_ids for s in output.sequences] for output in outputs(engine, prompts, params)]
    assert together == [found(engine_of(kind), prompt, params) for prompt in prompts]


@pytest.mark.parametrize("n_slots", [2, 4])
@pytest.mark.parametrize("kind", RUNTIMES)
def test_requests_and_beams_go_on_beside_each_other(kind: str, n_slots: int) -> None:
    """All get what each gets alone, whatever waits for slots, and whoever borrows one."""
    engine = engine_of(kind, n_slots=n_slots)
    prompts = [[BOS, *b"beams of one prompt"], [BOS, *b"beams of another"]]
    params = BeamSearchParams(2, 8)
    searches = [BeamSearchRequest(engine, prompt, params) for prompt in prompts]
    asked = [SamplingParams(temperature=0.8, seed=i, max_tokens=5 + 7 * i).resolved() for i in range(4)]
    requests = [engine.request([BOS, *b"a request", i], params) for i, params in enumerate(asked)]
    for request in requests[:2]:
        engine.add(request)
    for _ in range(3):
        engine.step()
    for search in searches:
        BeamSearches.of(engine).add(search)
    for request in requests[2:]:
        engine.add(request)
    for step in range(200):
        engine.step()
        if step in (4, 9, 14):
            engine.logits([1, 2, 3])
    assert not engine.has_work
    lonely = [found(engine_of(kind), prompt, params) for prompt in prompts]
    assert [[s.token_ids for s in search.output().sequences] for search in searches] == lonely
    for request in requests:
        alone = engine_of(kind)
        other = alone.request(request.prompt, request.params)
        alone.add(other)
        while alone.has_work:
            alone.step()
        assert request.token_ids == other.token_ids


def test_beams_and_requests_share_steps() -> None:
    engine = engine_of(n_slots=4)
    request = engine.request([1], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True).resolved())
    engine.add(request)
    engine.step()
    search = BeamSearchRequest(engine, [2], BeamSearchParams(3, 6, ignore_eos=True))
    run_searches(engine, threading.RLock(), [search])
    assert engine.runtime.batches == [1, 2, 4, 4, 4, 4, 4]  # type: ignore[attr-defined]
    assert request.n_chosen == 7


def test_a_search_that_ends_early_leaves_its_slots() -> None:
    engine = engine_of()
    search, later = (BeamSearchRequest(engine, [i], BeamSearchParams(3, 100, ignore_eos=True)) for i in (1, 2))
    ended = []
    search.on_finish = lambda: ended.append(search)
    for one in (search, later):
        BeamSearches.of(engine).add(one)
    for _ in range(4):
        engine.step()
    search.end()
    search.end()
    assert ended == [search]
    engine.step()
    assert not later.finished
    BeamSearches.of(engine).end_all(GGPYError("over"))
    with pytest.raises(GGPYError, match="over"):
        later.output()
    assert found(engine, [3], BeamSearchParams(4, 3)) == found(engine_of(), [3], BeamSearchParams(4, 3))


def test_logits_of_no_use_end_their_search_alone() -> None:
    engine = engine_of()
    step = engine.runtime.step
    bad, good = (BeamSearchRequest(engine, [i], BeamSearchParams(2, 8)) for i in (1, 2))

    def damaged(*given: Any) -> Any:
        logits = step(*given)
        slots = {request.slot.index for request in bad.requests if request.slot is not None}
        for row, i in zip(logits, given[3], strict=True):
            row[:] = np.nan if given[1][i] in slots and given[2][i] == 3 else row
        return logits

    engine.runtime.step = damaged  # type: ignore[method-assign, assignment]
    run_searches(engine, threading.RLock(), [bad, good])
    with pytest.raises(GGPYError, match="no usable logits"):
        bad.output()
    assert [s.token_ids for s in good.output().sequences] == found(engine_of(), [2], BeamSearchParams(2, 8))


def test_where_too_many_wait() -> None:
    engine = Engine(FakeRuntime(n_slots=2), ByteTokenizer(), max_waiting=0)  # type: ignore[arg-type]
    search = BeamSearchRequest(engine, [1], BeamSearchParams(2, 8))
    run_searches(engine, threading.RLock(), [search])
    with pytest.raises(GGPYError, match="wait already"):
        search.output()


def test_a_prompt_that_is_cached_is_not_evaluated_again() -> None:
    engine = engine_of()
    prompt = [BOS, *b"a prompt of some length, which is asked for twice"]
    first = found(engine, prompt, BeamSearchParams(3, 4))
    before = engine.n_evaluated
    assert found(engine, prompt, BeamSearchParams(3, 4)) == first
    assert engine.n_evaluated - before == 1 + 3 * 3


def test_the_context_ends_beams() -> None:
    beams = found(engine_of(n_ctx=16), [BOS, *b"0123456789"], BeamSearchParams(2, 100, ignore_eos=True))
    assert [len(beam) for beam in beams] == [6, 6]


def test_end_tokens_and_texts() -> None:
    """An end token is one of the tokens, and no part of the text."""
    engine = engine_of(script=lambda prefix: EOS if prefix[-1:] == [ord("b")] else ord("b"))
    prompt = [BOS, *b"a"]
    (output,) = outputs(engine, [prompt], BeamSearchParams(2, 8))
    best = output.sequences[0]
    assert (best.tokens, best.token_ids) == ([*prompt, ord("b"), EOS], [ord("b"), EOS])
    assert (best.text, best.output_text) == ("<|begin|>ab", "b")
    assert (best.finish_reason, best.stop_reason) == ("stop", EOS)
    assert best.score == pytest.approx(best.cum_logprob / 2)
    (output,) = outputs(engine, [prompt], BeamSearchParams(2, 3, ignore_eos=True))
    assert [EOS in sequence.tokens for sequence in output.sequences] == [False, False]
    assert [sequence.finish_reason for sequence in output.sequences] == ["length", "length"]


def test_temperature_divides_the_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    cold, plain = BeamSearch(BeamSearchParams(2, 1, temperature=0.5), 1, ()), BeamSearch(BeamSearchParams(2, 1), 1, ())
    cold.advance(logits.copy())
    plain.advance(2 * logits)
    assert [beam.logprob for beam in cold.finished] == [beam.logprob for beam in plain.finished]


def test_errors() -> None:
    with pytest.raises(GGPYError, match="opened for 4 sequences at a time; open it with n_parallel=5"):
        BeamSearchRequest(engine_of(), [1], BeamSearchParams(5, 8))
    for wrong in ({"beam_width": 0}, {"max_tokens": 0}, {"early_stopping": "soon"}, {"length_penalty": "long"}):
        with pytest.raises(GGPYError, match=next(iter(wrong))):
            BeamSearchParams(**{"beam_width": 2, "max_tokens": 8, **wrong})  # type: ignore[arg-type]
    with pytest.raises(GGPYError, match="no usable logits"):
        BeamSearch(BeamSearchParams(2, 8), 8, ()).advance(np.full((1, 50), np.nan, np.float32))
    with pytest.raises(GGPYError, match="The prompt is empty"):
        BeamSearchRequest(engine_of(), [], BeamSearchParams(2, 8))
