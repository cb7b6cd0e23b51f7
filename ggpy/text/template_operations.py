"""Operators and methods that templates may use, each with a check of its cost; there are no others.

Such a check, a *look*, has the parameters of the operation. It states what the call reads and what it may make, and
raises where that is too much. The result of the call is then accounted for.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.utils import Cycler, Namespace
from markupsafe import Markup

from ggpy.text.template_budget import (
    ENTRY,
    VIEWS,
    WRITTEN,
    OverLimit,
    afford,
    entries_of,
    made,
    take,
    text_of,
    weigh,
    work,
)

_MAX_BITS = 1 << 14  # of a number
_MAX_WIDTH = 1 << 16  # for widths, indentations and counts given as numbers
MAX_NAME = 1000  # of an attribute's path, of an argument's name

_PIECE = 100  # a text of up to some 40 characters
_FIELD = 1000  # for each field of str.format, which is Python code too


# Sizes


def size_of(text: str) -> int:
    return sys.getsizeof(text)


def few(value: Any) -> int:
    """A width, a depth or a count, checked: raises OverLimit where it is too large."""
    if isinstance(value, int) and abs(value) > _MAX_WIDTH:
        raise OverLimit(f"it asks for a width or a count of more than {_MAX_WIDTH}")
    return int(value) if isinstance(value, (int, float)) else 0


def written_size(value: Any) -> int:
    """An upper limit of the bytes of str(value)."""
    return size_of(value) if isinstance(value, str) else WRITTEN * weigh(value)


def escaping(*texts: Any) -> int:
    """The factor by which text can grow where one of these has the others escaped: '"' becomes "&#34;"."""
    return 5 if any(isinstance(text, Markup) for text in texts) else 1


def character_size(*texts: str) -> int:
    """Bytes per character of a text joined from these: the widest character decides."""
    return 1 if all(text.isascii() for text in texts) else 4


def read_path(attribute: Any) -> None:
    """Check the length of an attribute's path, such as "function.name,type", which is followed for every entry."""
    if isinstance(attribute, str) and len(attribute) > MAX_NAME:
        raise OverLimit(f"it names an attribute by more than {MAX_NAME} characters")


def check_names(values: Mapping[str, Any]) -> None:
    """Check the length of arguments' names, which errors repeat."""
    if any(len(name) > MAX_NAME for name in values):
        raise OverLimit(f"it names an argument by more than {MAX_NAME} characters")


def check_key(key: Any) -> None:
    """Check that a key may be hashed."""
    if type(key) is not str and type(key) is not int:
        work(weigh(key))


def check_distinct(keys: Iterable[Any]) -> None:
    """Check the keys of one table. Hashes of texts cannot be chosen; those of numbers can be made all equal."""
    chosen = sum(not isinstance(key, str) for key in keys)
    work(8 * chosen * chosen)


# Comparing

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_SCALARS = (str, int, float, type(None), Undefined)


def compare(first: Any, *others: Any) -> Any:
    """first op value op value …, `others` being names of operators and values in turn."""
    result = True
    left = first
    for op, right in zip(others[::2], others[1::2], strict=True):
        if op in ("in", "notin"):
            result = contains(right, left) == (op == "in")
        else:
            if isinstance(left, str) and isinstance(right, str):
                work(min(len(left), len(right)))
            elif not isinstance(left, _SCALARS) and not isinstance(right, _SCALARS):
                work(weigh(left) + weigh(right))
            result = _COMPARISONS[op](left, right)
        if not result:
            return result
        left = right
    return result


def contains(container: Any, value: Any) -> bool:
    """value in container"""
    if isinstance(container, str):
        work(len(container) + (len(value) if isinstance(value, str) else 0))
    elif isinstance(container, (dict, type({}.keys()))):
        check_key(value)
    elif isinstance(container, (list, tuple, range)):
        if isinstance(value, _SCALARS):
            work(len(container) * (8 + (len(value) if isinstance(value, str) else 0)))
        else:
            work(weigh(container) + weigh(value))
    elif not isinstance(container, Undefined) and hasattr(container, "__iter__"):
        return any(entry is value or compare(entry, "eq", value) for entry in container)
    return value in container


def binary(op: str, left: Any, right: Any) -> Any:
    """left op right, for + - * ** %."""
    whole = isinstance(left, int) and isinstance(right, int)
    if op == "+":
        if isinstance(left, str) and isinstance(right, str):
            afford(escaping(left, right) * character_size(left, right) * (len(left) + len(right)))
        elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            afford(ENTRY * (len(left) + len(right)))
        return made(left + right)
    if op == "*":
        if whole:
            _check_bits(left.bit_length() + right.bit_length())
        elif isinstance(left, int) or isinstance(right, int):
            value, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(value, str):
                afford(character_size(value) * len(value) * times)
            elif isinstance(value, (list, tuple)):
                afford(ENTRY * len(value) * times)
        return made(left * right)
    if op == "**":
        if whole:
            _check_bits(left.bit_length() * max(right, 1))
        return left**right
    if op == "%":
        if isinstance(left, str):
            check_percent(left, right)
            return made(left % right)
        return left % right
    if isinstance(left, VIEWS) or isinstance(right, VIEWS):  # sets of hashes otherwise
        raise TypeError("keys and items cannot be subtracted")
    return left - right


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise OverLimit("it makes a number of thousands of digits")


def concatenate(values: Iterable[Any]) -> str:
    """The operator `~`: the values as text, joined."""
    return join_texts([text_of(value) for value in values])


def join_texts(texts: Iterable[str]) -> str:
    """The texts joined, and accounted for."""
    texts = list(texts)
    afford(4 * sum(map(len, texts)))
    text = "".join(texts)
    made(text)
    return text


# Formatting


def _check_widths(text: str) -> int:
    """An upper limit of the numbers in a format, each of which may be a width."""
    work(size_of(text))
    if re.search(r"\d{5}", text):
        raise OverLimit("it pads a text to a width of tens of thousands")
    return next((10**digits for digits in (4, 3, 2) if re.search(rf"\d{{{digits}}}", text)), 10)


def check_percent(text: str, values: Any) -> None:
    """Check the cost of text % values."""
    width = _check_widths(text)
    if "*" in text and re.search(r"%[^a-zA-Z%]*\*", text):
        raise OverLimit("it pads a text to a width that is a value")
    fields = text.count("%")
    size = WRITTEN * weigh(values)
    each = size if isinstance(values, (dict, Namespace)) else 0  # one value in several fields
    afford(escaping(text) * (size_of(text) + size + fields * (4 * width + 512 + each)))


def check_braces(text: str, values: Iterable[Any]) -> None:
    """Check the cost of text.format(*values)."""
    width = _check_widths(text)
    if re.search(r"\{[^{}]*\{", text.replace("{{", "").replace("}}", "")):
        raise OverLimit("it pads a text to a width that is a value")
    fields = text.count("{")
    work(fields * _FIELD)
    size = WRITTEN * weigh(tuple(values))
    afford(escaping(text) * (size_of(text) + fields * (4 * width + 512 + size)))


# Methods


def _reads(text: str, *args: Any) -> None:
    work(size_of(text) + sum(weigh(arg) for arg in args))


def _changes_case(text: str) -> None:
    """Check a change of case by Unicode's rules: Python reserves three wide characters for each."""
    work(16 * len(text))
    afford(16 * len(text))


def changes_all_case(text: str) -> None:
    if text.isascii():
        work(len(text))
    else:
        _changes_case(text)


def _goes_backwards(text: str, part: Any = "", *args: Any) -> None:
    # Python looks from the end by trying every place.
    work(size_of(text) * (1 + (len(part) // 8 if isinstance(part, str) else 0)))


def strips(text: str, characters: Any = None) -> None:
    _goes_backwards(text, characters)  # every character is looked for among these


_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _count_of(characters: str, text: str) -> int:
    return sum(text.count(c) for c in characters if c.isascii() or not text.isascii())


def count_lines(text: str) -> int:
    return 1 + _count_of(_LINE_BREAKS, text)


def _splits(text: str, sep: Any = None, maxsplit: Any = -1) -> None:
    if sep is None:
        work(8 * len(text))
        pieces = min(_count_of(_SPACES, text), len(text) // 2)
    else:
        work(size_of(text))
        pieces = text.count(sep) if sep else 0
    if isinstance(maxsplit, int) and maxsplit >= 0:
        pieces = min(pieces, maxsplit)
    afford((pieces + 1) * _PIECE + size_of(text))


def _splits_backwards(text: str, sep: Any = None, maxsplit: Any = -1) -> None:
    if isinstance(sep, str):
        _goes_backwards(text, sep)
    _splits(text, sep, maxsplit)


def _splits_lines(text: str, keepends: Any = False) -> None:
    work(2 * size_of(text))
    afford(count_lines(text) * _PIECE + size_of(text))


def pads(text: str, width: Any, *args: Any) -> None:
    afford(4 * (len(text) + few(width)))


def _expands(text: str, tabsize: Any = 8) -> None:
    afford(size_of(text) + 4 * text.count("\t") * abs(few(tabsize)))


def _joins(text: str, values: Any) -> tuple[Any, ...]:
    values = entries_of(values)
    afford(joined_size(text, values))
    return (values,)


def joined_size(separator: str, values: list[Any]) -> int:
    texts = [value for value in values if isinstance(value, str)]
    others = sum(written_size(value) for value in values if not isinstance(value, str))
    characters = sum(map(len, texts)) + others + len(values) * len(separator)
    work(16 * len(values))
    return escaping(separator, *texts) * character_size(separator, *texts) * characters


def replaces(text: str, old: Any, new: Any, count: Any = -1) -> None:
    if isinstance(old, str) and isinstance(new, str):
        work(size_of(text))
        found = text.count(old)
        if isinstance(count, int) and count >= 0:
            found = min(found, count)
        afford(escaping(text) * character_size(text, new) * (len(text) + found * len(new)))


def _searches(values: Any, *args: Any) -> None:
    asked = sum(weigh(arg) for arg in args)
    work(weigh(values) + asked)
    afford(WRITTEN * asked)  # "… is not in list"


def _looks_up(values: Any, key: Any = None, *args: Any) -> None:
    check_key(key)


def _copies(values: Any) -> None:
    take(2 * ENTRY * len(values))


def _appends(values: Any, entry: Any) -> None:
    take(ENTRY)


def _pops(values: Any, index: Any = -1) -> None:
    work(8 * len(values))


def nothing(value: Any, *args: Any) -> None:
    pass


_STR: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("lower", "upper"), changes_all_case),
    **dict.fromkeys(("capitalize", "casefold", "swapcase", "title"), _changes_case),
    **dict.fromkeys(("lstrip", "rstrip", "strip"), strips),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), _goes_backwards),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), pads),
    **dict.fromkeys(
        ("count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
         "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "partition", "removeprefix",
         "removesuffix", "startswith"),
        _reads,
    ),
    "expandtabs": _expands,
    "format": nothing,  # looked at where it is wrapped
    "format_map": nothing,
    "join": _joins,
    "replace": replaces,
    "rsplit": _splits_backwards,
    "split": _splits,
    "splitlines": _splits_lines,
}  # fmt: skip

#: What a template may call and read of each type; attributes that are no methods have no look.
ATTRIBUTES: tuple[tuple[Any, Mapping[str, Callable[..., Any]]], ...] = (
    (str, _STR),
    (dict, {"get": _looks_up, "items": nothing, "keys": nothing, "values": nothing, "copy": _copies}),
    (list, {"append": _appends, "copy": _copies, "count": _searches, "index": _searches, "pop": _pops}),
    (tuple, {"count": _searches, "index": _searches, "grouper": nothing, "list": nothing}),
    (float, {"is_integer": nothing}),
    (LoopContext, dict.fromkeys(
        ("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
         "revindex", "revindex0"),
        nothing,
    )),
    (Macro, dict.fromkeys(("arguments", "caller", "catch_kwargs", "catch_varargs", "name"), nothing)),
    (Cycler, dict.fromkeys(("current", "next", "reset"), nothing)),
)  # fmt: skip


VALUES = (str, dict, list, tuple, float)  # whose methods are looked at


_SPLITTING = ("partition", "rpartition", "rsplit", "split", "splitlines")


def attributes_of(value: Any) -> Mapping[str, Callable[..., Any]]:
    """The attributes of a value that a template may read, by name."""
    for kind, names in ATTRIBUTES:
        if isinstance(value, kind):
            return names
    return {}


def call_method(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of a text, a list, a tuple, a dict or a number."""
    owner = method.__self__
    replaced = attributes_of(owner)[method.__name__](owner, *args, **kwargs)
    result = made(method(*(args if replaced is None else replaced), **kwargs))
    if method.__name__ in _SPLITTING:
        take(_PIECE * len(result))
        for piece in result:
            if len(piece) > _PIECE:
                made(piece)
    return result
