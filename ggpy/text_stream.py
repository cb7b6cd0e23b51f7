"""Tokens to text as they come: whole characters only, never the beginning of a stop string that may yet complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggpy.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    from ggpy.tokenizer import Tokenizer


class TextStream:
    """The text of one sequence. `push` returns what is safe to show; `stopped` names the stop string that was met.

    A byte sequence that can never become a character shows as U+FFFD; control tokens show as nothing.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._stop = tuple(stop)
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""

    def push(self, token: int) -> str:
        """The text that this token makes certain; empty once a stop string was met."""
        return self._release(self._decoder.push(token))

    def finish(self) -> str:
        """What was held back, now that nothing follows; of a character that was cut in the middle, nothing."""
        text, self._held = self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        self._held += text
        if not self._stop:
            text, self._held = self._held, ""
            return text
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
