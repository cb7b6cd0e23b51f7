"""Whole answers, put together from the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ggpy.protocol.generation import Delta, Event, Finished, Progress, TokenLogprob
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta


@dataclass
class ToolCall:
    """A call of a tool; arguments: JSON text."""

    id: str
    name: str
    arguments: str


@dataclass
class Reply:
    """One answer so far; `end` once it is finished."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    end: Finished | None = None

    def take(self, event: Progress | Delta | Finished) -> None:
        """Grow by an event of this answer."""
        if isinstance(event, Finished):
            self.end = event
        if not isinstance(event, Delta):
            return
        self.logprobs += event.logprobs
        self.tokens += event.tokens
        match event.event:
            case ContentDelta(text):
                self.content += text
            case ReasoningDelta(text):
                self.reasoning += text
            case ToolCallDelta(index, id, name, arguments):
                while len(self.tool_calls) <= index:
                    self.tool_calls.append(ToolCall(id, name or "", ""))
                self.tool_calls[index].arguments += arguments


def replies(events: Iterable[Event]) -> list[Reply]:
    """The answers of a request in their order, from all its events."""
    found: dict[int, Reply] = {}
    for event in events:
        if isinstance(event, Delta | Finished):
            found.setdefault(event.choice, Reply()).take(event)
    return [found[choice] for choice in sorted(found)]
