"""A tokenizer that is only vocab.json and merges.txt: what its class in transformers adds, as a tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggpy.convert.pre_tokenizer import QWEN2, QWEN35
from ggpy.errors import GGPYError

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _composed(regex: str) -> dict[str, Any]:
    """A tokenizer that composes a text and cuts it by this expression."""
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {**_BYTES, "use_regex": False}]},
    }


#: The normalizer and the cutting of each class that loads these two files.
CLASSES: Mapping[str, dict[str, Any]] = {
    "GPT2Tokenizer": {"normalizer": None, "pre_tokenizer": {**_BYTES, "use_regex": True}},
    "Qwen2Tokenizer": _composed(QWEN2),
    "Qwen3_5Tokenizer": _composed(QWEN35),
}


def tokenizer_of_words(vocab: Mapping[str, Any], merges: str, name: str | None, where: str) -> dict[str, Any]:
    """A tokenizer.json of the class `name`. GGPYError for a class that loads other files."""
    if name is None or name not in CLASSES:
        raise GGPYError(
            f"{where} has vocab.json and merges.txt, and its tokenizer_class is {name!r:.60}; ggpy knows how"
            f" {', '.join(CLASSES)} cut text. Save it again with transformers, which writes a tokenizer.json."
        )
    lines = merges.splitlines()
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    return {
        **CLASSES[name],
        "added_tokens": [],
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [line for line in lines if line.strip()]},
    }
