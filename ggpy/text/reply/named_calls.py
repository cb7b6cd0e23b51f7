"""Calls as a name and the JSON of its arguments: newer Mistral, DeepSeek, Kimi, functionary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggpy.text.reply.cursor import Reading, Unparsed, literal, maybe, peek, space, word
from ggpy.text.reply.grammar import Lark, repeated
from ggpy.text.reply.json_calls import JsonCalls, read_arguments
from ggpy.text.reply.parser import Reader

NAME = re.compile(r"[\w.\-/]+")
_COUNTED = re.compile(r"[\w.\-/:]+")
_LIST = JsonCalls(("[TOOL_CALLS]",), in_list=True)


@dataclass(frozen=True)
class NamedCalls:
    """begin NAME between ARGUMENTS end. section: what may stand around all calls. declared: only what names one of the
    tools is a call."""

    begin: str
    between: tuple[str, ...]
    end: tuple[str, ...] = ()
    section: tuple[str, str] | None = None
    declared: bool = False
    begins_at_edge: tuple[str, ...] = ()

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.begin, *((self.section[0],) if self.section else ()))

    @property
    def controls(self) -> tuple[str, ...]:
        return (self.begin, *self.between, *self.end, *(self.section or ()))

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        cur.take(len(marker))
        if self.section and marker == self.section[0]:
            yield from space(cur)
            yield from literal(cur, self.begin)
        while True:
            yield from self._read_call(reply)
            if not self.section:
                return
            yield from space(cur)
            if not (yield from maybe(cur, self.begin)):
                yield from maybe(cur, self.section[1])
                return

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        call = lark.either(
            f"{lark.text(self._opening(name))} {lark.json(schema)} {lark.text(''.join(self.end[:1]))}"
            for name, schema in functions.items()
        )
        before, after = self.section or ("", "")
        return f"{lark.text(before)} {repeated(call, lark.text(''), parallel)} {lark.text(after)}"

    def _opening(self, name: str) -> str:
        return f"{self.begin}{name}{self.between[0]}"

    def _read_call(self, reply: Reader) -> Reading[None]:
        cur, out = reply.cur, reply.out
        yield from space(cur)
        name = yield from word(cur, NAME)
        if self.declared and name not in reply.functions:
            raise Unparsed
        yield from space(cur)
        yield from literal(cur, *self.between)
        yield from space(cur)
        yield from _an_object_follows(reply)
        out.call(name)
        yield from read_arguments(reply)
        reply.end_call()
        if self.end:
            yield from space(cur)
            yield from maybe(cur, *self.end)


def _an_object_follows(reply: Reader) -> Reading[None]:
    if (yield from peek(reply.cur)) != "{":
        raise Unparsed


@dataclass(frozen=True)
class MistralCalls:
    """[TOOL_CALLS][{…}, …] of older models; [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…} of newer ones, some of which leave out
    what stands between. named: a grammar writes the newer form."""

    named: bool = False

    begins: tuple[str, ...] = ("[TOOL_CALLS]",)
    begins_at_edge: tuple[str, ...] = ()
    controls: tuple[str, ...] = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur, out = reply.cur, reply.out
        cur.take(len(marker))
        yield from space(cur)
        if (yield from peek(cur)) in ("[", "{"):
            yield from _LIST.read_calls(reply)
            return
        name = yield from word(cur, NAME)
        id = None
        if (yield from maybe(cur, "[CALL_ID]")):
            id = yield from word(cur, NAME)
        yield from space(cur)
        yield from maybe(cur, "[ARGS]")
        yield from space(cur)
        yield from _an_object_follows(reply)
        out.call(name, id)
        yield from read_arguments(reply)
        reply.end_call()

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        if not self.named:
            return _LIST.grammar(lark, functions, parallel)
        calls = (f"{lark.text(f'[TOOL_CALLS]{name}[ARGS]')} {lark.json(schema)}" for name, schema in functions.items())
        return repeated(lark.either(calls), lark.text(""), parallel)


@dataclass(frozen=True)
class DeepSeekCalls(NamedCalls):
    """DeepSeek V3.1's NAME and JSON, or V3's and R1's `function`, NAME and a block of JSON."""

    begin: str = "<｜tool▁call▁begin｜>"
    between: tuple[str, ...] = ("<｜tool▁sep｜>",)
    end: tuple[str, ...] = ("<｜tool▁call▁end｜>",)
    section: tuple[str, str] | None = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    fenced: bool = False  # in a grammar

    def _opening(self, name: str) -> str:
        named = f"function{self.between[0]}{name}\n```json\n" if self.fenced else f"{name}{self.between[0]}"
        return self.begin + named

    def _read_call(self, reply: Reader) -> Reading[None]:
        cur, out = reply.cur, reply.out
        yield from space(cur)
        name = yield from word(cur, NAME)
        yield from literal(cur, *self.between)
        yield from space(cur)
        fenced = ""
        if name == "function" and (yield from peek(cur)) != "{":
            name = yield from word(cur, NAME)
            yield from space(cur)
            fenced = yield from maybe(cur, "```json", "```")
            yield from space(cur)
        yield from _an_object_follows(reply)
        out.call(name)
        yield from read_arguments(reply)
        reply.end_call()
        if fenced:
            yield from space(cur)
            yield from maybe(cur, "```")
        yield from space(cur)
        yield from maybe(cur, *self.end)


@dataclass(frozen=True)
class KimiCalls(NamedCalls):
    """Kimi K2's functions.NAME:NUMBER, which is also the call's id, and JSON."""

    begin: str = "<|tool_call_begin|>"
    between: tuple[str, ...] = ("<|tool_call_argument_begin|>",)
    end: tuple[str, ...] = ("<|tool_call_end|>",)
    section: tuple[str, str] | None = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")

    def _opening(self, name: str) -> str:
        return f"{self.begin}functions.{name}:0{self.between[0]}"

    def _read_call(self, reply: Reader) -> Reading[None]:
        cur, out = reply.cur, reply.out
        yield from space(cur)
        id = yield from word(cur, _COUNTED)
        name = re.sub(r":[0-9]+$", "", id.removeprefix("functions."))
        if not name:
            raise Unparsed
        yield from space(cur)
        yield from literal(cur, *self.between)
        yield from space(cur)
        yield from _an_object_follows(reply)
        out.call(name, id)
        yield from read_arguments(reply)
        reply.end_call()
        yield from space(cur)
        yield from maybe(cur, *self.end)


@dataclass(frozen=True)
class RecipientCalls:
    """functionary v3.2: >>>NAME and, on the next line, the JSON of its arguments; >>>all and a text. The prompt ends
    with the first of these signs."""

    begins: tuple[str, ...] = (">>>",)
    begins_at_edge: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur, out = reply.cur, reply.out
        cur.take(len(marker))
        name = yield from word(cur, NAME)
        yield from space(cur)
        if name == "all":
            cur.recorded()
            cur.record()
            out.edge()
            return
        if name not in reply.functions:
            raise Unparsed
        yield from _an_object_follows(reply)
        out.call(name)
        yield from read_arguments(reply)
        reply.end_call()

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        calls = (f"{lark.text(name + chr(10))} {lark.json(schema)}" for name, schema in functions.items())
        return repeated(lark.either(calls), lark.text(">>>"), parallel)  # the prompt ends with the first sign

    def reply(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        """Any reply whose calls are of these functions."""
        text = lark.text("all" + chr(10))
        calls = self.grammar(lark, functions, parallel)
        return f"{text} {lark.any_text()} | ({text} {lark.free('>>>')})? {calls}"
