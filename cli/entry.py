"""Where the `ggpy` command begins: what Ctrl-C does while Python is still importing.

An interrupt in the middle of an import is a page of traceback, or is lost where Python cannot raise it. Nothing is at
stake yet, so the process just ends; a command that has something to finish or to clean up calls `raise_interrupts`.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _quit(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def raise_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command of `sys.argv`, and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _quit)
    from ggpy.cli.main import main as command

    command(prog_name="ggpy")
