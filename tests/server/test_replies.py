"""Thoughts and calls of a model on a server: their grammar, their budget, and one setting for all templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("llguidance")

from ggpy.convert.pipeline import convert
from ggpy.server.models import ModelSpec
from tests.support.reply_templates import BY_NAME
from tests.support.serving import Running
from tests.support.tiny import tiny_checkpoint

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}, "sure": {"type": "boolean"}},
            "required": ["city", "sure"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model whose prompts open thoughts unless they are told not to, and that calls tools as Hermes does."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("thinking"), "qwen3", dtype="f32")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    source = BY_NAME["hermes"].template.source
    config["chat_template"] = source + (
        "{% if add_generation_prompt and enable_thinking is not false %}<think>\n{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    convert(folder, "f32", folder / "tiny.gguf")
    with Running([ModelSpec("tiny", str(folder / "tiny.gguf"), {"n_ctx": 2048, "n_threads": 2})]) as running:
        yield running


def ask(server: Running, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Rain?"}], "seed": 3, "max_tokens": 120, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_that_are_required_come_after_the_thoughts(thinking: Running, choice: Any) -> None:
    found = ask(thinking, tools=[TOOL], tool_choice=choice, reasoning_budget=6, parallel_tool_calls=False)
    (call,) = found["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Oslo", "Paris")
    assert arguments["sure"] in (True, False)
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["reasoning_content"]
    assert found["reasoning_cut"] is True


def test_a_budget_leaves_tokens_for_the_answer(thinking: Running) -> None:
    without = ask(thinking, max_tokens=40)
    assert not without["message"]["content"]
    assert "reasoning_cut" not in without
    with_budget = ask(thinking, max_tokens=40, reasoning_budget=10)
    assert with_budget["message"]["content"]
    assert with_budget["reasoning_cut"] is True
    thought = with_budget["message"]["reasoning_content"]
    assert without["message"]["reasoning_content"].startswith(thought[:-1])


@pytest.mark.parametrize(
    "setting",
    [
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_budget": 0},
        {"reasoning": {"enabled": False}},
    ],
)
def test_one_setting_turns_thoughts_off(thinking: Running, setting: dict[str, Any]) -> None:
    found = ask(thinking, max_tokens=8, **setting)
    assert not found["message"].get("reasoning_content")
    assert found["message"]["content"]
    assert "reasoning_cut" not in found


def test_a_form_of_the_answer_is_none_of_the_thoughts(thinking: Running) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = ask(thinking, response_format=form, reasoning_budget=6)
    assert found["message"]["reasoning_content"]
    assert json.loads(found["message"]["content"])["sure"] in (True, False)


def test_a_schema_that_cannot_be_followed_is_refused(thinking: Running) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "unevaluatedItems": False,
            "patternProperties": {"(": {}}}}}  # fmt: skip
    body = {"messages": [{"role": "user", "content": "Rain?"}], "tools": [tool], "tool_choice": "required"}
    answer = httpx.post(f"{thinking.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
