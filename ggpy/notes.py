"""Notes to the user while the library works: one line each, passed to a `notify` callable."""

from __future__ import annotations

from collections.abc import Callable

Notify = Callable[[str], None]


class Passing(str):
    """A note of the moment, outdated by the next one: a terminal shows it in place, a log can leave it out."""
