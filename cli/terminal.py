"""Text output and input of every command: notes on stderr, model text on stdout, text files and stdin as UTF-8."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from ggpy.errors import GGPYError
from ggpy.files import read_file
from ggpy.notes import Passing
from ggpy.units import size_text

if TYPE_CHECKING:
    from ggpy.engine.request import Timings

MOST_TEXT = 64 << 20  # bytes of a prompt

# Text from a model must not drive the terminal: control characters but newline and tab, C1 controls included.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Text on one line: line ends and escapes, as from a path or a model's file, are spelt out."""
    return _NOT_IN_A_LINE.sub(lambda match: repr(match[0])[1:-1], text)


_passing = False  # whether the last line on stderr is one to be written over


def note(text: str) -> None:
    """Print one line on stderr, dimmed on a terminal. A `Passing` note is shown only there, until the next one."""
    global _passing
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    passing = isinstance(text, Passing)
    if passing and not is_terminal:
        return
    text = one_line(text)
    if passing:
        text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be taken back
    if is_terminal and not os.environ.get("NO_COLOR"):
        text = f"\x1b[2m{text}\x1b[0m"
    if _passing:
        text = f"\x1b[A\x1b[2K{text}"  # up a line, which ends as an error or an interrupt would want it, and clear it
    _passing = passing
    with suppress(OSError):  # a full disk under a log must not end an answer
        print(text, file=sys.stderr, flush=True)


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a piece of a model's text on stdout at once."""
    stream = stream or sys.stdout
    stream.write(_CONTROLS.sub("", text) if stream.isatty() else text)
    stream.flush()


def timing_line(t: Timings) -> str:
    reused = f" ({t.n_reused} kept)" if t.n_reused else ""
    drafts = f" · {t.n_accepted} of {t.n_drafted} drafted tok accepted" if t.n_drafted else ""
    return (
        f"prompt {t.n_prompt} tok{reused}, {t.prompt_rate:.1f} tok/s · "
        f"decode {t.n_decode} tok, {t.decode_rate:.1f} tok/s · first token {t.first_token_s:.2f} s{drafts}"
    )


def read_text(name: str) -> str:
    """The text of a file or a pipe, or of stdin for `-`, without a byte order mark. Raises GGPYError where it is no
    UTF-8, or has no end in sight."""
    if name == "-":
        data = sys.stdin.buffer.read(MOST_TEXT + 1)
        if len(data) > MOST_TEXT:
            raise GGPYError(f"Standard input holds more than {size_text(MOST_TEXT)}, which no context takes.")
    else:
        data = read_file(name, MOST_TEXT, ordinary=False)
    return decode_utf8(data, "Standard input" if name == "-" else name).removeprefix("\ufeff")


def decode_utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GGPYError(
            f"{where} is not valid UTF-8: byte 0x{data[error.start]:02X} at offset {error.start}; convert it first."
        ) from None
