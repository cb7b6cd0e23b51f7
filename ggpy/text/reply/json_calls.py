"""Calls as JSON objects that hold a name and arguments: Hermes, Qwen, Llama 3, older Mistral, Granite, Phi-4, Command
R, Apertus and others, which differ in the markers around them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggpy.text.reply.cursor import Reading, Unparsed, literal, maybe, peek, space
from ggpy.text.reply.grammar import Lark, repeated
from ggpy.text.reply.json_text import dumps, json_read, json_value, key, loads
from ggpy.text.reply.parser import Reader

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "call_id")
_OTHERS = ("type", "tool_call_id")
_FUNCTION = re.compile(r"[\w.\-/:]{1,256}")


@dataclass(frozen=True)
class JsonCalls:
    """{"name": …, "arguments": {…}}, or a list of such, after one of `begins`. end: what may follow. declared: only
    what names one of the tools is a call, as the beginning may be anything. by_name: {"NAME": {…}} instead. fenced: as
    Markdown has code."""

    begins: tuple[str, ...] = ()
    end: str = ""
    begins_at_edge: tuple[str, ...] = ()
    declared: bool = False
    by_name: bool = False
    fenced: bool = False
    # What a grammar writes, though others are read:
    keys: tuple[str, str] = ("name", "arguments")
    in_list: bool = False
    pad: str = ""  # within the markers

    @property
    def controls(self) -> tuple[str, ...]:
        return (*self.begins, *((self.end,) if self.end else ()))

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        if marker not in ("{", "["):
            cur.take(len(marker))
            yield from space(cur)
        if self.fenced:
            yield from literal(cur, "```json", "```")
            yield from space(cur)
        yield from self.read_calls(reply)
        if self.end:
            yield from space(cur)
            yield from maybe(cur, self.end)

    def read_calls(self, reply: Reader) -> Reading[None]:
        """Read one call, several with semicolons between, or a list."""
        cur = reply.cur
        if (yield from peek(cur)) != "[":
            while True:
                yield from self._read_call(reply)
                yield from space(cur)
                if not (self.declared and (yield from maybe(cur, ";"))):
                    return
                yield from space(cur)
        cur.take(1)
        closing = ","
        while closing == ",":
            yield from space(cur)
            yield from self._read_call(reply)
            yield from space(cur)
            closing = yield from literal(cur, ",", "]")

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        name_key, arguments_key = self.keys
        call = lark.either(
            f"{lark.text(f'{{{json.dumps(name)}: ')} {lark.json(schema)} {lark.text('}')}"
            if self.by_name
            else f"{lark.text(f'{{{json.dumps(name_key)}: {json.dumps(name)}, {json.dumps(arguments_key)}: ')} "
            f"{lark.json(schema)} {lark.text('}')}"
            for name, schema in functions.items()
        )
        opening = lark.text(
            (self.begins[0] if self.begins else self.begins_at_edge[0].removesuffix("{"))
            + ("\n```json\n" if self.fenced else "") + self.pad
        )  # fmt: skip
        closing = lark.text(self.pad + (f"\n{self.end}" if self.fenced else self.end))
        if self.in_list:
            return f"{opening} {lark.text('[')} {repeated(call, lark.text(', '), parallel)} {lark.text(']')} {closing}"
        return repeated(lark.rule(f"{opening} {call} {closing}"), lark.text("\n"), parallel and bool(self.begins))

    def _read_call(self, reply: Reader) -> Reading[None]:
        cur, out = reply.cur, reply.out
        name: str | None = None
        arguments: Any = None  # of which the name is not known yet
        begun = False
        yield from literal(cur, "{")
        while True:
            yield from space(cur)
            if (yield from peek(cur)) == "}" and (name is not None):
                break
            field = yield from key(cur)
            if self.by_name:
                name = self._checked(reply, field)
                out.call(name)
                yield from read_arguments(reply)
                begun = True
            elif field in _NAMES and name is None:
                name = self._checked(reply, (yield from json_read(cur)))
            elif field in _ARGUMENTS and not begun:
                if name is None:
                    arguments = yield from json_read(cur)
                else:
                    out.call(name)
                    yield from read_arguments(reply)
                    begun = True
            elif field in _IDS:
                given = yield from json_read(cur)
                if isinstance(given, str) and given:
                    out.call_id(given)
            elif field in _OTHERS:
                yield from json_read(cur)
            else:
                raise Unparsed
            yield from space(cur)
            if (yield from peek(cur)) == "}":
                break
            yield from literal(cur, ",")
        cur.take(1)
        if name is None:
            raise Unparsed
        if not begun:
            out.call(name)
            out.arguments(dumps(_an_object(arguments)))
        reply.end_call()

    def _checked(self, reply: Reader, name: Any) -> str:
        known = isinstance(name, str) and (name in reply.functions or not self.declared)
        if not known or not _FUNCTION.fullmatch(name):
            raise Unparsed
        return str(name)


def read_arguments(reply: Reader) -> Reading[None]:
    """Read the arguments of a call that has begun: an object, or, as some models write it, the text of one."""
    cur = reply.cur
    c = yield from peek(cur)
    if c == "{":
        yield from json_value(cur, reply.out.arguments)
    else:
        reply.out.arguments(dumps(_an_object((yield from json_read(cur)))))


def _an_object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = loads(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unparsed
    return value
