"""The chat page over a double of the API that it speaks: answers are scripted, and come when they are told to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ggpy.server import page

Piece = str | dict[str, Any]  # a piece of content, or a delta


class ChatServer:
    """The API's double. answers: by the last message's text, pieces; other messages are echoed. endless:
    a message whose answer does not end by itself."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, list[Piece]] = {}
        self.errors: dict[str, tuple[int, Any]] = {}  # by the last message's text: status and body
        self.endless = "不停地说"
        self.key: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.left: list[str] = []  # messages whose clients went before the answer's end
        self.pause = 0.0  # seconds between pieces

    def routes(self) -> list[Route]:
        return [
            *page.routes(),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {
            "message": "The API key is missing or wrong.",
            "type": "authentication_error",
            "param": None,
            "code": None,
        }
        return JSONResponse({"error": error}, 401)

    async def _models(self, request: Request) -> Response:
        sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0}
        loaded = {"status": {"value": "loaded"}, "meta": {"n_ctx": 8192, "sampling": sampling}}
        data = [{"id": "qwen3-0.6b", **loaded}, {"id": "smollm2-135m", "status": {"value": "unloaded"}}]
        return self._refusal(request) or JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        body = await request.json()
        self.requests.append(body)
        asked = body["messages"][-1]["content"]
        if asked in self.errors:
            status, error = self.errors[asked]
            return JSONResponse(error, status)
        return StreamingResponse(self._events(asked, request), media_type="text/event-stream")

    async def _events(self, asked: str, request: Request) -> AsyncIterator[bytes]:
        def event(value: Any) -> bytes:
            return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"

        def chunk(delta: Any, finish: str | None = None) -> bytes:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            return event({"object": "chat.completion.chunk", "model": "qwen3-0.6b", "choices": choices})

        n, ended = 0, False
        try:
            yield chunk({"role": "assistant", "content": ""})
            pieces = iter(self.answers.get(asked, [f"你说：{asked}"]))
            while asked == self.endless:
                yield chunk({"content": f"{n} "})
                n += 1
                await asyncio.sleep(0.005)
            for piece in pieces:
                if isinstance(piece, dict) and "error" in piece:
                    yield event(piece)
                    return
                yield chunk({"content": piece} if isinstance(piece, str) else piece)
                n += 1
                await asyncio.sleep(self.pause)
            calls = any(isinstance(piece, dict) and "tool_calls" in piece for piece in self.answers.get(asked, []))
            yield chunk({}, "tool_calls" if calls else "stop")
            usage = {"prompt_tokens": 200, "completion_tokens": 56, "prompt_tokens_details": {"cached_tokens": 150}}
            timings = {"predicted_per_second": 41.5}
            yield event({"choices": [], "model": "qwen3-0.6b", "usage": usage, "timings": timings})
            yield b"data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.left.append(asked)


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A `ChatServer` that listens."""
    double = ChatServer()
    listening = socket.create_server(("127.0.0.1", 0))
    double.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    config = uvicorn.Config(
        Starlette(routes=double.routes()), log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.should_exit = True
        thread.join()
