"""How a tokenizer.json cuts text before byte-pair encoding, as one of the names that GGUF has for it.

A pre-tokenizer is recognised by what it does (its regular expressions and steps), not by which model it came with, so a
fine-tuned or retrained vocabulary converts like its parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggpy.errors import GGPYError

# One step of a pre-tokenizer, canonical: ("split", regex), ("digits", one at a time), ("bytes", GPT-2's regex too), …
Step = tuple[Any, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_LLAMA3 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _PUNCTUATION, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _PUNCTUATION, _SPACES))
_TEKKEN = "|".join((*_CASED, r"\p{N}", _CASED_PUNCTUATION, _SPACES))
_GPT4O = "|".join((*(c + _CONTRACTIONS + "?" for c in _CASED), r"\p{N}{1,3}", _CASED_PUNCTUATION, _SPACES))
_CJK = "[一-龥ࠀ-一가-퟿]+"

NAMES = (
    "default", "gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-llm", "deepseek-coder", "falcon", "mpt", "starcoder",
    "refact", "command-r", "tekken", "gpt-4o", "chatglm-bpe",
)  # fmt: skip


def recognise(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The GGUF name of the pre-tokenizer in a byte-level tokenizer.json. `config` is tokenizer_config.json.

    GGPYError, with what was found, where GGUF has no name for it that ggpy knows.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    model = tokenizer.get("model") or {}
    composes = "NFC" in _normalizers(tokenizer.get("normalizer"))
    splits = [step[1] for step in steps if step[0] == "split"]
    whole_bytes = ("bytes", False)

    if steps == [("bytes", True)]:
        return "mpt" if composes else "gpt-2"
    if steps == [("digits", True), ("bytes", True)]:
        if composes:
            return "command-r"
        # Starcoder's decoder tidies spaces before punctuation, SmolLM's leaves the text as it is.
        return "starcoder" if config.get("clean_up_tokenization_spaces") is True else "smollm"
    if steps == [("split", _LLAMA3), whole_bytes]:
        # The same cuts in both; Llama 3 takes a word that is a token whole and begins with a BOS.
        added = {t.get("content") for t in tokenizer.get("added_tokens") or () if isinstance(t, Mapping)}
        whole_words = model.get("ignore_merges") is True
        begins = "TemplateProcessing" in str(tokenizer.get("post_processor")) or config.get("add_bos_token") is True
        return "llama-bpe" if whole_words or (begins and "[gMASK]" not in added) else "chatglm-bpe"
    if steps == [("split", _QWEN2), whole_bytes]:
        return "qwen2"
    if steps == [("split", _TEKKEN), whole_bytes]:
        return "tekken"
    if steps == [("split", _GPT4O), whole_bytes]:
        return "gpt-4o"
    if steps[-1:] == [whole_bytes] and splits[:1] == [r"[\r\n]"] and _CJK in splits:
        if splits[1:3] == [r"\s?\p{L}+", r"\s?\p{P}+"]:
            return "deepseek-coder"
        if len(splits) == 5 and splits[1].startswith(r"\s?[A-Za-z") and splits[3] == r"\s+$":
            return "deepseek-llm"
    if steps == [("punctuation", "Contiguous"), ("bytes", True), ("digits", False), ("split", "[0-9][0-9][0-9]")]:
        return "falcon"
    raise GGPYError(
        f"The tokenizer.json cuts text by {_describe(steps)}, which is none of the pre-tokenizers ggpy knows"
        f" ({', '.join(NAMES)})."
    )


def adds_prefix_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a byte-level tokenizer.json puts a space before a text that begins without one."""

    def look(node: Any) -> bool:
        if isinstance(node, Mapping):
            inner = node.get("pretokenizers")
            return (node.get("type") == "ByteLevel" and node.get("add_prefix_space") is True) or look(inner)
        return isinstance(node, list) and any(look(inner) for inner in node)

    return look(tokenizer.get("pre_tokenizer"))


def _steps(node: Any) -> list[Step]:
    """The steps of a pre_tokenizer, nested sequences laid flat."""
    if node is None:
        return []
    if not isinstance(node, Mapping):
        raise GGPYError(f"The tokenizer.json has a pre_tokenizer that is no object: {node!r:.60}.")
    kind = node.get("type")
    if kind == "Sequence":
        return [step for inner in node.get("pretokenizers") or () for step in _steps(inner)]
    if kind == "ByteLevel":
        return [("bytes", node.get("use_regex") is not False)]
    if kind == "Digits":
        return [("digits", node.get("individual_digits") is True)]
    if kind == "Punctuation":
        return [("punctuation", node.get("behavior", "Isolated"))]
    if kind == "Split":
        pattern = node.get("pattern")
        isolated = (node.get("behavior"), node.get("invert") is True) in (("Isolated", False), ("Removed", True))
        if isolated and isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            return [("split", _canonical(pattern["Regex"]))]
        return [("other split", str(pattern), node.get("behavior"), node.get("invert"))]
    return [(str(kind),)]


def _canonical(regex: str) -> str:
    """One spelling for expressions that say the same."""
    # raw line ends and escaped ones
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    # English contractions: case folded by a flag or spelt out, in either order of listing
    spelt = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    for other in (spelt, r"'(?i:[sdmt]|ll|ve|re)", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"):
        regex = regex.replace(other, _CONTRACTIONS)
    regex = regex.replace(r"\p{N}{1}", r"\p{N}")
    # possessive quantifiers change speed, not matches, in these expressions
    regex = regex.replace("?+", "?").replace("++", "+").replace(r"\s*[\r\n]|", r"\s*[\r\n]+|")
    return regex


def _normalizers(node: Any) -> list[str]:
    if not isinstance(node, Mapping):
        return []
    if node.get("type") == "Sequence":
        return [kind for inner in node.get("normalizers") or () for kind in _normalizers(inner)]
    return [str(node.get("type"))]


def _describe(steps: list[Step]) -> str:
    if not steps:
        return "nothing"
    return ", then ".join(" ".join(str(part) for part in step) for step in steps)[:400]
