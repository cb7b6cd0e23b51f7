"""Limits of a template's render: an account of the memory it may keep, and a deadline.

Python cannot interrupt a single call into its own C code, such as the comparison of two long lists, nor take back the
memory that one asks for. So an operation that reads or makes much is checked *before* it runs: no single operation then
takes long, and the clock is checked between operations. All that is made stays on the account, as a template can keep
it, except large values that nothing refers to any more when the account runs out: templates that write their text as
`ns.text = ns.text + …` leave many behind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.utils import Namespace

#: Of parsing, compiling and rendering together; one operation, of up to half a second, may come on top.
MAX_SECONDS = 1.5
#: That one operation may read, and that all of them may make. A byte read is to take no more than 4 ns.
MAX_BYTES = 100_000_000
MAX_DEPTH = 100  # of values in values: what C compares, hashes or writes by recursion

ENTRY = 32  # bytes that an entry of a list or a dict is accounted with, itself small
_BOX = 64  # any small object
_LARGE = 1 << 14

#: Bytes of a text as repr or JSON write it for each byte of it, at most: "\x00" becomes "\u0000".
WRITTEN = 6

VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


class OverLimit(TemplateError):
    """The template runs too long or makes too much."""


def _references(values: list[Any]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


(_NO_OTHERS,) = _references([object()])


class _Account:
    def __init__(self) -> None:
        self.left = MAX_BYTES
        self.large: list[Any] = []
        self._started = time.thread_time()
        self._look_at = time.monotonic() + MAX_SECONDS

    def check_time(self) -> None:
        """Check the deadline, in CPU time of this thread, so that a busy machine refuses nothing. Reading that takes a
        system call, so it is skipped until as much wall time has passed."""
        if time.monotonic() > self._look_at:
            left = MAX_SECONDS - (time.thread_time() - self._started)
            if left <= 0:
                raise OverLimit(f"it runs for more than {MAX_SECONDS:g} seconds")
            self._look_at = time.monotonic() + left

    def reclaim(self) -> None:
        """Take large values that nothing else holds off the account."""
        held = [count > _NO_OTHERS for count in _references(self.large)]
        self.left += sum(_size(value) for value, is_held in zip(self.large, held, strict=True) if not is_held)
        self.large = [value for value, is_held in zip(self.large, held, strict=True) if is_held]


_account: ContextVar[_Account] = ContextVar("account")


@contextmanager
def limits() -> Iterator[None]:
    """Open an account for the operations within the block."""
    token = _account.set(_Account())
    try:
        yield
    finally:
        _account.reset(token)


def work(amount: int) -> None:
    """Check that `amount` bytes may be read. Raises OverLimit, also where the time is over."""
    if amount > MAX_BYTES:
        raise OverLimit(f"it works on more than {MAX_BYTES // 1_000_000} MB at once")
    _account.get().check_time()


def take(amount: int) -> None:
    """Account for `amount` bytes made. Raises OverLimit, also where the time is over."""
    account = _account.get()
    account.left -= amount
    if account.left < 0:
        afford(0)
    account.check_time()


def afford(amount: int) -> None:
    """Check that up to `amount` bytes may be made; `made` accounts for the actual ones. Raises OverLimit."""
    account = _account.get()
    if amount > account.left:
        account.reclaim()
        if amount > account.left:
            raise OverLimit(f"it makes more than {MAX_BYTES // 1_000_000} MB")


def _size(value: Any) -> int:
    """Bytes of a text, or of a container without what it holds."""
    return sys.getsizeof(value) if isinstance(value, str) else _BOX + ENTRY * len(value)


def made(value: Any) -> Any:
    """`value`, accounted for where it is a new text, or a new container of values that were there before."""
    if isinstance(value, (str, list, tuple, dict)):
        size = _size(value)
        take(size)
        if size >= _LARGE:
            _account.get().large.append(value)
    return value


def weigh(value: Any) -> int:
    """Bytes of all that a value holds, repeated parts counted each time: as many as comparing, hashing, sorting and
    writing it process. Raises OverLimit where it is nested too deeply for these, or the time is over.
    """
    return _measure(value, MAX_DEPTH, {})[0]


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Bytes of a value, and how deep it is nested. known: those of containers met before, by identity."""
    if isinstance(value, str):
        return sys.getsizeof(value), 0
    if isinstance(value, (int, float)) or value is None:
        return _BOX + (value.bit_length() >> 3 if isinstance(value, int) else 0), 0
    if (found := known.get(id(value))) is not None:
        return found
    inner = object.__getattribute__(value, "_Namespace__attrs") if isinstance(value, Namespace) else value
    entries: Any
    if isinstance(inner, dict):
        entries = chain(inner, inner.values())
    elif isinstance(inner, type({}.items())):
        entries = chain.from_iterable(inner)  # not the pairs: another may have the place of one that is gone
    elif isinstance(inner, (list, tuple, range, *VIEWS)):
        entries = inner
    else:  # undefined values, macros, loops, methods: compared by identity and written by name
        return 4 * _BOX, 0
    work(0)
    total, height = _BOX + ENTRY * len(inner), 0
    for entry in entries:
        if type(entry) is str:
            total += sys.getsizeof(entry)
        elif depth == 0:
            raise OverLimit(f"it nests values more than {MAX_DEPTH} deep")
        else:
            weight, below = _measure(entry, depth - 1, known)
            total += weight
            height = max(height, below)
    if height >= MAX_DEPTH:
        raise OverLimit(f"it nests values more than {MAX_DEPTH} deep")
    known[id(value)] = total, height + 1
    return total, height + 1


def text_of(value: Any) -> str:
    """str(value), after a check of its length."""
    if isinstance(value, str):
        return value
    afford(WRITTEN * weigh(value))
    text = str(value)
    made(text)
    return text


def entries_of(value: Any) -> list[Any]:
    """list(value), accounted for."""
    if isinstance(value, str):
        take(0 if value.isascii() else 80 * len(value))  # each character is an object of its own then
    if hasattr(value, "__len__"):
        afford(_BOX + ENTRY * len(value))
    entries = list(value)
    made(entries)
    return entries


class Stream:
    """The output of a lazy filter, an entry at a time, each accounted for. Streams nest to a limited depth."""

    __slots__ = ("_entries", "_size", "depth")

    def __init__(self, entries: Any, depth: int, size: int = 0) -> None:
        self._entries = iter(entries)
        self._size = size
        self.depth = depth
        if depth > MAX_DEPTH:
            raise OverLimit(f"it nests values more than {MAX_DEPTH} deep")
        take(8 * _BOX)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        entry = next(self._entries)
        take(self._size)
        return entry
