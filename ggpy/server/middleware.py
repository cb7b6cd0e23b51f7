"""Around every request: its name, its key, its line in the log. Plain ASGI, which costs a stream nothing a piece."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ggpy.protocol.errors import RequestError
from ggpy.server.http import JsonResponse
from ggpy.server.metrics import Metrics

log = logging.getLogger("ggpy.requests")

_LOOPBACK = re.compile(r"127(\.\d{1,3}){3}")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,100}")

#: Paths that need no key: whether the server lives, and the page, which asks for one.
_OPEN = ("/health", "/v1/health", "/")
_OPEN_FOLDER = "/page/"


class RequestLog:
    """Gives each request a name, its client's or a new one, which its answer has, too, and logs it when it is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics, as_json: bool) -> None:
        self._app, self._metrics, self._as_json = app, metrics, as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        began, status = time.perf_counter(), 499

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            logging.getLogger("ggpy.server").exception("a request failed", exc_info=error)
            if status == 499:
                status = 500
        finally:
            seconds = time.perf_counter() - began
            known = scope.get("endpoint") is not None and not scope.get("path_params")
            path = scope["path"] if known else "other"  # clients do not choose how many counters there are
            self._metrics.request(path, status, seconds)
            self._log(name, scope, status, seconds)

    def _log(self, name: str, scope: Scope, status: int, seconds: float) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        client = scope.get("client")
        row: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": name,
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        if self._as_json:
            log.info("%s", json.dumps(row))
        else:
            log.info("%s %s %s %d, %.0f ms", name, row["method"], quoted_path(row["path"]), status, row["ms"])


def quoted_path(path: str) -> str:
    """A path for a line of a log, with nothing that a terminal would obey."""
    return path if path.isprintable() else repr(path)


class LocalHosts:
    """Answers only to names of this machine: a page of another site may have its own name lead here, and would read
    answers as those of its own server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, error_body: Any) -> None:
        self._app, self._error_body = app, error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_local(Headers(scope=scope).get("host", "localhost")):
            await self._app(scope, receive, send)
            return
        words = "This server answers to localhost alone; ask it by that name, or start it with --api-key or --host."
        error = RequestError(words, status=403, code="forbidden_host")
        await JsonResponse(self._error_body(scope["path"], error), 403)(scope, receive, send)


def _is_local(host: str) -> bool:
    """True where the name of a `Host` header, with a port or without, is one of this machine's own."""
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name in ("localhost", "[::1]") or name.endswith(".localhost") or _LOOPBACK.fullmatch(name) is not None


class ApiKeys:
    """Asks for one of some keys, as a bearer token or in `x-api-key`. Every key is compared, in constant time."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], error_body: Any) -> None:
        self._app, self._keys, self._error_body = app, [key.encode() for key in keys], error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope) or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        words = "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'."
        error = RequestError(words, status=401, code="invalid_api_key")
        headers = {"www-authenticate": "Bearer"}
        await JsonResponse(self._error_body(scope["path"], error), 401, headers)(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Headers were decoded as Latin-1, whatever they hold; keys are compared as their bytes in UTF-8.
        found = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        return any(found)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return path in _OPEN or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS"
