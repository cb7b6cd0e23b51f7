"""The routes of OpenAI's /v1/responses, and the responses that are kept to go on from."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.errors import quoted
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, Event, Finished
from ggpy.protocol.openai_responses import error_body
from ggpy.protocol.responses_bodies import PATH, ResponsesRequest, parse
from ggpy.protocol.responses_events import ResponseStream
from ggpy.server.http import JsonResponse, answering, read_json
from ggpy.server.service import Service
from ggpy.server.streams import Writer, named_line, respond

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
        writer = _writer(asked, conversation, kept)
        return await respond(request, service.answer(_chat(asked, conversation)), writer, asked.chat.stream)

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
        Route("/responses", create, methods=["POST"]),
        Route(f"{PATH}/{{name}}", get),
        Route(f"{PATH}/{{name}}", delete, methods=["DELETE"]),
    ]


def _chat(asked: ResponsesRequest, conversation: list[dict[str, Any]]) -> ChatRequest:
    first = [] if asked.instructions is None else [{"role": "system", "content": asked.instructions}]
    return replace(asked.chat, messages=[*first, *conversation])


def _writer(asked: ResponsesRequest, conversation: list[dict[str, Any]], kept: KeptResponses) -> Writer:
    stream = ResponseStream(asked.shown)

    def bodies(event: Event) -> list[dict[str, Any]]:
        made = list(stream.events(event))
        if asked.store and isinstance(event, Finished):  # before the client can go on from it
            kept.add(stream.body, [*conversation, stream.assistant_message()])
        return made

    def whole(events: list[Event]) -> dict[str, Any]:
        for event in events:
            bodies(event)
        return stream.body

    return Writer(whole, bodies, stream.failed, named_line)
