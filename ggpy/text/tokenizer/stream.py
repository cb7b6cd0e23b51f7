"""Token ids back to text, one token at a time."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer


class StreamDecoder:
    """A decoder of tokens to text, whole characters only: a character split over tokens appears with the last of them.

    `start` says that the tokens begin a text, so that the space which SentencePiece and WordPiece put before a text's
    first word is left out; the answer to a prompt continues a text. Invalid UTF-8 appears as U+FFFD. kept: control
    tokens that appear all the same.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = not skip_special
        self.kept: frozenset[int] = frozenset()
        self._drop_space = start and tokenizer.spells_first_space
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        piece = self._tokenizer.token_bytes(token, self._special or token in self.kept)
        if self._drop_space and (piece or self._special):
            self._drop_space = False
            if piece.startswith(b" "):
                piece = piece[1:]
        return self._decode(piece)

    def flush(self) -> str:
        """The rest of an unfinished character, as U+FFFD. The decoder is then at the start of a character again."""
        return self._decode(b"", True)
