"""The routes of Anthropic's API."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.protocol.anthropic import parse_count, parse_messages
from ggpy.protocol.anthropic_responses import MessageEvents, error_body, message
from ggpy.protocol.generation import Event
from ggpy.server.http import JsonResponse, answering, read_json
from ggpy.server.service import Service
from ggpy.server.streams import Writer, model_and_replies, named_line, respond


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    @answering(error_body)
    async def messages(request: Request) -> Response:
        asked = parse_messages(await read_json(request))
        writer = Writer(_whole, MessageEvents().events, lambda error: [error_body(error)], named_line)
        return await respond(request, service.answer(asked), writer, asked.stream)

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


def _whole(events: list[Event]) -> dict[str, Any]:
    model, (reply,) = model_and_replies(events)
    return message(model, reply)
