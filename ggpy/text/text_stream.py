"""Tokens to text as they come: whole characters only, and no beginning of a stop string that may still complete."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

from ggpy.text.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer


class TextStream:
    """The text of one sequence. `push` returns what is safe to show; `stopped` names the stop string that was met.

    A byte sequence that can never become a character shows as U+FFFD. skip_special: control tokens show as nothing. A
    stop string is met in the text that is shown and in the text with its control tokens alike, so `<|im_start|>user`
    can be one. include_stop: the stop string is shown.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip_special: bool = True, include_stop: bool = False
    ) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip_special, self._include_stop = skip_special, include_stop
        self._decoder = StreamDecoder(tokenizer, skip_special=skip_special)
        self._held = ""  # with control tokens
        self._shows = bytearray()  # for each character of `_held`: 1 if it is shown, 0 if it belongs to a control token

    def keep(self, tokens: frozenset[int]) -> None:
        """Show these control tokens from now on."""
        self._decoder.kept = tokens

    def push(self, token: int, may_stop: bool = True) -> str:
        """The text that this token makes certain; empty once a stop string was met. may_stop: whether one that ends
        with this token counts."""
        text = self._decoder.push(token)
        if not self._stop:
            return text
        return self._release(self._hidden(token), text, may_stop)

    def end(self, token: int) -> str:
        """The text that a last token makes certain: whatever its kind, the token is not shown, but a stop string may
        end with it."""
        if not self._stop:
            return ""
        return self._release(self._tokenizer.token_bytes(token).decode("utf-8", "replace"), "")

    def finish(self) -> str:
        """The text held back, now that nothing follows; a character that was cut in the middle is left out."""
        text = _shown(self._held, self._shows)
        self._held = ""
        self._shows.clear()
        return text

    def _hidden(self, token: int) -> str:
        """The vocabulary's text of a token that shows nothing; else an empty text."""
        if not self._skip_special or token in self._decoder.kept or self._tokenizer.token_bytes(token, special=False):
            return ""
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def _release(self, hidden: str, text: str, may_stop: bool = True) -> str:
        if self.stopped is not None:
            return ""
        self._held += hidden + text
        self._shows += b"\0" * len(hidden) + b"\1" * len(text)
        shown = _shown(self._held, self._shows)
        if may_stop and (found := self._met(shown)):
            at, self.stopped, end = min(found)
            self._held = ""
            self._shows.clear()
            return shown[: end if self._include_stop else at]
        # What may be the beginning of a stop string stays, in either reading.
        first = len(self._held) - max(_overlap(self._held, stop) for stop in self._stop)
        certain = len(shown) - max(_overlap(shown, stop) for stop in self._stop)
        while self._shows.count(1, 0, first) > certain:
            first -= 1
        certain = self._shows.count(1, 0, first)
        self._held = self._held[first:]
        del self._shows[:first]
        return shown[:certain]

    def _met(self, shown: str) -> list[tuple[int, str, int]]:
        """The stop strings in the text held, each with where it begins and ends in the part that is shown."""
        found = []
        for stop in self._stop:
            if (at := self._held.find(stop)) >= 0:
                found.append((self._shows.count(1, 0, at), stop, self._shows.count(1, 0, at + len(stop))))
            if (at := shown.find(stop)) >= 0:
                found.append((at, stop, at + len(stop)))
        return found


def _shown(text: str, shows: bytearray) -> str:
    return text if 0 not in shows else "".join(compress(text, shows))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
