"""Calls with an element a parameter: Qwen3-Coder and Qwen3.5, Seed-OSS, Nemotron 3, GLM, MiniMax, DeepSeek V3.2.

Values are texts, without quotes; what kind of JSON they stand for is said by the function's schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggpy.text.reply.cursor import Emit, Markers, Reading, Unparsed, following, literal, maybe, peek, space, until, word
from ggpy.text.reply.grammar import Lark, repeated
from ggpy.text.reply.json_calls import JsonCalls
from ggpy.text.reply.json_text import dumps, escaped, loads
from ggpy.text.reply.parser import Reader

_FUNCTION = re.compile(r"[\w.\-/:]+")
_KEY = re.compile(r'[^<>"\n]+')
_JSON = JsonCalls()
_PYTHON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class XmlCalls:
    """begin, functions, end; a function is opening NAME named, parameters, closing; a parameter is key_opening KEY
    keyed, the value, key_closing. says_kind: each parameter says whether it is a text. lines: values stand on lines of
    their own."""

    begin: str
    end: str
    opening: str
    named: str
    closing: str
    key_opening: str
    keyed: str
    value_opening: str
    value_closing: str
    says_kind: bool = False
    lines: bool = False
    #: A function may begin without `begin`, as some models leave it out.
    begins_bare: bool = False
    begins_at_edge: tuple[str, ...] = ()

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.begin, self.opening) if self.begins_bare else (self.begin,)

    @property
    def controls(self) -> tuple[str, ...]:
        markers = (self.begin, self.end, self.opening, self.closing, self.key_opening, self.value_closing)
        return tuple(marker for marker in (*markers, self.keyed, self.value_opening) if marker)

    def read(self, reply: Reader, marker: str) -> Reading[None]:
        cur = reply.cur
        if marker == self.begin:
            cur.take(len(marker))
            yield from space(cur)
            if (yield from peek(cur)) == "{":
                yield from _JSON.read_calls(reply)
                yield from self._end(reply)
                return
        while True:
            yield from self._read_function(reply, declared=marker != self.begin)
            yield from space(cur)
            if not self.opening or not (yield from following(cur, (self.opening,))):
                break
        yield from self._end(reply)

    def _end(self, reply: Reader) -> Reading[None]:
        yield from space(reply.cur)
        yield from maybe(reply.cur, self.end)

    def grammar(self, lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        calls = (self._written(lark, name, schema) for name, schema in functions.items())
        return repeated(lark.either(calls), lark.text("\n"), parallel)

    def _written(self, lark: Lark, name: str, schema: Mapping[str, Any]) -> str:
        """A call of one function with its markers: as elements, where these can say what the schema does, or JSON."""
        line = "\n" if self.lines else ""
        if not _writes_as_elements(schema):
            json = JsonCalls((self.begin,), self.end)
            return json.grammar(lark, {name: schema}, parallel=False)
        required = schema.get("required") or ()
        parts = [lark.text(self.begin + ("\n" if self.opening else "") + f"{self.opening}{name}{self.named}\n")]
        for key, inner in schema.get("properties", {}).items():
            opening = f"{self.key_opening}{key}{self.keyed}"
            if self.says_kind:
                opening += ("true" if _types(inner) == {"string"} else "false") + '">'
            opening += (f"\n{self.value_opening}" if self.value_opening else "") + line
            closing = line + self.value_closing
            if options := _options(inner) if _types(inner) == {"string"} else ():
                value = f"({' | '.join(map(lark.text, options))}) {lark.text(closing)}"
            elif _types(inner) == {"string"}:
                value = lark.free(self.value_closing)  # which is found wherever it stands
            else:
                value = f"{lark.json(inner)} {lark.text(closing)}"
            one = lark.rule(f"{lark.text(opening)} {value} {lark.text(chr(10))}")
            parts.append(one if key in required else f"{one}?")
        parts.append(lark.text(self.closing + ("\n" if self.closing else "") + self.end))
        return " ".join(parts)

    def _read_function(self, reply: Reader, declared: bool) -> Reading[None]:
        cur, out = reply.cur, reply.out
        yield from maybe(cur, self.opening) if not self.opening else literal(cur, self.opening)
        name = yield from word(cur, _FUNCTION)
        if declared and name not in reply.functions:
            raise Unparsed
        if self.named:
            yield from literal(cur, self.named)
        types = parameter_types(reply.functions.get(name, {}))
        yield from space(cur)
        if not self.closing:  # the name alone says little: text may follow
            yield from _sure(reply, (self.key_opening, self.end))
        out.call(name)
        before = "{"
        while True:
            yield from space(cur)
            if not (yield from maybe(cur, self.key_opening)):
                break
            key = yield from word(cur, _KEY)
            yield from literal(cur, self.keyed)
            kinds = types.get(key, frozenset())
            if self.says_kind:
                kinds = frozenset({"string"}) if (yield from literal(cur, "true", "false")) == "true" else frozenset()
                yield from literal(cur, '">')
            if self.value_opening:
                yield from space(cur)
                yield from literal(cur, self.value_opening)
            out.arguments(f"{before}{dumps(key.strip())}: ")
            before = ", "
            yield from self._read_value(reply, kinds)
        if self.closing:
            yield from literal(cur, self.closing)
        else:
            yield from _sure(reply, (self.end, ""))
        out.arguments("{}" if before == "{" else "}")
        reply.end_call()

    def _read_value(self, reply: Reader, kinds: frozenset[str]) -> Reading[None]:
        """Read a value and what closes it: a text as it comes, else all of it, whose JSON is then known."""
        cur, out = reply.cur, reply.out
        marker = Markers([self.value_closing])
        if self.lines:
            yield from maybe(cur, "\r\n", "\n")
        as_text = kinds == {"string"}
        parts: list[str] = []
        if as_text:
            out.arguments('"')
            emit: Emit = _quoted(out.arguments, self.lines)
        else:
            emit = parts.append
        if (yield from until(cur, marker, emit)) is None:
            raise Unparsed
        cur.take(len(self.value_closing))
        if as_text:
            out.arguments('"')
            return
        text = "".join(parts)
        out.arguments(typed(text.removesuffix("\n") if self.lines else text, kinds))


def _sure(reply: Reader, options: tuple[str, ...]) -> Reading[None]:
    """Raises Unparsed unless one of the options follows, or the text's end where one is empty."""
    cur = reply.cur
    if (yield from following(cur, tuple(option for option in options if option))):
        return
    if "" in options and cur.ended and not cur.left:
        return
    raise Unparsed


def _quoted(emit: Emit, lines: bool) -> Emit:
    """Emit a text as JSON has it within quotes; lines: without a line end that it ends with."""
    held = ""

    def emit_quoted(text: str) -> None:
        nonlocal held
        text = held + text
        held = "\n" if lines and text.endswith("\n") else ""
        emit(escaped(text[: len(text) - len(held)]))

    return emit_quoted


def parameter_types(schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The JSON types of each of a function's parameters; of those that are not said, none."""
    properties = schema.get("properties")
    return {name: _types(inner) for name, inner in properties.items()} if isinstance(properties, Mapping) else {}


def _types(schema: Any, depth: int = 8) -> frozenset[str]:
    if not isinstance(schema, Mapping) or not depth:
        return frozenset()
    said = schema.get("type")
    found = {said} if isinstance(said, str) else set(filter(_is_text, said)) if isinstance(said, list) else set()
    if not found and isinstance(schema.get("enum"), list) and all(map(_is_text, schema["enum"])):
        found = {"string"}
    for name in ("anyOf", "oneOf", "allOf"):
        for inner in schema[name] if isinstance(schema.get(name), list) else ():
            found |= _types(inner, depth - 1)
    return frozenset(found)


#: What a schema of a text may say that elements can follow.
_OF_TEXTS = frozenset(("type", "description", "title", "default", "examples", "enum", "const"))
#: The same of a function's parameters.
_OF_FUNCTIONS = frozenset((
    "type", "description", "title", "properties", "required", "additionalProperties", "$schema",
))  # fmt: skip


def _writes_as_elements(schema: Mapping[str, Any]) -> bool:
    """True where elements can say all that a function's schema does."""
    properties = schema.get("properties", {})
    return (
        schema.keys() <= _OF_FUNCTIONS
        and isinstance(properties, Mapping)
        and all(_KEY.fullmatch(key) and key == key.strip() and _is_plain(inner) for key, inner in properties.items())
    )


def _is_plain(schema: Any) -> bool:
    """True where the text of a value says which it is: it is JSON other than a text, or any text, or one of some."""
    if not isinstance(schema, Mapping) or "$ref" in str(schema):
        return False
    kinds = _types(schema)
    if kinds != {"string"}:
        return "string" not in kinds and not ({"enum", "const"} & schema.keys() and not kinds)
    return schema.keys() <= _OF_TEXTS and all(map(_is_text, _options(schema)))


def _options(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a schema names."""
    if "const" in schema:
        return [schema["const"]]
    return [*schema["enum"]] if isinstance(schema.get("enum"), list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def typed(text: str, kinds: frozenset[str]) -> str:
    """The JSON of a value that is written as a text, by the types that it may have."""
    said = text.strip()
    said = _PYTHON.get(said, said)
    try:
        value = loads(said)
    except Unparsed:
        try:
            value = _python_value(said) if said[:1] in ("{", "[") else text
            said = dumps(value)
        except Unparsed:
            return dumps(text)
    if isinstance(value, str) and not said.startswith('"'):
        return dumps(text)
    return said if not kinds or _type_of(value) & kinds or "string" not in kinds else dumps(text)


def _python_value(text: str) -> Any:
    from ggpy.text.reply.python_calls import python_value

    return python_value(text)


def _type_of(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    for kind, name in ((float, "number"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return {name}
    return {"null"}
