"""PLaMo 2's vocabularies: of all ways to cut a text into pieces the one with the greatest sum of scores, found from the
end; a character that no piece covers costs 1,000 and is spelled in bytes.

Sums are of whole numbers (scores times 10,000), and of equal ones the longer first piece is taken, as in the code that
comes with the models.
"""

from __future__ import annotations

from ggpy.errors import GGPYError
from ggpy.text.tokenizer.sentencepiece import byte_token, piece_scores
from ggpy.text.tokenizer.vocabulary import BYTE, Vocabulary

_UNIT = 10_000
_UNKNOWN = -1000 * _UNIT
_LEAST = -2000 * _UNIT  # a piece of this score or less is never taken


class ScoredCuts:
    """Text to token ids. Raises GGPYError for a vocabulary that lacks the token of a byte."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        spelled = [byte_token(vocabulary, byte) for byte in range(256)]
        self._bytes = [token for token in spelled if token is not None]
        if len(self._bytes) != 256:
            raise GGPYError(
                f"{vocabulary.where}: the token <0x{spelled.index(None):02X}> is missing, so not every text has tokens."
            )
        scores = piece_scores(vocabulary).astype(float).tolist()
        self._pieces: dict[str, tuple[int, int]] = {}  # score and id
        longest: dict[str, int] = {}
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
            score = round(scores[i] * _UNIT)
            if not kind & BYTE and score > _LEAST:
                self._pieces[text] = score, i
                longest[text[0]] = max(longest.get(text[0], 0), len(text))
        self._longest = longest  # of the pieces that begin with a character

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of text that holds no special tokens."""
        text = text.removeprefix("\ufeff")
        n, pieces, longest = len(text), self._pieces, self._longest
        best = [0] * (n + 1)  # of the best way from a place to the end
        length, token = [1] * n, [-1] * n  # its first piece
        for i in range(n - 1, -1, -1):
            found, best[i] = False, best[i + 1] + _UNKNOWN
            for end in range(min(n, i + longest.get(text[i], 0)), i, -1):
                piece = pieces.get(text[i:end])
                if piece is None:
                    continue
                total = best[end] + piece[0]
                if total > best[i] or (not found and total == best[i]):  # the unknown comes last
                    found, best[i], length[i], token[i] = True, total, end - i, piece[1]
        out: list[int] = []
        at = 0
        while at < n:
            out += [token[at]] if token[at] >= 0 else [self._bytes[byte] for byte in text[at].encode()]
            at += length[at]
        return out
