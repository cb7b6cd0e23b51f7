"""A guard around what must not take for ever: it stops work that is quadratic, and says nothing of a slow machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends(seconds: float = 60) -> Iterator[None]:
    """Fail where a block of well under a second still runs after a minute; in the main thread, where there are alarms.
    A call into C is only stopped once it returns."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: object) -> None:
        raise AssertionError(f"it still ran after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
