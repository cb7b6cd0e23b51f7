"""WordPiece vocabularies, as BERT has them: a word's longest piece first, then the longest of what follows.

In a file a piece that begins a word is written with ▁ before it, and one that continues a word as it is.
"""

from __future__ import annotations

from ggpy.errors import GGPYError
from ggpy.text.tokenizer.bert_text import words_of
from ggpy.text.tokenizer.normalize import WHITE_SPACE
from ggpy.text.tokenizer.vocabulary import NORMAL, OWN, SPACE, Vocabulary

_LONGEST_KEPT = 64  # characters of a stretch whose tokens are remembered
_MOST_KEPT = 1 << 16
_LONGEST_WORD = 100  # characters, as in every BERT; a longer word is unknown
# What Python's split() takes for white space and Unicode does not.
_SEPARATORS = "\x1c\x1d\x1e\x1f"


class WordPiece:
    """Normalized text to token ids. A word with a part that is no piece is the unknown token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.unk is None:
            raise GGPYError(
                f"{vocabulary.where}: a WordPiece vocabulary needs its unknown token"
                " (key tokenizer.ggml.unknown_token_id)."
            )
        self._unknown = [vocabulary.unk]
        self._first: dict[str, int] = {}
        self._next: dict[str, int] = {}
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
            if kind & NORMAL:
                if text.startswith(SPACE):
                    self._first[text[1:]] = i
                else:
                    self._next[text] = i
        if not self._first:
            raise GGPYError(
                f"{vocabulary.where}: no token begins a word (with {SPACE} before it), so every text would be"
                " unknown; convert the model again."
            )
        self._longest = max(max(map(len, pieces), default=0) for pieces in (self._first, self._next))
        longest_word = vocabulary.metadata.find(f"{OWN}longest_word", int)
        self._longest_word = _LONGEST_WORD if longest_word is None else longest_word
        self._kept: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of normalized text that holds no special tokens."""
        out: list[int] = []
        kept, encode_stretch = self._kept, self._encode_stretch
        for stretch in _split(text):
            ids = kept.get(stretch)
            out += encode_stretch(stretch) if ids is None else ids
        return out

    def _encode_stretch(self, stretch: str) -> list[int]:
        words = words_of(stretch)
        if len(words) == 1:
            ids = self._encode_word(stretch)
        else:
            kept = self._kept
            ids = [i for word in words for i in (kept.get(word) or self._encode_word(word))]
        if len(stretch) <= _LONGEST_KEPT:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[stretch] = ids
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if len(word) > self._longest_word:
            return self._unknown
        ids: list[int] = []
        pieces, start, count = self._first, 0, len(word)
        while start < count:
            for end in range(min(count, start + self._longest), start, -1):
                found = pieces.get(word[start:end])
                if found is not None:
                    break
            else:
                return self._unknown
            ids.append(found)
            pieces, start = self._next, end
        return ids


def _split(text: str) -> list[str]:
    """The stretches between white space."""
    if any(char in text for char in _SEPARATORS):
        text = text.translate(dict.fromkeys(map(ord, WHITE_SPACE), " "))
        return [stretch for stretch in text.split(" ") if stretch]
    return text.split()
