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
from ggpy.protocol.generation import ChatRequest, CompletionRequest, Event
from ggpy.protocol.llama_server import (
    CompletionEvents,
    DetokenizeBody,
    InfillBody,
    TokenizeBody,
    completion_body,
    completion_request,
    error_body,
    infill_body,
    infill_request,
)
from ggpy.server.http import JsonResponse, answering, read_json
from ggpy.server.models import LoadedModel
from ggpy.server.service import Service
from ggpy.server.streams import Writer, model_and_replies, respond

if TYPE_CHECKING:
    from ggpy.llm import LLM

Json = dict[str, Any]

PATHS = (
    "/completion", "/completions", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props", "/slots",
)  # fmt: skip


def routes(service: Service) -> list[Route]:
    """The routes, over a service."""

    async def answered(request: Request, asked: CompletionRequest) -> Response:
        writer = Writer(_whole, CompletionEvents().bodies, lambda error: [error_body(error)])
        return await respond(request, service.answer(asked), writer, asked.stream)

    @answering(error_body)
    async def completion(request: Request) -> Response:
        return await answered(request, completion_request(await read_json(request)))

    @answering(error_body)
    async def infill(request: Request) -> Response:
        body = infill_body(await read_json(request))
        prompt = await service.call(body.model, _infill_prompt, body)
        return await answered(request, infill_request(body, prompt))

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
        return JsonResponse(await service.call(request.query_params.get("model"), _props))

    @answering(error_body)
    async def slots(request: Request) -> Response:
        return JsonResponse(await service.call(request.query_params.get("model"), _slots))

    return [
        Route("/completion", completion, methods=["POST"]),
        Route("/completions", completion, methods=["POST"]),
        Route("/infill", infill, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", apply_template, methods=["POST"]),
        Route("/props", props),
        Route("/slots", slots),
    ]


def _whole(events: list[Event]) -> Json:
    model, (reply,) = model_and_replies(events)
    return completion_body(model, reply)


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


def _infill_prompt(model: LoadedModel, body: InfillBody) -> list[int]:
    """The tokens between which a model fills in. Raises RequestError where it was not trained to."""
    llm = model.llm
    known = {name: _fim_token(llm, name) for name in ("pre", "suf", "mid", "rep", "sep")}
    if any(known[name] is None for name in ("pre", "suf", "mid")):
        raise RequestError(f"{llm.path.name} has no tokens for infill; ask /completion.", "model", 501)

    def spelt(text: str) -> list[int]:
        return list(llm.tokenizer.tokenize(text, add_special=False, continues=True)) if text else []

    extra: list[int] = []
    if body.input_extra and known["sep"] is not None:
        extra += [known["rep"], *spelt("myproject\n")] if known["rep"] is not None else []
        for file in body.input_extra:
            extra += [known["sep"], *spelt(f"{file.filename or 'tmp'}\n{file.text}")]
    elif body.input_extra:
        extra += spelt("".join(f"{file.text}\n" for file in body.input_extra))
    prefix, suffix = spelt(body.input_prefix + (body.prompt or "")), spelt(body.input_suffix)
    bos = [llm.tokenizer.bos] if llm.tokenizer.add_bos and llm.tokenizer.bos is not None else []
    return [*bos, *extra, known["pre"], *prefix, known["suf"], *suffix, known["mid"]]  # type: ignore[list-item]


def _fim_token(llm: LLM, name: str) -> int | None:
    """A token of infill: as the file's key names it, or as the families that have it spell it."""
    found = llm.file.metadata.get(f"tokenizer.ggml.fim_{name}_token_id")
    if isinstance(found, int) and 0 <= found < llm.n_vocab:
        return found
    spellings = {
        "pre": ("<|fim_prefix|>", "<fim_prefix>", "<PRE>"), "suf": ("<|fim_suffix|>", "<fim_suffix>", "<SUF>"),
        "mid": ("<|fim_middle|>", "<fim_middle>", "<MID>"), "rep": ("<|repo_name|>",), "sep": ("<|file_sep|>",),
    }[name]  # fmt: skip
    return next((token for text in spellings if (token := llm.tokenizer.token_id(text)) is not None), None)


def _props(model: LoadedModel) -> Json:
    llm = model.llm

    def spelt(token: int | None) -> str:
        return "" if token is None else llm.tokenizer.token_text(token)

    return {
        "default_generation_settings": {"n_ctx": llm.n_ctx, "params": {**llm.sampling_defaults}},
        "total_slots": len(llm.engine.slots), "model_alias": model.name, "model_path": str(llm.path),
        "modalities": {"vision": False, "audio": False},
        "chat_template": "" if llm.template is None else llm.template.source,
        "bos_token": spelt(llm.tokenizer.bos), "eos_token": spelt(llm.tokenizer.eos),
        "build_info": f"ggpy {ggpy.__version__}", "is_sleeping": False,
    }  # fmt: skip


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
