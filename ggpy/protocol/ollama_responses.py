"""Ollama's response bodies, a line of JSON each where they are streamed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any

from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import Delta, Event, Finished, Started
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta

Json = dict[str, Any]


def error_body(error: RequestError) -> Json:
    return {"error": str(error)}


def now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class Lines:
    """The lines of a streamed answer. chat: of /api/chat; else of /api/generate."""

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        self._began = time.perf_counter()
        self._model = ""

    def lines(self, event: Event) -> Iterator[Json]:
        """The lines that an event makes."""
        match event:
            case Started(model, _):
                self._model = model
            case Delta(_, ContentDelta(text)):
                yield self._line(content=text)
            case Delta(_, ReasoningDelta(text)):
                yield self._line(thinking=text)
            case Delta(_, ToolCallDelta(index, id, name, arguments)):
                call = {"id": id, "function": {"index": index, "name": name, "arguments": json.loads(arguments)}}
                yield self._line(tool_calls=[call])
            case Finished():
                yield {**self._line(), "done": True, **self._end(event)}

    def whole(self, events: Iterable[Event]) -> Json:
        """One body for all events."""
        content, thinking, calls, last = "", "", [], {}
        for event in events:
            for line in self.lines(event):
                part = line["message"] if self._chat else {**line, "content": line["response"]}
                content += part["content"]
                thinking += part.get("thinking", "")
                calls += part.get("tool_calls", [])
                last = line
        said = {"thinking": thinking or None, "tool_calls": calls or None}
        return {**last, **self._said(content, **{key: value for key, value in said.items() if value})}

    def _line(self, content: str = "", **others: Any) -> Json:
        return {"model": self._model, "created_at": now(), **self._said(content, **others), "done": False}

    def _said(self, content: str, **others: Any) -> Json:
        if self._chat:
            return {"message": {"role": "assistant", "content": content, **others}}
        return {"response": content, **others}

    def _end(self, end: Finished) -> Json:
        timing, usage = end.timing, end.usage
        return {
            "done_reason": "length" if end.finish_reason == "length" else "stop",
            "total_duration": _ns(time.perf_counter() - self._began),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _ns(timing.prompt_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": _ns(timing.decode_s),
        }


def nothing_asked(model: str, chat: bool, unloaded: bool) -> Json:
    """The body for a request without a prompt, which loads a model or has it leave."""
    body = {"model": model, "created_at": now(), "done": True, "done_reason": "unload" if unloaded else "load"}
    return {**body, **({"message": {"role": "assistant", "content": ""}} if chat else {"response": ""})}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
