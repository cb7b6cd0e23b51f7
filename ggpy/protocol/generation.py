"""The one request type that every protocol's bodies become, and the events that every protocol renders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ggpy.sampling.logprobs import Logprob
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.text.line_limits import LineLimits
from ggpy.text.reply.events import Event as ReplyEvent


@dataclass(frozen=True)
class Reasoning:
    """Settings of the thoughts before an answer: whether there are any, how many (a word that the template reads), and
    for how many tokens at most. None: the model's own default. where_able: a model that cannot be told so answers all
    the same."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    where_able: bool = False


@dataclass(frozen=True)
class Telling:
    """Things that a stream tells beside its text: how much of the prompt is read, each piece's tokens, rates so far."""

    progress: bool = False
    tokens: bool = False
    timings: bool = False


TEXT_ALONE = Telling()


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to be answered. messages: in the shape that chat templates read: role, content (a text),
    reasoning_content, tool_calls (arguments as objects), tool_call_id. tools, tool_choice: in OpenAI's shapes, where
    tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": …}}. template_values: what
    the chat template gets beside the messages. model: None for the server's first."""

    model: str | None
    messages: list[dict[str, Any]]
    params: SamplingParams
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    template_values: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False  # at a stream's end
    reuse: bool = True
    telling: Telling = TEXT_ALONE


@dataclass(frozen=True)
class CompletionRequest:
    """Prompts to be completed as they stand: texts, or lists of token ids, among which texts may stand. echo: each
    answer begins with its prompt, whose tokens have log-probabilities too, where the answer's have. reuse: tokens that
    the cache holds need not be read. prompt_alone: it is read, and nothing is written. text_biases: what is added to
    the logits of all tokens of a text. ends: at lines that do, before the model."""

    model: str | None
    prompts: list[str | list[int | str]]
    params: SamplingParams
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    reuse: bool = True
    prompt_alone: bool = False
    text_biases: dict[str, float] = field(default_factory=dict)
    ends: LineLimits | None = None
    telling: Telling = TEXT_ALONE


@dataclass(frozen=True)
class EmbeddingsRequest:
    """Texts, or lists of token ids, to be embedded. base64: vectors as little-endian float32 in base64. dimensions: of
    each vector, so many of the first; None: all."""

    model: str | None
    inputs: list[str | list[int | str]]
    base64: bool = False
    dimensions: int | None = None


@dataclass(frozen=True)
class RerankRequest:
    """Documents to be ordered by how well they answer a query; the best `top_n` are returned, None: all. raw_scores: as
    the model gives them, else from 0 to 1. as_list: asked in the shape of Hugging Face's text-embeddings-inference, and
    answered in it."""

    model: str | None
    query: str
    documents: list[str]
    top_n: int | None = None
    return_documents: bool = False
    raw_scores: bool = False
    as_list: bool = False


AnyRequest = ChatRequest | CompletionRequest | EmbeddingsRequest | RerankRequest


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its prompts, of all its answers, of these those of reasoning, and how many of the
    prompts' the cache held already."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds and rates of one answer: until its first token, of its prompt, of its own tokens; tokens a second."""

    first_token_s: float
    prompt_s: float
    decode_s: float
    prompt_rate: float
    decode_rate: float


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its text, its log-probability, which a prompt's first has none of, and the likeliest by their ids,
    the likeliest first."""

    token: int
    text: str
    logprob: float | None
    top: list[tuple[int, Logprob]]


@dataclass(frozen=True)
class Started:
    """The first event: the request was understood and waits for the engine. prompt_tokens: of all its prompts. params:
    with the model's defaults."""

    model: str
    prompt_tokens: int
    params: SamplingParams | None = None


@dataclass(frozen=True)
class Progress:
    """A prompt that is being read: its tokens, those that the cache held, and those read so far, in seconds."""

    choice: int
    total: int
    cached: int
    processed: int
    seconds: float


@dataclass(frozen=True)
class Delta:
    """A piece of one answer: prose, a thought, or part of a tool call; None where only log-probabilities came. choice:
    the answer's number: all to the first prompt, then those to the next. tokens, so_far: where they are asked for."""

    choice: int
    event: ReplyEvent | None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    so_far: tuple[Usage, Timing] | None = None


@dataclass(frozen=True)
class Finished:
    """The end of one answer. finish_reason: "stop", "length" or "tool_calls"; stop_reason: the stop string, or the
    token, that ended it; reached_context: "length" because the context was full. usage: this answer's own.
    reasoning_cut: thoughts were ended by their budget."""

    choice: int
    finish_reason: str
    stop_reason: str | int | None
    reached_context: bool
    usage: Usage
    timing: Timing
    reasoning_cut: bool = False


Event = Started | Progress | Delta | Finished


def total_usage(ends: Iterable[Finished], n_answers: int) -> Usage:
    """The usage of a whole request from the ends of its answers; each prompt, which has `n_answers`, counts once."""
    prompt = completion = cached = thoughts = 0
    for end in ends:
        if end.choice % n_answers == 0:
            prompt += end.usage.prompt_tokens
            cached += end.usage.cached_tokens or 0
        completion += end.usage.completion_tokens
        thoughts += end.usage.reasoning_tokens or 0
    return Usage(prompt, completion, cached, thoughts)
