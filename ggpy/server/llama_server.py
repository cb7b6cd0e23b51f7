"""The routes of llama-server's own API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import ggpy
from ggpy.protocol import openai
from ggpy.protocol.body import read
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, CompletionRequest
from ggpy.protocol.llama_server import (
    CompletionEvents,
    DetokenizeBody,
    ModelBody,
    TokenizeBody,
    completion_body,
    completion_request,
    embedding_request,
    error_body,
    infill_body,
    infill_request,
)
from ggpy.protocol.openai_bodies import PARAMETERS, Sampling
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.server.http import JsonResponse, answering, read_json, while_connected
from ggpy.server.infill import infill_prompt
from ggpy.server.models import LoadedModel
from ggpy.server.service import Service
from ggpy.server.streams import Writer, respond

if TYPE_CHECKING:
    from ggpy.llm import LLM

Json = dict[str, Any]

PATHS = (
    "/completion", "/completions", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props", "/slots",
    "/models/load", "/models/unload", "/embedding", "/embeddings",
)  # fmt: skip


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    async def answered(request: Request, asked: CompletionRequest, events: CompletionEvents) -> Response:
        writer = Writer(events.whole, events.bodies, lambda error: [error_body(error)])
        return await respond(request, service.answer(asked), writer, asked.stream)

    @answering(error_body)
    async def completion(request: Request) -> Response:
        body = completion_body(await read_json(request))
        return await answered(request, completion_request(body), CompletionEvents(body))

    @answering(error_body)
    async def infill(request: Request) -> Response:
        body = infill_body(await read_json(request))
        prompt, truncated = await service.call(body.model, infill_prompt, body)
        return await answered(request, infill_request(body, prompt), CompletionEvents(body, truncated))

    @answering(error_body)
    async def tokenize(request: Request) -> Response:
        body = read(TokenizeBody, await read_json(request), "/tokenize")
        return JsonResponse({"tokens": await service.call(body.model, _tokens, body)})

    @answering(error_body)
    async def detokenize(request: Request) -> Response:
        body = read(DetokenizeBody, await read_json(request), "/detokenize")
        return JsonResponse({"content": await service.call(body.model, _text, body.tokens)})

    @answering(error_body)
    async def apply_template(request: Request) -> Response:
        asked = openai.parse("POST", "/v1/chat/completions", await read_json(request))
        assert isinstance(asked, ChatRequest)
        return JsonResponse({"prompt": await service.call(asked.model, _rendered, asked)})

    @answering(error_body)
    async def props(request: Request) -> Response:
        spec = service.models.named(request.query_params.get("model"))
        asleep = {
            "default_generation_settings": {"n_ctx": spec.options.get("n_ctx") or 0, "params": {**spec.sampling}},
            "total_slots": spec.n_parallel, "model_path": spec.source or "", "is_sleeping": True,
        }  # fmt: skip
        found = await service.look(spec.name, _props) or asleep  # nobody loads a model by looking at it
        return JsonResponse({
            "model_alias": spec.name, "modalities": {"vision": False, "audio": False},
            "build_info": f"ggpy {ggpy.__version__}", **found,
        })  # fmt: skip

    @answering(error_body)
    async def slots(request: Request) -> Response:
        found = await service.look(service.models.named(request.query_params.get("model")).name, _slots) or []
        if "fail_on_no_slot" in request.query_params and found and all(slot["is_processing"] for slot in found):
            raise RequestError("All slots are busy; try again later.", status=503)
        return JsonResponse(found)

    @answering(error_body)
    async def save(request: Request) -> Response:
        words = "Slots are not saved over HTTP; conversations that lose theirs are kept in memory by themselves."
        raise RequestError(words, status=501)

    @answering(error_body)
    async def load(request: Request) -> Response:
        body = read(ModelBody, await read_json(request), "/models/load")
        await service.call(body.model, _props)
        return JsonResponse({"success": True})

    @answering(error_body)
    async def unload(request: Request) -> Response:
        body = read(ModelBody, await read_json(request), "/models/unload")
        await service.unload(service.models.named(body.model).name)
        return JsonResponse({"success": True})

    @answering(error_body)
    async def embedding(request: Request) -> Response:
        asked = embedding_request(await read_json(request))
        _, vectors, _ = await while_connected(request, service.embed(asked))
        return JsonResponse([{"index": i, "embedding": [vector.tolist()]} for i, vector in enumerate(vectors)])

    return [
        Route("/completion", completion, methods=["POST"]),
        Route("/completions", completion, methods=["POST"]),
        Route("/infill", infill, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
        Route("/props", props),
        Route("/slots", slots),
        Route("/slots/{id}", save, methods=["POST"]),
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
        Route("/embedding", embedding, methods=["POST"]),
        Route("/embeddings", embedding, methods=["POST"]),
    ]


def _tokens(model: LoadedModel, body: TokenizeBody) -> list[Any]:
    tokenizer = model.llm.tokenizer
    ids = tokenizer.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
    if not body.with_pieces:
        return list(ids)
    found: list[Json] = []
    for token in ids:
        piece = tokenizer.token_bytes(token)
        try:
            found.append({"id": token, "piece": piece.decode()})
        except UnicodeDecodeError:  # part of a character
            found.append({"id": token, "piece": list(piece)})
    return found


def _text(model: LoadedModel, tokens: list[int]) -> str:
    n_vocab = model.llm.n_vocab
    strange = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if strange is not None:
        raise RequestError(f"tokens has the id {strange}, but ids are 0 to {n_vocab - 1}.", "tokens")
    return model.llm.detokenize(tokens)


def _rendered(model: LoadedModel, asked: ChatRequest) -> str | None:
    from ggpy.prepare import prompts_of  # which imports the engine

    ((text, _),) = prompts_of(model.llm, asked)
    return text


def _props(model: LoadedModel) -> Json:
    llm = model.llm

    def spelt(token: int | None) -> str:
        return "" if token is None else llm.tokenizer.token_text(token)

    return {
        "default_generation_settings": {"n_ctx": llm.n_ctx, "params": _settings(llm)},
        "total_slots": len(llm.engine.slots), "model_path": str(llm.path), "is_sleeping": False,
        "chat_template": "" if llm.template is None else llm.template.source,
        "bos_token": spelt(llm.tokenizer.bos), "eos_token": spelt(llm.tokenizer.eos),
    }  # fmt: skip


def _settings(llm: LLM) -> Json:
    params = SamplingParams().resolved(llm.sampling_defaults)
    return {name: getattr(params, PARAMETERS.get(name, name)) for name in Sampling.model_fields} | {"seed": -1}


def _slots(model: LoadedModel) -> list[Json]:
    found = []
    for slot in model.llm.engine.slots:
        request = slot.request
        found.append({
            "id": slot.index, "n_ctx": model.llm.n_ctx, "is_processing": request is not None,
            "n_tokens": len(slot.tokens), "n_prompt_tokens": 0 if request is None else len(request.prompt),
            "n_decoded": 0 if request is None else request.n_chosen,
        })  # fmt: skip
    return found
