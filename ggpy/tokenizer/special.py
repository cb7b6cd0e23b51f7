"""Cutting a text at the special tokens written in it, before the tokenizer proper sees the rest."""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.tokenizer.vocabulary import CONTROL, UNKNOWN, Vocabulary

_SPACE = " \t\n\v\f\r"


@dataclass(frozen=True)
class _Special:
    text: str
    id: int
    hidden: bool  # found only where special tokens are parsed; user-defined tokens are found always
    strip_before: bool
    strip_after: bool

    def cut(self, text: str) -> list[str | int]:
        """`text` with every occurrence of this token, from the left, replaced by its id. No empty pieces."""
        pieces: list[str | int] = []
        start = 0
        while (at := text.find(self.text, start)) >= 0:
            before = text[start:at]
            if self.strip_before:
                before = before.rstrip(_SPACE)
            if before:
                pieces.append(before)
            pieces.append(self.id)
            start = at + len(self.text)
            if self.strip_after:
                start = len(text) - len(text[start:].lstrip(_SPACE))
        if start < len(text):
            pieces.append(text[start:])
        return pieces


class SpecialTokens:
    """The tokens of a vocabulary that are looked for in the text itself."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._all = [
            _Special(
                vocabulary.tokens[i],
                i,
                bool(vocabulary.kinds[i] & (CONTROL | UNKNOWN)),
                i in vocabulary.strip_before,
                i in vocabulary.strip_after,
            )
            for i in vocabulary.special_ids()
        ]
        self._shown = [special for special in self._all if not special.hidden]

    def partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Stretches of text and ids of special tokens, in order.

        The longest special token is cut out everywhere, then the next, as llama.cpp does; which of two overlapping
        ones wins does not depend on which begins first.
        """
        pieces: list[str | int] = [text] if text else []
        chars = set(text)
        for special in self._all if parse_special else self._shown:
            if special.text[0] not in chars or special.text not in text:
                continue
            pieces = [part for piece in pieces for part in (special.cut(piece) if isinstance(piece, str) else (piece,))]
        return pieces
