"""The routes of OpenAI's API."""

from __future__ import annotations

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
    total_usage,
)
from ggpy.protocol.openai_responses import ChatChunks, ChunkStream, CompletionChunks, error_body
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.server.http import JsonResponse, answering, read_json, while_connected
from ggpy.server.models import LoadedModel
from ggpy.server.service import Service
from ggpy.server.streams import Writer, data_line, model_and_replies, respond

#: OpenAI has none; Jina's, llama-server's and Cohere's clients ask these.
RERANK_PATHS = ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v2/rerank")


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    @answering(error_body)
    async def generate(request: Request) -> Response:
        path = "/v1" + request.url.path.removeprefix("/v1")
        asked = openai.parse(request.method, path, await read_json(request))
        assert isinstance(asked, ChatRequest | CompletionRequest)
        return await respond(request, service.answer(asked), _writer(asked), asked.stream)

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
        return JsonResponse({"object": "list", "data": [await _model(service, name) for name in service.models.specs]})

    @answering(error_body)
    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        spec = service.models.named(name)
        if name not in (spec.name, *spec.aliases):
            raise RequestError(f"There is no model {quoted(name, 80)}.", "model", 404, "model_not_found")
        return JsonResponse(await _model(service, spec.name))

    return [
        Route("/v1/chat/completions", generate, methods=["POST"]),
        Route("/chat/completions", generate, methods=["POST"]),  # as of a base URL without /v1
        Route("/v1/completions", generate, methods=["POST"]),
        Route("/v1/embeddings", embed, methods=["POST"]),
        *(Route(path, rerank, methods=["POST"]) for path in RERANK_PATHS),
        Route("/v1/models", models),
        Route("/models", models),
        Route("/v1/models/{name:path}", model),
    ]


#: Sampling parameters whose defaults, of the model's file or llama.cpp's, the list of models shows.
_SHOWN = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


async def _model(service: Service, name: str) -> dict[str, Any]:
    """A model of the list, with its state, and what is known of it once it is loaded."""
    state = "loading" if service.models.loading == name else "unloaded"
    known = await service.look(name, _known) or {"created": 0, "status": {"value": state}}
    aliases = list(service.models.specs[name].aliases)
    return {"id": name, "object": "model", "owned_by": "ggpy", "aliases": aliases, **known}


def _known(model: LoadedModel) -> dict[str, Any]:
    llm = model.llm
    hparams = llm.runtime.hparams
    defaults = SamplingParams().resolved(llm.sampling_defaults)
    meta = {
        "architecture": hparams.arch, "n_ctx": llm.n_ctx, "n_ctx_train": hparams.n_ctx_train, "n_vocab": llm.n_vocab,
        "n_embd": hparams.n_embd, "size": llm.file.size, "sampling": {name: getattr(defaults, name) for name in _SHOWN},
    }  # fmt: skip
    return {
        "created": model.created, "status": {"value": "loaded"}, "capabilities": model.capabilities, "meta": meta,
    }  # fmt: skip


def _writer(asked: ChatRequest | CompletionRequest) -> Writer:
    chat, n = isinstance(asked, ChatRequest), asked.params.n
    stream: ChunkStream = (ChatChunks if chat else CompletionChunks)(asked.include_usage, n)
    body = openai_responses.chat_completion if chat else openai_responses.completion

    def whole(events: list[Event]) -> dict[str, Any]:
        usage = total_usage((event for event in events if isinstance(event, Finished)), n)
        return body(*model_and_replies(events), usage)

    def last() -> bytes:
        return b"".join(map(data_line, stream.last())) + b"data: [DONE]\n\n"

    return Writer(whole, stream.chunks, lambda error: [error_body(error)], last=last)
