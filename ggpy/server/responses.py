"""The routes of OpenAI's /v1/responses, and the responses that are kept to go on from."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.errors import quoted
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, Event
from ggpy.protocol.openai_responses import error_body
from ggpy.protocol.responses_bodies import PATH, ResponsesRequest, parse
from ggpy.protocol.responses_events import ResponseStream
from ggpy.server.http import JsonResponse, Stream, answering, known_error, read_json, while_connected
from ggpy.server.service import Service

MOST_KEPT = 1024  # responses
MOST_CHARACTERS = 64 << 20  # of their conversations


@dataclass(frozen=True)
class Kept:
    """A response, and its whole conversation, whose messages it shares with those before it."""

    body: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int


class KeptResponses:
    """The latest responses by their ids, within a bound; the one that was used longest ago leaves first."""

    def __init__(self, most: int = MOST_KEPT, most_characters: int = MOST_CHARACTERS) -> None:
        self._most, self._most_characters = most, most_characters
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def add(self, body: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        size = sum(len(str(message)) for message in messages)
        self._kept[body["id"]] = Kept(body, messages, size)
        self._size += size
        while len(self._kept) > self._most or (self._size > self._most_characters and len(self._kept) > 1):
            self.remove(next(iter(self._kept)))

    def get(self, name: str, field: str) -> Kept:
        """A response. Raises RequestError, 404."""
        if name not in self._kept:
            words = f"There is no response {quoted(name, 80)}; only the latest ones are kept, and only in memory."
            raise RequestError(words, field, 404, "response_not_found")
        self._kept.move_to_end(name)
        return self._kept[name]

    def remove(self, name: str) -> None:
        self._size -= self._kept.pop(name).size


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""
    kept = KeptResponses()

    @answering(error_body)
    async def create(request: Request) -> Response:
        asked = parse(await read_json(request))
        conversation = list(asked.chat.messages)
        if asked.previous is not None:
            conversation = [*kept.get(asked.previous, "previous_response_id").messages, *conversation]
        stream = ResponseStream(asked.shown)
        events = service.answer(_chat(asked, conversation))
        if asked.chat.stream:
            first = await while_connected(request, anext(events))
            return Stream(_sent(asked, conversation, stream, first, events, kept), "text/event-stream")
        await while_connected(request, _taken(stream, events))
        _keep(asked, conversation, stream, kept)
        return JsonResponse(stream.body)

    @answering(error_body)
    async def get(request: Request) -> Response:
        return JsonResponse(kept.get(request.path_params["name"], "response_id").body)

    @answering(error_body)
    async def delete(request: Request) -> Response:
        name = request.path_params["name"]
        kept.get(name, "response_id")
        kept.remove(name)
        return JsonResponse({"id": name, "object": "response", "deleted": True})

    return [
        Route(PATH, create, methods=["POST"]),
        Route(f"{PATH}/{{name}}", get),
        Route(f"{PATH}/{{name}}", delete, methods=["DELETE"]),
    ]


def _chat(asked: ResponsesRequest, conversation: list[dict[str, Any]]) -> ChatRequest:
    first = [] if asked.instructions is None else [{"role": "system", "content": asked.instructions}]
    return replace(asked.chat, messages=[*first, *conversation])


def _keep(
    asked: ResponsesRequest, conversation: list[dict[str, Any]], stream: ResponseStream, kept: KeptResponses
) -> None:
    if asked.store:
        kept.add(stream.body, [*conversation, stream.assistant_message()])


async def _taken(stream: ResponseStream, events: AsyncGenerator[Event, None]) -> None:
    async with aclosing(events):
        async for event in events:
            for _ in stream.events(event):
                pass


async def _sent(
    asked: ResponsesRequest,
    conversation: list[dict[str, Any]],
    stream: ResponseStream,
    first: Event,
    events: AsyncGenerator[Event, None],
    kept: KeptResponses,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, each with its name. An error after the first is one of them."""
    async with aclosing(events):
        for told in stream.events(first):
            yield _line(told)
        try:
            async for event in events:
                for told in stream.events(event):
                    if told["type"] in ("response.completed", "response.incomplete"):
                        _keep(asked, conversation, stream, kept)  # before the client can go on from it
                    yield _line(told)
        except Exception as error:
            for told in stream.failed(known_error(error)):
                yield _line(told)


def _line(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), data)
