"""Byte-level BPE: the vocabularies of GPT-2 and nearly every model after it.

A text is cut by the pre-tokenizer; each piece, as bytes, is merged by the file's ranked merges. Bytes are written as
256 printable characters, as GPT-2 does, in tokens and merges alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.text.tokenizer.byte_alphabet import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE
from ggpy.text.tokenizer.merge import merge_pairs
from ggpy.text.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tiktoken._tiktoken import CoreBPE


_TO_CHARACTERS = dict(enumerate(CHARACTER_OF_BYTE))

_LONGEST_KEPT = 64  # characters of a piece whose tokens are remembered
_MOST_KEPT = 1 << 16
# Building tiktoken's tables for a 152k vocabulary takes as long as merging this many bytes here.
_BYTES_UNTIL_CORE = 1 << 18


def byte_text(text: str) -> str:
    """The UTF-8 bytes of `text`, one character a byte."""
    return text.encode().decode("latin-1").translate(_TO_CHARACTERS)


class BytePairEncoding:
    """Text to token ids. Merging is done here until enough text has come for tiktoken's tables to pay off."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.pre is not None
        if not vocabulary.metadata.has("tokenizer.ggml.merges"):
            raise GGPYError(f"{vocabulary.where}: a BPE vocabulary needs its merges (key tokenizer.ggml.merges).")
        self._vocabulary = vocabulary
        self._ids = vocabulary.ids
        self._ignore_merges = vocabulary.ignore_merges
        self._split = vocabulary.pre.splitter()
        self._ranks: dict[str, int] | None = None
        self._kept: dict[str, list[int]] = {}
        self._merged_bytes = 0
        self._core: CoreBPE | None = None
        self._core_ids: list[list[int]] = []

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of text that holds no special tokens."""
        out: list[int] = []
        kept, encode_piece = self._kept, self._encode_piece
        for piece in self._split(text):
            ids = kept.get(piece)
            out += encode_piece(piece) if ids is None else ids
        return out

    def _encode_piece(self, piece: str) -> list[int]:
        if self._ignore_merges:
            whole = self._ids.get(byte_text(piece))
            ids = self._merge(piece) if whole is None else [whole]
        else:
            ids = self._merge(piece)
        if len(piece) <= _LONGEST_KEPT:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[piece] = ids
        return ids

    def _merge(self, piece: str) -> list[int]:
        if self._core is None:
            before = self._merged_bytes
            self._merged_bytes = before + len(piece.encode())
            if before <= _BYTES_UNTIL_CORE < self._merged_bytes:
                self._build_core()
        if self._core is not None:
            core_ids = self._core_ids
            return [i for rank in self._core.encode_single_piece(piece.encode()) for i in core_ids[rank]]
        symbols = merge_pairs(list(byte_text(piece)), self._priority())
        return [i for symbol in symbols for i in self._symbol_ids(symbol)]

    def _priority(self) -> Callable[[str, str], int | None]:
        if self._ranks is None:
            merges = self._merges()
            # Of a merge listed twice the first counts: filled from the back, the first is the last written.
            self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        rank_of = self._ranks.get
        return lambda left, right: rank_of(f"{left} {right}")

    def _merges(self) -> list[str]:
        return self._vocabulary.metadata.strings("tokenizer.ggml.merges") or []

    def _symbol_ids(self, symbol: str) -> list[int]:
        """The token of a merged symbol; where there is none, its ASCII characters' tokens, as in llama.cpp."""
        token = self._ids.get(symbol)
        if token is not None:
            return [token]
        return [self._ids[char] for char in symbol if char < "\x80" and char in self._ids]

    def _build_core(self) -> None:
        from ggpy.text.tokenizer.exact_ranks import ranks_of_merges

        symbols = ranks_of_merges(self._merges(), self._ranks_merge)
        if symbols is None:
            return
        from tiktoken._tiktoken import CoreBPE

        ranks = {bytes([BYTE_OF_CHARACTER[c] for c in symbol]): rank for rank, symbol in enumerate(symbols)}
        self._core_ids = [self._symbol_ids(symbol) for symbol in symbols]
        # The pattern is never used: pieces come cut.
        self._core = CoreBPE(ranks, {}, "x")

    def _ranks_merge(self, symbol: str) -> list[str]:
        """The symbols that the merges make of a symbol's own bytes."""
        return merge_pairs(list(symbol), self._priority())
