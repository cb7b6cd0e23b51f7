"""Messages of OpenAI's API in the shape that chat templates read."""

from __future__ import annotations

import json
from typing import Any

from ggpy.errors import quoted
from ggpy.protocol.body import wrong
from ggpy.protocol.errors import RequestError, unsupported

#: Parts of a message that are texts, and the keys that hold them.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def message(name: str, given: Any) -> dict[str, Any]:
    """A message as templates read it: its content one text, the arguments of tool calls as objects. name: its place in
    the body. Raises RequestError."""
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise wrong(name, given, 'a message: {"role": "user", "content": "…"}')
    found = {key: value for key, value in given.items() if value is not None}
    for key in ("function_call", "audio"):
        if key in found:
            raise unsupported(f"{name}.{key}")
    if "content" in found:
        # The parts of an answer, as it is to go on, are one text.
        found["content"] = content(f"{name}.content", found["content"], "" if given["role"] == "assistant" else "\n")
    if "tool_calls" in found:
        calls = found["tool_calls"]
        if not isinstance(calls, list):
            raise wrong(f"{name}.tool_calls", calls, "a list of calls")
        found["tool_calls"] = [tool_call(f"{name}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return found


def content(name: str, given: Any, between: str = "\n") -> str:
    """The text of a message; that of several parts is joined by line ends, or what else is `between`."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise wrong(name, given, "a text, or a list of parts")
    texts = []
    for i, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(_TEXTS[kind]) if isinstance(kind, str) and kind in _TEXTS else None
        if not isinstance(text, str):
            words = f"{name}[{i}] is of the type {quoted(kind, 80)}; parts can be texts alone."
            raise RequestError(words, f"{name}[{i}]", code="unsupported_parameter" if kind else None)
        texts.append(text)
    return between.join(texts)


def tool_call(name: str, call: Any) -> dict[str, Any]:
    """A call of an earlier turn, its arguments as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(name, call, 'a call: {"type": "function", "function": {"name": "…", "arguments": "…"}}')
    return {**call, "function": {**function, "arguments": arguments_of(name, function.get("arguments"))}}


def arguments_of(name: str, given: Any) -> Any:
    """The arguments of a call, which come as JSON text; an empty one, as some clients send, is no argument."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            return json.loads(given)
        except (ValueError, RecursionError):
            raise wrong(f"{name}.function.arguments", given, "JSON") from None
    return given


def is_prefill(messages: list[dict[str, Any]]) -> bool:
    """True where the conversation ends in the beginning of an answer, which the model is to go on with."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last.get("content")) and not last.get("tool_calls")
