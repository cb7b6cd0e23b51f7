"""Cutting a text at the special tokens written in it, before the tokenizer proper sees the rest.

The rule is that of the `tokenizers` package and of SentencePiece: the token that begins first is taken, of several the
longest. Tokens that are matched on the normalized text are looked for last, in what the others leave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from ggpy.text.tokenizer.normalize import WHITE_SPACE, Normalizer
from ggpy.text.tokenizer.unicode_classes import in_word
from ggpy.text.tokenizer.vocabulary import CONTROL, SPACE, UNKNOWN, Vocabulary

_WHITE_SPACE = frozenset(WHITE_SPACE)
_BEGINNING = 4  # characters
_FEW = 64  # members of a group that are looked for one by one


@dataclass(frozen=True)
class _Special:
    text: str
    id: int
    hidden: bool  # found only where special tokens are parsed; user-defined tokens are found always
    lstrip: bool  # takes the white space before it
    rstrip: bool
    single_word: bool  # is no token beside a letter or digit


class SpecialTokens:
    """The tokens of a vocabulary that are looked for in the text itself."""

    def __init__(self, vocabulary: Vocabulary, normalize: Normalizer | None) -> None:
        self._normalize = normalize
        raw: list[_Special] = []
        normalized: list[_Special] = []
        for i in vocabulary.special_ids():
            text = vocabulary.special_text(i)
            flags = [i in vocabulary.flagged[name] for name in ("lstrip", "rstrip", "single_word")]
            hidden = bool(vocabulary.kinds[i] & (CONTROL | UNKNOWN))
            if i not in vocabulary.flagged["normalized"] and text:
                raw.append(_Special(text, i, hidden, *flags))
            elif i in vocabulary.flagged["normalized"] and (shown := normalize(text) if normalize else text):
                normalized.append(_Special(shown, i, hidden, *flags))
        self._raw, self._normalized = _grouped(raw), _grouped(normalized)
        # Where runs of spaces are such tokens, as Gemma has them, a ▁ in the text is a space of the run.
        self._spaces = vocabulary.model == "llama" and any(not s.text.strip(" ") for s in raw)

    def partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Stretches of normalized text and ids of special tokens, in order. No stretch is empty."""
        normalize = self._normalize
        if self._spaces:
            text = text.replace(SPACE, " ")
        pieces: list[str | int] = []
        for piece in _cut(text, self._raw, parse_special):
            if isinstance(piece, int):
                pieces.append(piece)
            elif piece := normalize(piece) if normalize else piece:
                pieces += _cut(piece, self._normalized, parse_special)
        return pieces


class _Group:
    """Tokens that begin alike: those of 6,242 `<unused…>` that stand in a text are found in one pass over it."""

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning
        self._members: dict[str, _Special] = {}

    def add(self, special: _Special) -> None:
        self._members.setdefault(special.text, special)

    def within(self, text: str) -> list[_Special]:
        """The members that stand somewhere in the text."""
        at = text.find(self.beginning)
        if at < 0:
            return []
        if len(self._members) <= _FEW:
            return [special for special in self._members.values() if special.text in text]
        found: dict[str, _Special] = {}
        lengths = sorted({len(member) for member in self._members})
        while at >= 0:
            for length in lengths:
                piece = text[at : at + length]
                if piece in self._members:
                    found[piece] = self._members[piece]
            at = text.find(self.beginning, at + 1)
        return list(found.values())


def _grouped(specials: list[_Special]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for special in specials:
        beginning = special.text[:_BEGINNING]
        groups.setdefault(beginning, _Group(beginning)).add(special)
    return list(groups.values())


def _cut(text: str, groups: list[_Group], parse_special: bool) -> list[str | int]:
    """`text` with every one of the tokens in it replaced by its id."""
    chars = set(text)
    present = {
        s.text: s
        for group in groups
        if group.beginning[0] in chars
        for s in group.within(text)
        if parse_special or not s.hidden
    }
    if not present:
        return [text] if text else []
    pieces: list[str | int] = []
    start = 0
    for match in _alternatives(tuple(present)).finditer(text):
        special = present[match[0]]
        at, end = match.span()
        if special.single_word and (in_word(text[at - 1 : at]) or in_word(text[end : end + 1])):
            continue
        while special.lstrip and at > start and text[at - 1] in _WHITE_SPACE:
            at -= 1
        while special.rstrip and text[end : end + 1] in _WHITE_SPACE:
            end += 1
        if start < at:
            pieces.append(text[start:at])
        pieces.append(special.id)
        start = end
    if start < len(text):
        pieces.append(text[start:])
    return pieces


@lru_cache(32)
def _alternatives(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
