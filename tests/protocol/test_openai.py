"""OpenAI's request bodies, and what is refused by the name of its field."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from ggpy.protocol import llama_server, responses_bodies
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    Finished,
    Reasoning,
    Timing,
    Usage,
)
from ggpy.protocol.openai import parse
from ggpy.protocol.openai_bodies import PARAMETERS, Sampling
from ggpy.protocol.openai_responses import chat_completion, completion, embeddings, error_body
from ggpy.protocol.replies import Reply
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> ChatRequest:
    request = parse("POST", CHAT, {"messages": HELLO, **fields})
    assert isinstance(request, ChatRequest)
    return request


def refused(url: str, body: Any, method: Any = "POST") -> RequestError:
    with pytest.raises(RequestError) as raised:
        parse(method, url, body)
    assert error_body(raised.value)["error"]["message"] == str(raised.value)
    return raised.value


def test_sampling_fields_become_parameters() -> None:
    given = {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 3, "stop": ["a", "b"], "seed": 11,
        "presence_penalty": 0.25, "frequency_penalty": -1, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "repeat_last_n": 32, "typical_p": 0.8, "stop_token_ids": [4], "ignore_eos": True,
    }  # fmt: skip
    for request in (chat(**given), parse("POST", TEXT, {"prompt": "a", **given})):
        assert not isinstance(request, EmbeddingsRequest)
        params = request.params
        assert {name: getattr(params, name) for name in given} == {
            **given, "stop": ("a", "b"), "stop_token_ids": (4,),
        }  # fmt: skip
    assert chat(logit_bias={"12": -100, "7": 1.5}).params.logit_bias == {12: -100.0, 7: 1.5}
    assert chat(max_completion_tokens=9).params.max_tokens == 9
    assert chat(max_completion_tokens=9, max_tokens=9).params.max_tokens == 9
    assert chat().params.max_tokens is None
    assert chat(stop="x").params.stop == ("x",)


def test_what_asks_for_nothing_is_taken() -> None:
    nothing = {
        "model": "m", "user": "me", "metadata": {"a": "b"}, "store": True, "stream": False, "logprobs": False,
        "response_format": {"type": "text"}, "tools": None, "tool_choice": "auto", "stop": None, "logit_bias": None,
        "parallel_tool_calls": True,
    }  # fmt: skip
    request = chat(**nothing)
    assert (request.model, request.template_values, request.stream) == ("m", {}, False)
    assert request.params == chat().params


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", "hot", "temperature is 'hot', but it must be from 0"),
        ("max_tokens", 0, "max_tokens is 0"),
        ("max_completion_tokens", 0, "max_completion_tokens is 0, but it must be a whole"),
        ("n", 0, "n is 0"),
        ("top_p", 2, "top_p is 2"),
        ("presence_penalty", 3, "presence_penalty is 3"),
        ("stop", [""], "stop is"),
        ("seed", 1.5, "seed is 1.5"),
        ("logit_bias", {"a": 1}, "logit_bias is"),
        ("logit_bias", [1], "logit_bias is"),
        ("logit_bias", {"1": "x"}, "logit_bias is"),
        ("logprobs", 2, "logprobs is 2, but it must be true or false"),
        ("top_logprobs", 21, "top_logprobs is 21"),
        ("top_logprobs", 2, "top_logprobs is for logprobs"),
        ("grammar", 2, "grammar is 2, but it must be a text"),
        ("modalities", ["text", "audio"], "modalities is not supported"),
        ("verbosity", "high", "verbosity is not supported"),
        ("n", True, "n is True"),
        ("tools", {}, "tools is {}"),
        ("tool_choice", "required", "there are no tools"),
        ("reasoning_effort", 3, "reasoning_effort is 3, but it must be a text"),
        ("model", 3, "model is 3"),
        ("stream", "yes", "stream is 'yes'"),
        ("stream_options", {"include_usage": True}, "stream_options is for stream"),
        ("chat_template_kwargs", [], "an object"),
        ("best_of_all", 1, "'best_of_all' is no field of /v1/chat/completions"),
        ("prompt", "a", "'prompt' is no field"),
        ("messages", [], "messages is []"),
        ("messages", None, "messages is missing"),
    ],
)
def test_refused_by_name(field: str, value: Any, words: str) -> None:
    error = refused(CHAT, {"messages": HELLO, field: value})
    assert words in str(error)
    assert (error.param, error.status) == (field, 400)
    assert error_body(error)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"max_tokens": 1, "n_predict": 2}, "n_predict"),
        ({"reasoning_budget": 5, "thinking_token_budget": 6}, "thinking_token_budget"),
        ({"reasoning": {"enabled": True}, "enable_thinking": False}, "enable_thinking"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, None),
    ],
)
def test_fields_of_one_setting_that_differ(given: dict[str, Any], param: str | None) -> None:
    error = refused(CHAT, {"messages": HELLO, **given})
    assert "differ; give one of them" in str(error)
    assert error.param == (param or "chat_template_kwargs.reasoning_effort")


def test_llama_servers_limits_that_differ() -> None:
    body = llama_server.completion_body({"prompt": "a", "max_tokens": 3, "n_predict": 2})
    with pytest.raises(RequestError, match="max_tokens and n_predict differ"):
        llama_server.completion_request(body)


def test_samplers_keep_one_token_at_least() -> None:
    for n in (0, 1):
        llama_server.completion_body({"prompt": "a", "min_keep": n})
    with pytest.raises(RequestError, match="min_keep is not supported"):
        llama_server.completion_body({"prompt": "a", "min_keep": 2})


def test_what_is_no_request() -> None:
    assert refused("/v1/images", {}).status == 404
    assert refused(None, {}).param == "url"
    assert refused([], {}).status == 404
    assert refused(CHAT, {}, "GET").status == 405
    assert refused(CHAT, [1]).param == "body"


def test_messages_as_templates_read_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    system, assistant, tool = chat(messages=messages).messages
    assert system == {"role": "system", "content": "a\nb"}
    assert assistant == {
        "role": "assistant",
        "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    assert tool == messages[2]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hello", "messages[1]"),
        ({"content": "a"}, "messages[1]"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0]"),
        ({"role": "assistant", "function_call": {}}, "messages[1].function_call"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[1].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_messages_that_are_none(message: Any, param: str) -> None:
    assert refused(CHAT, {"messages": [*HELLO, message]}).param == param


def test_values_for_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools).tools == tools
    request = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False})
    assert (request.reasoning, request.template_values) == (Reasoning(False, "low"), {})
    assert chat(chat_template_kwargs={"documents": []}).template_values == {"documents": []}
    assert refused(CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}}).status == 400


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
        (["a", 1], [["a", 1]]),
        ([[1, "a"], "b"], [[1, "a"], "b"]),
    ],
)
def test_prompts(given: Any, found: Any) -> None:
    request = parse("POST", TEXT, {"prompt": given})
    assert isinstance(request, CompletionRequest)
    assert request.prompts == found
    assert request.params.max_tokens == 16
    vectors = parse("POST", VECTORS, {"input": given, "encoding_format": "base64"})
    assert isinstance(vectors, EmbeddingsRequest)
    assert (vectors.inputs, vectors.base64) == (found, True)


@pytest.mark.parametrize("given", ["", [], [""], [[]], [1, ""], [True], {"a": 1}, 3, ["a", True], [["a"]], [1, [2]]])
def test_what_is_no_prompt(given: Any) -> None:
    assert refused(TEXT, {"prompt": given}).param == "prompt"
    assert refused(VECTORS, {"input": given}).param == "input"


def test_fields_of_embeddings() -> None:
    for wrong in (0, -1, 1.5, "8"):
        assert refused(VECTORS, {"input": "a", "dimensions": wrong}).param == "dimensions"
    vectors = parse("POST", VECTORS, {"input": "a", "dimensions": 8})
    assert isinstance(vectors, EmbeddingsRequest)
    assert vectors.dimensions == 8
    assert refused(VECTORS, {"input": "a", "encoding_format": "hex"}).param == "encoding_format"


def test_streams_are_asked_for() -> None:
    request = chat(stream=True, stream_options={"include_usage": True})
    assert (request.stream, request.include_usage) == (True, True)


def test_responses() -> None:
    ends = [
        Finished(i, reason, None, False, Usage(5, 3), Timing(0, 0, 0, 0, 0))
        for i, reason in enumerate(("stop", "length"))
    ]
    answers = [Reply("a", end=ends[0]), Reply("b", end=ends[1])]
    body = chat_completion("m", answers, Usage(5, 7, 2))
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "b"]
    assert [(choice["index"], choice["finish_reason"]) for choice in body["choices"]] == [(0, "stop"), (1, "length")]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert [choice["text"] for choice in completion("m", answers, Usage(5, 7))["choices"]] == ["a", "b"]
    vector = np.array([0.5, -1], np.float32)
    (plain,) = embeddings("m", [vector], Usage(3))["data"]
    (coded,) = embeddings("m", [vector], Usage(3), as_base64=True)["data"]
    assert plain["embedding"] == [0.5, -1.0]
    assert np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"schema": 3}},
            "response_format.json_schema.schema",
        ),
        ("tools", [{"type": "function"}], "tools[0].function"),
        ("tools", [{"type": "custom", "function": {"name": "f"}}], "tools[0].type"),
        ("tools", [{"type": "function", "function": {"name": 3}}], "tools[0].function.name"),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": []}}], "tools[0].function.parameters"),
        ("stream_options", {"usage": True}, "usage"),
        ("reasoning", {"effort": 2}, "reasoning.effort"),
        ("structured_outputs", {"choice": [1]}, "structured_outputs.choice[0]"),
    ],
)
def test_a_field_within_a_field_is_named(field: str, value: Any, param: str) -> None:
    error = refused(CHAT, {"messages": HELLO, field: value})
    assert error.param is not None
    assert error.param.endswith(param)
    assert param in str(error)


def test_every_sampling_field_is_a_parameter() -> None:
    assert not {name for name in Sampling.model_fields if not hasattr(SamplingParams, PARAMETERS.get(name, name))}


def test_forms_of_answers() -> None:
    schema = {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    forms: list[tuple[dict[str, Any], StructuredOutputsParams]] = [
        ({"response_format": {"type": "json_object"}}, StructuredOutputsParams(json_object=True)),
        ({"response_format": named}, StructuredOutputsParams(json=schema)),
        ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutputsParams(choice=["a", "b"])),
        ({"structured_outputs": {"json": schema}}, StructuredOutputsParams(json=schema)),
        ({"grammar": 'root ::= "a"'}, StructuredOutputsParams(grammar='root ::= "a"')),
    ]
    for given, expected in forms:
        assert chat(**given).params.structured_outputs == expected
    twice = {"response_format": {"type": "json_object"}, "grammar": "x"}
    assert "both" in str(refused(CHAT, {"messages": HELLO, **twice}))


def test_tools_that_are_to_be_called() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    named = {"type": "function", "function": {"name": "f"}}
    assert chat(tools=tools, tool_choice="required").tool_choice == "required"
    assert chat(tools=tools, tool_choice=named, parallel_tool_calls=False).tool_choice == named
    assert chat(tools=tools, tool_choice="none").tool_choice == "none"
    unknown = {"type": "function", "function": {"name": "g"}}
    for choice in (unknown, "any", {"type": "allowed_tools"}, {"type": "function"}):
        assert refused(CHAT, {"messages": HELLO, "tools": tools, "tool_choice": choice}).param is not None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"reasoning_effort": "none"}, Reasoning(False, "none")),
        ({"reasoning": {"effort": "high"}}, Reasoning(None, "high")),
        ({"enable_thinking": True, "reasoning_budget": 100}, Reasoning(True, None, 100)),
        ({"reasoning_budget": 0}, Reasoning(False)),
        ({"reasoning_budget": -1}, Reasoning()),
        ({"chat_template_kwargs": {"thinking": True}}, Reasoning(True)),
    ],
)
def test_every_way_to_ask_for_thoughts_is_one_setting(given: dict[str, Any], found: Reasoning) -> None:
    assert chat(**given).reasoning == found


def test_responses_ask_for_thoughts_in_the_same_ways() -> None:
    options = {"enabled": True, "max_tokens": 100}
    asked = responses_bodies.parse({"input": "a", "reasoning": options, "chat_template_kwargs": {"x": 1}})
    assert (asked.chat.reasoning, asked.chat.template_values) == (Reasoning(True, None, 100), {"x": 1})
    with pytest.raises(RequestError, match="cannot hold messages"):
        responses_bodies.parse({"input": "a", "chat_template_kwargs": {"messages": []}})


def test_the_beginning_of_an_answer_is_continued() -> None:
    prefilled = [*HELLO, {"role": "assistant", "content": "I"}]
    assert chat(messages=prefilled).template_values == {"continue_final_message": True}
    assert chat(messages=prefilled, add_generation_prompt=True).template_values == {"add_generation_prompt": True}
    assert chat(messages=prefilled, continue_final_message=False).template_values == {"continue_final_message": False}
