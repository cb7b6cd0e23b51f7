"""DRY ("don't repeat yourself"): a penalty on the tokens that would prolong a repetition, growing with its length.

As llama.cpp defines it: the longest ending of the text that stands at an earlier place too is looked for at every
place; the token that followed there is penalized by multiplier * base ** (length - allowed_length). Sequence breakers,
such as a line's end, limit the length to the tokens after the last of them, and are not penalized themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ggpy.sampling.stages import Indices

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer

_MOST_TAIL = 20  # tokens of a breaker after its first
_LARGEST_EXPONENT = 88.72283  # the natural logarithm of the largest float32

#: The sequences of tokens that spell a breaker, by their last token.
Breakers = dict[int, list[tuple[int, ...]]]

_known: WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], Breakers]] = WeakKeyDictionary()


def breakers(tokenizer: Tokenizer, texts: Sequence[str]) -> Breakers:
    """The sequences of tokens in which one of the texts comes up: a token that holds it, or one that ends with its
    beginning, followed by the tokens of its rest. Looks at the whole vocabulary once for each set of texts."""
    known = _known.setdefault(tokenizer, {})
    key = tuple(texts)
    if key not in known:
        known[key] = _find(tokenizer, key)
    return known[key]


def _find(tokenizer: Tokenizer, texts: tuple[str, ...]) -> Breakers:
    found: dict[tuple[int, ...], None] = {}
    wanted = [text.encode("utf-8", "replace") for text in texts]
    for token in range(tokenizer.n_vocab):
        word = tokenizer.token_bytes(token)
        for whole in wanted:
            if whole in word:
                found[(token,)] = None
                continue
            for size in range(1, min(len(whole), len(word) + 1)):
                if not word.endswith(whole[:size]):
                    continue
                rest = whole[size:].decode("utf-8", "ignore")  # a token may end within a character
                tail = tokenizer.tokenize(rest, add_special=False, continues=True)
                sequence = (token, *tail[:_MOST_TAIL])
                found[sequence] = None
    by_last: Breakers = {}
    for sequence in found:
        by_last.setdefault(sequence[-1], []).append(sequence)
    return by_last


class Dry:
    """The penalty over one text. last_n: how many of its last tokens are looked at."""

    def __init__(self, multiplier: float, base: float, allowed: int, last_n: int, breakers: Breakers) -> None:
        self._multiplier, self._base, self._allowed, self._last_n = multiplier, base, allowed, last_n
        self._breakers = breakers
        self._single = {token for token, several in breakers.items() if (token,) in several}
        self._most = int(_LARGEST_EXPONENT / np.log(base)) if base > 1.000001 else 0
        self._tokens: NDArray[np.int32] = np.empty(256, np.int32)
        # For every place, how many tokens up to it are the text's last ones too. A new token makes each length one more
        # than that of the place before, or none.
        self._lengths: NDArray[np.int32] = np.empty(256, np.int32)
        self._n = 0
        self._break = (-1, -1)  # the last breaker: its first token's place, and that of its last

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text: in time that grows with its length, whether one comes or many."""
        n, end = self._n, self._n + len(tokens)
        while end > self._tokens.size:
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._lengths = np.concatenate([self._lengths, np.empty_like(self._lengths)])
        lengths = self._lengths
        self._tokens[n:end], self._n = tokens, end
        if len(tokens) == 1:
            lengths[1:end] = lengths[:n] + 1
            lengths[:1] = 1
            lengths[:end] *= self._tokens[:end] == tokens[0]
        else:
            lengths[:end] = _endings(self._tokens[:end].tolist())
        for place in range(n, end):
            for sequence in self._breakers.get(int(self._tokens[place]), ()):
                first = place + 1 - len(sequence)
                if first >= 0 and self._tokens[first : place + 1].tolist() == list(sequence):
                    self._break = max(self._break, (first, place))

    def penalties(self) -> tuple[Indices, NDArray[np.float32]]:
        """The tokens that would prolong a repetition, and what to take off their logits."""
        none = np.empty(0, np.intp), np.empty(0, np.float32)
        begin = max(0, self._n - self._last_n)
        if self._n - begin <= self._allowed:
            return none
        first, last = self._break
        limit = self._n - 1 - last if first >= begin else self._n - begin
        if limit < self._allowed:
            return none
        lengths = np.minimum(self._lengths[begin : self._n - 1], np.arange(1, self._n - begin))
        lengths = np.minimum(lengths, limit)
        places = np.flatnonzero(lengths >= self._allowed)
        following = self._tokens[begin + 1 : self._n][places]
        longest: dict[int, int] = {}
        for token, length in zip(following.tolist(), lengths[places].tolist(), strict=True):
            if token not in self._single:
                longest[token] = max(length, longest.get(token, 0))
        exponents = np.fromiter(longest.values(), np.int64, len(longest)) - self._allowed
        if self._most:
            exponents = np.minimum(exponents, self._most)
        with np.errstate(over="ignore"):
            off = (self._multiplier * self._base ** exponents.astype(np.float64)).astype(np.float32)
        return np.fromiter(longest.keys(), np.intp, len(longest)), off


def _endings(tokens: list[int]) -> list[int]:
    """For every place, how many tokens up to it are the last ones of the list too: the Z-function, from the end."""
    n = len(tokens)
    back = tokens[::-1]
    found = [n] * min(n, 1)
    left = right = 0  # the stretch [left, right) of `back`, furthest to the right, that equals its beginning
    for at in range(1, n):
        length = min(right - at, found[at - left]) if at < right else 0
        while at + length < n and back[length] == back[at + length]:
            length += 1
        if at + length > right:
            left, right = at, at + length
        found.append(length)
    return found[::-1]
