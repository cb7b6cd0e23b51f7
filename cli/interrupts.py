"""The effect of Ctrl-C, and the exit status that reports it.

An interrupt in the middle of an import is a page of traceback, or is lost where Python cannot raise it. Nothing is at
stake yet, so the process just ends; a command that has something to finish or to clean up calls `raise_interrupts`.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def quit_on_interrupt() -> None:
    """From here on Ctrl-C ends the process at once, unless whoever started it wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)
