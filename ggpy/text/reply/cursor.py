"""Text that comes in pieces, read as if it were whole.

Readers are generators that yield where they have to wait for more text. Each decides by the text alone, never by where
it was cut, so that any cut gives the same reading; and each takes what it has read, so that what waits is never longer
than a marker and a text of n characters costs O(n) however it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
Reading = Generator[None, None, _T]
Emit = Callable[[str], object]

_SPACE = re.compile(r"\s+")
_LONGEST_WORD = 256  # characters of a function's or parameter's name


class Unparsed(Exception):
    """The text does not go on as the format has it."""


class Cursor:
    """A place in the text so far. While it records, what is taken can be had back as it was."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._taken: list[str] | None = None

    def feed(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def left(self) -> int:
        """Characters that are there and not taken."""
        return len(self.text) - self.at

    def take(self, n: int) -> str:
        """The next n characters, or as many as there are."""
        found = self.text[self.at : self.at + n]
        self.at += len(found)
        if self._taken is not None:
            self._taken.append(found)
        return found

    def record(self) -> None:
        self._taken = []

    def recorded(self) -> str:
        """The text that was taken since `record`, which ends."""
        found, self._taken = "".join(self._taken or ()), None
        return found


class Markers:
    """Texts of which the first occurrence is looked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted(set(texts), key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._first = {text[0] for text in self.texts}
        self._longest = max(map(len, self.texts), default=1)

    def find(self, text: str, at: int) -> tuple[int, str] | None:
        """Where the first marker begins, and which it is."""
        found = self._pattern.search(text, at)
        return (found.start(), found.group()) if found else None

    def partial(self, text: str, at: int) -> int:
        """Where a marker may have begun that is not whole yet; the text's end where none has."""
        for start in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(marker.startswith(text[start:]) for marker in self.texts):
                return start
        return len(text)


def until(cur: Cursor, markers: Markers, emit: Emit) -> Reading[str | None]:
    """Emit the text up to the first of the markers, which is not taken; None where the text ends without one."""
    while True:
        found = markers.find(cur.text, cur.at)
        end = found[0] if found else len(cur.text) if cur.ended else markers.partial(cur.text, cur.at)
        if end > cur.at:
            emit(cur.take(end - cur.at))
        if found:
            return found[1]
        if cur.ended:
            return None
        yield


def following(cur: Cursor, options: Sequence[str]) -> Reading[str]:
    """The option that comes next, the longest one, not taken; an empty text where it is none of them."""
    options = sorted(options, key=len, reverse=True)
    while True:
        rest = cur.text[cur.at : cur.at + len(options[0])]
        for option in options:
            if rest.startswith(option):
                return option
            if not cur.ended and option.startswith(rest):
                break  # it may still become this one
        else:
            return ""
        yield


def maybe(cur: Cursor, *options: str) -> Reading[str]:
    """Take the option that comes next, if one does."""
    found = yield from following(cur, options)
    return cur.take(len(found))


def literal(cur: Cursor, *options: str) -> Reading[str]:
    """Take the option that has to come next. Raises Unparsed."""
    found = yield from following(cur, options)
    if not found:
        raise Unparsed
    return cur.take(len(found))


def peek(cur: Cursor, n: int = 1) -> Reading[str]:
    """The next n characters, not taken; fewer at the text's end."""
    while cur.left < n and not cur.ended:
        yield
    return cur.text[cur.at : cur.at + n]


def run(cur: Cursor, pattern: re.Pattern[str], emit: Emit) -> Reading[None]:
    """Emit text as long as the pattern, of one or more characters of a kind, goes on."""
    while True:
        found = pattern.match(cur.text, cur.at)
        if found:
            emit(cur.take(found.end() - cur.at))
        if cur.left or cur.ended:
            return
        yield


def space(cur: Cursor) -> Reading[str]:
    """Take white space, if there is any."""
    parts: list[str] = []
    yield from run(cur, _SPACE, parts.append)
    return "".join(parts)


def word(cur: Cursor, pattern: re.Pattern[str]) -> Reading[str]:
    """Take a name that the pattern, of one or more characters of a kind, goes on for. Raises Unparsed."""
    found = ""
    while True:
        more = pattern.match(cur.text, cur.at)
        if more:
            found += cur.take(more.end() - cur.at)
        if not (cur.left or cur.ended) and len(found) <= _LONGEST_WORD:
            yield
        elif found and len(found) <= _LONGEST_WORD:
            return found
        else:
            raise Unparsed
