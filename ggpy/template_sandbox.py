"""Running a template from a stranger: Jinja's immutable sandbox, what chat templates expect in it, and limits.

Jinja's sandbox keeps a template from Python's internals. It does not keep it from running for ever or from filling the
memory, so here every loop turn and macro call looks at the clock, and the operations that make much out of little
(repetition, powers, padding, joining, replacing, formatting) look at the size of what they would make first.

What templates expect is what transformers gives them: `raise_exception`, `strftime_now`, a `tojson` that escapes
nothing, `{% generation %}` blocks, `break` and `continue`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 10.0
MAX_SIZE = 1 << 26  # characters of a text, entries of a list
_MAX_BITS = 1 << 14  # of a number
_MAX_ARGUMENT = 1 << 16  # for widths, indentations and counts given as numbers

_GUARDED_FILTERS = (
    "batch", "center", "format", "indent", "join", "pprint", "replace", "slice", "string", "truncate", "wordwrap",
)  # fmt: skip

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class Refused(TemplateError):
    """The template called raise_exception."""


class OverLimit(TemplateError):
    """The template runs too long or makes too much."""


def run(template: Template, values: Mapping[str, Any]) -> str:
    """What the template writes. Raises OverLimit, and whatever the template raises."""
    token = _deadline.set(time.monotonic() + MAX_SECONDS)
    try:
        pieces, size = [], 0
        for piece in template.generate(values):
            size = _fits(size + len(piece))
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _deadline.reset(token)


def _fits(size: int) -> int:
    if size > MAX_SIZE:
        raise OverLimit(f"it makes a value of more than {MAX_SIZE:,} characters or entries")
    return size


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise OverLimit("it makes a number of thousands of digits")


def _check_written(value: Any, budget: int | None = None) -> int:
    """Before a value is written out: lists may hold the same list many times over, and so on down.

    budget: characters that may be written; what is left of them is returned. An entry counts as 64.
    """
    left = MAX_SIZE if budget is None else budget
    if isinstance(value, (list, tuple, set, dict)):
        entries = (*value, *value.values()) if isinstance(value, dict) else value
        for entry in entries:
            left = _check_written(entry, left - 64)
    elif isinstance(value, str):
        left -= len(value)
    if left < 0:
        raise OverLimit(f"it writes out a value of more than {MAX_SIZE:,} characters")
    return left


def _size(value: Any) -> int:
    """Characters or entries."""
    try:
        return len(value)
    except TypeError:
        return 1


def _written(value: Any) -> Any:
    """What `{{ value }}` writes, after a look at it."""
    _check_written(value)
    return value


def _tick() -> None:
    if time.monotonic() > _deadline.get():
        raise OverLimit(f"it runs for more than {MAX_SECONDS:g} seconds")


def _check_format(text: str) -> None:
    if re.search(r"\d{6,}", text):
        raise OverLimit("it pads a text to a width of millions")


def _check_arguments(values: Iterable[Any]) -> None:
    """Numbers that say how wide, how deep or how often."""
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_ARGUMENT:
            raise OverLimit(f"it asks for a width or a count of {value}")


def _joined(separator: Any, values: Iterable[Any]) -> list[Any]:
    """The values, after a look at how long they are in one text."""
    values, size = list(values), 0
    for value in values:
        _check_written(value)
        size = _fits(size + _size(separator) + (len(value) if isinstance(value, str) else len(str(value))))
    return values


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str):
        _fits(len(text) + text.count(old) * _size(new))


def _guarded_filter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's filter with a look at its arguments first."""
    offset = 1 if hasattr(original, "jinja_pass_arg") else 0  # the environment or context comes before the value

    def guarded(*args: Any, **kwargs: Any) -> Any:
        value, rest = args[offset], args[offset + 1 :]
        _check_arguments((*rest, *kwargs.values()))
        _check_written(value)
        if name == "join":
            separator = rest[0] if rest else kwargs.get("d", "")
            args = (*args[:offset], _joined(separator, value), *rest)
        elif name == "replace" and len(rest) >= 2:
            _check_replace(str(value), str(rest[0]), rest[1])
        elif name == "format":
            _check_format(str(value))
            _check_written(rest)
        elif name == "indent":
            text, width = str(value), rest[0] if rest else kwargs.get("width", 4)
            _fits(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else _size(width)))
        return original(*args, **kwargs)

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(original, mark):
            setattr(guarded, mark, getattr(original, mark))
    return guarded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    _check_arguments((indent,))
    _check_written(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise Refused(str(message))


def _strftime_now(form: str) -> str:
    _check_format(form)
    return datetime.now().strftime(form)


class _TemplateNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it sets the attribute {name!r} on a namespace")


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Macro) -> str:
        return caller()


class _AddTicks(NodeTransformer):
    """A look at the clock at the head of every loop turn and macro."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return node


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that chat templates run in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator
    tick = staticmethod(_tick)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols], finalize=_written
        )
        for name in _GUARDED_FILTERS:
            self.filters[name] = _guarded_filter(name, FILTERS[name])
        self.filters["tojson"] = _tojson
        self.globals.pop("lipsum", None)
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            namespace=_TemplateNamespace,
            dict=lambda *args, **kwargs: dict(*args, **kwargs),
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _AddTicks().visit(super()._parse(source, name, filename))
        return tree

    def concatenate(self, values: Iterable[Any]) -> str:
        """What `~` does."""
        return str_join(_joined("", values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        both_numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and both_numbers:
            _check_bits(left.bit_length() * max(right, 1))
        elif operator == "*" and both_numbers:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            _fits(_times(left, right))
        elif operator == "+" and not both_numbers:
            _fits(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_written(right)
            _check_arguments((right if isinstance(right, tuple) else (right,)) if "*" in left else ())
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
                _check_arguments((*args, *kwargs.values()))
            elif name == "join" and args:
                args = (_joined(owner, args[0]), *args[1:])
            elif name == "replace" and len(args) >= 2:
                _check_replace(owner, args[0], args[1])
            elif name in ("format", "format_map"):
                _check_format(owner)
                _check_written((*args, *kwargs.values()))
                if re.search(r"\{[^{}]*\{", owner):  # a width that is an argument
                    _check_arguments((*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def _times(left: Any, right: Any) -> int:
    """The size of a sequence repeated."""
    if isinstance(left, int):
        left, right = right, left
    return _size(left) * right if isinstance(right, int) else 1
