"""Answers of /v1/responses: a response that grows by items, and the events of a stream that tell of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import Delta, Event, Finished, Started, TokenLogprob
from ggpy.protocol.openai_responses import error_body, new_id
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta

Json = dict[str, Any]

#: For each type of item with parts: the type of its part, and the beginning of its events' names.
_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


class ResponseStream:
    """A response, and the events that it makes; `body` is the response so far. shown: fields of the request that it
    repeats."""

    def __init__(self, shown: Json) -> None:
        self.body: Json = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            **shown,
        }
        self._open: Json | None = None  # the item that grows
        self._call = -1  # its number, where it is a call
        self._n_events = 0

    def events(self, event: Event) -> Iterator[Json]:
        """The events that follow from one of the engine's."""
        if isinstance(event, Started):
            self.body["model"] = event.model
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self._snapshot())
        elif isinstance(event, Finished):
            yield from self._close("completed" if event.finish_reason != "length" else "incomplete")
            yield from self._finished(event)
        elif isinstance(event, Delta):
            yield from self._delta(event)

    def failed(self, error: RequestError) -> Iterator[Json]:
        """The events of an answer that breaks off."""
        said = error_body(error)["error"]
        self.body["status"] = "failed"
        self.body["error"] = {"code": said["code"] or "server_error", "message": str(error)}
        yield self._event("response.failed", response=self._snapshot())

    def assistant_message(self) -> Json:
        """The response as a message of the conversation that may go on."""
        message: Json = {"role": "assistant", "content": ""}
        for item in self.body["output"]:
            if item["type"] == "message":
                message["content"] += item["content"][0]["text"]
            elif item["type"] == "reasoning":
                message["reasoning_content"] = item["content"][0]["text"]
            else:
                arguments = _decoded(item["arguments"])
                call = {"id": item["call_id"], "type": "function"}
                function = {"name": item["name"], "arguments": arguments}
                message.setdefault("tool_calls", []).append({**call, "function": function})
        return message

    def _delta(self, delta: Delta) -> Iterator[Json]:
        event = delta.event
        if isinstance(event, ToolCallDelta):
            if self._open is None or self._call != event.index:
                item = {"id": new_id("fc_"), "type": "function_call", "status": "in_progress", "arguments": ""}
                yield from self._begin({**item, "call_id": event.id, "name": event.name})
                self._call = event.index
            assert self._open is not None
            self._open["arguments"] += event.arguments
            if event.arguments:
                yield self._of_item("response.function_call_arguments.delta", delta=event.arguments)
        elif isinstance(event, (ContentDelta, ReasoningDelta)):
            kind = "message" if isinstance(event, ContentDelta) else "reasoning"
            part_type, name = _PARTS[kind]
            if self._open is None or self._open["type"] != kind:
                yield from self._begin_parts(kind, part_type)
            assert self._open is not None
            part = self._open["content"][0]
            part["text"] += event.text
            logprobs = {}
            if kind == "message":
                logprobs = {"logprobs": [_logprob(token) for token in delta.logprobs]}
                part["logprobs"] += logprobs["logprobs"]
            yield self._of_item(f"{name}.delta", content_index=0, delta=event.text, **logprobs)

    def _begin_parts(self, kind: str, part_type: str) -> Iterator[Json]:
        part: Json = {"type": part_type, "text": ""}
        item: Json = {"id": new_id("msg_" if kind == "message" else "rs_"), "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
            part |= {"annotations": [], "logprobs": []}
        else:
            item |= {"summary": [], "content": []}
        yield from self._begin(item)
        assert self._open is not None
        self._open["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _begin(self, item: Json) -> Iterator[Json]:
        yield from self._close("completed")
        self._open, self._call = item, -1
        self.body["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=_copy(item))

    def _close(self, status: str) -> Iterator[Json]:
        """The events that end the item which grows."""
        item = self._open
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        else:
            part, name = item["content"][0], _PARTS[item["type"]][1]
            logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            yield self._of_item(f"{name}.done", content_index=0, text=part["text"], **logprobs)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=_copy(item))
        self._open = None

    def _finished(self, end: Finished) -> Iterator[Json]:
        usage = end.usage
        self.body["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        cut = end.finish_reason == "length"
        self.body["status"] = "incomplete" if cut else "completed"
        self.body["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        yield self._event("response.incomplete" if cut else "response.completed", response=self._snapshot())

    @property
    def _index(self) -> int:
        return len(self.body["output"]) - 1

    def _of_item(self, name: str, /, **fields: Any) -> Json:
        assert self._open is not None
        return self._event(name, item_id=self._open["id"], output_index=self._index, **fields)

    def _event(self, name: str, /, **fields: Any) -> Json:
        self._n_events += 1
        return {"type": name, "sequence_number": self._n_events - 1, **fields}

    def _snapshot(self) -> Json:
        return {**self.body, "output": [_copy(item) for item in self.body["output"]]}


def _copy(item: Json) -> Json:
    found = dict(item)
    if "content" in item:
        found["content"] = [dict(part) for part in item["content"]]
    return found


def _logprob(token: TokenLogprob) -> Json:
    def one(text: str, logprob: float | None) -> Json:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}

    chosen = one(token.text, token.logprob)
    return {**chosen, "top_logprobs": [one(other.decoded_token, other.logprob) for _, other in token.top]}


def _decoded(arguments: str) -> Any:
    """The arguments of a call as templates read them: an object, or the text of one that does not parse."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
