"""Requests of the protocols as requests of the engine, for the model that is to answer them, and their texts as events.

The one way for files of requests and for the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    ChatRequest,
    CompletionRequest,
    Delta,
    EmbeddingsRequest,
    Finished,
    RerankRequest,
    Timing,
    TokenLogprob,
    Usage,
)
from ggpy.sampling.logprobs import Logprob
from ggpy.text.reply import ReplyFormat, ReplyParser
from ggpy.text.reply.events import ContentDelta
from ggpy.text.reply.events import Event as ReplyEvent


@dataclass
class Answer:
    """One answer on its way: a request of the engine, and what makes events of its text. parser: None where the text is
    content as it is."""

    choice: int
    request: Request
    parser: ReplyParser | None = None
    prefix: str = ""  # written before the model's own text
    _n_scored: int = field(default=0, init=False)

    def events(self, text: str, finished: bool) -> Iterator[Delta | Finished]:
        """The events of the text that came since the last call. finished: nothing follows."""
        text, self.prefix = self.prefix + text, ""
        parts = self._parts(text, finished)
        logprobs = self._new_logprobs(finished) if text or finished else []
        for i, part in enumerate(parts):
            yield Delta(self.choice, part, [] if i else logprobs)
        if logprobs and not parts:
            yield Delta(self.choice, None, logprobs)
        if finished:
            yield self._end()

    def _parts(self, text: str, finished: bool) -> list[ReplyEvent]:
        if self.parser is None:
            return [ContentDelta(text)] if text else []
        parts = self.parser.feed(text) if text else []
        return [*parts, *self.parser.finish()] if finished else parts

    def _new_logprobs(self, finished: bool) -> list[TokenLogprob]:
        """Log-probabilities of the tokens since the last call, without a token that ended the text."""
        known = self.request.logprobs
        if known is None:
            return []
        ends = finished and isinstance(self.request.stop_reason, int)
        n_before, self._n_scored = self._n_scored, len(known) - ends
        rows = known[n_before : self._n_scored]
        tokens = self.request.token_ids[n_before : self._n_scored]
        k = self.request.params.logprobs or 0
        return [_token_logprob(token, row, k) for token, row in zip(tokens, rows, strict=True)]

    def _end(self) -> Finished:
        request, timings = self.request, self.request.timings
        calls = self.parser is not None and self.parser.n_tool_calls and request.finish_reason == "stop"
        return Finished(
            self.choice,
            "tool_calls" if calls else "length" if request.finish_reason == "length" else "stop",
            request.stop_reason,
            request.reached_context,
            Usage(len(request.prompt), request.n_chosen, timings.n_reused),
            Timing(timings.first_token_s, timings.prompt_s, timings.decode_s, timings.prompt_rate, timings.decode_rate),
        )


def _token_logprob(token: int, row: Mapping[int, Logprob], k: int) -> TokenLogprob:
    """A row of the engine: the token first, then the likeliest, among which it may be again."""
    top = sorted(row.values(), key=lambda one: one.rank)[:k] if k else []
    return TokenLogprob(token, row[token], top)


def answers_to(llm: LLM, form: ReplyFormat, asked: ChatRequest | CompletionRequest) -> list[Answer]:
    """The answers that a request asks for, each yet to be run: all to its first prompt, then those to the next. Raises
    RequestError where the model cannot take it."""
    prompts = prompts_of(llm, asked)
    params, prefixes = asked.params, [""] * len(prompts)
    if isinstance(asked, CompletionRequest) and asked.echo:
        prefixes = [p if isinstance(p, str) else llm.detokenize(p) for p in asked.prompts]
    found: list[Answer] = []
    for (text, ids), prefix in zip(prompts, prefixes, strict=True):
        try:
            requests = llm.requests(ids, params)
        except GGPYError as error:
            raise RequestError(str(error), _field_of(error)) from None
        for request in requests:
            parser = form.parser(text, asked.tools) if isinstance(asked, ChatRequest) and text is not None else None
            found.append(Answer(len(found), request, parser, prefix))
    return found


def _field_of(error: GGPYError) -> str | None:
    said = str(error)
    if said.startswith("logit_bias"):
        return "logit_bias"
    forms = ("The grammar", "The JSON schema", "The regular expression", "Structured outputs")
    return "response_format" if said.startswith(forms) else None


#: Values for a chat template that change an answer only where it knows them.
_NEEDED_IN_TEMPLATE = ("tools", "reasoning_effort")

AnyPrompts = ChatRequest | CompletionRequest | EmbeddingsRequest | RerankRequest


def prompts_of(llm: LLM, asked: AnyPrompts) -> list[tuple[str | None, list[int]]]:
    """A request's prompts as text, None where they came as token ids, and as token ids. Raises RequestError where the
    model cannot take them."""
    embeds = isinstance(asked, EmbeddingsRequest)
    if embeds and llm.runtime.hparams.writes_text:
        raise RequestError(f"{llm.path.name} writes text; embeddings need a model made for them.", "model")
    if not embeds and not llm.runtime.hparams.writes_text:
        raise RequestError(f"{llm.path.name} embeds texts and writes none; ask /v1/embeddings.", "model")
    found: list[tuple[str | None, list[int]]]
    if isinstance(asked, ChatRequest):
        name, found = "messages", [_rendered(llm, asked)]
    elif isinstance(asked, CompletionRequest):
        name, found = "prompt", [_encoded(llm, "prompt", prompt) for prompt in asked.prompts]
    elif isinstance(asked, EmbeddingsRequest):
        name, found = "input", [_encoded(llm, "input", prompt) for prompt in asked.inputs]
    else:
        raise RequestError("Reranking is not supported yet.", status=501)
    longest = max(len(ids) for _, ids in found)
    if longest > llm.n_ctx:
        words = f"{name} has {longest} tokens, but the context holds {llm.n_ctx}; shorten it or ask for a larger one."
        raise RequestError(words, name, code="context_length_exceeded")
    strange = next((i for _, ids in found for i in ids if not 0 <= i < llm.n_vocab), None)
    if strange is not None:
        raise RequestError(f"{name} has the token id {strange}, but ids are 0 to {llm.n_vocab - 1}.", name)
    return found


def _encoded(llm: LLM, name: str, prompt: Any) -> tuple[str | None, list[int]]:
    try:
        return llm.encode(prompt)
    except GGPYError as error:
        raise RequestError(str(error), name) from None


def _rendered(llm: LLM, asked: ChatRequest) -> tuple[str | None, list[int]]:
    if llm.template is None:
        raise RequestError(f"{llm.path.name} has no chat template; ask /v1/completions.", "messages")
    values = dict(asked.template_values)
    if asked.reasoning.effort is not None:
        values.setdefault("reasoning_effort", asked.reasoning.effort)
    if asked.tools and asked.tool_choice != "none":
        values["tools"] = asked.tools
    for name in _NEEDED_IN_TEMPLATE:
        if name in values and not llm.template.reads(name):
            words = f"{name} is not supported by {llm.path.name}: its chat template does not read it."
            raise RequestError(words, name, code="unsupported_parameter")
    messages = asked.messages
    if not llm.template.reads("developer"):  # a newer name for the same role
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    try:
        text = llm.render_chat(messages, **values)
        return text, llm.tokenize_chat(text)
    except GGPYError as error:
        raise RequestError(str(error), "messages") from None
