"""What every test may count on."""

from __future__ import annotations

import signal

# A job that a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
