"""OpenAI's own Python client against the server, each answer compared with the library's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("openai")

import openai
from openai import AsyncOpenAI, OpenAI

from ggpy import LLM, SamplingParams
from tests.support.serving import Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
ASKED: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "seed": 5, "temperature": 0.9}


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_stream_says_what_the_whole_says(client: OpenAI, llm: LLM) -> None:
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=12, seed=5, temperature=0.9))
    (answer,) = expected.outputs
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content == answer.text
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == answer.finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not chunks[-1].choices
    for usage in (whole.usage, chunks[-1].usage):
        assert usage.completion_tokens == len(answer.token_ids)
        assert usage.prompt_tokens == len(expected.prompt_token_ids)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the second time


def test_several_answers(client: OpenAI, llm: LLM) -> None:
    (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=12, seed=5, temperature=0.9, n=3))
    texts = [answer.text for answer in expected.outputs]
    whole = client.chat.completions.create(**ASKED, n=3)
    assert [choice.message.content for choice in whole.choices] == texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ASKED, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_completions(client: OpenAI, llm: LLM) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, logprobs=2)
    expected = llm.generate(["The capital", "Once upon"], params)
    asked: Any = {"model": "tiny", "prompt": ["The capital", "Once upon"], "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert [choice.text for choice in whole.choices] == [output.outputs[0].text for output in expected]
    for choice, output in zip(whole.choices, expected, strict=True):
        (answer,) = output.outputs
        n = len(choice.logprobs.tokens)
        assert answer.logprobs is not None
        known = [row[token].logprob for row, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        assert choice.logprobs.token_logprobs == pytest.approx(known[:n])
        assert n >= len(known) - 1
        assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs)
    echoed = client.completions.create(**asked, echo=True)
    assert [choice.text for choice in echoed.choices] == [f"{o.prompt}{o.outputs[0].text}" for o in expected]
    streamed = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [output.outputs[0].text for output in expected]


def test_logprobs_of_chats(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3)
    found = whole.choices[0].logprobs.content
    assert "".join(token.token for token in found) == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in found)
    assert all(token.top_logprobs[0].logprob >= token.logprob for token in found)
    streamed = []
    for chunk in client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in found])


def test_parameters_reach_the_engine(client: OpenAI, llm: LLM) -> None:
    full = llm.chat(HELLO, SamplingParams(max_tokens=12, temperature=0))[0].outputs[0]
    stop = full.text[4:6]
    greedy = {**ASKED, "temperature": 0}
    stopped = client.chat.completions.create(**greedy, stop=[stop])
    assert stopped.choices[0].message.content == full.text[: full.text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    other = client.chat.completions.create(**greedy, logit_bias={str(full.token_ids[0]): -100})
    assert other.choices[0].message.content != full.text
    short = client.chat.completions.create(**{**greedy, "max_tokens": openai.NOT_GIVEN}, max_completion_tokens=2)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (2, "length")
    wild = client.chat.completions.create(**ASKED, extra_body={"top_k": 1})
    assert wild.choices[0].message.content == full.text


def test_forms_of_answers(client: OpenAI) -> None:
    pytest.importorskip("llguidance")
    number = {"type": "integer", "maximum": 99, "minimum": 0}
    schema = {"type": "object", "properties": {"a": number}, "required": ["a"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 40}, response_format=form)
    assert set(json.loads(answer.choices[0].message.content)) == {"a"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "propertyNames": 3}}}
    with pytest.raises(openai.BadRequestError, match="schema cannot be followed") as refused:
        client.chat.completions.create(**ASKED, response_format=form)
    assert refused.value.param == "response_format"


def test_many_at_once_in_an_event_loop(server: Running, llm: LLM) -> None:
    prompts = [f"prompt {i} " * (1 + i % 3) for i in range(10)]
    expected = [o.outputs[0].text for o in llm.generate(prompts, SamplingParams(max_tokens=10, seed=1, temperature=1))]

    async def one(client: AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=10, seed=1, temperature=1, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    assert asyncio.run(main()) == expected


def test_errors_are_the_clients_own(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**{**ASKED, "temperature": 1e9})
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="word " * 400)
    assert (long.value.param, long.value.code) == ("prompt", "context_length_exceeded")
    assert "context holds 256" in str(long.value)
    with pytest.raises(openai.BadRequestError, match="writes text") as texts:
        client.embeddings.create(model="tiny", input="a")
    assert texts.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list()


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.status["value"]) == ("tiny", "loaded")  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny").meta["n_ctx"] == 256  # type: ignore[attr-defined]


def test_prefilled_answers_go_on(client: OpenAI, llm: LLM) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "The capital"}]
    params = SamplingParams(max_tokens=5, temperature=0)
    (expected,) = llm.chat(begun, params, continue_final_message=True)
    answer = client.chat.completions.create(model="tiny", messages=begun, max_tokens=5, temperature=0)
    assert answer.choices[0].message.content == expected.outputs[0].text


class TestResponses:
    """/v1/responses."""

    def test_a_stream_says_what_the_whole_says(self, client: OpenAI, llm: LLM) -> None:
        asked: Any = {"model": "tiny", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
        whole = client.responses.create(**asked)
        (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=12, temperature=0))
        assert whole.output_text == expected.outputs[0].text
        assert whole.usage.output_tokens == len(expected.outputs[0].token_ids)
        events = list(client.responses.create(**asked, stream=True))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole.output_text == events[-1].response.output_text
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
        assert events[-1].type == f"response.{whole.status}"
        if whole.status == "incomplete":
            assert whole.incomplete_details.reason == "max_output_tokens"

    def test_a_conversation_goes_on(self, client: OpenAI, llm: LLM) -> None:
        asked: Any = {"model": "tiny", "max_output_tokens": 6, "temperature": 0}
        first = client.responses.create(**asked, input="Hello", instructions="Be brief.")
        second = client.responses.create(**asked, input="And now?", previous_response_id=first.id)
        messages: Any = [
            *HELLO,
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And now?"},
        ]
        (expected,) = llm.chat(messages, SamplingParams(max_tokens=6, temperature=0))
        assert second.output_text == expected.outputs[0].text
        assert client.responses.retrieve(second.id).output_text == second.output_text
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="only the latest"):
            client.responses.create(**asked, input="And now?", previous_response_id=first.id)

    def test_what_is_not_followed_is_named(self, client: OpenAI) -> None:
        for name, value in (("background", True), ("truncation", "auto"), ("input", []), ("input", [{"type": "x"}])):
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(**{"model": "tiny", "input": "a", name: value})  # type: ignore[call-overload]
            assert str(refused.value.param).startswith(name)
