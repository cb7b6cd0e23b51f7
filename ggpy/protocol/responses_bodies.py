"""Bodies of /v1/responses, OpenAI's API of items, to the one request type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ggpy.errors import GGPYError, quoted
from ggpy.protocol.body import Body, only, read, wrong
from ggpy.protocol.errors import RequestError, unsupported
from ggpy.protocol.generation import ChatRequest
from ggpy.protocol.openai import reasoning, sampling_params, template_values, tool_choice
from ggpy.protocol.openai_bodies import MOST_TOP_LOGPROBS, Labels, ReasoningOptions, Sampling
from ggpy.protocol.openai_messages import arguments_of, content
from ggpy.sampling.structured import StructuredOutputsParams

PATH = "/v1/responses"


class FunctionTool(Body):
    """A tool, its function's fields beside its type."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat = Field(default_factory=TextFormat)
    verbosity: Annotated[Any, only("medium")] = None


class ResponsesBody(Labels, Sampling):
    """A body of /v1/responses."""

    input: str | list[Any]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Any = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    reasoning: ReasoningOptions | None = None
    text: TextOptions = Field(default_factory=TextOptions)
    top_logprobs: int | None = None
    include: list[str] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    truncation: Annotated[Any, only("disabled")] = None
    background: Annotated[Any, only(False)] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    max_tool_calls: Annotated[Any, only()] = None


@dataclass(frozen=True)
class ResponsesRequest:
    """A request for a response. chat: with the messages of this body alone, without instructions. previous: the
    response whose conversation goes on. shown: fields that its answer repeats."""

    chat: ChatRequest
    instructions: str | None
    previous: str | None
    store: bool
    shown: dict[str, Any]


def parse(given: Any) -> ResponsesRequest:
    """The request of a decoded body. Raises RequestError."""
    body = read(ResponsesBody, given, PATH)
    if body.n not in (None, 1):
        raise unsupported("n")
    if body.max_output_tokens is not None:
        if body.max_tokens is not None or body.max_completion_tokens is not None:
            raise RequestError("max_output_tokens and max_tokens are one setting; give one.", "max_output_tokens")
        body.max_tokens = body.max_output_tokens
    logprobs = "message.output_text.logprobs" in body.include
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MOST_TOP_LOGPROBS:
        raise wrong("top_logprobs", body.top_logprobs, f"a whole number from 0 to {MOST_TOP_LOGPROBS}")
    params = sampling_params(
        body,
        logprobs=body.top_logprobs or 0 if logprobs or body.top_logprobs else None,
        structured_outputs=_form(body.text.format),
    )
    tools = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" and v is not None}}
        for tool in (given["tools"] if body.tools else [])
    ]
    values = template_values(body.chat_template_kwargs)
    thoughts = reasoning(body.reasoning, values, body)
    chat = ChatRequest(
        body.model,
        messages("input", body.input),
        params,
        tools,
        _choice(body.tool_choice, {tool.name for tool in body.tools}),
        body.parallel_tool_calls,
        thoughts,
        values,
        body.stream,
    )
    shown = {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": thoughts.effort, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": body.tool_choice or "auto",
        "tools": given.get("tools") or [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
    return ResponsesRequest(chat, body.instructions, body.previous_response_id, body.store is not False, shown)


def _form(asked: TextFormat) -> StructuredOutputsParams | None:
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if asked.schema_ is None:
        raise RequestError("text.format.schema is missing; give it.", "text.format.schema")
    try:
        return StructuredOutputsParams(json=asked.schema_)
    except GGPYError as error:
        raise RequestError(f"text.format.schema: {error}", "text.format.schema") from None


def _choice(given: Any, names: set[str]) -> str | dict[str, Any]:
    """`tool_choice`, whose named function has its name beside its type here."""
    if isinstance(given, dict) and given.get("type") == "function" and "name" in given:
        given = {"type": "function", "function": {"name": given["name"]}}
    return tool_choice(given, names)


def messages(name: str, given: str | list[Any]) -> list[dict[str, Any]]:
    """Items as messages: calls and thoughts belong to the assistant's message that they stand beside."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise RequestError(f"{name} is empty; give some text.", name)
    found: list[dict[str, Any]] = []
    open_message: dict[str, Any] | None = None  # the assistant's, which further items may belong to
    for i, item in enumerate(given):
        where = f"{name}[{i}]"
        if not isinstance(item, dict):
            raise wrong(where, item, "an item: an object with a type, or a message")
        kind = item.get("type", "message")
        if kind == "message":
            message = _message(where, item)
            if message["role"] == "assistant" and open_message is not None and "content" not in open_message:
                open_message["content"] = message["content"]
                continue
            found.append(message)
            open_message = message if message["role"] == "assistant" else None
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else content(f"{where}.output", output)
            found.append({"role": "tool", "tool_call_id": _text(where, item, "call_id"), "content": text})
            open_message = None
        elif kind in ("function_call", "reasoning"):
            if open_message is None or (kind == "reasoning" and len(open_message) > 1):
                open_message = {"role": "assistant"}
                found.append(open_message)
            if kind == "reasoning":
                open_message["reasoning_content"] = _thoughts(where, item)
            else:
                function = {"name": _text(where, item, "name"), "arguments": arguments_of(where, item.get("arguments"))}
                call = {"id": _text(where, item, "call_id"), "type": "function", "function": function}
                open_message.setdefault("tool_calls", []).append(call)
        else:
            raise unsupported(f"{where} of the type {quoted(kind, 40)}", "leave the item out")
    return found


def _message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"role": _text(where, item, "role"), "content": content(f"{where}.content", item.get("content"))}


def _thoughts(where: str, item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise wrong(f"{where}.content", parts, "a list of parts")
    return "\n".join(_text(f"{where}.content[{i}]", part, "text") for i, part in enumerate(parts))


def _text(where: str, item: Any, key: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise wrong(f"{where}.{key}", value, "a text")
    return value
