"""The routes of Anthropic's API."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.protocol.anthropic import parse_count, parse_messages
from ggpy.protocol.anthropic_responses import MessageEvents, error_body, message
from ggpy.protocol.generation import ChatRequest, Event
from ggpy.server.http import JsonResponse, answering, read_json
from ggpy.server.models import LoadedModel
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
        asked = parse_count(await read_json(request))
        return JsonResponse({"input_tokens": await service.call(asked.model, _n_tokens, asked)})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


def _n_tokens(model: LoadedModel, asked: ChatRequest) -> int:
    from ggpy.prepare import prompts_of  # which imports the engine

    ((_, ids),) = prompts_of(model.llm, asked)
    return len(ids)


def _whole(events: list[Event]) -> dict[str, Any]:
    model, (reply,) = model_and_replies(events)
    return message(model, reply)
