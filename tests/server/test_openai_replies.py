"""Thoughts and calls of tools through OpenAI's client, over a stand-in that says what a model would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

import ggpy.llm
from ggpy import LLM
from ggpy.runtime.load import Model
from ggpy.server.models import ModelSpec
from ggpy.text.chat_template import ChatTemplate
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime, saying
from tests.support.serving import Running

TEMPLATE = (
    '{% if tools %}Call as <tool_call>{"name": …}</tool_call>: {{ tools | tojson }}{% endif %}'
    "{% for m in messages %}{{ m.role + ':' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thoughts <think></think>{% endif %}assistant:"
)
HELLO: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALLS = (
    '<think>let me see</think>I look.<tool_call>{"name": "f", "arguments": {"x": "a<b"}}</tool_call>'
    '<tool_call>{"name": "f", "arguments": {"y": [1]}}</tool_call>'
)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenAI]]:
    started: list[Running] = []

    def says(text: str, template: str = TEMPLATE, n_ctx: int = 1024) -> OpenAI:
        runtime = FakeRuntime(n_ctx=n_ctx, script=saying(text))
        model = Model(FakeFile(), ByteTokenizer(), ChatTemplate(template), runtime)  # type: ignore[arg-type]
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        spec = ModelSpec("fake", "fake.gguf", {})
        started.append(Running([spec], open_model=lambda spec: LLM("fake.gguf")).__enter__())
        return OpenAI(base_url=f"{started[-1].url}/v1", api_key="none", max_retries=0, timeout=60)

    yield says
    for running in started:
        running.__exit__()


def test_calls_and_thoughts_are_parts_of_their_own(says: Any) -> None:
    client = says(CALLS)
    asked: Any = {"model": "fake", "messages": HELLO, "tools": TOOLS}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "I look."
    assert message.reasoning_content == "let me see"
    assert [call.function.name for call in message.tool_calls] == ["f", "f"]
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"x": "a<b"}, {"y": [1]}]
    assert len({call.id for call in message.tool_calls}) == 2

    text, thoughts, calls, reason = "", "", {}, None
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        thoughts += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.index not in calls
                calls[call.index] = [call.function.name, ""]
            calls[call.index][1] += call.function.arguments
        reason = choice.finish_reason or reason
    assert (text, thoughts, reason) == ("I look.", "let me see", "tool_calls")
    assert [(name, json.loads(given)) for name, given in calls.values()] == [("f", {"x": "a<b"}), ("f", {"y": [1]})]


def test_one_call_at_a_time_where_that_is_asked_for(says: Any) -> None:
    client = says(CALLS)
    answer = client.chat.completions.create(
        model="fake", messages=HELLO, tools=TOOLS, parallel_tool_calls=False
    ).choices[0]
    assert len(answer.message.tool_calls) == 1
    assert answer.finish_reason == "tool_calls"


def test_what_does_not_parse_is_text(says: Any) -> None:
    said = 'Well <tool_call>{"name": "f", "argu'
    answer = says(said).chat.completions.create(model="fake", messages=HELLO, tools=TOOLS).choices[0]
    assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == (said, None, "stop")


def test_without_tools_calls_are_text(says: Any) -> None:
    client = says(CALLS)
    for given in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = client.chat.completions.create(model="fake", messages=HELLO, **given).choices[0]
        assert answer.message.tool_calls is None
        assert answer.message.content.startswith("I look.<tool_call>")


def test_a_conversation_with_calls_goes_on(says: Any) -> None:
    client = says("It is 3.")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
    ]
    answer = client.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "It is 3."


def test_thoughts_are_switched_by_one_setting(says: Any) -> None:
    client = says("Hello.")
    ways: list[Any] = [
        {},
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ]
    answers = [client.chat.completions.create(model="fake", messages=HELLO, extra_body=way) for way in ways]
    usual, *without = [answer.usage.prompt_tokens for answer in answers]
    assert without == [usual + len("no thoughts <think></think>")] * 3


def test_values_that_the_template_does_not_read_are_refused(says: Any) -> None:
    client = says("Hello.", TEMPLATE + "{{ mood }}")
    asked: Any = {"model": "fake", "messages": HELLO}
    assert client.chat.completions.create(**asked, extra_body={"chat_template_kwargs": {"mood": "glad"}}).choices
    with pytest.raises(openai.BadRequestError, match="does not read 'moods'; did you mean 'mood'") as caught:
        client.chat.completions.create(**asked, extra_body={"chat_template_kwargs": {"moods": "glad"}})
    assert caught.value.param == "chat_template_kwargs"
    with pytest.raises(openai.BadRequestError, match="cannot hold messages"):
        client.responses.create(model="fake", input="Hi", extra_body={"chat_template_kwargs": {"messages": []}})


def test_responses_have_items(says: Any) -> None:
    client = says(CALLS)
    tools: Any = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}]
    whole = client.responses.create(model="fake", input="Hi", tools=tools)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert whole.output[0].content[0].text == "let me see"
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    events = list(client.responses.create(model="fake", input="Hi", tools=tools, stream=True))
    arguments = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(one) for one in arguments] == [{"x": "a<b"}, {"y": [1]}]
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [event.item.id for event in events if event.type == "response.output_item.done"]
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "3"} for item in whole.output[2:]
    ]
    following = client.responses.create(model="fake", input=outputs, previous_response_id=whole.id, tools=tools)
    assert following.status == "completed"


def test_what_the_template_says_is_the_error(says: Any) -> None:
    client = says("Hello.", "{{ raise_exception('Only one turn, please.') }}")
    with pytest.raises(openai.BadRequestError, match=r"Only one turn, please\."):
        client.chat.completions.create(model="fake", messages=HELLO)


def test_tools_that_the_template_does_not_read_are_refused(says: Any) -> None:
    client = says("Hello.", "{{ messages[0].content }}assistant:")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=HELLO, tools=TOOLS)
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="fake", messages=HELLO, extra_body={"enable_thinking": True})


def test_a_full_context_ends_its_own_answer_and_no_other(says: Any) -> None:
    """One answer runs into the context's end, and says so; those beside it are whole."""
    client = says("x" * 2000, n_ctx=200)
    asked: Any = {"model": "fake", "messages": HELLO}
    with ThreadPoolExecutor(4) as pool:
        full = [pool.submit(client.chat.completions.create, **asked) for _ in range(2)]
        short = [pool.submit(client.chat.completions.create, **asked, max_tokens=n) for n in (20, 150)]
        for answer in full:
            assert answer.result().choices[0].finish_reason == "length"
            assert answer.result().usage.total_tokens == 200 + 1
        for answer, n in zip(short, (20, 150), strict=True):
            assert answer.result().choices[0].message.content == "x" * n
    assert httpx.get(str(client.base_url).replace("/v1/", "/health")).status_code == 200
