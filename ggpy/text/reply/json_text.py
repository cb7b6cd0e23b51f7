"""JSON read as it comes. What is emitted is JSON even where the model's is so but nearly: line ends within texts and
backslashes that escape nothing are written as JSON has them."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ggpy.text.reply.cursor import Cursor, Emit, Reading, Unparsed, peek, run, space, word

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_SCALARS = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_DEEPEST = 64  # what callers of json.loads, ours and others', take without a thought


def loads(text: str) -> Any:
    """The value of a JSON text. Raises Unparsed."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unparsed from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def dumps(value: Any) -> str:
    """A value as JSON. Raises Unparsed where it is none, as no infinite number is."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise Unparsed from None


def escaped(text: str) -> str:
    """A text as it stands within quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def json_value(cur: Cursor, emit: Emit) -> Reading[None]:
    """Emit a JSON value, piece by piece. Raises Unparsed as soon as it is none."""
    open_ones: list[str] = []
    expected = "value"  # or "value]", "key", "key}", ":", ","
    while True:
        blank = yield from space(cur)
        if open_ones and blank:
            emit(blank)
        c = yield from peek(cur)
        if c == '"' and expected != ":" and expected != ",":
            yield from json_string(cur, emit)
            expected = ":" if expected.startswith("key") else ","
        elif c and c in "{[" and expected.startswith("value"):
            if len(open_ones) == _DEEPEST:
                raise Unparsed
            open_ones.append("}" if c == "{" else "]")
            emit(cur.take(1))
            expected = "key}" if c == "{" else "value]"
            continue
        elif c == ":" and expected == ":":
            emit(cur.take(1))
            expected = "value"
            continue
        elif c == "," and expected == ",":
            emit(cur.take(1))
            expected = "key" if open_ones[-1] == "}" else "value"
            continue
        elif c and open_ones and c == open_ones[-1] and (expected == "," or expected.endswith(c)):
            open_ones.pop()
            emit(cur.take(1))
            expected = ","
        elif expected.startswith("value"):
            scalar = yield from word(cur, _SCALAR)
            if not _SCALARS.fullmatch(scalar):
                raise Unparsed
            emit(scalar)
            expected = ","
        else:
            raise Unparsed
        if not open_ones:
            return


def json_string(cur: Cursor, emit: Emit) -> Reading[None]:
    """Emit a text in quotes, the first of which comes next."""
    emit(cur.take(1))
    while True:
        yield from run(cur, _PLAIN, emit)
        c = yield from peek(cur)
        if c == '"':
            emit(cur.take(1))
            return
        if c == "\\":
            pair = yield from peek(cur, 2)
            if len(pair) < 2:
                raise Unparsed
            n = 2 if pair[1] in '"\\/bfnrt' else 1
            if pair[1] == "u":
                code = yield from peek(cur, 6)
                n = 6 if len(code) == 6 and all(digit in "0123456789abcdefABCDEF" for digit in code[2:]) else 1
            found = cur.take(n)
            emit(found if n > 1 else "\\\\")
        elif c:
            emit(escaped(cur.take(1)))
        else:
            raise Unparsed


def json_read(cur: Cursor) -> Reading[Any]:
    """Take a JSON value whole."""
    parts: list[str] = []
    yield from json_value(cur, parts.append)
    return loads("".join(parts))


def key(cur: Cursor) -> Reading[str]:
    """Take an object's key and its colon. Raises Unparsed."""
    parts: list[str] = []
    if (yield from peek(cur)) != '"':
        raise Unparsed
    yield from json_string(cur, parts.append)
    yield from space(cur)
    if (yield from peek(cur)) != ":":
        raise Unparsed
    cur.take(1)
    yield from space(cur)
    return str(loads("".join(parts)))
