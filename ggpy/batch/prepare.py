"""Requests of OpenAI's API as token ids and parameters, for the model that is to answer them."""

from __future__ import annotations

from typing import Any

from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.protocol.openai import ChatRequest, CompletionRequest, EmbeddingsRequest, RequestError

#: Values for a chat template that change an answer only where it knows them.
_NEEDED_IN_TEMPLATE = ("tools", "reasoning_effort")


def prompts_of(llm: LLM, request: ChatRequest | CompletionRequest | EmbeddingsRequest) -> list[list[int]]:
    """Token ids of a request's prompts. Raises RequestError where the model cannot take them."""
    embeds = isinstance(request, EmbeddingsRequest)
    if embeds and llm.runtime.hparams.writes_text:
        raise RequestError(f"{llm.path.name} writes text; embeddings need a model made for them.", "model")
    if not embeds and not llm.runtime.hparams.writes_text:
        raise RequestError(f"{llm.path.name} embeds texts and writes none; ask /v1/embeddings.", "model")
    if isinstance(request, ChatRequest):
        field, found = "messages", [_chat(llm, request)]
    elif isinstance(request, CompletionRequest):
        field, found = "prompt", [_ids(llm, "prompt", prompt) for prompt in request.prompts]
    else:
        field, found = "input", [_ids(llm, "input", prompt) for prompt in request.inputs]
    longest = max(map(len, found))
    if longest > llm.n_ctx:
        words = f"{field} has {longest} tokens, but the context holds {llm.n_ctx}; shorten it or ask for a larger one."
        raise RequestError(words, field, code="context_length_exceeded")
    strange = next((i for ids in found for i in ids if not 0 <= i < llm.n_vocab), None)
    if strange is not None:
        raise RequestError(f"{field} has the token id {strange}, but ids are 0 to {llm.n_vocab - 1}.", field)
    return found


def _ids(llm: LLM, field: str, prompt: Any) -> list[int]:
    try:
        return llm.encode(prompt)[1]
    except GGPYError as error:
        raise RequestError(str(error), field) from None


def _chat(llm: LLM, request: ChatRequest) -> list[int]:
    if llm.template is None:
        raise RequestError(f"{llm.path.name} has no chat template; ask /v1/completions.", "messages")
    for name in _NEEDED_IN_TEMPLATE:
        if name in request.template_values and not llm.template.reads(name):
            words = f"{name} is not supported by {llm.path.name}: its chat template does not read it."
            raise RequestError(words, name, code="unsupported_parameter")
    messages = request.messages
    if not llm.template.reads("developer"):  # a newer name for the same role
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    try:
        return llm.tokenize_chat(llm.render_chat(messages, **request.template_values))
    except GGPYError as error:
        raise RequestError(str(error), "messages") from None
