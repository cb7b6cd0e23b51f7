"""Calls as Python writes them: LFM2, pythonic Llama models, and the tools that are built into Llama 3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggpy.text.reply.cursor import Reading, Unparsed, literal, maybe, peek, run, space, word
from ggpy.text.reply.grammar import Lark
from ggpy.text.reply.json_calls import JsonCalls
from ggpy.text.reply.json_text import dumps
from ggpy.text.reply.parser import Reader

if TYPE_CHECKING:
    import ast

_NAME = re.compile(r"[\w.]+")
_PLAIN = re.compile(r"""[^"'()\[\]{}\\]+""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_JSON = JsonCalls()
_DECLARED = JsonCalls(declared=True)
_DEEPEST = 32
_LONGEST = 1 << 20  # characters of calls: Python's parser takes 100 times as many bytes
_NAMES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonCalls:
    """[NAME(key=value, …), …] after one of `begins`; at an edge the list begins by itself, and what it names has to be
    one of the tools."""

    begins: tuple[str, ...] = ()
    end: str = ""
    begins_at_edge: tuple[str, ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        return (*self.begins, *((self.end,) if self.end else ()))

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        declared = marker in self.begins_at_edge
        if not declared:
            cur.take(len(marker))
            yield from space(cur)
        if not declared and (yield from peek(cur, 2)).startswith(("{", "[{")):
            yield from _JSON.read_calls(reply)
            yield from self._end(reply)
            return
        text = yield from literal(cur, "[")
        yield from space(cur)
        first = yield from word(cur, _NAME)
        if declared and first not in reply.functions:  # found out before the closing bracket, which may be far
            raise Unparsed
        text += first + (yield from bracketed(reply, "]"))
        calls = python_calls(text)
        if declared and not all(name in reply.functions for name, _ in calls):
            raise Unparsed
        for name, arguments in calls:
            reply.out.call(name)
            reply.out.arguments(dumps(arguments))
            reply.end_call()
        yield from self._end(reply)

    def _end(self, reply: Reader) -> Reading[None]:
        if self.end:
            yield from space(reply.cur)
            yield from maybe(reply.cur, self.end)

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        # As JSON, which LFM2 writes, too, where it is told so: Python's texts are not JSON's.
        begins = self.begins or self.begins_at_edge
        return JsonCalls(begins, self.end, in_list=begins is self.begins).grammar(lark, functions, parallel)


@dataclass(frozen=True)
class BuiltinCalls:
    """<|python_tag|>NAME.call(key=value) of Llama 3, or a call in JSON after the same sign."""

    begins: tuple[str, ...] = ("<|python_tag|>",)
    begins_at_edge: tuple[str, ...] = ()
    controls: tuple[str, ...] = ("<|python_tag|>",)

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        cur.take(len(marker))
        yield from space(cur)
        if (yield from peek(cur)) in ("{", "["):
            yield from _DECLARED.read_calls(reply)
            return
        name = yield from word(cur, _NAME)
        if (yield from peek(cur)) != "(":
            raise Unparsed
        text = "[" + name + (yield from bracketed(reply)) + "]"
        for name, arguments in python_calls(text):
            reply.out.call(name.removesuffix(".call"))
            reply.out.arguments(dumps(arguments))
        reply.end_call()

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        return JsonCalls(self.begins, keys=("name", "parameters")).grammar(lark, functions, parallel=False)


def bracketed(reply: Reader, closing: str = "") -> Reading[str]:
    """Take a bracket that comes next and all up to the one that closes it; or up to the closing one of a bracket that
    is open already. Raises Unparsed."""
    cur = reply.cur
    parts: list[str] = []
    n = 0

    def emit(text: str) -> None:
        nonlocal n
        n += len(text)
        parts.append(text)

    open_ones = [closing] if closing else []
    quote = ""
    while True:
        yield from run(cur, _PLAIN, emit)
        c = yield from peek(cur)
        if not c or n > _LONGEST or len(open_ones) > _DEEPEST:
            raise Unparsed
        if c == "\\":
            if not quote or len((yield from peek(cur, 2))) < 2:
                raise Unparsed
            emit(cur.take(2))
            continue
        emit(cur.take(1))
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in _CLOSING:
            open_ones.append(_CLOSING[c])
        elif not open_ones or c != open_ones.pop():
            raise Unparsed
        elif not open_ones:
            return "".join(parts)


def python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a list of calls with named arguments. Raises Unparsed."""
    import ast

    tree = _parsed(text)
    if not isinstance(tree, ast.List) or not tree.elts:
        raise Unparsed
    found = []
    for call in tree.elts:
        if not isinstance(call, ast.Call) or call.args or not all(keyword.arg for keyword in call.keywords):
            raise Unparsed
        found.append((_dotted(call.func), {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}))
    return found


def python_value(text: str) -> Any:
    """The value of a Python literal. Raises Unparsed."""
    return _value(_parsed(text))


def _parsed(text: str) -> ast.expr:
    import ast
    import warnings

    opened = sum(map(text.count, "([{"))
    if len(text) > _LONGEST or (opened > _DEEPEST and _deepest(text) > _DEEPEST):
        raise Unparsed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that escape nothing
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Unparsed from None


def _deepest(text: str) -> int:
    depth = deepest = 0
    for c in re.findall(r"[()\[\]{}]", text):
        depth += 1 if c in _CLOSING else -1
        deepest = max(deepest, depth)
    return deepest


def _dotted(node: ast.expr) -> str:
    import ast

    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise Unparsed


def _value(node: ast.expr) -> Any:
    import ast

    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        found = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                raise Unparsed
            found[key.value] = _value(item)
        return found
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        if isinstance(inner, (int, float)) and not isinstance(inner, bool):
            return -inner
    raise Unparsed
