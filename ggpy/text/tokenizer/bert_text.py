"""BERT's way with a text before its words are looked up: cleaning it, taking accents off, cutting it into words.

The rules are those of `BertNormalizer` and `BertPreTokenizer` in the `tokenizers` package, whose classes of characters
are Unicode 8's: characters that came later are neither marks nor punctuation there, so a word with one of them is
unknown. They are kept here, as the running Python's Unicode is another.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

from ggpy.text.tokenizer.unicode_classes import decode_runs

# Runs from U+0080 on, as in unicode_classes: C is dropped, M a nonspacing mark, P punctuation, Z white space.
_RUNS = (
    "0CwZP-5P-3P-C-8P2-3P-3P-g0M1s-2M-2M17-eP-8P-6zM5-5uP6-15P2-6M19PMPM2PM2PM-17P2-bC6-3P2-P2-2MbPC-P2-17Ml-aP4-2M-"
    "2rP-M7C-M6-2M2-M4-iPe-C-M-uMr-2jMb-1mM9-3P3-sM4-M9-M3-M5-2Pf-qM3-2P-3oMw-1jM-M-4M8-4M-3M7-aM2P2-aP-gM-1mM-4M4-8M"
    "-kM2-tM2-1lM-4M2-4M2-2M3-3M-uM2-3M-bM2-1lM-4M5-M2-4M-kM2-cP-gM-1mM-2M-M4-8M-8M-bM2-uM-1pM-cM-1eM-1pM3-5M2-2M4-7M"
    "2-bM2-tM-1mM-2M-6M-5M2-kM2-tM-1rM4-8M-kM2-2uM-7M3-M-tP-1oM-2M7-cM8P-aP2-2dM-2M6-M2-bM6-1iPf-P-3M2-rM-M-MP4-1fM2-"
    "M-2M-M6-M-M3PM2-5M6-M4-M4-M4-M4-M4-Mc-M3-9M-9P5-4P2-2aM4-M6-M2-2M2-bP6-8M2-4M3-gM4-dM-2M2-6M-fM-2lP-gxM3P9-47P-"
    "h8P2-hZ-qP2-26P3-10M3-tM3P2-rM2-uM2-1sM2-M7-8M-2MbP3-P3-2M-yPbM3C-4aM-3aM3-4M2-9M-6M3-8P2-5tM2-2M-2P2-1iM-M7-M-M"
    "-2M8-6Ma-2M-wP7-P6-2Me-1uM4-1cM-M5-M-5M-nP7-aM9-cM2-wM4-2M2-M3-1kM-M2-3M-M3-aP4-18M8-2M2-3P5-1qP2-1sP8-8M3PMd-M"
    "7-4M-6M-3M2-5iM1i-6M4-e8ZbC5PoZ2C5ZPk-Pd-PcZC5-Ca-dP2-eP2-1tMd-4M-3Mc-evP4-tP2-u5Pe-27P2-vPa-b7Pm-1rP4-wP2-kxM3-"
    "7P4-P2-34P-eM-2oMwP1b-Pj-cdZP3-4Pa-2Pc-aM4-2P-cP-2jM2-5P-2iP-mwyP2-7hP3-2nM-3PMaP-vM2-28M2P6-7eM-3M-4M-pM2-25P4-"
    "24M-9P2-gMi-6P3-P-15M8P2-nMb-dP-wM3-1cM-2M4-2M-4Pd-gP2-5M-1vM6-2M2-2M2-cM-8M-fP4-sM-1fM-M3-2M2-5M2-M-sP2-cM2-2P"
    "2-4M-6mM-2M-2P-M-aaaC4xs-f2M-f3P2-5cMgPa-6MgPz-Pe-P-4P-P2-43C-P3-P6-P4-aP2-3P2-qP3-P-rP-P-P7-43C3-C-76P3-6yM-6aM"
    "-45M5-10P-1cP-biP-knP-5jP-vP-5dM3-M2-5M4-14M3-4M-gP9-12P-2tM2-9P7-1uP7-2hP4-v8M-1iMfP7-1dM3-1dM4-2M2P2CP4-1qM3-"
    "10M5-M-2M5-bP4-1bMP2-aM2-1gM9-6P5M3P-dP-P3-27M3-2M-M2P6-2zP-1hM-3M8-lM2-1mM-3M-11M7-3M5-8uM6-M-4M2-M2-2P-6jM4-6M"
    "2-M2Pn-4M2-2dM8-2M-M2P3-2vM-M-2M6-M-2tM3-2M4-M5-gP3-2ltP5-dtlP2-3kM5P-1mM7P5-8P-uiM4-f7uM2PC4-43nM3-9C8M8-2M7-uM"
    "4-44M3-1izM1j-4M1e-8M-eM-2P5-fM5-Mf-2sgM7-gze2C-uC2o-3kM6o-1e6oC1eke-2C1eke-"
)

# Ideographs are words by themselves; the original leaves U+2B820 to U+2B91F out.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"

_DROPPED, _MARK, _SPACE = "C", "M", "Z"


@lru_cache(1)
def _runs() -> tuple[list[int], list[str]]:
    return decode_runs(_RUNS)


def _class_of(code: int) -> str:
    starts, classes = _runs()
    if code < 0x80:
        return _SPACE if code in (0x09, 0x0A, 0x0D, 0x20) else _DROPPED if code < 0x20 or code == 0x7F else "-"
    return classes[bisect_right(starts, code) - 1]


class _Table(dict[int, str | None]):
    """Code point → what takes its place (None: nothing), found out as characters are met; for `str.translate`."""

    def __init__(self, replace: Callable[[int], str | None]) -> None:
        super().__init__((code, replace(code)) for code in range(128))
        self._replace = replace

    def __missing__(self, code: int) -> str | None:
        self[code] = found = self._replace(code)
        return found


BERT_OPTIONS = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")


def bert_normalizer(
    clean_text: bool = True,
    handle_chinese_chars: bool = True,
    strip_accents: bool | None = None,
    lowercase: bool = True,
) -> Callable[[str], str]:
    """The function that prepares a text; the options are those of `BertNormalizer` in a tokenizer.json.

    `strip_accents` of None follows `lowercase`. Characters are taken to lower case each by itself.
    """
    strip = lowercase if strip_accents is None else strip_accents

    def cleaned(code: int) -> str | None:
        kind = _class_of(code) if clean_text and code != 0xFFFD else _DROPPED if clean_text else "-"
        if kind == _DROPPED:
            return None
        char = " " if kind == _SPACE else chr(code)
        return f" {char} " if handle_chinese_chars and any(a <= code <= z for a, z in _IDEOGRAPHS) else char

    def folded(code: int) -> str | None:
        if strip and _class_of(code) == _MARK:
            return None
        return chr(code).lower() if lowercase else chr(code)

    before, after = _Table(cleaned), _Table(folded)

    def normalize(text: str) -> str:
        text = text.translate(before)
        if text.isascii():
            return text.lower() if lowercase else text
        return (unicodedata.normalize("NFD", text) if strip else text).translate(after)

    return normalize


@lru_cache(1)
def _pattern() -> re.Pattern[str]:
    starts, classes = _runs()
    ends = [*starts[1:], 0x110000]
    runs = [(a, z - 1) for a, z, kind in zip(starts, ends, classes, strict=True) if kind == "P"]
    punctuation = _ASCII_PUNCTUATION + "".join([f"{chr(a)}-{chr(z)}" for a, z in runs])
    return re.compile(f"[{punctuation}]|[^{punctuation}]+")


_ASCII_PIECES = re.compile(f"[{_ASCII_PUNCTUATION}]|[^{_ASCII_PUNCTUATION}]+")


def words_of(stretch: str) -> list[str]:
    """The words in a stretch of text without white space: every punctuation mark is one, and what stands between."""
    return (_ASCII_PIECES if stretch.isascii() else _pattern()).findall(stretch)
