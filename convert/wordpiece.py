"""WordPiece vocabularies on their way into GGUF: BERT's tokenizer.json and vocab.txt, and how they prepare a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ggpy.convert.pre_tokenizer import flat
from ggpy.convert.vocabulary import NORMAL, UNKNOWN, Vocabulary, text_of, token_ids
from ggpy.errors import GGPYError
from ggpy.text.tokenizer.normalize import normalizer
from ggpy.text.tokenizer.vocabulary import OWN

#: Classes of transformers that take the normalizer's options from tokenizer_config.json.
CLASSES = (
    "BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer",
    "MobileBertTokenizer", "RetriBertTokenizer", "SqueezeBertTokenizer",
)  # fmt: skip

_LONGEST_WORD = 100  # characters, the default

# Two ways to say the same cuts: at white space, and around each punctuation mark.
_CUTS = (
    [{"type": "BertPreTokenizer"}],
    [{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}],
)


def read_pieces(model: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of the `model` of a tokenizer.json of the kind WordPiece. GGPYError says what is wrong."""
    prefix, unknown = model.get("continuing_subword_prefix", "##"), model.get("unk_token")
    if not isinstance(prefix, str) or not prefix:
        raise GGPYError(f"{where} marks no pieces as continuing a word ('continuing_subword_prefix'), as GGUF's do.")
    vocab = token_ids(model.get("vocab"), where)
    if not isinstance(unknown, str) or unknown not in vocab:
        raise GGPYError(f"{where} has no token for unknown words: 'unk_token' is {unknown!r:.40}.")
    longest = model.get("max_input_chars_per_word", _LONGEST_WORD)
    if type(longest) is not int or not 0 <= longest < 1 << 31:
        raise GGPYError(f"{where} has {longest!r:.40} as 'max_input_chars_per_word', which is no number of characters.")
    vocabulary = Vocabulary("bert", "default", continuing_prefix=prefix)
    for text, id in vocab.items():
        vocabulary.put(id, text, UNKNOWN if text == unknown else NORMAL)
    vocabulary.special_ids["unk"] = vocab[unknown]
    if longest != _LONGEST_WORD:
        vocabulary.extra[f"{OWN}longest_word"] = longest
        vocabulary.note(f"the tokenizer takes words of more than {longest} characters for unknown", own=True)
    return vocabulary


def check_cuts(tokenizer: Mapping[str, Any], where: str) -> None:
    """Refuse a pre-tokenizer that cuts a text otherwise than BERT's."""
    steps = [dict(step) for step in flat(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    if steps not in _CUTS:
        raise GGPYError(
            f"{where} cuts text by {json.dumps(steps, ensure_ascii=False)[:120]}, which GGUF's WordPiece tokenizers do"
            " not do; they cut at white space and punctuation (BertPreTokenizer)."
        )


def set_normalizer(vocabulary: Vocabulary, node: Any, where: str) -> None:
    """Record how the original prepares a text: in GGUF's two keys, and in one of our own where they do not say it."""
    steps = flat(node, "normalizers")
    if node is not None:
        try:
            normalizer(node)
        except GGPYError as error:
            raise GGPYError(f"{where}: {error}") from None
    bert = [step for step in steps if step.get("type") == "BertNormalizer"]
    lowercase = any(step.get("lowercase") is not False for step in bert)
    strips = [step["strip_accents"] for step in bert if step.get("strip_accents") is not None]
    vocabulary.extra["tokenizer.ggml.normalizer.lowercase"] = lowercase
    vocabulary.extra["tokenizer.ggml.normalizer.strip_accents"] = strips[0] if strips else lowercase
    switches = ("clean_text", "handle_chinese_chars")
    if len(steps) == len(bert) == 1 and all(bert[0].get(switch) is not False for switch in switches):
        return
    vocabulary.extra[f"{OWN}normalizer"] = json.dumps(node, ensure_ascii=False)
    kinds = " and ".join(str(step["type"]) for step in steps)
    vocabulary.note(f"the tokenizer {f'prepares text by {kinds}' if steps else 'does not prepare text'}", own=True)


def as_its_class_has_it(
    tokenizer: dict[str, Any], config: Mapping[str, Any], name: str | None
) -> tuple[dict[str, Any], list[str]]:
    """A tokenizer.json with the normalizer that the class `name` gives it, by tokenizer_config.json, and notes."""
    node = tokenizer.get("normalizer")
    if name not in CLASSES or not isinstance(node, Mapping) or node.get("type") != "BertNormalizer":
        return tokenizer, []
    changed = {**node, **class_options(config)}
    if changed == node:
        return tokenizer, []
    note = f"tokenizer_config.json, which {name} follows, prepares text otherwise than tokenizer.json; it is followed."
    return {**tokenizer, "normalizer": changed}, [note]


def class_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a BertNormalizer that tokenizer_config.json gives, or leaves at what the class has."""
    return {
        "handle_chinese_chars": config.get("tokenize_chinese_chars") is not False,
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case") is not False,
    }


def tokenizer_of_lines(lines: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json of a vocab.txt, a piece a line; what stands around a text is `put_around`'s."""
    pieces = lines.split("\n")
    return {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, **class_options(config)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##"},
        "model": {
            "type": "WordPiece",
            "unk_token": text_of(config.get("unk_token")) or "[UNK]",
            "vocab": {text: id for id, text in enumerate(pieces if pieces[-1] else pieces[:-1])},
        },
    }


def put_around(vocabulary: Vocabulary, named: Mapping[str, str], where: str) -> None:
    """Put the classifier's token and the separator, as they are named, around a text."""
    ids = [vocabulary.find(named.get(f"{role}_token", "")) for role in ("cls", "sep")]
    if ids[0] is None or ids[1] is None:
        raise GGPYError(f"{where} lacks the tokens that stand around a text ('cls_token' and 'sep_token').")
    vocabulary.before, vocabulary.after = (ids[0],), (ids[1],)
