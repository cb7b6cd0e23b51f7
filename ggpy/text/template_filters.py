"""Filters, tests and functions that templates may use, each with a check of its cost.

Of Jinja's filters those are left out that take more than a multiple of their input's length, which no chat needs
(`wordwrap`, `urlize`, `striptags`, `pprint`, `xmlattr` …). The look (`template_operations`) of a filter also returns
the value that the filter gets, such as a list in place of an iterator, which can be read only once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import filters, tests
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace, pass_environment

from ggpy.text.template_budget import ENTRY, WRITTEN, OverLimit, Stream, afford, entries_of, made, text_of, weigh, work
from ggpy.text.template_operations import (
    MAX_NAME,
    binary,
    changes_all_case,
    check_distinct,
    check_key,
    check_names,
    check_percent,
    compare,
    count_lines,
    escaping,
    few,
    joined_size,
    nothing,
    pads,
    read_path,
    replaces,
    size_of,
    strips,
    written_size,
)

JINJA_FILTERS: dict[str, Any] = {**filters.FILTERS}
JINJA_TESTS: dict[str, Any] = {**tests.TESTS}

_MAX_DIGITS = 5000  # of a text that is read as a number

_ENTRY_OF_STREAM = 16  # bytes, where it stays in a list
_KEYED = 400  # for each entry that a Python function finds the key of, as when sorting


def _first_as_text(look: Callable[..., Any]) -> Callable[..., Any]:
    """The look of a method, made into that of the filter of the same name, which turns any value into text."""

    def looked(value: Any, *args: Any, **kwargs: Any) -> str:
        text = text_of(value)
        look(text, *args, **kwargs)
        return text

    return looked


def _titles(value: Any) -> str:
    text = text_of(value)
    work(64 * len(text))  # words are looked at one by one, in Python
    return text


def _escapes(value: Any) -> str:
    text = text_of(value)
    work(size_of(text))
    afford(5 * size_of(text))
    return text


def _centers(value: Any, width: Any = 80) -> str:
    text = text_of(value)
    pads(text, width)
    return text


def _indents(s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    text = text_of(s)
    lines = count_lines(text)
    indentation = len(width) if isinstance(width, str) else max(0, few(width))
    work(2 * size_of(text) + 200 * lines)
    afford(escaping(text) * 4 * (len(text) + (1 + lines) * (1 + indentation)))
    return text


def _truncates(s: Any, length: Any = 255, killwords: Any = False, end: Any = "...", leeway: Any = None) -> str:
    text = text_of(s)
    work(2 * size_of(text) + weigh(end))
    return text


def _formats(value: Any, *args: Any, **kwargs: Any) -> str:
    text = text_of(value)
    check_percent(text, kwargs or args)
    return text


def _replaces_text(s: Any, old: Any, new: Any, count: Any = None) -> str:
    text = text_of(s)
    replaces(text, text_of(old), text_of(new), -1 if count is None else count)
    return text


def _joins_values(value: Any, d: Any = "", attribute: Any = None) -> Any:
    read_path(attribute)
    values = entries_of(value)
    afford(joined_size(text_of(d), values))
    return values


def _reads_number(value: Any, *args: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise OverLimit(f"it reads a number of more than {_MAX_DIGITS} digits")
    return value


def _rounds(value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if isinstance(precision, int) and abs(precision) > 300:
        raise OverLimit("it rounds to hundreds of digits")
    return value


def _lists(value: Any) -> Any:
    return entries_of(value)


def _reverses(value: Any) -> Any:
    if not isinstance(value, str) and not hasattr(value, "__reversed__") and not isinstance(value, (list, tuple)):
        return entries_of(value)
    return value


def _batches(value: Any, linecount: Any, fill_with: Any = None) -> Any:
    few(linecount)
    return Stream(value, _depth(value))


def _slices(value: Any, slices: Any, fill_with: Any = None) -> Any:
    few(slices)
    return entries_of(value)


def _streams(value: Any, *args: Any, **kwargs: Any) -> Any:
    if not kwargs and args:
        read_path(args[0])
    read_path(kwargs.get("attribute"))
    return Stream(value, _depth(value)) if value else value


def _sorts(
    value: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None, default: Any = None
) -> list[Any]:
    read_path(attribute)
    values = entries_of(value)
    weight = weigh(values) + weigh(default) * len(values)
    work(weight * (1 + len(values).bit_length()) + _KEYED * len(values))
    afford(3 * weight)  # the keys, in lower case
    return values


def _groups(value: Any, attribute: Any, default: Any = None, case_sensitive: Any = False) -> list[Any]:
    return _sorts(_sorts(value, attribute=attribute, default=default), attribute=attribute, default=default)


def _sorts_pairs(value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False) -> Any:
    if hasattr(value, "items"):
        _sorts(value.items())
    return value


def _finds_distinct(value: Any, case_sensitive: Any = False, attribute: Any = None) -> list[Any]:
    values = _sorts(value, attribute=attribute)
    if attribute is not None:
        work(8 * len(values) ** 2)
    else:
        check_distinct(values)
    return values


def _finds_extreme(value: Any, case_sensitive: Any = False, attribute: Any = None) -> list[Any]:
    return _sorts(value, attribute=attribute)


def _names_attribute(obj: Any, name: Any) -> Any:
    read_path(text_of(name))
    return obj


def _same(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _depth(value: Any) -> int:
    return value.depth + 1 if isinstance(value, Stream) else 0


_FILTER_LOOKS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("lower", "upper"), _first_as_text(changes_all_case)),
    **dict.fromkeys(("abs", "count", "d", "default", "first", "last", "length"), _same),
    **dict.fromkeys(("e", "escape", "forceescape"), _escapes),
    **dict.fromkeys(("float", "int"), _reads_number),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _streams),
    **dict.fromkeys(("max", "min"), _finds_extreme),
    **dict.fromkeys(("safe", "string"), _first_as_text(nothing)),
    **dict.fromkeys(("capitalize", "title", "wordcount"), _titles),
    "attr": _names_attribute,
    "batch": _batches,
    "center": _centers,
    "dictsort": _sorts_pairs,
    "format": _formats,
    "groupby": _groups,
    "indent": _indents,
    "items": _same,
    "join": _joins_values,
    "list": _lists,
    "replace": _replaces_text,
    "reverse": _reverses,
    "round": _rounds,
    "slice": _slices,
    "sort": _sorts,
    "trim": _first_as_text(strips),
    "truncate": _truncates,
    "unique": _finds_distinct,
}


def _guarded(original: Callable[..., Any], look: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's filter with a look before and an account after it."""
    offset = 1 if hasattr(original, "jinja_pass_arg") else 0  # the environment or context comes before the value

    def guarded(*args: Any, **kwargs: Any) -> Any:
        check_names(kwargs)
        value = look(*args[offset:], **kwargs)
        result = original(*args[:offset], value, *args[offset + 1 :], **kwargs)
        if hasattr(result, "__next__"):
            return Stream(map(made, result), _depth(value) + 1, _ENTRY_OF_STREAM)
        return result if result is value else made(result)

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(original, mark):
            setattr(guarded, mark, getattr(original, mark))
    return guarded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Stream):  # of `map` and its like, which make lists in llama.cpp
        value = entries_of(value)
    weight = weigh(value)
    size = 2 * WRITTEN * weight
    if separators is not None:
        size += sum(map(written_size, separators)) * (weight // ENTRY)
    if indent is not None:  # Python's own encoder writes it, slowly
        width = len(indent) if isinstance(indent, str) else max(0, few(indent))
        work(_KEYED * (weight // ENTRY))
        size += 4 * (weight // ENTRY) * width * _nesting(value)
    work(weight)
    afford(size)
    written = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    made(written)
    return written


def _nesting(value: Any) -> int:
    """The nesting depth of a value that was weighed."""
    if isinstance(value, dict):
        return 1 + max(map(_nesting, value.values()), default=0)
    if isinstance(value, (list, tuple)):
        return 1 + max(map(_nesting, value), default=0)
    return 1


@pass_environment
def _sum(environment: Environment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    read_path(attribute)
    total = start
    for entry in Stream(iterable, _depth(iterable)):
        if attribute is not None:
            for part in str(attribute).split("."):
                entry = environment.getitem(entry, int(part) if part.isdigit() else part)
        total = binary("+", total, entry)
    return total


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _guarded(JINJA_FILTERS[name], look) for name, look in _FILTER_LOOKS.items()},
    "sum": _sum,
    "tojson": _tojson,
}

# Tests


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float, Undefined)):
        raise TypeError(f"a number is needed, not {type(value).__name__}")  # a text would be formatted by `%`
    return value


def _comparison(op: str) -> Callable[[Any, Any], Any]:
    return lambda left, right: compare(left, op, right)


def _by_key(name: str) -> Callable[..., Any]:
    original = JINJA_TESTS[name]

    @pass_environment
    def guarded(environment: Environment, value: Any) -> Any:
        check_key(value)
        return original(environment, value)

    return guarded


TESTS: dict[str, Callable[..., Any]] = {
    **JINJA_TESTS,
    **{name: _comparison(op) for op, names in {
        "eq": ("==", "eq", "equalto"), "ne": ("!=", "ne"), "gt": (">", "gt", "greaterthan"), "gteq": (">=", "ge"),
        "lt": ("<", "lt", "lessthan"), "lteq": ("<=", "le"), "in": ("in",),
    }.items() for name in names},
    **{name: _by_key(name) for name in ("filter", "test")},
    "lower": lambda value: JINJA_TESTS["lower"](_titles(value)),
    "upper": lambda value: JINJA_TESTS["upper"](_titles(value)),
    "odd": lambda value: JINJA_TESTS["odd"](_number(value)),
    "even": lambda value: JINJA_TESTS["even"](_number(value)),
    "divisibleby": lambda value, num: JINJA_TESTS["divisibleby"](_number(value), _number(num)),
}  # fmt: skip

# Functions


class Refused(TemplateError):
    """The template called raise_exception."""


def _raise_exception(message: Any) -> None:
    raise Refused(text_of(message)[:MAX_NAME])


def _strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"\d{3}", form):
        raise OverLimit("it asks for a date of thousands of characters")
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    check_names(kwargs)
    if len(args) == 1 and not isinstance(args[0], dict):
        pairs = entries_of(args[0])
        work(weigh(pairs))
        check_distinct(pair[0] if isinstance(pair, (list, tuple, str)) and pair else pair for pair in pairs)
        args = (pairs,)
    values = dict(*args, **kwargs)
    made(values)
    return values


class _TemplateNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = _dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it sets the attribute {name[:40]!r} on a namespace")


GLOBALS: dict[str, Any] = {
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
    "namespace": _TemplateNamespace,
    "dict": _dict,
}
