"""The routes of Ollama's API."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import ggpy
from ggpy.protocol.generation import EmbeddingsRequest
from ggpy.protocol.ollama import Asked, parse_chat, parse_embed, parse_embeddings, parse_generate, parse_show
from ggpy.protocol.ollama_responses import Lines, error_body, nothing_asked
from ggpy.server.http import JsonResponse, answering, read_json, while_connected
from ggpy.server.models import LoadedModel
from ggpy.server.service import Service
from ggpy.server.streams import Writer, json_line, respond

Json = dict[str, Any]


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    def writing(parse: Callable[[Any], Asked], chat: bool) -> Callable[..., Any]:
        @answering(error_body)
        async def write(request: Request) -> Response:
            asked = parse(await read_json(request))
            if asked.request is None:
                return JsonResponse(await _load(service, asked, chat))
            lines = Lines(chat)
            writer = Writer(
                lines.whole,
                lines.lines,
                lambda error: [error_body(error)],
                json_line,
                media_type="application/x-ndjson",
            )
            return await respond(request, service.answer(asked.request, asked.keep_alive), writer, asked.stream)

        return write

    @answering(error_body)
    async def embed(request: Request) -> Response:
        asked, keep_alive = parse_embed(await read_json(request))
        began = time.perf_counter()
        if not asked.inputs:
            return JsonResponse({"model": asked.model, "embeddings": []})
        model, vectors, usage = await while_connected(request, service.embed(asked, keep_alive))
        return JsonResponse({
            "model": model, "embeddings": [vector.tolist() for vector in vectors],
            "total_duration": int((time.perf_counter() - began) * 1e9), "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
        })  # fmt: skip

    @answering(error_body)
    async def embeddings(request: Request) -> Response:
        asked, keep_alive = parse_embeddings(await read_json(request))
        assert isinstance(asked, EmbeddingsRequest)
        _, vectors, _ = await while_connected(request, service.embed(asked, keep_alive))
        return JsonResponse({"embedding": vectors[0].tolist()})

    @answering(error_body)
    async def show(request: Request) -> Response:
        return JsonResponse(await service.call(parse_show(await read_json(request)), _shown))

    @answering(error_body)
    async def tags(request: Request) -> Response:
        names = service.models.specs
        return JsonResponse({"models": [await service.look(name, _loaded_tag) or _tag(name) for name in names]})

    @answering(error_body)
    async def ps(request: Request) -> Response:
        found = [await service.look(name, _running) for name in service.models.specs]
        return JsonResponse({"models": [model for model in found if model is not None]})

    @answering(error_body)
    async def version(request: Request) -> Response:
        return JsonResponse({"version": ggpy.__version__})

    return [
        Route("/api/chat", writing(parse_chat, chat=True), methods=["POST"]),
        Route("/api/generate", writing(parse_generate, chat=False), methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/tags", tags),
        Route("/api/ps", ps),
        Route("/api/version", version),
    ]


async def _load(service: Service, asked: Asked, chat: bool) -> Json:
    """Load a model that is asked for nothing, or have it leave where it is not to stay."""
    name = service.models.named(asked.model).name
    if asked.keep_alive == 0:
        await service.unload(name)
        return nothing_asked(name, chat, unloaded=True)
    await service.call(name, _loaded_tag, keep_alive=asked.keep_alive)
    return nothing_asked(name, chat, unloaded=False)


def _tag(name: str, created: int = 0, size: int = 0, family: str = "") -> Json:
    """A model in a list, with what is known of it once it is loaded."""
    return {
        "name": name, "model": name, "modified_at": datetime.fromtimestamp(created, timezone.utc).isoformat(),
        "size": size, "digest": "", "details": {
            "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
            "parameter_size": "", "quantization_level": "",
        },
    }  # fmt: skip


def _loaded_tag(model: LoadedModel) -> Json:
    return _tag(model.name, model.created, model.llm.file.size, model.llm.runtime.hparams.arch)


def _running(model: LoadedModel) -> Json:
    left = 0.0 if model.keep_alive is None else min(model.keep_alive, 1e9)
    expires = datetime.now(timezone.utc) + timedelta(seconds=left) if left else datetime.max
    return {
        **_loaded_tag(model), "expires_at": expires.replace(tzinfo=timezone.utc).isoformat(), "size_vram": 0,
        "context_length": model.llm.n_ctx,
    }  # fmt: skip


def _shown(model: LoadedModel) -> Json:
    llm, tag = model.llm, _loaded_tag(model)
    plain = {
        key: value for key, value in llm.file.metadata.items() if isinstance(value, (str, int, float, bool))
    }  # fmt: skip
    template = plain.pop("tokenizer.chat_template", "")
    return {
        "modelfile": "", "parameters": "", "license": "", "template": template, "model_info": plain,
        "capabilities": model.capabilities, "details": tag["details"], "modified_at": tag["modified_at"],
    }  # fmt: skip
