"""A model's text to the parts of an answer: thoughts, prose, calls of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggpy.text.reply.events import ContentDelta, Event

if TYPE_CHECKING:
    from ggpy.sampling.structured import StructuredOutputsParams
    from ggpy.text.chat_template import ChatTemplate


class ReplyParser:
    """The parser of one answer, fed as its text comes. Text that it does not understand is content."""

    n_tool_calls = 0

    def feed(self, text: str) -> list[Event]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Event]:
        return []


class ReplyFormat:
    """The form that a model's template gives thoughts and calls of tools."""

    #: Control tokens that the parser has to see in the text.
    kept_tokens: tuple[str, ...] = ()

    def parser(self, prompt: str, tools: list[dict[str, Any]] | None = None) -> ReplyParser:
        """A parser for the answer to a rendered prompt, which may end within an open thought."""
        return ReplyParser()

    def grammar(
        self, tools: list[dict[str, Any]], tool_choice: str | dict[str, Any], parallel: bool
    ) -> StructuredOutputsParams | None:
        """The grammar that guarantees the calls which were asked for; None where nothing needs to be."""
        return None


def reply_format(template: ChatTemplate | None) -> ReplyFormat:
    """The form that a template writes, recognised from its own text."""
    return ReplyFormat()
