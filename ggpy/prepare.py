"""Requests of the protocols as requests of the engine, for the model that is to answer them, and their texts as events.

The one way for files of requests and for the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ggpy.embeddings import cut
from ggpy.engine.embed import Rows, normalized
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    TEXT_ALONE,
    ChatRequest,
    CompletionRequest,
    Delta,
    EmbeddingsRequest,
    Finished,
    Progress,
    Reasoning,
    Telling,
    Timing,
    TokenLogprob,
    Usage,
)
from ggpy.sampling.logprobs import Logprob
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams
from ggpy.sampling.thoughts import ThoughtWatch
from ggpy.text.line_limits import LineWatch
from ggpy.text.reply import ReplyFormat, ReplyParser, reply_format
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta
from ggpy.text.reply.events import Event as ReplyEvent
from ggpy.text.reply.reasoning import ReasoningSettings, reasoning_settings

if TYPE_CHECKING:
    from ggpy.text.chat_template import ChatTemplate


@dataclass
class Answer:
    """One answer on its way: a request of the engine, and what makes events of its text. parser: None where the text is
    content as it is."""

    choice: int
    request: Request
    parser: ReplyParser | None = None
    prefix: str = ""  # written before the model's own text
    one_call: bool = False  # calls of tools after the first are left out
    prompt_alone: bool = False  # the model's own text is left out
    telling: Telling = TEXT_ALONE
    _n_told: int = field(default=0, init=False)  # tokens
    _n_read: int = field(default=-1, init=False)  # of the prompt, as was told
    _n_thoughts: int = field(default=0, init=False)  # tokens until the last of them

    def events(self, text: str, finished: bool) -> Iterator[Progress | Delta | Finished]:
        """The events of the text that came since the last call. finished: nothing follows."""
        if self.telling.progress:
            yield from self._progress()
            if not self.request.n_chosen and not finished:
                return
        text, self.prefix = self.prefix + ("" if self.prompt_alone else text), ""
        parts = self._parts(text, finished)
        logprobs, tokens = self._new_tokens(finished) if text or finished else ([], [])
        so_far = (self._usage(), self._timing()) if self.telling.timings and parts else None
        for i, part in enumerate(parts):
            yield Delta(self.choice, part, [] if i else logprobs, [] if i else tokens, so_far)
        if (logprobs or tokens) and not parts:
            yield Delta(self.choice, None, logprobs, tokens)
        if finished:
            yield self._end()

    def _progress(self) -> Iterator[Progress]:
        """How much of the prompt is read, where that is more than was told."""
        request = self.request
        total, timings = len(request.prompt), request.timings
        n_read = total if request.n_chosen else request.n_computed
        if self._n_read < n_read and (n_read or request.n_chosen):
            self._n_read = n_read
            yield Progress(self.choice, total, timings.n_reused, n_read, request.seconds)

    def _parts(self, text: str, finished: bool) -> list[ReplyEvent]:
        if self.parser is None:
            return [ContentDelta(text)] if text else []
        parts = self.parser.feed(text) if text else []
        if finished:
            parts = [*parts, *self.parser.finish()]
        if parts and isinstance(parts[-1], ReasoningDelta):
            self._n_thoughts = self.request.n_chosen
        if self.one_call:
            parts = [part for part in parts if not (isinstance(part, ToolCallDelta) and part.index)]
        return parts

    def _new_tokens(self, finished: bool) -> tuple[list[TokenLogprob], list[int]]:
        """The tokens since the last call, without one that ended the text, with their log-probabilities, before the
        first those of the prompt: each only where it is asked for."""
        request = self.request
        if request.logprobs is None and not self.telling.tokens:
            return [], []
        n_before, n = self._n_told, len(request.token_ids if request.logprobs is None else request.logprobs)
        self._n_told = n = 0 if self.prompt_alone else n - (finished and isinstance(request.stop_reason, int))
        tokens = request.token_ids[n_before:n]
        found: list[TokenLogprob] = []
        if not n_before and request.prompt_logprobs is not None:
            known, request.prompt_logprobs = request.prompt_logprobs, None  # told once
            found += _token_logprobs(request, request.prompt, known, request.params.prompt_logprobs or 0)
        if request.logprobs is not None:
            found += _token_logprobs(request, tokens, request.logprobs[n_before:n], request.params.logprobs or 0)
        return found, tokens if self.telling.tokens else []

    def _usage(self) -> Usage:
        request = self.request
        n_chosen = 0 if self.prompt_alone else request.n_chosen
        return Usage(len(request.prompt), n_chosen, request.timings.n_reused, self._n_thoughts)

    def _timing(self) -> Timing:
        timings = self.request.timings
        return Timing(
            timings.first_token_s, timings.prompt_s, timings.decode_s, timings.prompt_rate, timings.decode_rate
        )

    def _end(self) -> Finished:
        request = self.request
        calls = self.parser is not None and self.parser.n_tool_calls and request.finish_reason == "stop"
        return Finished(
            self.choice,
            "tool_calls" if calls else "length" if request.finish_reason == "length" or self.prompt_alone else "stop",
            None if self.prompt_alone else request.stop_reason,
            request.reached_context,
            self._usage(),
            self._timing(),
            request.sampler.thoughts is not None and request.sampler.thoughts.cut,
        )


def _token_logprobs(
    request: Request, tokens: Sequence[int], rows: Sequence[Mapping[int, Logprob] | None], k: int
) -> Iterator[TokenLogprob]:
    """Rows of the engine: each has its token, and the likeliest, among which that may be again. A prompt's first token
    has none."""
    for token, row in zip(tokens, rows, strict=True):
        if row is None:
            yield TokenLogprob(token, request.spelt(token), None, [])
        else:
            top = sorted(row.items(), key=lambda one: one[1].rank)[:k] if k else []
            yield TokenLogprob(token, row[token].decoded_token, row[token].logprob, top)


def answers_to(
    llm: LLM, form: ReplyFormat, asked: ChatRequest | CompletionRequest, max_tokens: int | None = None
) -> list[Answer]:
    """The answers that a request asks for, each yet to be run: all to its first prompt, then those to the next.
    max_tokens: of a prompt. Raises RequestError where the model cannot take it."""
    prompts = prompts_of(llm, asked, max_tokens)
    params, prefixes, kept = asked.params, [""] * len(prompts), frozenset[int]()
    prompt_alone = isinstance(asked, CompletionRequest) and asked.prompt_alone
    if isinstance(asked, ChatRequest):
        params = _with_calls(llm, form, asked)
        ids = (llm.tokenizer.token_id(text) for text in form.kept_tokens)
        kept = frozenset(token for token in ids if token is not None)
    else:
        params = _with_biases(llm, asked)
        if asked.echo:
            prefixes = [text if text is not None else llm.detokenize(ids) for text, ids in prompts]
    found: list[Answer] = []
    for (text, ids_of_prompt), prefix in zip(prompts, prefixes, strict=True):
        try:
            requests = llm.requests(ids_of_prompt, params)
        except GGPYError as error:
            field = "tools" if isinstance(asked, ChatRequest) and params is not asked.params else _field_of(error)
            raise RequestError(str(error), field) from None
        for request in requests:
            parser = None
            request.reuses = asked.reuse
            if isinstance(asked, ChatRequest):
                tools = asked.tools if asked.tool_choice != "none" else []
                parser = form.parser(text or "", tools, asked.stream)
                request.keep_in_text(kept)
                request.sampler.thoughts = _watch(llm, form, asked, text or "", params.structured_outputs is not None)
            elif asked.ends is not None:
                request.ends = LineWatch(asked.ends)
            one_call = isinstance(asked, ChatRequest) and not asked.parallel_tool_calls
            found.append(Answer(len(found), request, parser, prefix, one_call, prompt_alone, asked.telling))
    return found


def _with_biases(llm: LLM, asked: CompletionRequest) -> SamplingParams:
    """The parameters with the biases of texts, which each of their tokens has."""
    if not asked.text_biases:
        return asked.params
    biases = dict(asked.params.logit_bias or {})
    for text, bias in asked.text_biases.items():
        ids = llm.tokenizer.tokenize(text, add_special=False, continues=True)
        biases |= dict.fromkeys(ids, bias)
    return replace(asked.params, logit_bias=biases)


def _with_calls(llm: LLM, form: ReplyFormat, asked: ChatRequest) -> SamplingParams:
    """The parameters of a chat, with the grammar of the calls that it is to hold. Raises RequestError."""
    if not asked.tools:
        return asked.params
    tokenizer = llm.tokenizer

    def control(text: str) -> int | None:
        token = tokenizer.token_id(text)
        return token if token is not None and not tokenizer.token_bytes(token, special=False) else None

    thinks = form.writes_thoughts and asked.reasoning.enabled is not False
    try:
        grammar = form.grammar(asked.tools, asked.tool_choice, asked.parallel_tool_calls, control, thinks)
    except GGPYError as error:
        raise RequestError(str(error), "tool_choice") from None
    if grammar is None:
        return asked.params
    if asked.params.structured_outputs is not None:
        words = "response_format cannot be followed beside calls that are to have a form; leave one of them out."
        raise RequestError(words, "response_format")
    return replace(asked.params, structured_outputs=StructuredOutputsParams(grammar=grammar))


def _field_of(error: GGPYError) -> str | None:
    said = str(error)
    if said.startswith("logit_bias"):
        return "logit_bias"
    forms = ("The grammar", "The JSON schema", "The regular expression", "Structured outputs")
    return "response_format" if said.startswith(forms) else None


LONG_TEXT = 1 << 20  # characters, which take about a second to tokenize

AnyPrompts = ChatRequest | CompletionRequest | EmbeddingsRequest


def prompts_of(llm: LLM, asked: AnyPrompts, max_tokens: int | None = None) -> list[tuple[str | None, list[int]]]:
    """A request's prompts as text, None where they came as token ids, and as token ids. max_tokens: of each. Raises
    RequestError where the model cannot take them."""
    embeds = isinstance(asked, EmbeddingsRequest)
    hparams = llm.runtime.hparams
    if embeds and hparams.writes_text:
        raise RequestError(f"{llm.path.name} writes text; embeddings need a model made for them.", "model")
    if embeds and hparams.pooling == "rank":
        raise RequestError(f"{llm.path.name} ranks documents and embeds none; ask /v1/rerank.", "model")
    if not embeds and not hparams.writes_text:
        does, path = ("ranks", "rerank") if hparams.pooling == "rank" else ("embeds", "embeddings")
        raise RequestError(f"{llm.path.name} {does} texts and writes none; ask /v1/{path}.", "model")
    found: list[tuple[str | None, list[int]]]
    if isinstance(asked, ChatRequest):
        name, found = "messages", [_rendered(llm, asked)]
    elif isinstance(asked, CompletionRequest):
        name, found = "prompt", [_encoded(llm, "prompt", prompt) for prompt in asked.prompts]
    else:
        name, found = "input", [_encoded(llm, "input", prompt) for prompt in asked.inputs]
    longest = max(len(ids) for _, ids in found)
    if longest > llm.n_ctx:
        words = f"{name} has {longest} tokens, but the context holds {llm.n_ctx}; shorten it or ask for a larger one."
        raise RequestError(words, name, code="context_length_exceeded")
    if max_tokens is not None and longest > max_tokens:
        words = f"{name} has {longest} tokens, but this server takes prompts of up to {max_tokens}; shorten it."
        raise RequestError(words, name, code="context_length_exceeded")
    strange = next((i for _, ids in found for i in ids if not 0 <= i < llm.n_vocab), None)
    if strange is not None:
        raise RequestError(f"{name} has the token id {strange}, but ids are 0 to {llm.n_vocab - 1}.", name)
    return found


def shortened(vectors: list[Rows], asked: EmbeddingsRequest) -> list[Rows]:
    """Vectors of length 1, float32 [n_embd], of as many dimensions as a request asks for, again of length 1. Raises
    RequestError where the model has not so many."""
    if asked.dimensions is None:
        return vectors
    try:
        return [normalized(cut(vector, asked.dimensions)) for vector in vectors]
    except GGPYError as error:
        raise RequestError(str(error), "dimensions") from None


def check_length(llm: LLM, name: str, text: str) -> None:
    """Refuse a text of which no tokenization can fit the context, before seconds are spent on one."""
    if len(text) > LONG_TEXT and len(text) > llm.n_ctx * llm.tokenizer.longest_token:
        words = f"{name} has {len(text)} characters, far more than the context of {llm.n_ctx} tokens holds; shorten it."
        raise RequestError(words, name, code="context_length_exceeded")


def _encoded(llm: LLM, name: str, prompt: Any) -> tuple[str | None, list[int]]:
    if isinstance(prompt, str):
        check_length(llm, name, prompt)
    try:
        if isinstance(prompt, list) and any(isinstance(part, str) for part in prompt):
            return None, _mixed(llm, name, prompt)
        return llm.encode(prompt)
    except GGPYError as error:
        raise RequestError(str(error), name) from None


def _mixed(llm: LLM, name: str, prompt: list[int | str]) -> list[int]:
    """The token ids of a prompt in which texts stand among token ids; BOS is where the first part is a text."""
    found: list[int] = []
    for i, part in enumerate(prompt):
        if isinstance(part, str):
            check_length(llm, name, part)
            found += llm.tokenizer.tokenize(part, add_special=not i, parse_special=True, continues=i > 0)
        else:
            found.append(part)
    return found


def _rendered(llm: LLM, asked: ChatRequest) -> tuple[str | None, list[int]]:
    if llm.template is None:
        raise RequestError(f"{llm.path.name} has no chat template; ask /v1/completions.", "messages")
    values = {**_thinking(llm.template, asked.reasoning).values, **asked.template_values}
    try:
        llm.template.check_values(asked.template_values)
    except GGPYError as error:
        raise RequestError(str(error), "chat_template_kwargs", code="unsupported_parameter") from None
    if asked.tools and asked.tool_choice != "none":
        if "tools" not in llm.template.values_read:
            words = f"tools are not supported by {llm.path.name}: its chat template does not read it."
            raise RequestError(words, "tools", code="unsupported_parameter")
        values["tools"] = asked.tools
    messages = asked.messages
    if "developer" not in llm.template.whole_source:  # a newer name for the same role
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    try:
        text = llm.render_chat(messages, template_kwargs=values)
        check_length(llm, "messages", text)
        return text, llm.tokenize_chat(text)
    except RequestError:
        raise
    except GGPYError as error:
        raise RequestError(str(error), "messages") from None


def _thinking(template: ChatTemplate, asked: Reasoning) -> ReasoningSettings:
    """The settings of thoughts for a template. Raises RequestError where it can be told of none."""
    try:
        return reasoning_settings(template, reply_format(template), asked.enabled, asked.effort, asked.budget)
    except GGPYError as error:
        if asked.where_able:
            return ReasoningSettings()
        name = "enable_thinking" if asked.effort is None else "reasoning_effort"
        raise RequestError(str(error), name, code="unsupported_parameter") from None


def _watch(llm: LLM, form: ReplyFormat, asked: ChatRequest, prompt: str, has_grammar: bool) -> ThoughtWatch | None:
    """The watch over a reply's thoughts; None where no grammar waits for their end, and no budget brings it about."""
    found = form.thoughts_at(prompt)
    if found is None or llm.template is None:
        return None
    thoughts, inside = found
    tokenizer, budget = llm.tokenizer, _thinking(llm.template, asked.reasoning).budget
    if budget is None and not has_grammar:
        return None
    closes = thoughts.closing
    if asked.tools and thoughts.leads:  # which leads to an answer, and away from calls
        closes, budget = thoughts.end, budget or None
    closing = tokenizer.tokenize(closes, add_special=False, parse_special=True, continues=True)
    return ThoughtWatch(
        thoughts.begin.encode(), thoughts.end.encode(), closing, tokenizer.token_bytes, inside, thoughts.anywhere,
        budget, tokenizer.eog,
    )  # fmt: skip
