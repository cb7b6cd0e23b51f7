"""Conversations of every kind that chat templates write, and what transformers makes of them with each template.

`tests/data/hf_chat_renders.json` holds, by `key` of a template's source, `digest` of the texts that transformers 5.24's
`render_jinja_template` gives for CONVERSATIONS, None where it refuses: of the small templates in `tests/support` and of
160 published ones (llama.cpp's `models/templates`, those of trl, axolotl and chujiezheng/chat_templates). Three things
were llama.cpp's: lists have `append` and `pop`, `tojson` takes what `map` gives, and FireFunction's `functions` and
`datetime` are given. The clock stood at NOW.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

NOW = datetime(2026, 1, 2, 3, 4, 5)
SPECIAL_TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
RECORDED = Path(__file__).parents[1] / "data/hf_chat_renders.json"


def _tool(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": f"{name} & more.", "parameters": parameters}}


_CITY = {"type": "string", "description": 'The city\'s "name", as 東京 or <Paris>'}
_OPTIONS = {
    "unit": {"type": "string", "enum": ["C", "F"], "description": "Unit"},
    "at": {"type": "array", "items": {"type": "number"}, "description": "Hours"},
}
#: With every type that schemas have; and with texts and numbers alone, as some templates read no others.
TOOLS = [
    _tool(
        "get_weather",
        {
            "city": _CITY,
            "days": {"type": "integer", "description": "Days ahead", "default": 1},
            "options": {"type": "object", "description": "More", "properties": _OPTIONS},
        },
        ["city"],
    ),
    _tool("get_time", {"zone": {"type": ["string", "null"], "description": "Zone"}}, []),
]
PLAIN_TOOLS = [_tool("get_weather", {"city": _CITY, "days": {"type": "integer", "description": "Days"}}, ["city"])]

_SYSTEM = {"role": "system", "content": "Be brief & kind. <b>"}
_HELLO = {"role": "user", "content": '  Hello "你好" <you>, it\'s {{ me }}\n'}
_HI = {"role": "assistant", "content": "Hi!\n"}
_ASKED = {"role": "user", "content": "Will it rain in Paris?"}
_NO = {"role": "assistant", "content": "No."}
_THOUGHT = {**_NO, "reasoning_content": "Hm.\nIs it?"}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _call(name: str, arguments: Any, n: int) -> dict[str, Any]:
    return {"id": f"abcdefgh{n}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _with_calls(tools: list[Any], write: Callable[[Any], Any], content: str | None) -> Iterable[dict[str, Any]]:
    arguments = {"city": 'Paris, "FR"', "days": 3}
    if tools is TOOLS:
        arguments["options"] = {"unit": "C", "at": [1, 2.5]}
    said = {} if content is None else {"content": content}
    call = {"role": "assistant", **said, "tool_calls": [_call("get_weather", write(arguments), 1)]}
    result = {"role": "tool", "tool_call_id": "abcdefgh1", "name": "get_weather", "content": '{"rain": 0}'}
    second = {"role": "tool", "tool_call_id": "abcdefgh2", "name": "get_time", "content": "12:00"}
    two = {**call, "tool_calls": [*call["tool_calls"], _call("get_time", write({}), 2)]}
    thought = {**call, "reasoning_content": "Hm.\nIs it?"}
    yield {"messages": [_ASKED, call], "tools": tools, "add_generation_prompt": False}
    yield {"messages": [_SYSTEM, _ASKED, call, result], "tools": tools}
    yield {"messages": [_ASKED, call, result, _NO, _HELLO], "tools": tools}
    yield {"messages": [_ASKED, call, result]}
    yield {"messages": [_ASKED, two, result, second], "tools": tools}
    yield {"messages": [_ASKED, thought, result], "tools": tools}
    yield {"messages": [_ASKED, thought, result, {**_NO, "reasoning_content": "So."}, _HELLO], "tools": tools}


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


#: Arguments of `ChatTemplate.render`.
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [_HELLO]},
    {"messages": [_HELLO, _HI, _ASKED]},
    {"messages": [_HELLO, _HI, _ASKED, _NO], "add_generation_prompt": False},
    {"messages": [_SYSTEM, _HELLO]},
    {"messages": [_SYSTEM, _HELLO, _HI, _ASKED]},
    {"messages": [{**_SYSTEM, "role": "developer"}, _HELLO]},
    *({"messages": [_SYSTEM, _ASKED], "tools": tools} for tools in (TOOLS, PLAIN_TOOLS)),
    *({"messages": [_ASKED], "tools": tools} for tools in (TOOLS, TOOLS[:1], PLAIN_TOOLS, [])),
    *(
        conversation
        for write in (lambda value: value, _as_text)
        for tools, content in ((TOOLS, "I look."), (TOOLS, ""), (TOOLS, None), (PLAIN_TOOLS, "I look."))
        for conversation in _with_calls(tools, write, content)
    ),
    {"messages": [_ASKED, _THOUGHT], "add_generation_prompt": False},
    {"messages": [_ASKED, _THOUGHT, _HELLO]},
    {"messages": [_ASKED, {**_NO, "content": "<think>\nHm.\n</think>\n\nNo."}, _HELLO]},
    {"messages": [_ASKED, {**_NO, "thinking": "Hm."}, _HELLO]},
    *({"messages": [_SYSTEM, _ASKED, _THOUGHT, _HELLO], "enable_thinking": value} for value in (True, False)),
    *({"messages": [_ASKED], "thinking": value} for value in (True, False)),
    {"messages": [_ASKED], "reasoning_effort": "high"},
    {"messages": [{"role": "user", "content": [_text("One."), _text(" Two")]}]},
    {
        "messages": [
            {"role": "system", "content": [_text("Be kind.")]},
            {"role": "user", "content": [_text("One.")]},
            {"role": "assistant", "content": [_text("Yes.")]},
            _HELLO,
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image"}, _text("What is it?")]}]},
    {"messages": [_ASKED], "documents": [{"title": "T", "text": "It rains."}, {"title": "U", "text": "It snows."}]},
    {
        "messages": [_ASKED, {"role": "assistant", "content": "It will"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
]


def key(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def digest(renders: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(renders).encode()).hexdigest()[:12]
