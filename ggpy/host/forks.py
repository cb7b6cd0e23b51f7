"""Hooks around `os.fork`: a child has its parent's memory, but none of its threads, and locks as they were just then.

Objects that have threads or locks are called before a fork, and after it in both processes (`multiprocessing` that
forks, servers that load a model before they fork workers).
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

_watched: WeakSet[Any] = WeakSet()
_forking = threading.local()  # what was asked before the fork that this thread is in


def watch(thing: Any) -> None:
    """Call `thing.before_fork()`, and in parent and child `thing.after_fork(in_child)`, at forks while it lives."""
    _watched.add(thing)


def _before() -> None:
    _forking.things = []
    for thing in list(_watched):
        thing.before_fork()
        _forking.things.append(thing)


def _after(in_child: bool) -> None:
    for thing in _forking.things:
        thing.after_fork(in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=lambda: _after(False), after_in_child=lambda: _after(True))
