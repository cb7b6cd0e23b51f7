"""Anthropic's response bodies and events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import Delta, Event, Finished, Started
from ggpy.protocol.openai_responses import new_id
from ggpy.protocol.replies import Reply
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta

Json = dict[str, Any]

_SIGNATURE = "ggpy"  # of thoughts; clients hand it back

_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def error_body(error: RequestError) -> Json:
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def message(model: str, reply: Reply) -> Json:
    """The body for a whole answer."""
    assert reply.end is not None
    content: list[Json] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": _SIGNATURE})
    if reply.content:
        content.append({"type": "text", "text": reply.content})
    for call in reply.tool_calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)})
    return {**_message(model), "content": content, **_stopped(reply.end), "usage": _usage(reply.end)}


def _message(model: str) -> Json:
    return {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": model}


def _stopped(end: Finished) -> Json:
    reason = {"tool_calls": "tool_use", "length": "max_tokens"}.get(end.finish_reason, "end_turn")
    if end.reached_context:
        reason = "model_context_window_exceeded"
    sequence = end.stop_reason if isinstance(end.stop_reason, str) else None
    if reason == "end_turn" and sequence is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(end: Finished) -> Json:
    cached = end.usage.cached_tokens or 0
    return {
        "input_tokens": end.usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": end.usage.completion_tokens,
    }


class MessageEvents:
    """The events of a streamed answer, each with its name."""

    def __init__(self) -> None:
        self._n_blocks = 0
        self._open: str | int | None = None  # the kind of the block that is open, or a call's index

    def events(self, event: Event) -> Iterator[Json]:
        """The events that one of a request makes."""
        match event:
            case Started(model, prompt_tokens):
                usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
                body = {**_message(model), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                yield {"type": "message_start", "message": body}
                yield {"type": "ping"}
            case Delta(_, ContentDelta(text)):
                yield from self._block("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case Delta(_, ReasoningDelta(text)):
                yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Delta(_, ToolCallDelta(index, id, name, arguments)):
                yield from self._block(index, {"type": "tool_use", "id": id, "name": name, "input": {}})
                if arguments:
                    yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            case Finished():
                yield from self._close()
                yield {"type": "message_delta", "delta": _stopped(event), "usage": _usage(event)}
                yield {"type": "message_stop"}

    def _block(self, kind: str | int, start: Json) -> Iterator[Json]:
        """Open a block of a kind, unless it is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield {"type": "content_block_start", "index": self._n_blocks, "content_block": start}

    def _close(self) -> Iterator[Json]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        yield {"type": "content_block_stop", "index": self._n_blocks}
        self._n_blocks += 1
        self._open = None

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._n_blocks, "delta": delta}
