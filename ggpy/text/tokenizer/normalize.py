"""Normalization of a text before tokens are looked for in it: composing characters, folding case, replacing.

`ggpy.tokenizer.normalizer` holds the `normalizer` of the original's tokenizer.json as JSON, where no key of GGUF
says it: https://huggingface.co/docs/tokenizers/api/normalizers. SentencePiece's rules stand in GGUF's
`tokenizer.ggml.precompiled_charsmap` and `tokenizer.ggml.remove_extra_whitespaces`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, Literal

from ggpy.errors import GGPYError

Normalizer = Callable[[str], str]
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

#: Unicode's white space, which is not quite Python's.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

_DEEPEST = 8  # sequences of sequences that are followed


def compose(form: Form, text: str) -> str:
    """`text` in one of Unicode's normal forms; text that is in it already, as nearly all is, takes a quick check."""
    return text if text.isascii() or unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def normalizer(node: Any, depth: int = 0) -> Normalizer | None:
    """The function that a `normalizer` of a tokenizer.json describes, None for none.

    Raises GGPYError for an unsupported kind; its sentence begins with the kind.
    """
    if node is None:
        return None
    kind = node.get("type") if isinstance(node, Mapping) else None
    if kind == "Sequence" and isinstance(node.get("normalizers"), list) and depth < _DEEPEST:
        steps = [step for inner in node["normalizers"] if (step := normalizer(inner, depth + 1)) is not None]
        return in_turn(steps)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return partial(compose, kind)
    if kind == "Lowercase":
        return lambda text: "".join([c.lower() for c in text])  # each by itself: a final sigma is a sigma
    if kind == "StripAccents":
        return lambda text: "".join([c for c in text if not unicodedata.category(c).startswith("M")])
    if kind == "BertNormalizer":
        from ggpy.text.tokenizer.bert_text import BERT_OPTIONS, bert_normalizer

        options = {name: node.get(name) for name in BERT_OPTIONS if node.get(name) is not None}
        if not all(isinstance(value, bool) for value in options.values()):
            raise GGPYError(f"'BertNormalizer' has options that are neither true nor false: {options!r:.120}.")
        return bert_normalizer(**options)
    if kind == "Strip":
        return partial(_strip, node.get("strip_left") is not False, node.get("strip_right") is not False)
    if kind == "Prepend" and isinstance(node.get("prepend"), str):
        return lambda text: node["prepend"] + text if text else text
    if kind == "Replace":
        pattern = node.get("pattern")
        old = pattern.get("String") if isinstance(pattern, Mapping) else None
        if isinstance(old, str) and old and isinstance(node.get("content"), str):
            return lambda text: text.replace(old, node["content"])
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        if regex == " {2,}" and isinstance(node.get("content"), str):
            return lambda text: re.sub(regex, lambda _: node["content"], text)
        raise GGPYError(f"Replace by the regular expression {regex!r:.60} is a normalizer that ggpy does not follow.")
    raise GGPYError(f"{kind!r:.40} is a normalizer that ggpy does not follow.")


def in_turn(steps: list[Normalizer]) -> Normalizer | None:
    """The steps composed into one function; None where there are none."""
    if len(steps) < 2:
        return steps[0] if steps else None
    return lambda text: reduce(lambda so_far, step: step(so_far), steps, text)


def _strip(left: bool, right: bool, text: str) -> str:
    text = text.lstrip(WHITE_SPACE) if left else text
    return text.rstrip(WHITE_SPACE) if right else text


def sentencepiece_rules(charsmap: bytes, remove_extra_whitespaces: bool) -> Normalizer | None:
    """SentencePiece's own normalization: its compiled map of characters, and whether runs of spaces become one."""
    if not charsmap and not remove_extra_whitespaces:
        return None
    from sentencepiece import SentencePieceNormalizer

    from ggpy.text.tokenizer.sentencepiece_proto import normalizer_proto

    try:
        rules = SentencePieceNormalizer(
            model_proto=normalizer_proto(charsmap),
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=remove_extra_whitespaces,
        )
        rules.normalize("")
    except (RuntimeError, ValueError, OSError):
        raise GGPYError("tokenizer.ggml.precompiled_charsmap is no map of characters of SentencePiece.") from None
    return lambda text: str(rules.normalize(text))
