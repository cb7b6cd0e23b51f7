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
QWEN2 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _PUNCTUATION, _SPACES))
QWEN35 = "|".join(
    (_CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
)
_SEED_CODER = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES))
_TEKKEN = "|".join((*_CASED, r"\p{N}", _CASED_PUNCTUATION, _SPACES))
_GPT4O = "|".join((*(c + _CONTRACTIONS + "?" for c in _CASED), r"\p{N}{1,3}", _CASED_PUNCTUATION, _SPACES))
_MINICPM5 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}+", _PUNCTUATION, _SPACES))
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "|".join((_ASCII_SIGNS + "[A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r" ?[\p{P}\p{S}]+[\r\n]*", _SPACES)),
)

_WHOLE_BYTES = ("bytes", False)
_DIGITS = ("digits", True)

#: Steps, and the name that GGUF has for them. Of names that cut alike the one whose other settings are the plainest.
_NAMES: dict[tuple[Step, ...], str] = {
    (("bytes", True),): "gpt-2",
    (_DIGITS, ("bytes", True)): "smollm",
    (("split", _LLAMA3), _WHOLE_BYTES): "smaug-bpe",
    (("split", QWEN2), _WHOLE_BYTES): "qwen2",
    (("split", QWEN35), _WHOLE_BYTES): "qwen35",
    (("split", _SEED_CODER), _WHOLE_BYTES): "seed-coder",
    (("split", _TEKKEN), _WHOLE_BYTES): "tekken",
    (("split", _GPT4O), _WHOLE_BYTES): "gpt-4o",
    (("split", r"\d{1,3}(?=(?:\d{3})*\b)"), ("split", _GPT4O), _WHOLE_BYTES): "tiny_aya",
    (("split", r"\p{N}{1,3}"), ("split", _MINICPM5), _WHOLE_BYTES): "minicpm5",
    (("split", _BLOOM), _WHOLE_BYTES): "bloom",
    (("split", _BLOOM), _DIGITS, _WHOLE_BYTES): "viking",
    (*(("split", regex) for regex in _DEEPSEEK_V3), _WHOLE_BYTES): "deepseek-v3",
    (("punctuation", "Contiguous"), ("bytes", True), ("digits", False), ("split", "[0-9][0-9][0-9]")): "falcon",
}
_COMPOSING = {"gpt-2": "mpt", "smollm": "command-r"}  # names that say that text is composed first

#: Every name that `recognise` gives.
NAMES = tuple(
    dict.fromkeys((
        *_NAMES.values(), *_COMPOSING.values(), "llama-bpe", "lfm2", "chatglm-bpe", "starcoder", "deepseek-llm",
        "deepseek-coder",
    ))
)  # fmt: skip


def recognise(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The GGUF name of the pre-tokenizer in a byte-level tokenizer.json. `config` is tokenizer_config.json.

    GGPYError, with what was found, where GGUF has no name for it that ggpy knows.
    """
    steps = [_step(node) for node in flat(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    name = _NAMES.get(tuple(steps)) or _deepseek(steps)
    if name is None:
        raise GGPYError(
            f"The tokenizer.json cuts text by {_describe(steps)}, which is none of the pre-tokenizers ggpy knows"
            f" ({', '.join(NAMES)})."
        )
    if [node.get("type") for node in flat(tokenizer.get("normalizer"), "normalizers")] == ["NFC"]:
        return _COMPOSING.get(name, name)
    if name == "smollm" and config.get("clean_up_tokenization_spaces") is True:
        return "starcoder"  # the same cuts; readers may tidy the spaces of its text
    if name == "smaug-bpe":
        added = {t.get("content") for t in tokenizer.get("added_tokens") or () if isinstance(t, Mapping)}
        if (tokenizer.get("model") or {}).get("ignore_merges") is True:
            return "lfm2" if {"<|startoftext|>", "<|im_start|>"} <= added else "llama-bpe"
        return "chatglm-bpe" if "[gMASK]" in added else name
    return name


def _deepseek(steps: list[Step]) -> str | None:
    """DeepSeek's first two pre-tokenizers, whose classes of letters are too long to be spelt here."""
    splits = [step[1] for step in steps if step[0] == "split"]
    if steps[-1:] == [_WHOLE_BYTES] and splits[:1] == [r"[\r\n]"] and _CJK in splits:
        if splits[1:3] == [r"\s?\p{L}+", r"\s?\p{P}+"]:
            return "deepseek-coder"
        if len(splits) == 5 and splits[1].startswith(r"\s?[A-Za-z") and splits[3] == r"\s+$":
            return "deepseek-llm"
    return None


def flat(node: Any, inner: str) -> list[Mapping[str, Any]]:
    """A part of a tokenizer.json as the list of its steps, sequences of them, whose key is `inner`, laid flat."""
    waiting, steps = [node], []
    while waiting:
        step = waiting.pop()
        if step is None:
            continue
        if not isinstance(step, Mapping):
            raise GGPYError(f"The tokenizer.json has {step!r:.60} where a step of the tokenizer belongs.")
        if step.get("type") != "Sequence":
            steps.append(step)
            continue
        if not isinstance(step.get(inner), list):
            raise GGPYError(f"The tokenizer.json has a sequence of steps without a list of {inner!r}.")
        waiting += reversed(step[inner])
    return steps


def adds_prefix_space(tokenizer: Mapping[str, Any]) -> bool:
    """True where a byte-level tokenizer.json puts a space before a text that begins without one."""
    steps = flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") is True for step in steps)


def _step(node: Mapping[str, Any]) -> Step:
    """A step of a pre_tokenizer in canonical form."""
    kind = node.get("type")
    if kind == "ByteLevel":
        return ("bytes", node.get("use_regex") is not False)
    if kind == "Digits":
        return ("digits", node.get("individual_digits") is True)
    if kind == "Punctuation":
        return ("punctuation", str(node.get("behavior", "Isolated")))
    if kind == "Split":
        pattern = node.get("pattern")
        isolated = (node.get("behavior"), node.get("invert") is True) in (("Isolated", False), ("Removed", True))
        if isolated and isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            return ("split", _canonical(pattern["Regex"]))
        return ("other split", str(pattern), str(node.get("behavior")), node.get("invert") is True)
    return (str(kind),)


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


def _describe(steps: list[Step]) -> str:
    if not steps:
        return "nothing"
    return ", then ".join(" ".join(str(part) for part in step) for step in steps)[:400]
