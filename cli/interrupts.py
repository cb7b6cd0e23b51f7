"""The effect of Ctrl-C, and the exit status that reports it.

An interrupt in the middle of an import is a page of traceback, or is lost where Python cannot raise it. Nothing is at
stake yet, so the process just ends; a command that has something to finish or to clean up calls `raise_interrupts`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def quit_on_interrupt() -> None:
    """From here on Ctrl-C ends the process at once, unless whoever started it wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Within the block Ctrl-C, and being told to stop (SIGTERM), is a KeyboardInterrupt; afterwards what it was."""
    interrupt, stop = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raise_interrupts()
    if stop is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if interrupt is _quit:
            signal.signal(signal.SIGINT, _quit)
        if stop is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, stop)


def _quit(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)
