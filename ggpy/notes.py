"""Notes and progress for the user while the library works: lines for a `notify` callable, bytes for a `ProgressBar`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]  # bytes so far, bytes in all
ProgressBar = Callable[[str], AbstractContextManager[Progress]]  # opened with a label


class Passing(str):
    """A note of the moment, outdated by the next one: a terminal shows it in place, a log can leave it out."""
