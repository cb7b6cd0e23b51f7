"""The bodies of OpenAI's API, field by field, with those that other servers take by the same names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ggpy import arguments
from ggpy.protocol.body import Body, checked, only

COMPLETION_TOKENS = 16  # `max_tokens` of /v1/completions where it is left out, as OpenAI has it
MOST_TOP_LOGPROBS = 20

Prompts = Annotated[Any, checked(lambda name, value: prompts(name, value))]


class Labels(Body):
    """Fields that say who asks, and how the asking is billed, stored or made faster."""

    model: str | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None


class Sampling(Body):
    """The fields that become sampling parameters, which check them: OpenAI's, and others by the parameters' names."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    temperature: Any = None
    top_p: Any = None
    n: Any = None
    stop: Any = None
    seed: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    top_k: Any = None
    min_p: Any = None
    typical_p: Any = None
    top_n_sigma: Any = None
    xtc_probability: Any = None
    xtc_threshold: Any = None
    dynatemp_range: Any = None
    dynatemp_exponent: Any = None
    mirostat: Any = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    repetition_penalty: Any = None
    repeat_penalty: Any = None
    repeat_last_n: Any = None
    dry_multiplier: Any = None
    dry_base: Any = None
    dry_allowed_length: Any = None
    dry_penalty_last_n: Any = None
    dry_sequence_breakers: Any = None
    samplers: Any = None
    min_tokens: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: Any = None
    ignore_eos: Any = None
    bad_words: Any = None
    skip_special_tokens: Any = None
    truncate_prompt_tokens: Any = None


#: The parameters of fields that have other names.
PARAMETERS = {"max_completion_tokens": "max_tokens", "repeat_penalty": "repetition_penalty"}


class StructuredOutputs(Body):
    """vLLM's field for the form that an answer has to have, of any of these kinds."""

    json_: Any = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict)
    strict: bool = True  # without it, too, the schema is followed


class ResponseFormat(Body):
    """The form of an answer. schema: beside json_object, as llama-server takes it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against those who listen to a connection


class Generation(Labels, Sampling):
    """The fields of chats and completions alike; the last ones are llama-server's."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    n_predict: int | None = None
    cache_prompt: bool = True
    id_slot: int = -1  # the slot that holds most of a prompt is found without
    return_progress: bool = False
    timings_per_token: bool = False


class Function(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class ReasoningOptions(Body):
    """Settings of thoughts, in the shape of /v1/responses."""

    effort: str | None = None
    enabled: bool | None = None
    max_tokens: int | None = None
    summary: Any = None  # thoughts are given whole
    generate_summary: Any = None


class ChatBody(Generation):
    """A body of /v1/chat/completions."""

    messages: Annotated[Any, checked(lambda name, value: conversation(name, value))]
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    enable_thinking: bool | None = None
    reasoning_budget: int | None = None
    thinking_budget_tokens: int | None = None  # the same, by llama-server's name
    thinking_token_budget: int | None = None  # and vLLM's
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: Annotated[Any, only(["text"])] = None
    verbosity: Annotated[Any, only("medium")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none")] = None


class CompletionBody(Generation):
    """A body of /v1/completions."""

    prompt: Prompts
    logprobs: int | None = None
    echo: bool = False
    best_of: Annotated[Any, only(1)] = None
    suffix: Annotated[Any, only("")] = None
    response_format: ResponseFormat | None = None


class EmbeddingsBody(Labels):
    """A body of /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class RerankDocument(Body):
    text: str


class RerankBody(Labels):
    """A body of /v1/rerank, as Jina, Cohere and vLLM have it; texts, raw_scores, return_text: as Hugging Face's
    text-embeddings-inference has it."""

    query: str
    documents: list[str | RerankDocument] | None = None
    texts: list[str] | None = None
    top_n: int | None = None
    return_documents: bool = False
    return_text: bool = False
    raw_scores: bool = False
    truncate: Annotated[bool, only(False)] = False


def prompts(name: str, value: Any) -> list[str | list[int | str]]:
    """One text, one list of token ids, among which texts may stand, or a list of either, as a list."""
    words = "a text, a list of texts, a list of token ids, or a list of such lists; none of them empty"
    several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if isinstance(value, list) and value and isinstance(value[0], str) and any(isinstance(i, int) for i in value):
        several = [value]
    if not all(_is_prompt(prompt) for prompt in several):
        raise arguments.wrong(name, value, words)
    return several


def _is_prompt(value: Any) -> bool:
    if not isinstance(value, list):
        return isinstance(value, str) and bool(value)
    known = all(type(part) is int or (isinstance(part, str) and part) for part in value)
    return known and any(type(part) is int for part in value)


def conversation(name: str, value: Any) -> list[Any]:
    """A list of messages, whose own fields are read later."""
    if not isinstance(value, list) or not value:
        raise arguments.wrong(name, value, 'a list of messages: [{"role": "user", "content": "…"}]')
    return value
