"""Checks of what callers of the Python API pass: one function, and one error sentence, for each kind of value.

Every function takes the parameter's name and its value, returns the value as the program wants it, and raises GGPYError
for any other. True and False are not numbers here, though Python takes them for 1 and 0.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from ggpy.errors import GGPYError, quoted

_SHOWN = 80  # characters of a value in a sentence


def _kind(value: Any) -> str:
    """numpy's letter for the kind of a scalar, empty for any other value. (numpy itself need not be imported.)"""
    if getattr(value, "ndim", -1) != 0:
        return ""
    return str(getattr(getattr(value, "dtype", None), "kind", ""))


def wrong(name: str, value: object, words: str) -> GGPYError:
    """The error for a value that is not what it must be."""
    return GGPYError(f"{name} is {quoted(value, _SHOWN)}, but it must be {words}.")


def whole(name: str, value: Any, least: int, most: int, words: str) -> int:
    """A whole number from `least` to `most`, of Python's or numpy's."""
    try:
        if isinstance(value, bool) or _kind(value) == "b":
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise wrong(name, value, words) from None
    if not least <= number <= most:
        raise wrong(name, value, words)
    return number


def number(name: str, value: Any, least: float, most: float, words: str) -> float:
    """A number from `least` to `most`, of Python's or numpy's."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or _kind(value) in ("i", "u", "f")):
        raise wrong(name, value, words)
    if not least <= value <= most:  # NaN neither
        raise wrong(name, value, words)
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool) and _kind(value) != "b":
        raise wrong(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    return value


def several(name: str, value: Any, words: str) -> list[Any]:
    """The values of a list, a tuple, an array or any other ordered collection."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set)) or not isinstance(value, Iterable):
        raise wrong(name, value, words)
    try:
        return value.tolist() if getattr(value, "ndim", 0) and hasattr(value, "tolist") else list(value)
    except TypeError:  # an array of no dimension
        raise wrong(name, value, words) from None


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A non-empty text, or a list of them, as a tuple; None gives an empty one."""
    words = "a text or a list of texts, each of a character at least"
    found = [value] if isinstance(value, str) else [] if value is None else several(name, value, words)
    if not all(isinstance(one, str) and one for one in found):
        raise wrong(name, value, words)
    return tuple(found)


def token_id(name: str, value: Any) -> int:
    """A token id, not checked against the vocabulary."""
    return whole(name, value, -(1 << 63), (1 << 63) - 1, "a token id, which is a whole number")


def token_ids(name: str, value: Any) -> list[int]:
    """A list of token ids."""
    words = "a list of token ids, which are whole numbers"
    found = several(name, value, words)
    if all(type(one) is int for one in found):  # a long prompt in a few milliseconds
        return found
    try:
        return [token_id(name, one) for one in found]
    except GGPYError:
        raise wrong(name, value, words) from None


def biases(name: str, value: Any) -> dict[int, float]:
    """A mapping of token ids to what is added to their logits: a number, or -inf."""
    words = "a dict of token ids to numbers from -1e30 to 1e30, or -inf"
    if not isinstance(value, Mapping):
        raise wrong(name, value, words)
    try:
        return {
            token_id(name, token): -math.inf if bias == -math.inf else number(name, bias, -1e30, 1e30, words)
            for token, bias in value.items()
        }
    except (GGPYError, ValueError):  # ValueError: an array has no one truth
        raise wrong(name, value, words) from None


def function(name: str, value: Any) -> Callable[..., Any]:
    """A callable."""
    if not callable(value):
        raise wrong(name, value, "a function")
    return value  # type: ignore[no-any-return]


def path(name: str, value: Any) -> Path:
    """The path of a file; never empty, which would mean the current folder."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise wrong(name, value, "the path of a file")
    return Path(value)
