"""The parts of a reply as they come: thoughts, text, and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the model's thoughts."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call. index: the call's, from 0; name: in a call's first delta alone; arguments: the next piece
    of the arguments, which together are the text of one JSON object."""

    index: int
    id: str
    name: str | None
    arguments: str


Event = ReasoningDelta | ContentDelta | ToolCallDelta
