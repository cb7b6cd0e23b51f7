"""The application: the routes of all protocols over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ggpy.protocol.errors import RequestError
from ggpy.protocol.openai_responses import error_body
from ggpy.server import openai
from ggpy.server.service import Service


def create_app(service: Service) -> Starlette:
    """The application over a service, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.models.close()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    app = Starlette(
        routes=[Route("/health", health), *openai.routes(service)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """A path that is not there, or another method than it takes."""
    assert isinstance(error, HTTPException)
    words = {
        404: f"There is no {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, str(error.detail))
    known = RequestError(words, status=error.status_code)
    return JSONResponse(error_body(known), error.status_code, headers=error.headers)
