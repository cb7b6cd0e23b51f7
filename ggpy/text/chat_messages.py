"""Messages as templates expect them: the same changes that transformers makes before and after it renders one.

Templates are written against `apply_chat_template` of transformers, which makes plain data of everything, leaves out
keys without a value, and copies a message's reasoning between the names that different models read. The same is done
here, so that a template renders the same text.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ggpy import arguments
from ggpy.errors import GGPYError, quoted

#: Names that reasoning goes by. The first is what most templates read, the second what gpt-oss's does.
_REASONING = ("reasoning_content", "thinking", "reasoning")

#: Written behind the text to continue, and cut off with all that the template writes after it. Templates may test or
#: trim a text's end, so the mark is letter for letter the one that transformers sets.
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

#: What else `apply_chat_template` takes; passed on as values for the template they would be skipped in silence.
_NOT_FOLLOWED = (
    "chat_template", "conversation", "max_length", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "truncation",
)  # fmt: skip


def plain(value: Any) -> Any:
    """`value` as fresh plain data, so that a template meets no object with methods of its own.

    Dataclasses and pydantic models become dicts, numpy's scalars numbers; anything else becomes its type's name:
    "<Image>".
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # a member of an enumeration is its value, whatever str() says of it
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def plain_messages(messages: Any) -> list[dict[str, Any]]:
    """Fresh messages without keys whose value is None, the reasoning under every name. Raises GGPYError."""
    messages = getattr(messages, "messages", messages)
    found = []
    for message in arguments.several(
        "The conversation", messages, 'a list of messages, each {"role": …, "content": …}'
    ):
        message = plain(message)
        if not isinstance(message, dict):
            raise GGPYError('A conversation is a list of messages, each {"role": …, "content": …}.')
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[name] for name in _REASONING if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        found.append(message)
    if not found:
        raise GGPYError("The conversation is empty; give at least one message.")
    return found


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The other values that a template sees. Raises GGPYError where one would be misunderstood."""
    for name in _NOT_FOLLOWED:
        if name in values:
            raise GGPYError(
                f"{name} is an option of transformers that ggpy does not have; templates take no such value."
            )
    for name, form in (("tools", "JSON schemas"), ("documents", "a title and a text each")):
        value = values.get(name)
        fine = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, Mapping) for v in value)
        if value is not None and not fine:
            raise GGPYError(f"{name} must be a list of dicts: {form}.")
    return {name: plain(value) for name, value in values.items()}


def merged_values(template_kwargs: Mapping[str, Any] | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values for a template that came as one dictionary, `template_kwargs`, and those that came by name. Raises
    GGPYError where these are no names, or one came both ways."""
    if template_kwargs is None:
        return {**values}
    if not isinstance(template_kwargs, Mapping) or not all(isinstance(name, str) for name in template_kwargs):
        raise arguments.wrong("template_kwargs", template_kwargs, 'a dict of names and values: {"enable_thinking": …}')
    for name in template_kwargs:
        if name in values or name == "messages":
            raise GGPYError(f"template_kwargs cannot hold {quoted(name, 60)}, which is given by itself.")
    return {**template_kwargs, **values}


def functions_as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` for a template that reads `functions` in place of tools: with their schemas as JSON and the time, as
    FireFunction's model card makes them."""
    functions = [tool.get("function", tool) for tool in values["tools"] or []]
    written = json.dumps(functions, ensure_ascii=False, indent=4) if functions else ""
    return {"functions": written, "datetime": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **values}


class Continuation:
    """The end of the last message, left open for the model to go on with."""

    def __init__(self, messages: list[dict[str, Any]], field: bool | str, source: str) -> None:
        """Mark the text to be continued in `messages`. field: its key, True for "content". source: the template, which
        has to name the key. Raises GGPYError."""
        field = field if isinstance(field, str) else "content"
        last = messages[-1]
        fields = [field]
        if field in _REASONING:  # whichever copy the template reads
            fields = [name for name in _REASONING if name in last and last[name] == last.get(field)]
        text = last.get(field)
        if text is None:
            raise GGPYError(f"The last message has no {quoted(field, 60)} that could be continued.")
        if not any(name in source for name in fields):
            raise GGPYError(f"The chat template does not write {quoted(field, 60)}, so that it cannot be continued.")
        if isinstance(text, (list, tuple)):
            block = next((b for b in reversed(text) if isinstance(b, dict) and isinstance(b.get("text"), str)), None)
            if block is None:
                raise GGPYError("The last message has no text that could be continued.")
            self._text: str = block["text"]
            block["text"] += _MARK
        elif isinstance(text, str):
            self._text = text
            for name in fields:
                last[name] += _MARK
        else:
            raise GGPYError(f"The {quoted(field, 60)} of the last message is no text that could be continued.")

    def cut(self, rendered: str) -> str:
        """`rendered` up to the end of the text to continue. Raises GGPYError where the template did not keep it."""
        at = rendered.rfind(_MARK.strip())
        if at < 0 or self._text.strip() not in rendered:
            raise GGPYError("The last message cannot be continued: the chat template changes or drops it.")
        trimmed = not rendered.startswith(_MARK, at)  # then the space before the mark is the template's to keep, too
        return rendered[:at].rstrip() if trimmed else rendered[:at]
