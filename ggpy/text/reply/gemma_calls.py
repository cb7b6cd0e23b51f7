"""Calls in Gemma 4's own notation: <|tool_call>call:NAME{key:value,…}<tool_call|>, texts between <|"|>."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggpy.text.reply.cursor import Markers, Reading, Unparsed, literal, maybe, peek, space, until, word
from ggpy.text.reply.grammar import Lark, repeated
from ggpy.text.reply.json_text import dumps, escaped, json_string, loads
from ggpy.text.reply.parser import Reader

_NAME = re.compile(r"[\w.\-/]+")
_KEY = re.compile(r"[^\s:{}\[\],<\"]+")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_QUOTE = '<|"|>'
_QUOTES = Markers([_QUOTE])
_DEEPEST = 64


class GemmaCalls:
    begins = ("<|tool_call>",)
    begins_at_edge: tuple[str, ...] = ()
    controls = ("<|tool_call>", "<tool_call|>", _QUOTE)

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        cur.take(len(marker))
        yield from space(cur)
        yield from literal(cur, "call:")
        name = yield from word(cur, _NAME)
        yield from space(cur)
        if (yield from peek(cur)) != "{":
            raise Unparsed
        reply.out.call(name)
        yield from _value(reply)
        reply.end_call()
        yield from space(cur)
        yield from maybe(cur, "<tool_call|>")

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        # With JSON's quotes, which are read, too: what a schema says of texts is said of those.
        calls = (
            f"{lark.text(f'<|tool_call>call:{name}')} {lark.json(schema)} {lark.text('<tool_call|>')}"
            for name, schema in functions.items()
        )
        return repeated(lark.either(calls), lark.text(""), parallel)


def _value(reply: Reader) -> Reading[None]:
    """Read a value, giving out its JSON as the call's arguments."""
    cur, emit = reply.cur, reply.out.arguments
    open_ones: list[str] = []
    opened = False  # just now
    while True:
        # A value comes next, or the end of an empty object or list.
        yield from space(cur)
        c = yield from peek(cur)
        if not (opened and c == open_ones[-1]):
            if open_ones and open_ones[-1] == "}":
                emit(dumps((yield from _key(reply))) + ": ")
                yield from space(cur)
                c = yield from peek(cur)
            if c and c in "{[":
                if len(open_ones) == _DEEPEST:
                    raise Unparsed
                open_ones.append("}" if c == "{" else "]")
                emit(cur.take(1))
                opened = True
                continue
            yield from _scalar(reply, c)
        while True:
            yield from space(cur)
            c = yield from peek(cur)
            if c == ",":
                cur.take(1)
                emit(", ")
                opened = False
                break
            if not c or c != open_ones[-1]:
                raise Unparsed
            emit(cur.take(1))
            open_ones.pop()
            if not open_ones:
                return


def _scalar(reply: Reader, c: str) -> Reading[None]:
    cur, emit = reply.cur, reply.out.arguments
    if c == '"':
        yield from json_string(cur, emit)
    elif c == "<":
        yield from literal(cur, _QUOTE)
        emit('"')
        if (yield from until(cur, _QUOTES, lambda text: emit(escaped(text)))) is None:
            raise Unparsed
        cur.take(len(_QUOTE))
        emit('"')
    else:
        said = yield from word(cur, _SCALAR)
        if said not in _WORDS and not _NUMBER.fullmatch(said):
            raise Unparsed
        emit(_WORDS.get(said, said))


def _key(reply: Reader) -> Reading[str]:
    cur = reply.cur
    parts: list[str] = []
    c = yield from peek(cur)
    if c == '"':
        yield from json_string(cur, parts.append)
        parts = [str(loads("".join(parts)))]
    elif c == "<":
        yield from literal(cur, _QUOTE)
        if (yield from until(cur, _QUOTES, parts.append)) is None:
            raise Unparsed
        cur.take(len(_QUOTE))
    else:
        parts.append((yield from word(cur, _KEY)))
    yield from space(cur)
    yield from literal(cur, ":")
    return "".join(parts)
