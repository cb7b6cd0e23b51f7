"""Where the `ggpy` command begins: arguments and Ctrl-C are put in order before anything slow is imported."""

from __future__ import annotations

import gc
import os
import sys

from ggpy.cli.interrupts import quit_on_interrupt


def speak_utf8() -> None:
    """Restart in Python's UTF-8 mode where the locale is ASCII only and an argument is not: its bytes are UTF-8 nearly
    everywhere, but could be used neither as text nor as a file name."""
    if sys.flags.utf8_mode or os.name != "posix" or not sys.executable:
        return
    if any("\udc80" <= c <= "\udcff" for argument in sys.argv for c in argument):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run the command of `sys.argv`, and exit."""
    speak_utf8()
    quit_on_interrupt()
    # Imports and tables make objects by the ten thousand and no garbage: at 700 a collection, 92 collections a start.
    gc.set_threshold(200_000)
    from ggpy.cli.main import main as command

    command(prog_name="ggpy")
