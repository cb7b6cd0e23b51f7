"""Chat templates: the Jinja program in a model's file that writes a conversation as the text its model was trained on.

A template comes with the file, from anyone: it is untrusted code. It runs in Jinja's immutable sandbox with what
templates made for transformers expect and nothing else (`ggpy.text.template_sandbox`), sees plain data only, and
whatever it does wrong is one GGPYError."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.errors import GGPYError, quoted, shown
from ggpy.files import read_file
from ggpy.gguf.metadata import TypedMetadata
from ggpy.text.chat_messages import Continuation, functions_as_text, plain_messages, plain_values

if TYPE_CHECKING:
    from jinja2 import Template

    from ggpy.gguf.file import GGUFFile
    from ggpy.text.tokenizer import Tokenizer

_KEY = "tokenizer.chat_template"
_MAX_FILE = 1 << 20  # bytes of a template in a file of its own; the longest of 160 published ones has 17 kB
_MAX_SAID = 1000  # characters that are looked at of what a template says, which may have many millions
_ITS_OWN = ("add_generation_prompt", "continue_final_message")  # parameters of `render`, followed by every template

#: The roles whose tokens a template may write as `bos_token` and so on, and GGUF's words for them.
_SPECIAL_TOKENS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask",
}  # fmt: skip

#: For files that hold no template but have ChatML's tokens, as the first Qwen's do.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

#: Templates that can be chosen by name for any file.
BUILT_IN = {"chatml": CHATML}


class ChatTemplate:
    """A template and the special tokens it writes. Nothing is compiled before the first conversation."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
        where: str = "the chat template",
    ) -> None:
        """`special_tokens` holds `bos_token` and its like; `tool_source` is used where `tools` are given; `where` names
        the file in errors."""
        self.source = arguments.text("source", source)
        tokens = {} if special_tokens is None else special_tokens
        if not isinstance(tokens, Mapping) or not all(isinstance(v, str) for pair in tokens.items() for v in pair):
            raise arguments.wrong("special_tokens", tokens, "a dict of names and texts")
        self.special_tokens = dict(tokens)
        if tool_source is not None:
            arguments.text("tool_source", tool_source)
        self._tool_source = tool_source
        self._where = where
        self._compiled: dict[str, Template] = {}

    @classmethod
    def from_gguf(cls, file: GGUFFile, tokenizer: Tokenizer, chosen: str | None = None) -> ChatTemplate | None:
        """The file's template; ChatML where it has none but has ChatML's tokens; None where it has neither. chosen: the
        source of another one, as `find_template` gives it."""
        metadata = TypedMetadata(file.metadata, str(file.path))
        tool_source = None
        source = chosen
        if source is None:
            source = metadata.find(_KEY, str)
            tool_source = metadata.find(f"{_KEY}.tool_use", str)
            if source is None and template_names(file):
                return None  # named ones, none of which is the default
            if source is None or not source.strip():  # some converters write an empty one for none
                if any(tokenizer.token_id(token) is None for token in ("<|im_start|>", "<|im_end|>")):
                    return None
                source = CHATML
        special = {}
        for name, key in _SPECIAL_TOKENS.items():
            token = metadata.find(f"tokenizer.ggml.{key}_token_id", int)
            if token is not None and 0 <= token < tokenizer.n_vocab:
                special[f"{name}_token"] = tokenizer.token_text(token)
        told = metadata.find("ggpy.tokenizer.template_tokens", str)
        if told is not None:  # a role may have an id that the original's templates do not see, and the other way round
            special = _token_texts(told, str(file.path))
        return cls(source, special, tool_source=tool_source, where=str(file.path))

    def render(
        self,
        messages: Any,
        /,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        **extra: Any,
    ) -> str:
        """The conversation as text, ready to be tokenized with special tokens parsed.

        messages: {"role": …, "content": …} and whatever else the template reads. add_generation_prompt: end where the
        assistant's answer begins, the default; continue_final_message: end where the last message does instead, without
        closing it (or its field of that name). extra: more values by name, such as `tools`, `documents` or
        `enable_thinking`.
        Raises GGPYError where the template refuses the messages, is faulty, or does what no template has to.
        """
        from jinja2 import exceptions

        from ggpy.text.template_budget import OverLimit, limits
        from ggpy.text.template_filters import Refused
        from ggpy.text.template_sandbox import run

        if not isinstance(continue_final_message, str):
            arguments.flag("continue_final_message", continue_final_message)
        if add_generation_prompt is not None:
            arguments.flag("add_generation_prompt", add_generation_prompt)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        elif add_generation_prompt and continue_final_message:
            raise GGPYError("continue_final_message ends the text in the last message, add_generation_prompt after it.")
        try:
            prepared = plain_messages(messages)
            values = plain_values({"tools": None, "documents": None, **self.special_tokens, **extra})
        except RecursionError:
            raise GGPYError("These messages nest too deeply.") from None
        source = self._tool_source if values["tools"] is not None and self._tool_source else self.source
        open_end = Continuation(prepared, continue_final_message, source) if continue_final_message else None
        values.update(messages=prepared, add_generation_prompt=add_generation_prompt)
        try:
            with limits():
                if "functions" in source and "functions" in self.values_read:
                    values = functions_as_text(values)
                text = run(self._template(source), values)
        except Refused as error:
            reason = f"refuses these messages: {error}"
        except OverLimit as error:
            reason = f"was stopped: {error}"
        except exceptions.SecurityError as error:
            reason = f"tries to leave its sandbox: {error}"
        except exceptions.TemplateSyntaxError as error:
            reason = f"is not valid Jinja (line {error.lineno}): {error.message}"
        except RecursionError:
            reason = "was stopped: it nests or calls itself without end"
        except MemoryError:
            reason = "was stopped: it needs more memory than there is"
        except Exception as error:  # untrusted code can raise anything
            reason = f"failed with these messages: {error or type(error).__name__}"
        else:
            return text if open_end is None else open_end.cut(text)
        raise GGPYError(f"{self._where}: the chat template {shown(' '.join(reason[:_MAX_SAID].split())).rstrip('.')}.")

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Raise GGPYError where a value asks for something that the template does not read. None and empty lists ask
        for nothing."""
        for name, value in values.items():
            if value is None or (isinstance(value, list) and not value) or name in _ITS_OWN:
                continue
            if self.values_read and name not in self.values_read:
                from difflib import get_close_matches

                near = get_close_matches(name[:60], self.values_read - {"messages"}, 1)
                advice = f"did you mean {quoted(near[0], 60)}?" if near else "leave it out."
                raise GGPYError(f"{self._where}: the chat template does not read {quoted(name, 60)}; {advice}")

    @cached_property
    def values_read(self) -> frozenset[str]:
        """The names of the values that the template, or the one for tools, takes from outside; empty where it is
        faulty."""
        from jinja2 import meta

        from ggpy.text.template_budget import limits
        from ggpy.text.template_sandbox import TemplateEnvironment

        environment = TemplateEnvironment()
        found = {"tools"} if self._tool_source else set()
        for source in (self.source, self._tool_source or ""):
            try:
                with limits():
                    found |= meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
            except Exception:  # untrusted code can raise anything; rendering says what is wrong
                return frozenset()
        return frozenset(found | {"tools"} if "functions" in found else found)

    @property
    def whole_source(self) -> str:
        """The text of the template and of the one for tools."""
        return f"{self.source}\n{self._tool_source}" if self._tool_source else self.source

    def _template(self, source: str) -> Template:
        from ggpy.text.template_sandbox import TemplateEnvironment

        if source not in self._compiled:
            self._compiled[source] = TemplateEnvironment().from_string(source)
        return self._compiled[source]


def template_names(file: GGUFFile) -> list[str]:
    """The names of the templates that a file holds beside its default one. Raises GGPYError."""
    return TypedMetadata(file.metadata, str(file.path)).strings(f"{_KEY}s") or []


def no_template(file: GGUFFile) -> GGPYError:
    """The error for a conversation with a file that `ChatTemplate.from_gguf` gives no template for."""
    if names := template_names(file):
        choices = shown(", ".join(names))
        return GGPYError(
            f"{file.path.name} has no chat template that is the default; choose one with chat_template or"
            f" --chat-template: {choices}."
        )
    return GGPYError(
        f"{file.path.name} has no chat template; complete plain text with it instead (generate, run --raw)."
    )


def find_template(file: GGUFFile, chosen: str | os.PathLike[str]) -> str:
    """The source of a template: a named one of the file's ("default": its first), a built-in one, or what a file of its
    own holds. Raises GGPYError."""
    name = os.fspath(chosen)
    if isinstance(chosen, str) and chosen:
        key = _KEY if chosen == "default" else f"{_KEY}.{chosen}"
        source = TypedMetadata(file.metadata, str(file.path)).find(key, str) or BUILT_IN.get(chosen)
        if source is not None:
            return source
        if not os.path.lexists(name) and os.sep not in name:
            names = ", ".join([*template_names(file), *BUILT_IN])
            raise GGPYError(f"There is no chat template {quoted(name, 80)}; give a file, or one of {shown(names)}.")
    try:
        return read_file(chosen, _MAX_FILE).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise GGPYError(f"{shown(name)} is no chat template: {error}.") from None


def _token_texts(value: Any, where: str) -> dict[str, str]:
    """The special tokens by name, from the JSON that `ggpy convert` writes."""
    try:
        texts = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        texts = None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise GGPYError(f"{where}: the key ggpy.tokenizer.template_tokens does not hold texts by name, as JSON.")
    return texts
