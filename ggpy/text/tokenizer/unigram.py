"""Unigram vocabularies (arXiv 1804.10959), as XLM-RoBERTa and T5 have them: of all ways to cut a text into pieces the
one with the greatest sum of scores.

Where two ways are equal, where nothing but the unknown token fits, and what that costs, is as `Unigram` of the
`tokenizers` package has it, which llama.cpp follows (there the kind is called UGM).
"""

from __future__ import annotations

import re

from ggpy.errors import GGPYError
from ggpy.text.tokenizer.sentencepiece import byte_token, piece_scores
from ggpy.text.tokenizer.vocabulary import NORMAL, OWN, SPACE, UNUSED, USER_DEFINED, Vocabulary

_UNKNOWN_COSTS = 10.0  # below the least score of a piece
_MOST_KEPT = 1 << 16
_LONGEST_KEPT = 64  # characters of a stretch whose tokens are remembered
_WORDS = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_CUT_WORDS = re.compile(f"{SPACE}?[^{SPACE}]+|{SPACE}")


class Unigram:
    """Normalized text to token ids, cut into words where no piece reaches over the beginning of one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        if vocabulary.unk is None:
            raise GGPYError(
                f"{vocabulary.where}: a Unigram vocabulary needs its unknown token"
                " (key tokenizer.ggml.unknown_token_id)."
            )
        self._unknown = vocabulary.unk
        scores = piece_scores(vocabulary).astype(float).tolist()
        self._pieces: dict[str, tuple[float, int]] = {}
        least = 0.0
        inside = False  # whether a piece has the beginning of a word within it
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
            if kind & (NORMAL | USER_DEFINED | UNUSED):
                self._pieces[text] = (0.0 if kind & USER_DEFINED else scores[i], i)
                inside = inside or SPACE in text[1:].lstrip(SPACE)
            if kind & NORMAL:
                least = min(least, scores[i])
        self._longest = max(map(len, self._pieces), default=0)
        self._unknown_score = least - _UNKNOWN_COSTS
        cuts = bool(vocabulary.metadata.find(f"{OWN}cuts_at_spaces", bool))
        self._words = _CUT_WORDS if cuts else None if inside else _WORDS
        self._kept: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of normalized text that holds no special tokens."""
        text = text.replace(" ", SPACE)
        if self._words is None:
            return self._best(text)
        out: list[int] = []
        for word in self._words.findall(text):
            ids = self._kept.get(word)
            if ids is None:
                ids = self._best(word)
                if len(word) <= _LONGEST_KEPT:
                    if len(self._kept) >= _MOST_KEPT:
                        self._kept.clear()
                    self._kept[word] = ids
            out += ids
        return out

    def _best(self, text: str) -> list[int]:
        """The best cut, by the best way to each place in the text."""
        n, pieces, longest, unknown = len(text), self._pieces, self._longest, self._unknown
        score = [0.0] + [float("-inf")] * n  # of the best way so far to a place
        start = [0] * (n + 1)  # where its last piece begins
        token = [unknown] * (n + 1)
        for i in range(n):
            here, single = score[i], False
            for j in range(i + 1, min(n, i + longest) + 1):
                found = pieces.get(text[i:j])
                if found is None:
                    continue
                single = single or j == i + 1
                total = here + found[0]
                if total > score[j]:
                    score[j], start[j], token[j] = total, i, found[1]
            if not single:
                total = here + self._unknown_score
                if total > score[i + 1]:
                    score[i + 1], start[i + 1], token[i + 1] = total, i, unknown
        ids: list[int] = []
        at, before = n, -1  # unknown characters side by side are one token
        while at:
            if token[at] != unknown:
                ids.append(token[at])
            elif before != unknown:
                ids += self._spelled(text, start, token, at)
            before, at = token[at], start[at]
        return ids[::-1]

    def _spelled(self, text: str, start: list[int], token: list[int], end: int) -> list[int]:
        """The unknown token of a run of characters that ends there or, where the vocabulary has all their bytes, these,
        the last first."""
        begin = end
        while begin and token[begin] == self._unknown:
            begin = start[begin]
        ids = [byte_token(self._vocabulary, byte) for byte in text[begin:end].encode()]
        return [self._unknown] if None in ids else [i for i in reversed(ids) if i is not None]
