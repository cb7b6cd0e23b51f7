"""A reply's text to its parts, while it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ggpy.text.reply.cursor import Cursor, Markers, Reading, Unparsed, following, space, until
from ggpy.text.reply.events import Event
from ggpy.text.reply.grammar import Lark
from ggpy.text.reply.output import Output, random_id


class CallSyntax(Protocol):
    """How a model writes calls: one form, however many calls it holds."""

    @property
    def begins(self) -> tuple[str, ...]:
        """Signs that calls begin with, wherever they stand."""

    @property
    def begins_at_edge(self) -> tuple[str, ...]:
        """Signs that they begin with where no text stands before them, too common to mean a call elsewhere."""

    @property
    def controls(self) -> tuple[str, ...]:
        """Its markers that may be tokens which show nothing."""

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        """Read calls from their marker on. Raises Unparsed where there are none."""

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        """An expression for a call of one of the functions, whose schemas are given by name; parallel: for several."""


@dataclass(frozen=True)
class Thoughts:
    """The markers around thoughts. anywhere: they may also come after some text, as the markers are no words. leads:
    the text after thoughts that leads over to the answer."""

    begin: str
    end: str
    anywhere: bool = False
    leads: str = ""

    @property
    def closing(self) -> str:
        """The text that ends thoughts wherever they stand."""
        return f"{self.end}{self.leads}" if self.anywhere else f"\n{self.end}\n\n"


@dataclass(frozen=True)
class Form:
    """The kinds of parts that a reply may hold, and how they are written."""

    thoughts: tuple[Thoughts, ...] = ()
    calls: tuple[CallSyntax, ...] = ()
    #: What is read even where no tools are given, as the answer's text has such a sign, too.
    always: tuple[CallSyntax, ...] = ()
    #: Markers around text, which say nothing more.
    silent: tuple[str, ...] = ()
    #: The reply begins with thoughts, though nothing opens them.
    starts_in_thoughts: bool = False
    #: In the place of all that: a reader of whole replies.
    read: Callable[[Reader], Reading[None]] | None = None
    new_id: Callable[[], str] = random_id


class Reader:
    """The state of one reply that is being read, as its format's readers see it."""

    def __init__(self, form: Form, prompt: str, tools: Sequence[Mapping[str, Any]] | None, stream: bool) -> None:
        self.form = form
        self.prompt = prompt
        self.cur = Cursor()
        self.out = Output(whole_calls=not stream, new_id=form.new_id)
        self.functions = functions(tools)
        self._given = ""  # of the prompt's end, what is read once more

    def end_call(self) -> None:
        """A call is complete: whatever follows, it is one."""
        self.out.end_call()
        if not self.out.holding:
            self.cur.recorded()
            self.cur.record()

    def run(self) -> Reading[None]:
        form, cur, out = self.form, self.cur, self.out
        if form.read is not None:
            yield from form.read(self)
            return
        calls = (*form.always, *(form.calls if self.functions else ()))
        begun = next((begin for call in calls for begin in call.begins if self.prompt.endswith(begin)), "")
        if begun:  # the prompt has the sign that the reply would begin with
            self._given = begun
            cur.text = begun + cur.text
        syntaxes = {begin: call for call in calls for begin in call.begins}
        at_edge = {begin: call for call in calls for begin in call.begins_at_edge}
        opening = {thoughts.begin: thoughts for thoughts in form.thoughts}
        # Thoughts may end that never began: in vain was the model told not to think.
        silent = {*form.silent, *(thoughts.end for thoughts in form.thoughts)}
        anywhere = [thoughts.begin for thoughts in form.thoughts if thoughts.anywhere]
        markers = Markers([*syntaxes, *anywhere, *form.silent])
        edge_options = [*at_edge, *opening, *(thoughts.end for thoughts in form.thoughts)]
        thoughts = open_thoughts(form, self.prompt)
        if thoughts is not None:
            out.edge()
        while True:
            if thoughts is not None:
                # Where the prompt has opened them, some models open them once more.
                yield from self._thoughts(thoughts, syntaxes)
                thoughts = None
            marker: str | None = ""
            blank = ""
            if out.at_edge and edge_options:
                blank = yield from space(cur)
                marker = yield from following(cur, edge_options)
                if not marker:
                    out.content(blank)
                    blank = ""
            if not marker:
                marker = yield from until(cur, markers, out.content)
            if marker is None:
                return
            if marker in opening:
                cur.take(len(marker))
                out.edge()
                thoughts = opening[marker]
            elif marker in silent:
                cur.take(len(marker))
                out.edge()
            else:
                syntax = syntaxes.get(marker) or at_edge[marker]
                yield from self._attempt(syntax, marker, blank)

    def _attempt(self, syntax: CallSyntax, marker: str, blank: str) -> Reading[None]:
        """Read calls; what turns out to be none is text, with the blank before it."""
        self.cur.record()
        try:
            yield from syntax.read(self, marker)
        except Unparsed:
            raw = self.cur.recorded().removeprefix(self._given)
            if self.out.drop_call():
                self.out.content(blank + raw)
        else:
            self.cur.recorded()
        self._given = ""

    def _thoughts(self, thoughts: Thoughts, syntaxes: Mapping[str, CallSyntax]) -> Reading[None]:
        """Read thoughts to their end, which is taken. Calls in them are thoughts, too, unless the reply ends with them:
        then the model forgot to end its thoughts."""
        cur, out = self.cur, self.out
        markers = Markers([thoughts.end, *syntaxes])
        blank = yield from space(cur)
        if (yield from following(cur, (thoughts.begin,))):
            cur.take(len(thoughts.begin))
        else:
            out.reasoning(blank)
        while True:
            marker = yield from until(cur, markers, out.reasoning)
            if marker is None:
                return
            if marker == thoughts.end:
                cur.take(len(marker))
                out.edge()
                return
            yield from self._last_calls(syntaxes)

    def _last_calls(self, syntaxes: Mapping[str, CallSyntax]) -> Reading[None]:
        """Read calls within thoughts, up to where they turn out to be thoughts or the reply ends."""
        cur, out = self.cur, self.out
        cur.record()
        out.hold()
        try:
            while marker := (yield from following(cur, tuple(syntaxes))):
                yield from syntaxes[marker].read(self, marker)
                yield from space(cur)
        except Unparsed:
            complete = False
        else:
            complete = cur.ended and not cur.left
        out.drop_call()
        raw = cur.recorded()
        out.release(complete)
        if not complete:
            out.reasoning(raw)


class ReplyParser:
    """Parts of one reply. The events of all calls together are the same however the text was cut; text that does not
    parse is content, and nothing raises."""

    def __init__(
        self, form: Form, prompt: str = "", tools: Sequence[Mapping[str, Any]] | None = None, stream: bool = False
    ) -> None:
        """prompt: rendered; thoughts may be open at its end. tools: those that may be called, in OpenAI's form; without
        any, calls are text. stream: arguments come out while they are written; a call that has begun then stays one,
        even if its arguments break off. Else a call comes out whole, or as text where it does not parse."""
        self._reader = Reader(form, prompt, tools, stream)
        self._reading: Generator[None, None, None] | None = self._reader.run()

    @property
    def n_tool_calls(self) -> int:
        """The calls that have come out so far."""
        return self._reader.out.n_tool_calls

    def feed(self, text: str) -> list[Event]:
        """The events that more text makes certain."""
        if text:
            self._reader.cur.feed(text)
            self._go_on()
        return self._reader.out.take()

    def finish(self) -> list[Event]:
        """The events that are left, now that nothing follows."""
        self._reader.cur.ended = True
        self._go_on()
        self._reader.out.finish()
        return self._reader.out.take()

    def _go_on(self) -> None:
        if self._reading is not None and next(self._reading, "ended") == "ended":
            self._reading = None


def functions(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The JSON schemas of functions' parameters by name."""
    found = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            found[function["name"]] = dict(schema) if isinstance(schema, Mapping) else {}
    return found


#: What stands between a text of the user's and the reply in every template, but not in thoughts.
_TURNS = ("<|", "|>", "<｜", "[/INST]", "<end_of_turn>", "</s>", "<seed:", "<SPECIAL_")


def open_thoughts(form: Form, prompt: str) -> Thoughts | None:
    """The thoughts that a reply to the prompt begins within."""
    for found in form.thoughts:
        at = prompt.rfind(found.begin)
        inside = prompt[at + len(found.begin) :]
        if at >= 0 and found.end not in inside and not any(turn in inside for turn in _TURNS):
            return found
    if form.starts_in_thoughts and not prompt.rstrip().endswith(form.thoughts[0].end):
        return form.thoughts[0]
    return None
