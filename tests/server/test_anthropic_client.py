"""Anthropic's own Python client against the server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

pytest.importorskip("anthropic")
pytest.importorskip("llguidance")

from anthropic import Anthropic, AsyncAnthropic, BadRequestError, NotFoundError

from tests.server.test_replies import TOOL, thinking  # noqa: F401 - a fixture
from tests.support.serving import Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "name": "get_weather", "description": "The weather.", "input_schema": TOOL["function"]["parameters"],  # type: ignore[index]
}  # fmt: skip


def client(server: Running) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def test_a_stream_says_what_the_whole_says(server: Running) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 12,
        "extra_body": {"temperature": 0.0},
        "system": "Be brief.",
    }
    whole = client(server).messages.create(**asked)
    with client(server).messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].text == text == final.content[0].text  # type: ignore[union-attr]
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == final.usage.output_tokens == 12
    n_prompt = client(server).messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.").input_tokens
    for usage in (whole.usage, final.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == n_prompt
    assert final.usage.cache_read_input_tokens


def test_many_at_once_in_an_event_loop(server: Running) -> None:
    async def ask() -> list[Any]:
        async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as anthropic:
            return await asyncio.gather(
                *(
                    anthropic.messages.create(model="tiny", messages=HELLO, max_tokens=4, extra_body={"temperature": 0})
                    for _ in range(3)
                )
            )

    answers = asyncio.run(ask())
    assert len({answer.content[0].text for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 3


def test_stop_sequences_are_named(server: Running) -> None:
    whole: Any = client(server).messages.create(
        model="tiny", messages=HELLO, max_tokens=12, extra_body={"temperature": 0}
    )
    stop = whole.content[0].text[1:3]
    found: Any = client(server).messages.create(
        model="tiny", messages=HELLO, max_tokens=12, extra_body={"temperature": 0}, stop_sequences=[stop]
    )
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)
    assert stop not in "".join(block.text for block in found.content)


def test_thoughts_and_calls_are_blocks(thinking: Running) -> None:  # noqa: F811
    asked: Any = {
        "model": "tiny", "messages": HELLO, "max_tokens": 200, "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 6}, "extra_body": {"temperature": 0.0},
    }  # fmt: skip
    whole = client(thinking).messages.create(**asked)
    with client(thinking).messages.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_message()
    for found in (whole, final):
        thought, call = found.content
        assert (thought.type, call.type, found.stop_reason) == ("thinking", "tool_use", "tool_use")
        assert call.name == "get_weather"
        assert call.input["city"] in ("Oslo", "Paris")
    assert whole.content[0].thinking == final.content[0].thinking
    assert whole.content[1].input == final.content[1].input
    assert sum(event.type == "input_json" for event in events) > 1  # as it is written
    # The conversation goes on with what was called.
    result = {"type": "tool_result", "tool_use_id": final.content[1].id, "content": [{"type": "text", "text": "Rain."}]}
    messages = [*HELLO, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    after = client(thinking).messages.create(
        model="tiny", messages=messages, max_tokens=5, tools=[WEATHER], thinking={"type": "disabled"}
    )
    assert [block.type for block in after.content] == ["text"]


def test_a_model_without_thoughts_answers_agents_that_ask_for_them(server: Running) -> None:
    for thought in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
        found: Any = client(server).messages.create(
            model="tiny", messages=HELLO, max_tokens=5, thinking=thought, output_config={"effort": "high"},
        )  # type: ignore[call-overload]  # fmt: skip
        assert found.content[0].type == "text"


def test_errors_have_anthropics_shape(server: Running) -> None:
    for wrong, said in (
        ({"top_k": "x"}, "top_k"),
        ({"temperature": -1.0}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"unheard_of": 1}, "unheard_of"),
    ):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 5, **wrong}
        answer = httpx.post(f"{server.url}/v1/messages", json=body, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert said in answer.json()["error"]["message"]
    with pytest.raises(BadRequestError, match="max_tokens"):
        client(server).messages.create(model="tiny", messages=HELLO, max_tokens=0)
    with pytest.raises(NotFoundError):
        client(server).post("/v1/messages/elsewhere", cast_to=object, body={})


def evaluated(server: Running, messages: list[Any], system: Any) -> int:
    found: Any = client(server).messages.create(
        model="tiny", messages=messages, system=system, max_tokens=6, extra_body={"temperature": 0}, tools=[WEATHER],
        thinking={"type": "disabled"},
    )  # fmt: skip
    messages.append({"role": "assistant", "content": found.content or "So."})
    return int(found.usage.input_tokens)


def test_a_coding_agents_turns_evaluate_what_is_new(thinking: Running) -> None:  # noqa: F811
    """A long system prompt, tools, results, and a history that is edited: tokens evaluated in each turn."""
    rules = "Rules of the house. " * 20

    def system(turn: int) -> list[Any]:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={turn:x};"}
        return [header, {"type": "text", "text": rules, "cache_control": {"type": "ephemeral"}}]

    messages: list[Any] = [{"role": "user", "content": "Fix the test."}]
    counts = [evaluated(thinking, messages, system(0))]
    for turn in range(1, 4):
        call = {
            "type": "tool_use",
            "id": f"toolu_{turn}",
            "name": "get_weather",
            "input": {"city": "Oslo", "sure": True},
        }
        messages[-1] = {"role": "assistant", "content": [call]}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": f"Line {turn}."}
        messages.append({"role": "user", "content": [result]})
        counts.append(evaluated(thinking, messages, system(turn)))
    first, *later = counts
    assert first > 150
    assert max(later) < 120, counts  # a call and its result, not what was before them
    messages[2]["content"][0]["content"] = "Line one."  # the history is edited
    edited = evaluated(thinking, messages, system(9))
    assert edited < first, (edited, counts)
