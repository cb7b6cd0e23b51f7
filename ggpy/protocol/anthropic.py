"""Anthropic's Messages API as data: request bodies to the one request type.

A field that would change an answer and is not followed is refused by its name; those that label a request, or speak of
the caching that happens here by itself, are passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ggpy.errors import GGPYError, quoted
from ggpy.protocol.body import Body, only, read, wrong
from ggpy.protocol.errors import RequestError, unsupported
from ggpy.protocol.generation import ChatRequest, Reasoning
from ggpy.protocol.openai_messages import is_prefill
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Any = None


class OutputConfig(Body):
    effort: str | None = None
    format: dict[str, Any] | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class CountBody(Body):
    """A body of /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[Any]
    system: str | list[Any] = ""
    tools: list[Any] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: Annotated[list[Any], only([])] = Field(default_factory=list)
    # Of no weight for an answer of this machine's:
    metadata: Any = None
    service_tier: Any = None
    cache_control: Any = None
    context_management: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    betas: Any = None


class MessagesBody(CountBody):
    """A body of /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


def parse_messages(given: Any) -> ChatRequest:
    """The request of a body of /v1/messages. Raises RequestError."""
    body = read(MessagesBody, given, "/v1/messages")
    values: dict[str, Any] = {"stop": body.stop_sequences or None}
    for name in ("max_tokens", "temperature", "top_p", "top_k"):
        values[name] = getattr(body, name)
    try:
        params = SamplingParams(structured_outputs=_form(body.output_config), **values)
    except GGPYError as error:
        field = next((name for name in values if str(error).startswith(name)), None)
        words = str(error).replace("stop", "stop_sequences", 1) if field == "stop" else str(error)
        raise RequestError(words, "stop_sequences" if field == "stop" else field) from None
    return _request(body, given, params, body.stream)


def parse_count(given: Any) -> ChatRequest:
    """The request whose tokens a body of /v1/messages/count_tokens asks for. Raises RequestError."""
    return _request(read(CountBody, given, "/v1/messages/count_tokens"), given, SamplingParams(), False)


def _request(body: CountBody, given: Any, params: SamplingParams, stream: bool) -> ChatRequest:
    found = [message for i, one in enumerate(body.messages) for message in _messages(f"messages[{i}]", one)]
    if not found:
        raise wrong("messages", body.messages, 'a list of messages: [{"role": "user", "content": "…"}]')
    system = _system(body.system)
    if system:
        found.insert(0, {"role": "system", "content": system})
    names = {
        call["id"]: call["function"]["name"]
        for message in found
        for call in message.get("tool_calls", ())
        if "id" in call
    }
    for message in found:
        if message["role"] == "tool" and message["tool_call_id"] in names:
            message["name"] = names[message["tool_call_id"]]
    values = {"continue_final_message": True} if is_prefill(found) else {}
    tools = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools)]
    return ChatRequest(
        body.model, found, params, tools, _choice(body.tool_choice, tools),
        body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use,
        _reasoning(body), values, stream,
    )  # fmt: skip


def _reasoning(body: CountBody) -> Reasoning:
    """The settings of thoughts. Agents ask for them whatever the model is, so that one without any answers, too."""
    effort = body.output_config.effort if body.output_config else None
    if body.thinking is None:
        return Reasoning(None, effort, where_able=True)
    if body.thinking.type == "disabled":
        return Reasoning(False)
    return Reasoning(True, effort, body.thinking.budget_tokens, where_able=True)


def _form(config: OutputConfig | None) -> StructuredOutputsParams | None:
    if config is None or config.format is None:
        return None
    if config.format.get("type") != "json_schema" or not isinstance(config.format.get("schema"), dict):
        raise wrong("output_config.format", config.format, '{"type": "json_schema", "schema": {…}}')
    return StructuredOutputsParams(json=config.format["schema"])


#: A line that Claude Code puts before its system prompt, other in each request: it would have the whole conversation
#: evaluated again.
_BILLING = "x-anthropic-billing-header:"


def _system(given: str | list[Any]) -> str:
    if isinstance(given, str):
        return given
    texts = [_text_of(f"system[{i}]", block) for i, block in enumerate(given)]
    return "\n".join(text for text in texts if not text.startswith(_BILLING))


def _text_of(name: str, block: Any) -> str:
    if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
        kind = block.get("type") if isinstance(block, dict) else block
        raise RequestError(f"{name} is of the type {quoted(kind, 60)}; it must be a text.", name)
    return str(block["text"])


def _messages(name: str, given: Any) -> list[dict[str, Any]]:
    """One message as templates read it: results of tools become messages of their own, before the user's text."""
    role = given.get("role") if isinstance(given, dict) else None
    if role not in ("user", "assistant", "system"):
        raise wrong(name, given, 'a message: {"role": "user", "content": "…"}')
    content = given.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise wrong(f"{name}.content", content, "a text, or a list of blocks")
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for i, block in enumerate(content):
        where = f"{name}.content[{i}]"
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(text)}:
                thoughts.append(text)
            case {"type": "redacted_thinking"}:
                pass  # nobody but its model can read it
            case {"type": "tool_use", "id": str(id), "name": str(called)} if isinstance(block.get("input", {}), dict):
                function = {"name": called, "arguments": block.get("input", {})}
                calls.append({"id": id, "type": "function", "function": function})
            case {"type": "tool_result", "tool_use_id": str(id)}:
                said = _result(f"{where}.content", block.get("content"))
                results.append({"role": "tool", "tool_call_id": id, "content": said})
            case {"type": str(kind)}:
                raise unsupported(f"{where} of the type {quoted(kind, 60)}", "blocks can be texts, thoughts and tools")
            case _:
                raise wrong(where, block, 'a block: {"type": "text", "text": "…"}')
    found: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if thoughts and role == "assistant":
        found["reasoning_content"] = "\n".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return [*results, found] if texts or calls or thoughts or not results else results


def _result(name: str, given: Any) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list):
        raise wrong(name, given, "a text, or a list of texts")
    return "\n".join(_text_of(f"{name}[{i}]", block) for i, block in enumerate(given))


def _tool(name: str, given: Any) -> dict[str, Any]:
    """A tool in OpenAI's form, as templates write it."""
    kind = given.get("type", "custom") if isinstance(given, dict) else None
    if kind not in (None, "custom"):
        raise unsupported(f"{name} of the type {quoted(kind, 60)}", "give tools of your own")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"]:
        raise wrong(name, given, 'a tool: {"name": "…", "input_schema": {…}}')
    schema = given.get("input_schema", {"type": "object", "properties": {}})
    if not isinstance(schema, dict):
        raise wrong(f"{name}.input_schema", schema, "a JSON schema")
    function = {"name": given["name"], "description": given.get("description") or "", "parameters": schema}
    if given.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(given: ToolChoice | None, tools: list[dict[str, Any]]) -> str | dict[str, Any]:
    if given is None or given.type == "auto":
        return "auto"
    if given.type == "none":
        return "none"
    names = [tool["function"]["name"] for tool in tools]
    if given.type == "any":
        if not names:
            raise RequestError("tool_choice asks for a call, but there are no tools; give some.", "tool_choice")
        return "required"
    if given.name not in names:
        raise RequestError(f"tool_choice names {quoted(given.name, 80)}, which is none of the tools.", "tool_choice")
    return {"type": "function", "function": {"name": given.name}}
