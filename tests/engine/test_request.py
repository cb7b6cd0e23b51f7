"""Parameters that a request follows beyond its sampler: log-probabilities, also of the prompt, and where it ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import EOS, ByteTokenizer, FakeRuntime, saying

PROMPT = [7, 99, 3, 3, 200, 41, 8, 120, 5, 9, 77, 0]


def engine_of(**options: Any) -> Engine:
    return Engine(FakeRuntime(**options), ByteTokenizer())  # type: ignore[arg-type]


def run(engine: Engine, prompt: list[int], *others: Request, **asked: Any) -> Request:
    request = engine.request(prompt, SamplingParams(**{"max_tokens": 5, "seed": 1, **asked}).resolved())
    for one in (request, *others):
        engine.add(one)
    while engine.has_work:
        engine.step()
    return request


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - peak - np.log(np.exp(wide - peak).sum(axis=-1, keepdims=True)))


def expected(tokens: list[int]) -> np.ndarray:
    """The log-probability of every token after each one."""
    return log_softmax(engine_of().logits(tokens))


@pytest.mark.parametrize("options", [{}, {"max_sampled": 8}, {"by_kind": True}, {"n_batch": 5}], ids=str)
def test_logprobs_are_those_of_the_models_own_logits(options: dict[str, Any]) -> None:
    asked = {"temperature": 0.3, "repetition_penalty": 1.3, "logit_bias": {5: 3.0}, "top_k": 3, "seed": 4}
    plain = run(engine_of(**options), PROMPT, **asked)
    request = run(engine_of(**options), PROMPT, **asked, logprobs=2)
    assert request.token_ids == plain.token_ids
    assert plain.logprobs is None
    assert request.logprobs is not None
    if options.get("by_kind"):
        return  # logits of generated tokens are others there
    table = expected(request.tokens)[len(PROMPT) - 1 :]
    for token, found, row in zip(request.token_ids, request.logprobs, table, strict=False):
        assert found[token].logprob == pytest.approx(row[token], abs=1e-5)
        likeliest = np.argsort(-row)[:2].tolist()
        assert list(found) == list(dict.fromkeys([token, *likeliest]))
        assert found[token].rank == int((row >= row[token]).sum())
    assert len(request.logprobs) == 5
    total = sum(found[token].logprob for token, found in zip(request.token_ids, request.logprobs, strict=True))
    assert request.cumulative_logprob == pytest.approx(total)
    assert request.mean_logprob == pytest.approx(total / 5)


@pytest.mark.parametrize(
    "options", [{}, {"max_sampled": 8}, {"by_kind": True}, {"n_batch": 5}, {"n_batch": 1}], ids=str
)
def test_logprobs_of_the_prompt(options: dict[str, Any]) -> None:
    engine = engine_of(**options)
    before = run(engine, PROMPT)  # its cells are not to be gone on from
    others = [engine.request(PROMPT[:k], SamplingParams(max_tokens=9, temperature=0).resolved()) for k in (3, 12)]
    request = run(engine, PROMPT, *others, prompt_logprobs=1)
    assert request.token_ids == before.token_ids
    assert before.prompt_logprobs is None
    assert request.prompt_logprobs is not None
    assert len(request.prompt_logprobs) == len(PROMPT)
    assert request.prompt_logprobs[0] is None
    for token, found, row in zip(PROMPT[1:], request.prompt_logprobs[1:], expected(PROMPT), strict=False):
        assert found is not None
        assert found[token].logprob == pytest.approx(row[token], abs=1e-5)
        assert found[int(row.argmax())].rank == 1


def test_a_prompt_of_one_token_has_no_logprobs() -> None:
    assert run(engine_of(max_sampled=8), [5], prompt_logprobs=0).prompt_logprobs == [None]


def test_a_displaced_request_scores_its_prompt_once() -> None:
    engine = engine_of(n_slots=1, n_batch=5)
    request = engine.request(PROMPT, SamplingParams(max_tokens=3, prompt_logprobs=0, seed=1).resolved())
    engine.add(request)
    for turn in range(12):
        if turn in (1, 4):
            engine.logits([1, 2, 3])  # takes the only slot
        engine.step()
    assert request.finished
    assert request.prompt_logprobs is not None
    values = [
        found[token].logprob for token, found in zip(PROMPT[1:], request.prompt_logprobs[1:], strict=True) if found
    ]
    table = expected(PROMPT)
    assert values == pytest.approx([table[i, token] for i, token in enumerate(PROMPT[1:])], abs=1e-5)


@pytest.mark.parametrize("max_sampled", [0, 8])
@pytest.mark.parametrize(
    ("asked", "text", "reason"),
    [
        ({}, "one. two", EOS),
        ({"stop": "."}, "one", "."),
        ({"stop": ".", "include_stop_str_in_output": True}, "one.", "."),
        ({"stop": ".", "min_tokens": 3}, "one", "."),  # it ends with the fourth
        ({"stop": ".", "min_tokens": 4}, "one. two", EOS),
        ({"stop": ". t", "min_tokens": 5}, "one", ". t"),  # it may have begun before
        ({"stop_token_ids": [ord("e")]}, "on", ord("e")),
        ({"stop_token_ids": [ord("e")], "include_stop_str_in_output": True}, "one", ord("e")),
        ({"include_stop_str_in_output": True}, "one. two", EOS),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "one. two<|end|>", EOS),
        ({"skip_special_tokens": False}, "one. two", EOS),
        ({"stop": "two<|end|>"}, "one. ", "two<|end|>"),
        ({"stop": "two<|end|>", "include_stop_str_in_output": True}, "one. two", "two<|end|>"),
    ],
    ids=str,
)
def test_where_a_text_ends(asked: dict[str, Any], text: str, reason: str | int, max_sampled: int) -> None:
    engine = engine_of(script=saying("one. two"), max_sampled=max_sampled)
    request = run(engine, [0], temperature=0, max_tokens=20, **asked)
    assert (request.text, request.finish_reason, request.stop_reason) == (text, "stop", reason)


@pytest.mark.parametrize("max_sampled", [0, 8])
def test_min_tokens_puts_off_the_end(max_sampled: int) -> None:
    for n in (1, 3, 9, 15):
        engine = engine_of(script=lambda prefix: EOS, max_sampled=max_sampled)
        request = run(engine, [0], temperature=0, max_tokens=20, min_tokens=n)
        assert request.n_chosen == n + 1
        assert EOS not in request.token_ids[:n]
    held = run(engine_of(script=saying("abcabc"), max_sampled=max_sampled), [0], temperature=0, min_tokens=4,
               stop_token_ids=[ord("b")], max_tokens=20)  # fmt: skip
    assert ord("b") not in held.token_ids[:4]


@pytest.mark.parametrize("max_sampled", [0, 8])
def test_bad_words_are_not_generated(max_sampled: int) -> None:
    script = saying("the cat")
    plain = run(engine_of(script=script, max_sampled=max_sampled), [0], temperature=0, max_tokens=20)
    assert plain.text == "the cat"
    for word in ("cat", " cat", "the", "at"):
        request = run(
            engine_of(script=script, max_sampled=max_sampled), [0], temperature=0, bad_words=word, max_tokens=20
        )
        assert word not in request.text
    single = run(
        engine_of(script=script, max_sampled=max_sampled), [0], temperature=0, bad_words=["x", "e"], max_tokens=9
    )
    assert single.token_ids[:2] == list(b"th")
    assert ord("e") not in single.token_ids


VARIED: list[dict[str, Any]] = [
    {},
    {"mirostat": 2},
    {"mirostat": 1},
    {"xtc_probability": 0.5, "xtc_threshold": 0.01},
    {"dry_multiplier": 0.8, "dry_allowed_length": 0},
    {"dynatemp_range": 0.5, "top_k": 0},
    {"top_n_sigma": 1.5, "samplers": "top_n_sigma;temperature"},
    {"min_tokens": 3, "bad_words": ["a", "xy"]},
    {"logprobs": 3, "prompt_logprobs": 2},
]


@pytest.mark.parametrize("max_sampled", [0, 8])
def test_a_seed_gives_the_same_text_whatever_the_batch(max_sampled: int) -> None:
    params = [SamplingParams(seed=i, max_tokens=12, **asked).resolved() for i, asked in enumerate(VARIED)]

    def start(engine: Engine, which: range) -> list[Request]:
        requests = [engine.request([*PROMPT[:5], i], params[i]) for i in which]
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
        return requests

    together = start(engine_of(n_slots=4, n_batch=7, max_sampled=max_sampled), range(len(params)))
    for i, request in enumerate(together):
        (alone,) = start(engine_of(), range(i, i + 1))
        assert (alone.token_ids, alone.text) == (request.token_ids, request.text), VARIED[i]
        assert alone.logprobs == request.logprobs
        assert alone.prompt_logprobs == request.prompt_logprobs


def test_nothing_is_worse_than_an_answer_that_failed() -> None:
    request = engine_of().request(PROMPT, SamplingParams(logprobs=0).resolved())
    assert request.mean_logprob == -math.inf
