"""The routes of Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.protocol.anthropic import parse_count, parse_messages
from ggpy.protocol.anthropic_responses import MessageEvents, error_body, message
from ggpy.protocol.generation import Event, Started
from ggpy.protocol.replies import replies
from ggpy.server.http import JsonResponse, Stream, answering, known_error, read_json, while_connected
from ggpy.server.service import Service


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    @answering(error_body)
    async def messages(request: Request) -> Response:
        asked = parse_messages(await read_json(request))
        events = service.answer(asked)
        if asked.stream:
            first = await while_connected(request, anext(events))
            return Stream(_sent(first, events), "text/event-stream")
        return JsonResponse(await while_connected(request, _whole(events)))

    @answering(error_body)
    async def count_tokens(request: Request) -> Response:
        from ggpy.prepare import prompts_of  # which imports the engine

        asked = parse_count(await read_json(request))
        async with service.model_for(asked.model) as model:
            ((_, ids),) = await model.run(prompts_of, model.llm, asked)
        return JsonResponse({"input_tokens": len(ids)})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


async def _whole(events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    async with aclosing(events):
        found = [event async for event in events]
    model = next(event.model for event in found if isinstance(event, Started))
    return message(model, replies(found)[0])


async def _sent(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    stream = MessageEvents()
    async with aclosing(events):
        for event in stream.events(first):
            yield _line(event)
        try:
            async for one in events:
                for event in stream.events(one):
                    yield _line(event)
        except Exception as error:
            yield _line(error_body(known_error(error)))


def _line(event: dict[str, Any]) -> bytes:
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return b"event: " + event["type"].encode() + b"\ndata: " + body + b"\n\n"
