"""RWKV's "world" vocabulary: of all tokens that the text's bytes go on with, the longest, from left to right.

A file writes a token's bytes as Python does within quotes: `\\n`, `\\xe4`, `\\\\`.
"""

from __future__ import annotations

import re

from ggpy.text.tokenizer.vocabulary import NORMAL, Vocabulary

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_NAMED = {"t": b"\t", "n": b"\n", "r": b"\r"}


def token_bytes(text: str) -> bytes:
    """The bytes that a token is written for."""
    parts = _ESCAPE.split(text)  # stretches and what stands behind a backslash, by turns
    return b"".join([_escaped(part) if i % 2 else _encoded(part) for i, part in enumerate(parts)])


def _escaped(code: str) -> bytes:
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _NAMED.get(code) or _encoded(code)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class LongestTokens:
    """Text to token ids. A byte that begins no token is the unknown token, where there is one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._unknown = [] if vocabulary.unk is None else [vocabulary.unk]
        self._ids: dict[bytes, int] = {}
        lengths: dict[bytes, set[int]] = {}
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
            if kind & NORMAL:
                piece = token_bytes(text)
                self._ids[piece] = i
                lengths.setdefault(piece[:2], set()).add(len(piece))
        #: The lengths of the tokens that begin with two bytes, or are one, the longest first.
        self._lengths = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of a stretch of text that holds no special tokens."""
        data, out, at = text.encode(), [], 0
        while at < len(data):
            for length in (*self._lengths.get(data[at : at + 2], ()), 1):
                found = self._ids.get(data[at : at + length])
                if found is not None:
                    out.append(found)
                    at += length
                    break
            else:
                out += self._unknown
                at += 1
        return out
