"""Pieces of an answer as they come: thoughts, prose, and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the thoughts before an answer."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call. name: in a call's first piece alone. arguments: a piece of JSON text."""

    index: int
    id: str
    name: str | None
    arguments: str


Event = ReasoningDelta | ContentDelta | ToolCallDelta
