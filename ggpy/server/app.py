"""The application: the routes of all protocols over one service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.protocol.anthropic_responses import error_body as anthropic_error
from ggpy.protocol.errors import RequestError
from ggpy.protocol.llama_server import error_body as llama_server_error
from ggpy.protocol.ollama_responses import error_body as ollama_error
from ggpy.protocol.openai_responses import error_body as openai_error
from ggpy.server import anthropic, llama_server, ollama, openai, page, responses
from ggpy.server.http import JsonResponse
from ggpy.server.middleware import ApiKeys, LocalHosts, RequestLog
from ggpy.server.service import Service


def create_app(service: Service) -> Starlette:
    """The application over a service, whose models it closes when it ends."""
    settings = service.settings

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        beside = [asyncio.create_task(service.models.unload_idle())]
        if settings.preload:
            beside.append(asyncio.create_task(_preload(service)))
        yield
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await service.models.close()

    async def health(request: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    around = [Middleware(RequestLog, service.metrics, settings.log_json)]
    if settings.cors_origins:
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            )
        )
    if settings.local_names_alone:
        around.append(Middleware(LocalHosts, error_body))
    if settings.api_keys:
        around.append(Middleware(ApiKeys, settings.api_keys, error_body))
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/health", health),
            Route("/metrics", metrics),
            *openai.routes(service),
            *responses.routes(service),
            *anthropic.routes(service),
            *ollama.routes(service),
            *llama_server.routes(service),
            *page.routes(),
        ],
        middleware=around,
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _preload(service: Service) -> None:
    try:
        async with service.model_for(None):
            pass
    except RequestError as error:  # whoever asks for it is told, too
        logging.getLogger("ggpy.server").error("%s", error)


def error_body(path: str, error: RequestError) -> dict[str, Any]:
    """An error in the shape of the protocol that a path belongs to."""
    if path.startswith("/api/"):
        return ollama_error(error)
    if path in llama_server.PATHS or path.startswith("/slots/"):
        return llama_server_error(error)
    return anthropic_error(error) if path.startswith("/v1/messages") else openai_error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """A path that is not there, or another method than it takes."""
    assert isinstance(error, HTTPException)
    words = {
        404: f"There is no {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, str(error.detail))
    known = RequestError(words, status=error.status_code)
    return JsonResponse(error_body(request.url.path, known), error.status_code, error.headers)
