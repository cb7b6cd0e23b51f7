"""`LLM.choose`: options' probabilities against a softmax over the logits of every token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggpy.llm
from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.runtime.load import Model
from tests.support import hf_beams
from tests.support.doubles import BOS, EOS, ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, PassingRuntime

RUNTIMES: dict[str, Any] = {
    "full": FakeRuntime,
    "by kind": lambda **given: FakeRuntime(by_kind=True, **given),
    "on the device": lambda **given: FakeRuntime(max_sampled=8, **given),
    "small steps": lambda **given: FakeRuntime(**{**given, "n_batch": 3}),
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
}
PROMPT = "Is the answer to this question, which is a long one, yes or no? "
OPTIONS = ["yes", "no", "nobody", "I do not know", "是"]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(kind: str = "full", **given: Any) -> LLM:
        runtime = RUNTIMES[kind](**{"n_slots": 3, **given})
        model = Model(FakeFile(), ByteTokenizer(), FakeTemplate(), runtime)  # type: ignore[arg-type]
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        return LLM("fake.gguf")

    return make


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - logits.max(-1, keepdims=True) - np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )  # fmt: skip


def expected(llm: LLM, ids: list[int], tokens: list[int], score_end: bool) -> float:
    rows = log_softmax(llm.logits([*ids, *tokens]))[len(ids) - 1 :]
    found = sum(row[token] for row, token in zip(rows, tokens, strict=False))
    return found + (math.log(sum(np.exp(rows[-1][token]) for token in llm.tokenizer.eog)) if score_end else 0.0)


@pytest.mark.parametrize("score_end", [False, True])
@pytest.mark.parametrize("kind", RUNTIMES)
def test_probabilities_are_those_of_the_logits(make: Any, kind: str, score_end: bool) -> None:
    llm = make(kind)
    beside = llm.request([1, 2, 3], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    deltas = llm.follow([beside])
    next(deltas)
    output = llm.choose(PROMPT, OPTIONS, score_end=score_end)
    assert (output.prompt, output.prompt_token_ids) == (PROMPT, [BOS, *PROMPT.encode()])
    assert [option.text for option in output.options] == OPTIONS
    assert [bytes(option.token_ids).decode() for option in output.options] == OPTIONS
    logprobs = [option.logprob for option in output.options]
    wanted = [expected(make(), output.prompt_token_ids, [*text.encode()], score_end) for text in OPTIONS]
    np.testing.assert_allclose(logprobs, wanted, rtol=1e-5)
    parts = np.exp(np.array(logprobs) - max(logprobs))
    np.testing.assert_allclose([option.probability for option in output.options], parts / parts.sum(), rtol=1e-9)
    assert output.best.logprob == max(logprobs)
    assert len("".join(text for _, text in deltas)) > 0


@pytest.mark.parametrize("kind", ["full", "on the device", "small steps", "carried", "ring"])
def test_the_prompt_is_evaluated_once(make: Any, kind: str) -> None:
    """In each further slot, and for each further option, only the last token of the prompt and the option's own."""
    llm = make(kind)
    output = llm.choose(PROMPT, OPTIONS)
    n_options = sum(len(option.token_ids) for option in output.options)
    assert llm.engine.n_evaluated == len(output.prompt_token_ids) - 1 + n_options + len(OPTIONS)
    assert llm.choose(output.prompt_token_ids, OPTIONS[:1]).options[0].logprob == output.options[0].logprob


def test_an_option_that_others_begin_with_shares_its_probability(make: Any) -> None:
    """Where ends are scored they are told apart; with all ways to end, probabilities are whole."""
    llm = make(script=lambda prefix: ord("a") if prefix[-1] == ord("?") else EOS)
    begins, longer = llm.choose("?", ["a", "ab"]).options
    assert begins.logprob > longer.logprob
    rows = log_softmax(llm.logits([BOS, ord("?"), ord("a"), ord("b")]))
    ended, longer = llm.choose("?", ["a", "ab"], score_end=True).options
    assert ended.logprob == pytest.approx(rows[1][ord("a")] + rows[2][EOS], rel=1e-5)
    assert longer.logprob == pytest.approx(rows[1][ord("a")] + rows[2][ord("b")] + rows[3][EOS], rel=1e-5)
    assert ended.probability + longer.probability == pytest.approx(1)


def test_a_conversation(make: Any) -> None:
    llm = make()
    messages = [{"role": "user", "content": "Really?"}]
    output = llm.choose(messages, ["yes", "no"])
    assert output.prompt == llm.render_chat(messages)
    assert output.prompt_token_ids == llm.tokenize_chat(output.prompt)
    assert output.options == llm.choose({"prompt_token_ids": output.prompt_token_ids}, ("yes", "no")).options


def test_a_model_of_its_own_kind_of_state(tmp_path: Path) -> None:
    hf_beams.write(tmp_path / "m", "lfm2")
    convert(tmp_path / "m", "f32", tmp_path / "m.gguf")
    with LLM(tmp_path / "m.gguf", n_ctx=256, n_threads=2, n_parallel=3) as llm:
        output = llm.choose(hf_beams.PROMPT, ["a", "b c", "and so on", "no"], score_end=True)
        for option in output.options:
            wanted = expected(llm, hf_beams.PROMPT, option.token_ids, True)
            assert option.logprob == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": []}, "a list of texts, one at least"),
        ({"options": ["a", ""]}, "options is .* each of a character at least"),
        ({"options": ["a", 3]}, "options is"),
        ({"options": ["a", "b", "a"]}, "options name 'a' twice"),
        ({"options": ["a", "b" * 300]}, "the context holds 256"),
        ({"score_end": 1}, "score_end"),
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": [300]}, "holds the token id 300"),
        ({"enable_thinking": False}, "enable_thinking is for a conversation's template"),
    ],
    ids=str,
)
def test_errors(make: Any, given: dict[str, Any], message: str) -> None:
    llm = make()
    with pytest.raises(GGPYError, match=message):
        llm.choose(**{"prompt": "x", "options": ["a", "b"], **given})
    assert not llm.engine.has_work


def test_logits_of_no_use_are_one_error(make: Any) -> None:
    llm = make(script=None)
    step = llm.runtime.step
    llm.runtime.step = lambda *given: step(*given) * np.float32(np.nan)
    with pytest.raises(GGPYError, match="no usable logits"):
        llm.choose("x", ["a", "b"])
    llm.runtime.step = step
    assert len(llm.choose("x", ["a", "b"]).options) == 2
