"""OpenAI's API as data: request bodies to the one request type.

A field that would change an answer and is not followed is refused by its name; fields that only label a request are
passed over. Beside OpenAI's own, the sampling parameters that other servers take by the same names are followed
(`top_k`, `min_p`, `repetition_penalty` …), and `chat_template_kwargs`. Of what a body leaves out, the model's own
default holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ggpy.errors import GGPYError, quoted
from ggpy.protocol import openai_messages
from ggpy.protocol.body import Body, read, wrong
from ggpy.protocol.errors import RequestError, unsupported
from ggpy.protocol.generation import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    Reasoning,
    RerankRequest,
    Telling,
)
from ggpy.protocol.openai_bodies import (
    COMPLETION_TOKENS,
    MOST_TOP_LOGPROBS,
    PARAMETERS,
    ChatBody,
    CompletionBody,
    EmbeddingsBody,
    Generation,
    NamedTool,
    ReasoningOptions,
    RerankBody,
    ResponseFormat,
    Sampling,
)
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams

AnySampling = TypeVar("AnySampling", bound=Sampling)


def parse(method: Any, url: Any, body: Any) -> AnyRequest:
    """The request of a method, a path and a decoded body. Raises RequestError: 404 for an unknown path, 405 for another
    method than POST, 400 for a body that is not understood."""
    if not isinstance(url, str) or url not in PATHS:
        raise RequestError(f"url is {quoted(url, 80)}, but it must be one of {', '.join(PATHS)}.", "url", 404)
    if method != "POST":
        raise RequestError(f"method is {quoted(method, 80)}, but {url} takes 'POST' alone.", "method", 405)
    return PATHS[url](url, body)


def sampling_params(body: Sampling, **others: Any) -> SamplingParams:
    """Sampling parameters from a body's fields, and others that are known to be right. Raises RequestError."""
    values: dict[str, Any] = dict(others)
    given = {name: value for name in Sampling.model_fields if (value := getattr(body, name)) is not None}
    if "logit_bias" in given:
        given["logit_bias"] = _biases(given["logit_bias"])
    for name, value in given.items():
        ours = PARAMETERS.get(name, name)
        values[ours] = one_of({ours: values.get(ours), name: value}) if name in PARAMETERS else value
    try:
        return SamplingParams(**values)
    except GGPYError as error:
        for name, value in given.items():
            _check_alone(name, value)
        raise RequestError(str(error), code="invalid_value") from None  # each is right, but not beside the others


def one_of(given: dict[str, Any]) -> Any:
    """The value of fields that are one setting; None where none of them is given. Raises RequestError where they
    differ."""
    found = {name: value for name, value in given.items() if value is not None}
    first = next(iter(found), "")
    for name, value in found.items():
        if value != found[first]:
            raise RequestError(f"{first} and {name} differ; give one of them.", name)
    return found.get(first)


def limited(body: AnySampling, n_predict: int | None) -> AnySampling:
    """A body with `max_tokens` by llama-server's name, where -1 is any number, as the usual one. Raises
    RequestError."""
    if n_predict is None or n_predict < 0:
        return body
    names = ("max_tokens", "max_completion_tokens")
    most = one_of({**{name: getattr(body, name) for name in names}, "n_predict": n_predict})
    return body.model_copy(update={"max_tokens": most})


def template_values(given: dict[str, Any]) -> dict[str, Any]:
    """The values of `chat_template_kwargs`. Raises RequestError where one has a field of its own."""
    for name in ("messages", "tools"):
        if name in given:
            words = f"chat_template_kwargs cannot hold {name}; they have a field of their own."
            raise RequestError(words, "chat_template_kwargs")
    return dict(given)


def _check_alone(name: str, value: Any) -> None:
    """Raise RequestError with a field's own name where its value is at fault."""
    ours = PARAMETERS.get(name, name)
    try:
        SamplingParams(**{ours: value})
    except GGPYError as error:
        raise RequestError(name + str(error).removeprefix(ours), name) from None


def _biases(value: Any) -> Any:
    """Biases by token id: in JSON, names are texts."""
    if not isinstance(value, dict):
        return value
    if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in value):
        raise wrong("logit_bias", value, "an object of token ids and numbers")
    return {int(name): bias for name, bias in value.items()}


def _stream(body: Generation) -> dict[str, Any]:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options is for stream; leave it out, or set stream.", "stream_options")
    return {
        "reuse": body.cache_prompt,
        "telling": Telling(body.stream and body.return_progress, timings=body.stream and body.timings_per_token),
        "stream": body.stream,
        "include_usage": body.stream_options is not None and body.stream_options.include_usage,
    }


def _structured(body: ChatBody | CompletionBody) -> StructuredOutputsParams | None:
    """The form that an answer has to have, from whichever field gives it."""
    given = {
        "response_format": _response_format(body.response_format),
        "structured_outputs": _own(body),
        "grammar": {"grammar": body.grammar} if body.grammar is not None else None,
        "json_schema": {"json": body.json_schema} if body.json_schema is not None else None,
    }
    forms = {name: form for name, form in given.items() if form is not None}
    if len(forms) > 1:
        raise RequestError(f"{' and '.join(forms)} both give the answer's form; give one of them.", next(iter(forms)))
    for name, form in forms.items():
        try:
            return StructuredOutputsParams(**form)
        except GGPYError as error:
            raise RequestError(f"{name}: {error}", name) from None
    return None


def _own(body: Generation) -> dict[str, Any] | None:
    asked = body.structured_outputs
    return None if asked is None else asked.model_dump(by_alias=True, exclude_unset=True)


def _response_format(asked: ResponseFormat | None) -> dict[str, Any] | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_schema":
        if asked.json_schema is None:
            raise RequestError("response_format.json_schema is missing; give it.", "response_format.json_schema")
        return {"json": asked.json_schema.schema_}
    return {"json_object": True} if asked.schema_ is None else {"json": asked.schema_}


def _chat(url: str, given: Any) -> ChatRequest:
    body = read(ChatBody, given, url)
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MOST_TOP_LOGPROBS:
        raise wrong("top_logprobs", body.top_logprobs, f"a whole number from 0 to {MOST_TOP_LOGPROBS}")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs is for logprobs; leave it out, or set logprobs.", "top_logprobs")
    params = sampling_params(
        limited(body, body.n_predict),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        structured_outputs=_structured(body),
    )
    values = template_values(body.chat_template_kwargs)
    messages = [openai_messages.message(f"messages[{i}]", one) for i, one in enumerate(body.messages)]
    if openai_messages.is_prefill(messages) and not body.add_generation_prompt and body.continue_final_message is None:
        values.setdefault("continue_final_message", True)
    for name in ("add_generation_prompt", "continue_final_message"):
        if getattr(body, name) is not None:
            values[name] = getattr(body, name)
    tools = given["tools"] if body.tools else []  # as they came: templates write them out
    return ChatRequest(
        body.model,
        messages,
        params,
        tools,
        tool_choice(body.tool_choice, {tool.function.name for tool in body.tools}),
        body.parallel_tool_calls,
        reasoning(body.reasoning, values, body),
        values,
        **_stream(body),
    )


def tool_choice(given: Any, names: set[str]) -> str | dict[str, Any]:
    """Which of the tools of these names is to be called: "auto", "none", "required" or one of them."""
    if given is None:
        return "auto"
    if given in ("auto", "none"):
        return str(given)
    if not names:
        raise RequestError("tool_choice asks for a call, but there are no tools; give some.", "tool_choice")
    if given == "required":
        return "required"
    if not isinstance(given, dict):
        words = '\'auto\', \'none\', \'required\' or {"type": "function", "function": {"name": …}}'
        raise wrong("tool_choice", given, words)
    if given.get("type") not in (None, "function"):
        raise unsupported(f"tool_choice of the type {quoted(given['type'], 40)}", "name a function")
    try:
        named = read(NamedTool, given, "tool_choice")
    except RequestError as error:
        raise RequestError(f"tool_choice.{error}", "tool_choice") from None
    if named.function.name not in names:
        known = ", ".join(sorted(names))
        words = f"tool_choice names {quoted(named.function.name, 80)}, but the tools are {known}."
        raise RequestError(words, "tool_choice")
    return named.model_dump()


def reasoning(options: ReasoningOptions | None, values: dict[str, Any], fields: Body) -> Reasoning:
    """The settings of thoughts, wherever a client puts them: in `reasoning`, among the values for the template, out of
    which they are taken, or in fields of a chat's body. Raises RequestError."""
    options = options or ReasoningOptions()

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(fields, name, None) for name in names}

    def taken(name: str, kind: type) -> dict[str, Any]:
        there = name in values and isinstance(values[name], kind)
        return {f"chat_template_kwargs.{name}": values.pop(name)} if there else {}

    effort = one_of(
        {"reasoning.effort": options.effort, **given("reasoning_effort"), **taken("reasoning_effort", object)}
    )
    if effort is not None and not isinstance(effort, str):
        raise wrong("reasoning_effort", effort, "a text")
    switches = {**taken("enable_thinking", bool), **taken("thinking", bool)}
    enabled = one_of({"reasoning.enabled": options.enabled, **given("enable_thinking"), **switches})
    if effort == "none" and enabled is None:
        enabled = False
    budgets = given("reasoning_budget", "thinking_budget_tokens", "thinking_token_budget")
    budget = one_of({"reasoning.max_tokens": options.max_tokens, **budgets})
    if budget is not None and budget < -1:
        raise wrong("reasoning_budget", budget, "a number of tokens, or -1 for any")
    if budget == 0:
        enabled = False
    return Reasoning(enabled, effort, None if budget in (None, -1, 0) else budget)


def _completion(url: str, given: Any) -> CompletionRequest:
    body = read(CompletionBody, given, url)
    if body.logprobs is not None and not 0 <= body.logprobs <= MOST_TOP_LOGPROBS:
        raise wrong("logprobs", body.logprobs, f"a whole number from 0 to {MOST_TOP_LOGPROBS}")
    if body.max_tokens is None and body.max_completion_tokens is None and body.n_predict is None:
        body.max_tokens = COMPLETION_TOKENS
    prompt_alone = body.echo and body.max_tokens == 0  # to have the prompt's log-probabilities
    if prompt_alone:
        body.max_tokens = 1
    params = sampling_params(
        limited(body, body.n_predict),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        structured_outputs=_structured(body),
    )
    return CompletionRequest(
        body.model, body.prompt, params, echo=body.echo, prompt_alone=prompt_alone, **_stream(body)
    )


def _embeddings(url: str, given: Any) -> EmbeddingsRequest:
    body = read(EmbeddingsBody, given, url)
    if body.dimensions is not None and body.dimensions < 1:
        raise wrong("dimensions", body.dimensions, "a whole number from 1")
    return EmbeddingsRequest(body.model, body.input, body.encoding_format == "base64", body.dimensions)


def _rerank(url: str, given: Any) -> RerankRequest:
    body = read(RerankBody, given, url)
    if (body.documents is None) == (body.texts is None):
        raise RequestError("documents is missing; give it, or texts in its place.", "documents")
    given_as = "texts" if body.documents is None else "documents"
    documents = [one if isinstance(one, str) else one.text for one in body.documents or body.texts or ()]
    for name, empty in (("query", not body.query), (given_as, not documents or not all(documents))):
        if empty:
            raise RequestError(f"{name} is empty; give some text.", name)
    if body.top_n is not None and body.top_n < 1:
        raise wrong("top_n", body.top_n, "a whole number from 1")
    return RerankRequest(
        body.model,
        body.query,
        documents,
        body.top_n,
        body.return_documents or body.return_text,
        body.raw_scores,
        as_list=body.texts is not None,
    )


PATHS: dict[str, Callable[[str, Any], AnyRequest]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
    "/v1/rerank": _rerank,
}
