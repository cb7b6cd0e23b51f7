"""The routes of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggpy.errors import quoted
from ggpy.protocol import openai, openai_responses
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    Event,
    Finished,
    RerankRequest,
    Started,
    total_usage,
)
from ggpy.protocol.openai_responses import ChatChunks, ChunkStream, CompletionChunks, error_body
from ggpy.protocol.replies import replies
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.server.http import JsonResponse, Stream, answering, known_error, read_json, while_connected
from ggpy.server.service import Service


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    @answering(error_body)
    async def generate(request: Request) -> Response:
        asked = openai.parse(request.method, request.url.path, await read_json(request))
        assert isinstance(asked, ChatRequest | CompletionRequest)
        events = service.answer(asked)
        if asked.stream:
            first = await while_connected(request, anext(events))
            return Stream(_sent(asked, first, events), "text/event-stream")
        return JsonResponse(await while_connected(request, _whole(asked, events)))

    @answering(error_body)
    async def embed(request: Request) -> Response:
        asked = openai.parse(request.method, request.url.path, await read_json(request))
        assert isinstance(asked, EmbeddingsRequest)
        model, vectors, usage = await while_connected(request, service.embed(asked))
        return JsonResponse(openai_responses.embeddings(model, vectors, usage, asked.base64))

    @answering(error_body)
    async def rerank(request: Request) -> Response:
        asked = openai.parse(request.method, "/v1/rerank", await read_json(request))
        assert isinstance(asked, RerankRequest)
        model, ranked = await while_connected(request, service.rank(asked))
        return JsonResponse(openai_responses.ranking(model, ranked, asked))

    @answering(error_body)
    async def models(request: Request) -> Response:
        return JsonResponse({"object": "list", "data": [_model(service, name) for name in service.models.specs]})

    @answering(error_body)
    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        spec = service.models.named(name)
        if name not in (spec.name, *spec.aliases):
            raise RequestError(f"There is no model {quoted(name, 80)}.", "model", 404, "model_not_found")
        return JsonResponse(_model(service, spec.name))

    return [
        Route("/v1/chat/completions", generate, methods=["POST"]),
        Route("/v1/completions", generate, methods=["POST"]),
        Route("/v1/embeddings", embed, methods=["POST"]),
        *(Route(path, rerank, methods=["POST"]) for path in ("/v1/rerank", "/rerank")),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]


#: Sampling parameters whose defaults, of the model's file or llama.cpp's, the list of models shows.
_SHOWN = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


def _model(service: Service, name: str) -> dict[str, Any]:
    """A model of the list, with its state, and what is known of it once it is loaded."""
    found = service.models.loaded.get(name)
    body: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "ggpy"}
    if found is None:
        state = "loading" if service.models.loading == name else "unloaded"
        return {**body, "status": {"value": state}}
    llm = found.llm
    hparams = llm.runtime.hparams
    defaults = SamplingParams().resolved(llm.sampling_defaults)
    meta = {
        "architecture": hparams.arch, "n_ctx": llm.n_ctx, "n_ctx_train": hparams.n_ctx_train, "n_vocab": llm.n_vocab,
        "n_embd": hparams.n_embd, "size": llm.file.size, "sampling": {name: getattr(defaults, name) for name in _SHOWN},
    }  # fmt: skip
    return {**body, "created": found.created, "status": {"value": "loaded"}, "meta": meta}


async def _whole(asked: ChatRequest | CompletionRequest, events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    async with aclosing(events):
        found = [event async for event in events]
    model = next(event.model for event in found if isinstance(event, Started))
    usage = total_usage((event for event in found if isinstance(event, Finished)), asked.params.n)
    body = openai_responses.chat_completion if isinstance(asked, ChatRequest) else openai_responses.completion
    return body(model, replies(found), usage)


async def _sent(
    asked: ChatRequest | CompletionRequest, first: Event, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error after the first is one of them, as the status is sent already."""
    kind = ChatChunks if isinstance(asked, ChatRequest) else CompletionChunks
    stream: ChunkStream = kind(asked.include_usage, asked.params.n)
    async with aclosing(events):
        list(stream.chunks(first))
        try:
            async for event in events:
                for chunk in stream.chunks(event):
                    yield _line(chunk)
        except Exception as error:
            yield _line(error_body(known_error(error)))
            return
    for chunk in stream.last():
        yield _line(chunk)
    yield b"data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
