"""Events that a reply's readers give out, with the white space beside markers left out."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from ggpy.text.reply.events import ContentDelta, Event, ReasoningDelta, ToolCallDelta


def random_id() -> str:
    """A call's id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


class _Call:
    def __init__(self, id: str, name: str) -> None:
        self.index = -1  # until its beginning is out
        self.id, self.name = id, name
        self.arguments: list[str] = []

    @property
    def begun(self) -> bool:
        return self.index >= 0

    def delta(self, index: int = -1) -> ToolCallDelta:
        """The part that is not out yet; with an index, the beginning."""
        text = "".join(self.arguments)
        self.arguments.clear()
        if index < 0:
            return ToolCallDelta(self.index, self.id, None, text)
        self.index = index
        return ToolCallDelta(index, self.id, self.name, text)


class Output:
    """Collects events. whole_calls: a call is given out when it is complete, so that it can still turn out to be none;
    else its arguments are given out as they come."""

    def __init__(self, whole_calls: bool, new_id: Callable[[], str] = random_id) -> None:
        self.n_tool_calls = 0
        #: True where nothing but white space came since a marker, or since the beginning.
        self.at_edge = True
        self._whole_calls = whole_calls
        self._new_id = new_id
        self._ids: set[str] = set()
        self._beside_marker = False
        self._blank: list[str] = []  # white space that belongs to a marker if one follows
        self._kind: type[ContentDelta] | type[ReasoningDelta] = ContentDelta
        self._text: list[str] = []
        self._events: list[Event] = []
        self._call: _Call | None = None
        self._held: list[_Call] | None = None  # complete calls of which it is not certain yet that they are any

    def take(self) -> list[Event]:
        """The events since the last call."""
        self._release_text()
        self._release_arguments()
        events, self._events = self._events, []
        return events

    def content(self, text: str) -> None:
        self._say(ContentDelta, text)

    def reasoning(self, text: str) -> None:
        self._say(ReasoningDelta, text)

    def edge(self) -> None:
        """A marker stands here: white space on both sides is the format's."""
        self._blank.clear()
        self.at_edge = self._beside_marker = True

    def finish(self) -> None:
        """Nothing follows: white space at the end is text."""
        self._text += self._blank
        self._blank.clear()

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins, with the parser's own id where the model gives none."""
        self._call = _Call(id or self._new_id(), name)

    def call_id(self, id: str) -> None:
        """The model's id, which counts unless the call's beginning is out already."""
        if self._call is not None and not self._call.begun:
            self._call.id = id

    def arguments(self, text: str) -> None:
        """A piece of JSON of the call's arguments."""
        if self._call is None:
            return
        self._call.arguments.append(text)
        if not (self._whole_calls or self.holding or self._call.begun):
            self._begin(self._call)

    def end_call(self) -> None:
        """The call is complete."""
        call = self._call
        if call is None:
            return
        if self._held is not None:
            self._held.append(call)
        elif not call.begun:
            self._begin(call)
        else:
            self._release_arguments()
            self.edge()
        self._call = None

    def drop_call(self) -> bool:
        """The call is none. Returns False where its beginning is out, so that it stays."""
        call = self._call
        stays = call is not None and call.begun
        if stays:
            self._release_arguments()
            self.edge()
        self._call = None
        return not stays

    @property
    def holding(self) -> bool:
        return self._held is not None

    def hold(self) -> None:
        """Keep complete calls back, until `release`."""
        self._held = []

    def release(self, given_out: bool) -> None:
        """Give out the calls that were kept back, or forget them."""
        held, self._held = self._held or [], None
        for call in held if given_out else ():
            self._begin(call)

    def _begin(self, call: _Call) -> None:
        self._release_text()
        self.edge()
        if call.id in self._ids:  # a model may give several calls the same
            call.id = self._new_id()
        self._ids.add(call.id)
        self._events.append(call.delta(self.n_tool_calls))
        self.n_tool_calls += 1

    def _say(self, kind: type[ContentDelta] | type[ReasoningDelta], text: str) -> None:
        if kind is not self._kind:
            self._release_text()
            self._kind = kind
        if self._beside_marker:
            text = text.lstrip()
        if not text:
            return
        said = text.rstrip()
        if said:
            self._text += self._blank
            self._text.append(said)
            self._blank.clear()
            self.at_edge = self._beside_marker = False
        if len(said) < len(text):
            self._blank.append(text[len(said) :])

    def _release_text(self) -> None:
        if self._text:
            self._events.append(self._kind("".join(self._text)))
            self._text.clear()

    def _release_arguments(self) -> None:
        if self._call is not None and self._call.begun and self._call.arguments:
            self._events.append(self._call.delta())
