"""A batch's requests over a stand-in for the model: each has its result, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggpy.llm
from ggpy.batch.files import BatchLine
from ggpy.batch.run import run_batch
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.prepare import answers_to
from ggpy.protocol.generation import ChatRequest, Reasoning
from ggpy.runtime.load import Model
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.text.chat_template import ChatTemplate
from ggpy.text.reply import reply_format
from tests.support.doubles import BOS, N_VOCAB, ByteTokenizer, FakeFile, FakeRuntime, saying
from tests.support.families import family_checkpoint

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TEMPLATE = (
    "{% for m in messages %}{{ '<|begin|>' + m.role + ':' + m.content + '<|end|>' }}{% endfor %}<|begin|>assistant:"
)
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(script: Any = None, template: str | None = TEMPLATE, **runtime: Any) -> LLM:
        model = Model(
            FakeFile(),  # type: ignore[arg-type]
            ByteTokenizer(),  # type: ignore[arg-type]
            ChatTemplate(template) if template else None,
            FakeRuntime(script=script, **runtime),  # type: ignore[arg-type]
        )
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        return LLM("fake.gguf")

    return make


def line(name: str, url: str, method: str = "POST", **body: Any) -> BatchLine:
    return BatchLine(name, method, url, body)


def answered(llm: LLM, *lines: BatchLine) -> dict[str, dict[str, Any]]:
    """The responses by custom_id."""
    rows: dict[str, dict[str, Any]] = {}

    def report(row: dict[str, Any], n_tokens: int) -> None:
        assert row["custom_id"] not in rows
        assert row["error"] is None
        rows[row["custom_id"]] = row["response"]

    run_batch(llm, iter(lines), report)
    assert not llm.engine.has_work
    return rows


def test_answers_are_those_of_the_library(make: Any) -> None:
    llm = make(n_slots=3)
    lines = [line(f"r{i}", TEXT, prompt=f"text {i}", max_tokens=2 + i % 5, temperature=0) for i in range(60)]
    lines += [line(f"c{i}", CHAT, messages=HELLO, max_tokens=4, seed=i) for i in range(20)]
    rows = answered(llm, *lines)
    for i in range(60):
        body = rows[f"r{i}"]["body"]
        (expected,) = llm.generate(f"text {i}", SamplingParams(temperature=0, max_tokens=2 + i % 5))
        assert body["choices"][0]["text"] == expected.outputs[0].text
        assert body["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
        assert body["usage"]["completion_tokens"] == len(expected.outputs[0].token_ids)
    for i in range(20):
        (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=4, seed=i))
        assert rows[f"c{i}"]["body"]["choices"][0]["message"]["content"] == expected.outputs[0].text
    assert any(rows[f"c{i}"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0 for i in range(20))


def test_several_prompts_and_answers(make: Any) -> None:
    llm = make()
    rows = answered(llm, line("a", TEXT, prompt=["x", "y"], n=2, seed=1, max_tokens=3))
    choices = rows["a"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    expected = llm.generate(["x", "y"], SamplingParams(n=2, seed=1, max_tokens=3))
    assert [choice["text"] for choice in choices] == [o.text for output in expected for o in output.outputs]
    usage = rows["a"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 12)


def test_thoughts_are_watched_where_their_end_matters(make: Any) -> None:
    llm = make(template=TEMPLATE + "{% if enable_thinking is not false %}<think>{% endif %}")
    form = reply_format(llm.template)
    for reasoning, watched in ((Reasoning(), False), (Reasoning(True), False), (Reasoning(budget=5), True)):
        (answer,) = answers_to(llm, form, ChatRequest(None, HELLO, SamplingParams(), reasoning=reasoning))
        assert (answer.request.sampler.thoughts is not None) is watched


def test_a_stop_is_told_from_a_limit(make: Any) -> None:
    rows = answered(
        make(script=saying("Hi you")),
        line("end", CHAT, messages=HELLO),
        line("limit", CHAT, messages=HELLO, max_tokens=2),
        line("stop", CHAT, messages=HELLO, stop=" "),
    )
    told = {name: row["body"]["choices"][0] for name, row in rows.items()}
    assert {name: (c["message"]["content"], c["finish_reason"]) for name, c in told.items()} == {
        "end": ("Hi you", "stop"),
        "limit": ("Hi", "length"),
        "stop": ("Hi", "stop"),
    }


@pytest.mark.parametrize(
    ("bad", "status", "param", "words"),
    [
        (line("bad", "/v1/images", prompt="a"), 404, "url", "must be one of"),
        (line("bad", CHAT, method="GET", messages=HELLO), 405, "method", "POST"),
        (BatchLine("bad", "POST", CHAT, None), 400, "body", "an object"),
        (line("bad", CHAT, messages=HELLO, temperature=-1), 400, "temperature", "temperature is -1"),
        (line("bad", CHAT, messages=HELLO, stream=True), 400, "stream", "no place in a batch"),
        (line("bad", CHAT, messages=HELLO, tools=[TOOL]), 400, "tools", "does not read it"),
        (line("bad", CHAT, messages=HELLO, reasoning_effort="low"), 400, "reasoning_effort", "knows of no thoughts"),
        (line("bad", CHAT, messages=[{"role": "user"}]), 400, "messages", "the chat template"),
        (line("bad", CHAT, messages=HELLO, logit_bias={"9999": 1}), 400, "logit_bias", "token id 9999"),
        (line("bad", TEXT, prompt=[N_VOCAB]), 400, "prompt", f"token id {N_VOCAB}"),
        (line("bad", TEXT, prompt="x" * 300), 400, "prompt", "301 tokens, but the context holds 256"),
        (line("bad", VECTORS, input="a"), 400, "model", "writes text"),
    ],
)
def test_one_that_cannot_be_answered(make: Any, bad: BatchLine, status: int, param: str, words: str) -> None:
    rows = answered(make(), line("a", TEXT, prompt="a", max_tokens=2), bad, line("b", TEXT, prompt="b", max_tokens=2))
    assert (rows["a"]["status_code"], rows["b"]["status_code"]) == (200, 200)
    assert rows["bad"]["status_code"] == status
    error = rows["bad"]["body"]["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_a_model_without_a_template(make: Any) -> None:
    rows = answered(make(template=None), line("a", CHAT, messages=HELLO), line("b", TEXT, prompt="b", max_tokens=2))
    assert rows["a"]["status_code"] == 400
    assert "no chat template" in rows["a"]["body"]["error"]["message"]
    assert rows["b"]["status_code"] == 200


def test_tools_and_roles_that_the_template_reads(make: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    developer = [{"role": "developer", "content": "a"}]
    for template, role in ((TEMPLATE, "system"), (TEMPLATE + "{# developer #}", "developer")):
        llm = make(template="{{ tools | tojson if tools }}" + template)
        seen: list[Any] = []
        tokenize = llm.tokenizer.tokenize_chat
        llm.tokenizer.tokenize_chat = lambda text: (seen.append(text), tokenize(text))[1]  # noqa: B023
        answered(llm, line("a", CHAT, messages=developer, tools=tools, max_tokens=2))
        assert seen[0].startswith('[{"type": "function"')
        assert f"<|begin|>{role}:a<|end|>" in seen[0]


def test_a_runtime_that_fails_once(make: Any) -> None:
    llm = make(n_slots=2)
    step, count = llm.engine.runtime.step, iter(range(1000))

    def failing(*args: Any, **keywords: Any) -> Any:
        if next(count) == 3:
            raise RuntimeError("a bus fell off")
        return step(*args, **keywords)

    llm.engine.runtime.step = failing
    rows = answered(llm, *(line(f"r{i}", TEXT, prompt=f"{i}", max_tokens=6) for i in range(9)))
    assert {name for name, row in rows.items() if row["status_code"] == 500} == {"r0", "r1"}
    assert rows["r0"]["body"]["error"]["type"] == "server_error"
    assert sum(row["status_code"] == 200 for row in rows.values()) == 7


def test_a_runtime_that_is_gone(make: Any) -> None:
    llm = make(n_slots=2)

    def failing(*args: Any, **keywords: Any) -> Any:
        raise RuntimeError("a bus fell off")

    llm.engine.runtime.step = failing
    rows: list[Any] = []
    with pytest.raises(GGPYError, match="a bus fell off"):
        run_batch(llm, (line(f"r{i}", TEXT, prompt=f"{i}") for i in range(99)), lambda row, n: rows.append(row))
    assert [row["custom_id"] for row in rows] == ["r0", "r1"]  # the others are tried again next time


def test_logits_that_are_no_numbers(make: Any) -> None:
    llm = make()
    step = llm.engine.runtime.step

    def spoilt(tokens: Any, slots: Any, *rest: Any) -> Any:
        logits = step(tokens, slots, *rest)
        if ord("!") in tokens:
            logits[:] = np.nan
        return logits

    llm.engine.runtime.step = spoilt
    rows = answered(llm, line("a", TEXT, prompt=[BOS, ord("!")]))
    assert rows["a"]["status_code"] == 500


def test_requests_are_read_when_it_is_their_turn(make: Any) -> None:
    llm = make(n_slots=2)
    read = 0
    done: list[str] = []

    def lines() -> Iterator[BatchLine]:
        nonlocal read
        for i in range(300):
            read += 1
            assert read - len(done) <= 6
            yield line(f"r{i}", TEXT, prompt=f"{i}", max_tokens=2)

    run_batch(llm, lines(), lambda row, n: done.append(row["custom_id"]))
    assert len(done) == 300


def test_a_file_that_cannot_be_written_ends_it(make: Any) -> None:
    llm = make()

    def full(row: Any, n_tokens: int) -> None:
        raise GGPYError("The disk is full.")

    for first in (line("a", TEXT, prompt="a", max_tokens=2), line("a", TEXT)):
        with pytest.raises(GGPYError, match="The disk is full"):
            run_batch(llm, [first, line("b", TEXT, prompt="b")], full)
        assert not llm.engine.has_work


def test_vectors(tmp_path: Path) -> None:
    convert(family_checkpoint(tmp_path, "bert"), "f32", tmp_path / "bert.gguf")
    with LLM(tmp_path / "bert.gguf", n_threads=2, n_parallel=3) as llm:
        texts = [f"some text {i}" for i in range(10)]
        lines = [line(f"r{i}", VECTORS, input=text) for i, text in enumerate(texts)]
        long = line("long", VECTORS, input=[5] * (llm.n_ctx + 1))
        rows = answered(llm, *lines, long, line("text", CHAT, messages=HELLO), line("all", VECTORS, input=texts))
        expected = [output.outputs.embedding for output in llm.embed(texts)]
    for i, vector in enumerate(expected):
        body = rows[f"r{i}"]["body"]
        np.testing.assert_allclose(body["data"][0]["embedding"], vector, atol=1e-6)
        np.testing.assert_allclose(rows["all"]["body"]["data"][i]["embedding"], vector, atol=1e-6)
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 2
    assert rows["long"]["body"]["error"]["code"] == "context_length_exceeded"
    assert "writes none" in rows["text"]["body"]["error"]["message"]
