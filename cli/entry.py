"""Where the `ggpy` command begins: what Ctrl-C does while Python is still importing.

An interrupt in the middle of an import is a page of traceback, or is lost where Python cannot raise it. Nothing is at
stake yet, so the process just ends; a command that has something to finish or to clean up calls `raise_interrupts`.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _quit(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def raise_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def speak_utf8() -> None:
    """Begin again with Python's UTF-8 mode where the locale knows ASCII alone and an argument is more: it comes as
    bytes, which are UTF-8 nearly everywhere, but neither a text nor the name of a file could be made of it."""
    if sys.flags.utf8_mode or os.name != "posix" or not sys.executable:
        return
    if any("\udc80" <= c <= "\udcff" for argument in sys.argv for c in argument):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run the command of `sys.argv`, and exit."""
    speak_utf8()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _quit)
    from ggpy.cli.main import main as command

    command(prog_name="ggpy")
