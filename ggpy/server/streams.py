"""Answers on their way to a client: whole, or as they come, in whichever form the protocol writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import Event, Started
from ggpy.protocol.replies import Reply, replies
from ggpy.server.http import JsonResponse, draining_ended, ended, gone, json_bytes, known_error, while_connected

Json = dict[str, Any]


def data_line(body: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + json_bytes(body) + b"\n\n"


def named_line(body: Json) -> bytes:
    """A server-sent event with its type for a name."""
    return b"event: %s\ndata: %s\n\n" % (body["type"].encode(), json_bytes(body))


def json_line(body: Json) -> bytes:
    """A line of JSON alone."""
    return json_bytes(body) + b"\n"


@dataclass(frozen=True)
class Writer:
    """How a protocol writes an answer. whole: the body for all its events; bodies: those that one of them makes in a
    stream; failed: those that tell of an error in its middle, where the status is sent already; line: the bytes of one;
    last: what is behind all of them."""

    whole: Callable[[list[Event]], Json | list[Json]]
    bodies: Callable[[Event], Iterable[Json]]
    failed: Callable[[RequestError], Iterable[Json]]
    line: Callable[[Json], bytes] = data_line
    last: Callable[[], bytes] = bytes
    media_type: str = "text/event-stream"

    def lines(self, bodies: Iterable[Json]) -> bytes:
        return b"".join(map(self.line, bodies))


async def respond(
    request: Request, events: AsyncGenerator[Event, None], writer: Writer, stream: bool
) -> JsonResponse | Stream:
    """The response to a request whose answer's events are these. An error before the first is raised, and is the
    response's status."""
    if stream:
        first = await while_connected(request, anext(events))
        return Stream(first, events, writer)
    return JsonResponse(writer.whole(await while_connected(request, _all(events))))


def model_and_replies(events: list[Event]) -> tuple[str, list[Reply]]:
    """The model's name, and its answers in their order, from all events."""
    return next(event.model for event in events if isinstance(event, Started)), replies(events)


async def _all(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


class Stream(Response):
    """An answer that is sent as it comes, what an event makes in one piece. The events are closed when the client
    goes."""

    def __init__(self, first: Event, events: AsyncGenerator[Event, None], writer: Writer) -> None:
        self.status_code, self.media_type, self.background = 200, writer.media_type, None
        self._first, self._events, self._writer = first, events, writer
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(piece: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending, leaving = asyncio.ensure_future(self._send(sent)), asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except asyncio.CancelledError:
            if sending.cancel():
                await ended(sending)
                await sent(self._writer.lines(self._writer.failed(draining_ended())), more=False)
        finally:
            await ended(sending, leaving)

    async def _send(self, sent: Callable[..., Any]) -> None:
        writer = self._writer
        async with aclosing(self._events):
            try:
                if piece := writer.lines(writer.bodies(self._first)):
                    await sent(piece)
                async for event in self._events:
                    if piece := writer.lines(writer.bodies(event)):
                        await sent(piece)
                last = writer.last()
            except Exception as error:
                last = writer.lines(writer.failed(known_error(error)))
        await sent(last, more=False)
