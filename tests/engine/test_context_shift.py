"""Answers that go on in a full context: each token is the one that the kept text alone gives."""

from __future__ import annotations

from typing import Any

import pytest

from ggpy import LLM, GGPYError
from ggpy.engine.context_shift import ContextShift
from ggpy.engine.engine import Engine
from ggpy.engine.speculative import SpeculativeConfig
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import BOS, EOS, ByteTokenizer, FakeRuntime, FixedTimes, PassingRuntime

KINDS: dict[str, Any] = {
    "full": FakeRuntime,
    "by kind": lambda **given: FakeRuntime(by_kind=True, **given),
    "on the device": lambda **given: FakeRuntime(max_sampled=8, **given),
    "shared cells": lambda **given: FakeRuntime(kv_cells=128, **given),
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 48, 16, **given),
}
N_CTX = 64
FIRST, REST = [BOS, *b"system:x", EOS], [BOS, *b"user:a question", EOS, BOS, *b"assistant:"]


def params(n: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True).resolved()


def answer(kind: str, prompt: list[int], n: int, n_ctx: int, **options: Any) -> Any:
    engine = Engine(KINDS[kind](n_ctx=n_ctx), ByteTokenizer(), **options)  # type: ignore[arg-type]
    request = engine.request(prompt, params(n))
    engine.add(request)
    while not request.finished:
        engine.step()
    return request


def expected(prompt: list[int], n: int, n_keep: int) -> list[int]:
    """An answer's tokens, each run of them from a fresh engine with what is kept."""
    context, said = list(prompt), []
    while len(said) < n:
        new = answer("full", context, min(n - len(said), N_CTX + 1 - len(context)), 200).token_ids
        said += new
        context += new
        del context[n_keep : n_keep + (len(context) - n_keep) // 2]
    return said


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "by kind"])
def test_the_kept_text_alone_counts(kind: str) -> None:
    notes: list[str] = []
    request = answer(kind, FIRST + REST, 150, N_CTX, context_shift=ContextShift(notify=notes.append))
    assert (request.finish_reason, request.reached_context) == ("length", False)
    assert request.token_ids == expected(FIRST + REST, 150, len(FIRST))
    dropped = (N_CTX + 1 - len(FIRST)) // 2
    (note,) = notes  # of four
    assert f"context of {N_CTX} tokens is full" in note
    assert f"without the oldest {dropped} after the first {len(FIRST)}" in note
    assert request.timings.n_decode == 150


@pytest.mark.parametrize(("n_keep", "kept"), [(0, 0), (5, 5), (1000, N_CTX // 2), (None, len(FIRST))])
def test_what_stays(n_keep: int | None, kept: int) -> None:
    prompt = FIRST + REST + [7] * 10
    request = answer("full", prompt, 100, N_CTX, context_shift=ContextShift(n_keep))
    assert request.token_ids == expected(prompt, 100, kept)
    plain = answer("full", [BOS, *b"no message here"], 100, N_CTX, context_shift=ContextShift())
    assert plain.token_ids == expected(plain.prompt, 100, 1)


def test_by_kind_goes_on_too() -> None:
    """There cells depend on how they were evaluated: the kept text is a prompt's."""
    one, two = (answer("by kind", FIRST + REST, 120, N_CTX, context_shift=ContextShift()) for _ in range(2))
    assert len(one.token_ids) == 120
    assert one.token_ids == two.token_ids


@pytest.mark.parametrize("kind", ["full", "carried"])
def test_drafts_change_nothing(kind: str) -> None:
    plain = answer(kind, FIRST + REST, 150, N_CTX, context_shift=ContextShift())
    drafted = answer(kind, FIRST + REST, 150, N_CTX, context_shift=ContextShift(), speculative=SpeculativeConfig())
    assert drafted.token_ids == plain.token_ids


def test_a_draft_model_follows() -> None:
    """It reads what is kept, also where it had rested: as its logits are those of its whole text, all drafts count."""
    prompt = FIRST + REST[:12]
    plain = answer("full", prompt, 150, N_CTX, context_shift=ContextShift())
    engine = Engine(
        FakeRuntime(n_ctx=N_CTX), ByteTokenizer(), context_shift=ContextShift(),  # type: ignore[arg-type]
        speculative=SpeculativeConfig("draft_model", 4, model="small"), draft=FakeRuntime(n_ctx=N_CTX, n_batch=64),
    )  # fmt: skip
    assert engine.speculator is not None
    engine.speculator.times = FixedTimes(1e6)
    request = engine.request(prompt, params(150))
    engine.add(request)
    while not request.finished:
        rests = 5 < request.n_chosen < 50  # its slot holds 28 tokens then; the first shift leaves 38
        engine.speculator.drafter.times = FixedTimes(1e9 if rests else 1.0)  # type: ignore[attr-defined]
        engine.step()
    assert request.token_ids == plain.token_ids
    assert request.n_accepted == request.n_drafted > 70


def test_without_it_answers_end() -> None:
    request = answer("full", FIRST + REST, 150, N_CTX)
    assert (request.finish_reason, request.reached_context) == ("length", True)
    assert len(request.tokens) == N_CTX + 1


def test_what_is_kept_needs_a_shift() -> None:
    with pytest.raises(GGPYError, match="ask for context_shift with it"):
        LLM("x.gguf", n_keep=4)
    with pytest.raises(GGPYError, match="context_shift"):
        LLM("x.gguf", context_shift="yes")  # type: ignore[arg-type]
