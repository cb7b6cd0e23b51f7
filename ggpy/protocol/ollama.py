"""Ollama's API as data: request bodies to the one request type."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ggpy.errors import GGPYError, quoted
from ggpy.protocol.body import Body, only, read, wrong
from ggpy.protocol.errors import RequestError, unsupported
from ggpy.protocol.generation import ChatRequest, CompletionRequest, EmbeddingsRequest, Reasoning
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams

#: Options that become sampling parameters, and those parameters' names.
_PARAMETERS = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in (
            "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "presence_penalty",
            "frequency_penalty", "seed", "stop", "mirostat", "mirostat_tau", "mirostat_eta",
        )
    },
}  # fmt: skip

#: Options of how a model is run, which the server's own settings say.
_RUNNING = frozenset((
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "use_mlock", "numa",
    "low_vram", "f16_kv", "vocab_only",
))  # fmt: skip

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


#: A model's name; Ollama's clients add the tag of the latest version to one without a tag.
_Name = Annotated[str, AfterValidator(lambda name: name.removesuffix(":latest"))]


class _Model(Body):
    model: _Name
    keep_alive: float | str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class _Generation(_Model):
    stream: bool = True
    think: bool | str | None = None
    format: str | dict[str, Any] | None = None
    logprobs: Annotated[bool, only(False)] = False
    top_logprobs: Annotated[int, only(0)] = 0


class ChatBody(_Generation):
    """A body of /api/chat."""

    messages: list[Any] = Field(default_factory=list)
    tools: list[Any] = Field(default_factory=list)


class GenerateBody(_Generation):
    """A body of /api/generate."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    suffix: Annotated[str, only("")] = ""
    template: Annotated[str, only("")] = ""
    images: Annotated[list[Any], only([])] = Field(default_factory=list)
    context: Annotated[list[int], only([])] = Field(default_factory=list)


class EmbedBody(_Model):
    """A body of /api/embed."""

    input: str | list[str]
    truncate: bool = True
    dimensions: int | None = None


class EmbeddingsBody(_Model):
    """A body of /api/embeddings, the older form."""

    prompt: str


class ShowBody(Body):
    """A body of /api/show."""

    model: _Name
    verbose: bool = False


@dataclass(frozen=True)
class Asked:
    """A request to write. request: None where only the model is to be loaded, or to leave. keep_alive: seconds, None
    for the server's."""

    model: str
    request: ChatRequest | CompletionRequest | None
    stream: bool
    keep_alive: float | None


def parse_chat(given: Any) -> Asked:
    """The request of a body of /api/chat. Raises RequestError."""
    body = read(ChatBody, given, "/api/chat")
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(body.messages)]
    tools = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools)]
    request = None
    if messages:
        # Calls come out whole here, so that the parser need not give them out while they are written.
        request = ChatRequest(body.model, messages, _params(body), tools, reasoning=_reasoning(body.think))
    return Asked(body.model, request, body.stream, _keep_alive(body.keep_alive))


def parse_generate(given: Any) -> Asked:
    """The request of a body of /api/generate. Raises RequestError."""
    body = read(GenerateBody, given, "/api/generate")
    request: ChatRequest | CompletionRequest | None = None
    if body.raw and body.prompt:
        request = CompletionRequest(body.model, [body.prompt], _params(body))
    elif body.prompt:
        messages = [{"role": "user", "content": body.prompt}]
        if body.system:
            messages.insert(0, {"role": "system", "content": body.system})
        request = ChatRequest(body.model, messages, _params(body), reasoning=_reasoning(body.think))
    return Asked(body.model, request, body.stream, _keep_alive(body.keep_alive))


def parse_embed(given: Any) -> tuple[EmbeddingsRequest, float | None]:
    """The request of a body of /api/embed, and for how long the model stays. Raises RequestError."""
    body = read(EmbedBody, given, "/api/embed")
    _check_options(body.options)
    inputs = [body.input] if isinstance(body.input, str) else list(body.input)
    if body.dimensions is not None and body.dimensions < 1:
        raise wrong("dimensions", body.dimensions, "a whole number from 1")
    return EmbeddingsRequest(body.model, list(inputs), dimensions=body.dimensions), _keep_alive(body.keep_alive)


def parse_embeddings(given: Any) -> tuple[EmbeddingsRequest, float | None]:
    """The request of a body of /api/embeddings, and for how long the model stays. Raises RequestError."""
    body = read(EmbeddingsBody, given, "/api/embeddings")
    _check_options(body.options)
    return EmbeddingsRequest(body.model, [body.prompt]), _keep_alive(body.keep_alive)


def parse_show(given: Any) -> str:
    """The model that a body of /api/show asks for; older clients call it `name`. Raises RequestError."""
    if isinstance(given, dict) and "name" in given and "model" not in given:
        given = {("model" if key == "name" else key): value for key, value in given.items()}
    return read(ShowBody, given, "/api/show").model


def _check_options(options: dict[str, Any]) -> None:
    for name in options:
        if name not in _PARAMETERS and name not in _RUNNING:
            raise unsupported(f"options.{name}")


def _params(body: _Generation) -> SamplingParams:
    _check_options(body.options)
    values: dict[str, Any] = {}
    for name, value in body.options.items():
        ours = _PARAMETERS.get(name)
        if ours is None or value is None:
            continue
        if name == "num_predict" and value in (-1, -2):
            continue  # until the model ends
        try:
            SamplingParams(**{ours: value})  # alone, so that the option is known
        except GGPYError as error:
            words = f"options.{name}{str(error).removeprefix(ours)}"
            raise RequestError(words, f"options.{name}") from None
        values[ours] = value
    if body.format in (None, ""):
        return SamplingParams(**values)
    if body.format == "json":
        form = StructuredOutputsParams(json_object=True)
    elif isinstance(body.format, dict):
        form = StructuredOutputsParams(json=body.format)
    else:
        raise wrong("format", body.format, "'json' or a JSON schema")
    return SamplingParams(structured_outputs=form, **values)


def _reasoning(think: bool | str | None) -> Reasoning:
    if isinstance(think, bool):
        return Reasoning(think)
    return Reasoning(None, think)


def _keep_alive(given: float | str | None) -> float | None:
    """Seconds; below zero means for ever."""
    if isinstance(given, str):
        parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", given)
        plain = re.fullmatch(r"-?[0-9.]+", given)
        sign = -1.0 if given.startswith("-") else 1.0
        spelt = "".join(number + unit for number, unit in parts)
        try:
            if not plain and (not parts or spelt != given.lstrip("-")):
                raise ValueError
            given = float(given) if plain else sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
        except ValueError:
            raise wrong("keep_alive", given, "a number of seconds, or a duration such as '5m'") from None
    return math.inf if given is not None and given < 0 else given


def _message(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise wrong(name, given, 'a message: {"role": "user", "content": "…"}')
    if given.get("images"):
        raise unsupported(f"{name}.images")
    content = given.get("content") or ""
    if not isinstance(content, str):
        raise wrong(f"{name}.content", content, "a text")
    found: dict[str, Any] = {"role": given["role"], "content": content}
    if isinstance(given.get("thinking"), str) and given["thinking"]:
        found["reasoning_content"] = given["thinking"]
    called = given.get("tool_name") or given.get("name")
    if given["role"] == "tool" and isinstance(called, str):
        found["name"] = called
    calls = given.get("tool_calls") or []
    if not isinstance(calls, list):
        raise wrong(f"{name}.tool_calls", calls, "a list of calls")
    if calls:
        found["tool_calls"] = [_call(f"{name}.tool_calls[{i}]", i, call) for i, call in enumerate(calls)]
    return found


def _call(name: str, index: int, given: Any) -> dict[str, Any]:
    match given:
        case {"function": {"name": str(called), "arguments": dict(arguments)}}:
            id = given.get("id") if isinstance(given.get("id"), str) else f"call_{index}"
            return {"id": id, "type": "function", "function": {"name": called, "arguments": arguments}}
    raise wrong(name, given, 'a call: {"function": {"name": "…", "arguments": {…}}}')


def _tool(name: str, given: Any) -> dict[str, Any]:
    match given:
        case {"function": {"name": str()}}:
            return {"type": "function", **given}
    raise wrong(name, quoted(given, 80), 'a tool: {"type": "function", "function": {"name": "…", …}}')
