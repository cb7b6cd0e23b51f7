"""SentencePiece vocabularies as Llama 1 and 2, Mistral and Gemma have them: merges by token score, byte fallback. Gemma
4's files list the merges instead.

The text, spaces written as ▁, is not cut into words: neighbours whose concatenation is a token are joined, best score
first, over the whole stretch between special tokens. A symbol that is no token in the end is written byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy.errors import GGPYError
from ggpy.text.tokenizer.merge import merge_pairs
from ggpy.text.tokenizer.sentencepiece_proto import model_proto
from ggpy.text.tokenizer.vocabulary import BYTE, SPACE, Vocabulary

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

Floats = NDArray[np.float32]

# Building a sentencepiece processor for a 32k vocabulary takes as long as merging this many characters here.
_CHARACTERS_UNTIL_CORE = 1 << 15


class ScoredPieces:
    """Text to token ids. Merging is done here until enough text has come for sentencepiece to pay off."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = vocabulary.ids
        self._scores = piece_scores(vocabulary)
        self._merges = vocabulary.merges()
        self._costs: dict[str, float] | None = None  # token → minus its score, or merge → its rank
        self._merged = 0
        self._core: SentencePieceProcessor | None = None

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of text that holds no special tokens."""
        if self._vocabulary.kind == "whitespace":
            return [i for word in text.split() for i in self._encode(word)]
        return self._encode(text.replace(" ", SPACE))

    def _encode(self, text: str) -> list[int]:
        if self._vocabulary.ignore_merges and (whole := self._ids.get(text)) is not None:
            return [whole]
        if self._core is None:
            before = self._merged
            self._merged = before + len(text)
            wanted = before <= _CHARACTERS_UNTIL_CORE < self._merged
            if wanted and self._merges is None and self._sentencepiece_is_exact():
                from sentencepiece import SentencePieceProcessor

                self._core = SentencePieceProcessor(model_proto=model_proto(self._vocabulary.tokens, self._scores))
        if self._core is not None:
            ids: list[int] = self._core.encode(text, out_type=int)
            return ids
        symbols = merge_pairs(list(text), self._cost())
        out: list[int] = []
        unknown = False  # whether the symbol before was, of which some vocabularies make one token
        for symbol in symbols:
            token = self._ids.get(symbol)
            ids = self._bytes_of(symbol) if token is None else [token]
            before, unknown = unknown, token is None and ids == [self._vocabulary.unk]
            if not (before and unknown and self._vocabulary.fuse_unk):
                out += ids
        return out

    def _cost(self) -> Callable[[str, str], float | None]:
        if self._costs is None:
            merges = self._merges
            if merges is not None:
                self._costs = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
            else:
                self._costs = dict(zip(self._vocabulary.tokens, (-self._scores).tolist(), strict=True))
        cost_of = self._costs.get
        if self._merges is not None:
            return lambda left, right: cost_of(f"{left} {right}")
        return lambda left, right: cost_of(left + right)

    def _bytes_of(self, character: str) -> list[int]:
        """The byte tokens of a character that is no token; the unknown token where the vocabulary has no such bytes."""
        ids = [self._byte_token(byte) for byte in character.encode()]
        if None not in ids:
            return [i for i in ids if i is not None]
        if self._vocabulary.unk is None and self._vocabulary.kind:
            return []  # as llama.cpp has it
        if self._vocabulary.unk is None:
            raise GGPYError(
                f"{self._vocabulary.where}: the vocabulary has no token for {character!r}, no byte tokens to spell it "
                f"and no unknown token."
            )
        return [self._vocabulary.unk]

    def _byte_token(self, byte: int) -> int | None:
        return byte_token(self._vocabulary, byte)

    def _sentencepiece_is_exact(self) -> bool:
        """True where sentencepiece's own BPE gives the same tokens.

        It needs all 256 byte tokens, cannot make them from text (so no text may lead to one), and reads UTF-8 only.
        """
        ids = self._ids
        for byte in range(256):
            token = f"<0x{byte:02X}>"
            if self._byte_token(byte) is None:
                return False
            for cut in range(1, len(token)):
                if all(len(part) == 1 or part in ids for part in (token[:cut], token[cut:])):
                    return False
        try:
            "".join(self._vocabulary.tokens).encode()
        except UnicodeEncodeError:
            return False
        return not any("\0" in token for token in self._vocabulary.tokens)


def byte_token(vocabulary: Vocabulary, byte: int) -> int | None:
    """The token that spells a byte, if the vocabulary has one."""
    token = vocabulary.ids.get(f"<0x{byte:02X}>")
    if token is None or (vocabulary.typed and not vocabulary.kind and not vocabulary.kinds[token] & BYTE):
        return None
    return token


def piece_scores(vocabulary: Vocabulary) -> Floats:
    """The score of each piece: [n_tokens]"""
    count = len(vocabulary)
    scores = vocabulary.array("tokenizer.ggml.scores", count)
    if scores is None:
        return np.zeros(count, np.float32)
    values = np.asarray(scores)[:count]
    if values.dtype.kind not in "iuf" or not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise GGPYError(f"{vocabulary.where}: tokenizer.ggml.scores does not hold finite numbers.")
    return values.astype(np.float32)
