"""HTTP as the routes of every protocol need it: bodies read within limits, answers that end with their client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, NoReturn, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from ggpy.errors import GGPYError, shown
from ggpy.protocol.errors import RequestError
from ggpy.server.settings import Settings
from ggpy.units import size_text

log = logging.getLogger("ggpy.server")

T = TypeVar("T")

#: Headers of errors: when to try again; that the rest of a body is not read.
_HEADERS = {
    408: {"connection": "close"},
    413: {"connection": "close"},
    429: {"retry-after": "1"},
    503: {"retry-after": "5"},
}

Endpoint = Callable[[Request], Awaitable[Response]]
ErrorBody = Callable[[RequestError], dict[str, Any]]


class JsonResponse(JSONResponse):
    """A value as JSON. What no UTF-8 can hold, as half a pair of surrogates from a request, becomes a question mark."""

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once, not for each value


def json_bytes(value: Any) -> bytes:
    return _encoded(value).encode("utf-8", "replace")


async def read_json(request: Request) -> Any:
    """The value that a request's body holds. Raises RequestError: 413 where it is too large, 408 where it does not
    come, 400 where it is no JSON."""
    settings: Settings = request.app.state.service.settings
    try:
        body = await asyncio.wait_for(_read(request, settings.max_body), settings.timeout)
    except asyncio.TimeoutError:
        raise RequestError(f"The body did not come within {settings.timeout:g} seconds.", "body", 408) from None
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        said = "it nests too deeply" if isinstance(error, RecursionError) else shown(error, 100)
        raise RequestError(f"The body is no JSON ({said}).", "body") from None


async def _read(request: Request, most: int) -> bytes:
    told = request.headers.get("content-length", "")
    found = bytearray()
    if not (told.isdecimal() and int(told) > most):
        try:
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    break
            else:
                return bytes(found)
        finally:
            found.clear()  # `asyncio.wait_for` makes a cycle of what is raised, and of all it came through
    raise RequestError(f"The body is larger than {size_text(most)}, the most that this server takes.", "body", 413)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def answering(error_body: ErrorBody) -> Callable[[Endpoint], Endpoint]:
    """Have an endpoint answer what it raises, in its protocol's shape."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def answered(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except (Exception, asyncio.CancelledError) as error:
                return _told(error_body, error)

        return answered

    return decorate


def _told(error_body: ErrorBody, error: BaseException) -> JsonResponse:
    """The response for an error. No frame that the error came through may hold it by a name: with its traceback that is
    a cycle, in which the request's body, tens of megabytes, would wait for the garbage collector."""
    known = known_error(error)
    return JsonResponse(error_body(known), known.status, _HEADERS.get(known.status))


def draining_ended() -> RequestError:
    """The error for answers that are still on their way when the server's time to end is over."""
    return RequestError("The server ends, and does not wait for this answer any longer; ask again.", status=503)


def known_error(error: BaseException) -> RequestError:
    """The error that a client is told; what nobody foresaw is logged."""
    if isinstance(error, asyncio.CancelledError):  # uvicorn cancels what runs once the time to drain is over
        return draining_ended()
    if isinstance(error, RequestError):
        return error
    if isinstance(error, GGPYError):
        return RequestError(str(error), status=500)
    log.exception("a request failed", exc_info=error)
    return RequestError("The server failed to answer this request; its log says why.", status=500)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine, and cancel it when the client goes. Raises ClientDisconnect."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        await ended(working, leaving)
        del working, leaving  # which hold what was raised, as `_told` says


async def gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
