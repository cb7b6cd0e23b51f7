"""The real default model through the real commands; skipped where it cannot be fetched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.conversation import Conversation
from ggpy.hub.default_model import DEFAULT, fetch


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return fetch(DEFAULT)
    except GGPYError as error:
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_ctx=512, n_parallel=3) as llm:
        yield llm


GREEDY = SamplingParams(temperature=0, max_tokens=8)


def test_run_command(path: Path) -> None:
    command = [sys.executable, "-m", "ggpy", "run", "--temp", "0", "-n", "4", "--raw", "-p", "The capital of France is"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert result.stdout.startswith(" Paris.")
    assert "prompt 5 tok" in result.stderr


def test_greedy_tokens_are_the_likeliest(llm: LLM) -> None:
    (output,) = llm.generate("The capital of France is", GREEDY)
    assert output.outputs[0].text.startswith(" Paris.")
    chosen = output.outputs[0].token_ids
    logits = llm.logits([*output.prompt_token_ids, *chosen])
    assert logits.shape == (5 + 8, llm.n_vocab)
    rows = logits[4:-1]
    # One batch and token by token round differently: what was chosen is at most that far from the likeliest.
    assert (rows.max(axis=1) - rows[np.arange(8), chosen]).max() < 1.5


def test_prompts_together_and_alone(llm: LLM) -> None:
    prompts = ["1, 2, 3, 4,", "The capital of France is", "one two three four"]
    together = [output.outputs[0].text for output in llm.generate(prompts, GREEDY)]
    assert together[0].startswith(" 5, 6,")
    assert together[1].startswith(" Paris")
    assert together[2].startswith("-digit numbers are")


def test_a_seed_repeats_an_answer(path: Path) -> None:
    messages = [{"role": "user", "content": "Write a poem about the sea."}]
    params = SamplingParams(seed=11, max_tokens=24)
    texts = []
    for _ in range(2):
        with LLM(path, n_ctx=512) as llm:
            texts.append(llm.chat(messages, params)[0].outputs[0].text)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20


def test_chinese_streams_in_whole_characters(llm: LLM) -> None:
    pieces = list(llm.generate("中文：你好，世界。你好，世界。你好，", GREEDY, stream=True))
    assert pieces
    assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_a_conversation_evaluates_only_new_tokens(llm: LLM) -> None:
    talk = Conversation(llm)
    list(talk.reply("My name is Ada.", SamplingParams(seed=1, max_tokens=24)))
    assert talk.last is not None
    held = len(talk.last.tokens) - 1  # the last token was chosen, not evaluated
    before = llm.engine.n_evaluated
    list(talk.reply("What is my name?", SamplingParams(seed=1, max_tokens=1)))
    assert llm.engine.n_evaluated - before == len(talk.last.prompt) - held
    assert len(talk.last.prompt) - held < 20
