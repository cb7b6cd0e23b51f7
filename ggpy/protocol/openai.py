"""OpenAI's API as data: request bodies to sampling parameters, answers to response bodies.

A field that would change an answer and is not followed is refused by its name; fields that only label a request are
passed over. Beside OpenAI's own, the sampling parameters that other servers take by the same names are followed
(`top_k`, `min_p`, `repetition_penalty` …), and `chat_template_kwargs`. What a body leaves out is the model's own
default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import AnyRequest, ChatRequest, CompletionRequest, EmbeddingsRequest, Reasoning
from ggpy.sampling.sampling_params import SamplingParams

COMPLETION_TOKENS = 16  # `max_tokens` of /v1/completions where it is left out, as OpenAI has it

#: Fields that become sampling parameters, and those parameters' names.
_SAMPLING = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    **{
        name: name
        for name in (
            "temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias",
            "top_k", "min_p", "typical_p", "repetition_penalty", "repeat_last_n", "stop_token_ids", "ignore_eos",
        )
    },
}  # fmt: skip

#: Fields that say who asks, or how the asking is billed and stored.
_LABELS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip

#: Fields that are not followed, and their values that ask for nothing.
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (True,),
}


def parse(method: Any, url: Any, body: Any) -> AnyRequest:
    """The request of a method, a path and a decoded body. Raises RequestError: 404 for an unknown path, 405 for another
    method than POST, 400 for a body that is not understood."""
    if not isinstance(url, str) or url not in PATHS:
        raise RequestError(f"url is {quoted(url, 80)}, but it must be one of {', '.join(PATHS)}.", "url", 404)
    if method != "POST":
        raise RequestError(f"method is {quoted(method, 80)}, but {url} takes 'POST' alone.", "method", 405)
    if not isinstance(body, dict):
        raise RequestError(f"body is {quoted(body, 80)}, but it must be an object of fields.", "body")
    fields = _Fields(body)
    request = PATHS[url](fields)
    fields.refuse_rest(url)
    return request


class _Fields:
    """A body's fields, taken out one by one; null stands for one that is left out."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def needed(self, name: str) -> Any:
        if name not in self._left:
            raise RequestError(f"{name} is missing; give it.", name)
        return self.take(name)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else _checked(name, arguments.text, name, value)

    def flag(self, name: str) -> bool:
        value = self.take(name)
        return False if value is None else _checked(name, arguments.flag, name, value)

    def object(self, name: str) -> dict[str, Any]:
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise _wrong(name, value, "an object")
        return value or {}

    def refuse_rest(self, url: str) -> None:
        """Refuse what nobody has taken and what asks for something."""
        for name, value in self._left.items():
            if name in _LABELS or any(value == nothing for nothing in _ASKS_NOTHING.get(name, ())):
                continue
            if name in _ASKS_NOTHING:
                raise RequestError(f"{name} is not supported yet; leave it out.", name, code="unsupported_parameter")
            raise RequestError(f"{quoted(name, 80)} is no field of {url}.", name, code="unknown_parameter")


def _checked(param: str, check: Callable[..., Any], *given: Any) -> Any:
    try:
        return check(*given)
    except GGPYError as error:
        raise RequestError(str(error), param) from None


def _wrong(name: str, value: object, words: str) -> RequestError:
    return RequestError(str(arguments.wrong(name, value, words)), name)


def _params(fields: _Fields, max_tokens: int | None = None) -> SamplingParams:
    values: dict[str, Any] = {}
    for name, ours in _SAMPLING.items():
        value = fields.take(name)
        if value is None:
            continue
        if name == "logit_bias":
            value = _biases(value)
        try:
            SamplingParams(**{ours: value})  # alone, so that the field is known
        except GGPYError as error:
            raise RequestError(name + str(error).removeprefix(ours), name) from None
        if values.setdefault(ours, value) != value:
            raise RequestError("max_tokens and max_completion_tokens differ; give one of them.", name)
    return SamplingParams(**{"max_tokens": max_tokens, **values})


def _biases(value: Any) -> Any:
    """Biases by token id: in JSON, names are texts."""
    if not isinstance(value, dict):
        return value
    if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in value):
        raise _wrong("logit_bias", value, "an object of token ids and numbers")
    return {int(name): bias for name, bias in value.items()}


def _stream(fields: _Fields) -> tuple[bool, bool]:
    stream, options = fields.flag("stream"), fields.object("stream_options")
    if options and not stream:
        raise RequestError("stream_options is for stream; leave it out, or set stream.", "stream_options")
    inner = _Fields(options)
    usage = inner.flag("include_usage")
    inner.flag("include_obfuscation")  # padding against those who listen to a connection
    inner.refuse_rest("stream_options")
    return stream, usage


def _chat(fields: _Fields) -> ChatRequest:
    model, messages = fields.text("model"), fields.needed("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", messages, 'a list of messages: [{"role": "user", "content": "…"}]')
    values = fields.object("chat_template_kwargs")
    if "messages" in values:
        raise RequestError("chat_template_kwargs cannot hold messages; they have a field of their own.", "messages")
    effort = fields.text("reasoning_effort")
    tools = _tools(fields)
    stream, include_usage = _stream(fields)
    found = [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    return ChatRequest(
        model,
        found,
        _params(fields),
        tools,
        reasoning=Reasoning(effort=effort),
        template_values=values,
        stream=stream,
        include_usage=include_usage,
    )


def _tools(fields: _Fields) -> list[dict[str, Any]]:
    """The tools that the model is to be told of."""
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise _wrong("tools", tools, "a list of objects")
    if choice == "none":
        return []
    if choice not in (None, "auto"):
        words = "tool_choice can be 'auto' or 'none'; to have a tool called is not supported yet."
        raise RequestError(words, "tool_choice", code="unsupported_parameter")
    return tools or []


def _message(name: str, message: Any) -> dict[str, Any]:
    """A message as templates read it: its content one text, the arguments of tool calls as objects."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong(name, message, 'a message: {"role": "user", "content": "…"}')
    found = {key: value for key, value in message.items() if value is not None}
    for key in ("function_call", "audio"):
        if key in found:
            raise RequestError(f"{name}.{key} is not supported.", f"{name}.{key}", code="unsupported_parameter")
    if "content" in found:
        found["content"] = _content(f"{name}.content", found["content"])
    if "tool_calls" in found:
        calls = found["tool_calls"]
        if not isinstance(calls, list):
            raise _wrong(f"{name}.tool_calls", calls, "a list of calls")
        found["tool_calls"] = [_tool_call(f"{name}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return found


def _content(name: str, content: Any) -> str:
    """The text of a message; that of several parts is joined by line ends."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(name, content, "a text, or a list of parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            words = f"{name}[{i}] is of the type {quoted(kind, 80)}; parts can be texts alone."
            raise RequestError(words, f"{name}[{i}]", code="unsupported_parameter" if kind else None)
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_call(name: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise _wrong(name, call, 'a call: {"type": "function", "function": {"name": "…", "arguments": "…"}}')
    given = function.get("arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise _wrong(f"{name}.function.arguments", given, "JSON") from None
    return {**call, "function": {**function, "arguments": given}}


def _completion(fields: _Fields) -> CompletionRequest:
    model, prompts = fields.text("model"), _prompts("prompt", fields.needed("prompt"))
    return CompletionRequest(model, prompts, _params(fields, COMPLETION_TOKENS), *_stream(fields))


def _embeddings(fields: _Fields) -> EmbeddingsRequest:
    model, inputs = fields.text("model"), _prompts("input", fields.needed("input"))
    form = fields.text("encoding_format")
    if form not in (None, "float", "base64"):
        raise _wrong("encoding_format", form, "'float' or 'base64'")
    return EmbeddingsRequest(model, inputs, form == "base64")


def _prompts(name: str, value: Any) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either, as a list."""
    words = "a text, a list of texts, a list of token ids, or a list of such lists; none of them empty"
    several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if not all(_is_prompt(prompt) for prompt in several):
        raise _wrong(name, value, words)
    return several


def _is_prompt(value: Any) -> bool:
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and all(type(i) is int for i in value)))


PATHS: dict[str, Callable[[_Fields], AnyRequest]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
}
