"""The vocabulary in a tokenizer.json: byte-level BPE as it stands, SentencePiece's BPE and Unigram as scored pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggpy.convert import pre_tokenizer
from ggpy.convert.vocabulary import BYTE, NORMAL, UNKNOWN, Vocabulary, added_tokens
from ggpy.errors import GGPYError

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is written in the byte-level alphabet: a ByteLevel step cuts or decodes."""
    return _mentions(tokenizer.get("pre_tokenizer"), "ByteLevel") or _mentions(tokenizer.get("decoder"), "ByteLevel")


def read_tokenizer_json(tokenizer: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; `config` is tokenizer_config.json. GGPYError says what is wrong."""
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and kind is None and "merges" in model:
        kind = "BPE"  # files of the first versions leave it out
    if kind not in ("BPE", "Unigram") or not isinstance(model, Mapping):
        raise GGPYError(f"{where} holds a tokenizer of the kind {kind!r:.40}; ggpy converts BPE and Unigram.")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise GGPYError(f"{where} marks parts of words with a prefix or suffix, which GGUF's tokenizers do not do.")
    added = added_tokens(tokenizer.get("added_tokens") or [], f"{where}, 'added_tokens',")
    if kind == "Unigram":
        vocabulary = _unigram(model, where)
    elif is_byte_level(tokenizer):
        vocabulary = _byte_level(tokenizer, model, config, where)
    else:
        vocabulary = _pieces(model, where)
    if isinstance(model.get("unk_token"), str):
        vocabulary.special_names["unk"] = model["unk_token"]
    for token in added:
        vocabulary.put_added(token)
    if vocabulary.model == "llama":
        vocabulary.add_space_prefix = _space_prefix(tokenizer)
    _read_post_processor(vocabulary, tokenizer.get("post_processor"))
    return vocabulary


def _mentions(node: Any, kind: str) -> bool:
    if isinstance(node, Mapping):
        return node.get("type") == kind or any(_mentions(inner, kind) for inner in node.values())
    return isinstance(node, list) and any(_mentions(inner, kind) for inner in node)


def _ids(vocab: Any, where: str) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise GGPYError(f"{where} has no vocabulary.")
    if not all(type(id) is int and 0 <= id < 1 << 31 for id in vocab.values()):
        raise GGPYError(f"{where} gives a token an id that is not a whole number.")
    if len(set(vocab.values())) != len(vocab):
        raise GGPYError(f"{where} gives two tokens the same id.")
    return vocab


def _pairs(model: Mapping[str, Any], vocab: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """The merges, from either spelling ("a b" or ["a", "b"]), each of whose tokens must exist."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise GGPYError(f"{where} has no list of merges.")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise GGPYError(f"{where} holds the merge {merge!r:.60}, which is not a pair of tokens.")
        if parts[0] not in vocab or parts[1] not in vocab or parts[0] + parts[1] not in vocab:
            raise GGPYError(f"{where} holds the merge {merge!r:.60} of tokens that are not in its vocabulary.")
        pairs.append((parts[0], parts[1]))
    return pairs


def _byte_level(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> Vocabulary:
    vocab = _ids(model.get("vocab"), where)
    vocabulary = Vocabulary("gpt2", pre_tokenizer.recognise(tokenizer, config))
    for text, id in vocab.items():
        vocabulary.put(id, text, NORMAL)
    # A space inside a token would end it in GGUF's "a b", so it is written as the alphabet writes spaces.
    vocabulary.merges = [f"{a.replace(' ', 'Ġ')} {b.replace(' ', 'Ġ')}" for a, b in _pairs(model, vocab, where)]
    if pre_tokenizer.adds_prefix_space(tokenizer):
        vocabulary.add_space_prefix = True
        vocabulary.notes.append(
            "the tokenizer puts a space before a text, which readers of byte-level GGUF files may not."
        )
    return vocabulary


def _pieces(model: Mapping[str, Any], where: str) -> Vocabulary:
    """SentencePiece BPE as tokenizer.json keeps it: a merge's rank takes the place of its piece's score."""
    vocab = _ids(model.get("vocab"), where)
    vocabulary = Vocabulary("llama", "default", scores={})
    rank: dict[str, int] = {}
    pairs = _pairs(model, vocab, where)
    for i, (a, b) in enumerate(pairs):
        rank.setdefault(a + b, i)
    for text, id in vocab.items():
        # Pieces that no merge makes (single characters, bytes) come after all that are made.
        vocabulary.put(id, text, _piece_type(text, model), -float(rank.get(text, len(pairs))))
    return vocabulary


def _unigram(model: Mapping[str, Any], where: str) -> Vocabulary:
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or not pieces:
        raise GGPYError(f"{where} has no vocabulary.")
    vocabulary = Vocabulary("llama", "default", scores={})
    vocabulary.notes.append(
        "the tokenizer is Unigram; GGUF readers merge its pieces greedily, so rare texts may be cut otherwise."
    )
    for id, entry in enumerate(pieces):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise GGPYError(f"{where} holds {entry!r:.60} in its vocabulary, which is not a piece and its score.")
        score = entry[1]
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise GGPYError(f"{where} gives the piece {entry[0]!r:.40} the score {score!r:.40}.")
        vocabulary.put(id, entry[0], _piece_type(entry[0], model), float(score))
    unknown = model.get("unk_id")
    if isinstance(unknown, int) and unknown in vocabulary.texts:
        vocabulary.types[unknown] = UNKNOWN
        vocabulary.special_ids["unk"] = unknown
    return vocabulary


def _piece_type(text: str, model: Mapping[str, Any]) -> int:
    if model.get("byte_fallback") is True and _BYTE_PIECE.fullmatch(text):
        return BYTE
    return UNKNOWN if text == model.get("unk_token") else NORMAL


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space before the text, as SentencePiece's dummy prefix does."""
    if _mentions(tokenizer.get("normalizer"), "Prepend"):
        return True
    found: list[Mapping[str, Any]] = []

    def look(node: Any) -> None:
        if isinstance(node, Mapping):
            if node.get("type") == "Metaspace":
                found.append(node)
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(tokenizer.get("pre_tokenizer"))
    return any(
        node.get("prepend_scheme", "always") != "never" and node.get("add_prefix_space") is not False for node in found
    )


def _read_post_processor(vocabulary: Vocabulary, node: Any) -> None:
    """Which special tokens a text gets around it: `add_bos`, `add_eos`, and which they are."""
    if not isinstance(node, Mapping):
        vocabulary.add_bos = vocabulary.add_eos = False
        return
    inner = node.get("processors")
    for processor in inner if isinstance(inner, list) else [node]:
        if not isinstance(processor, Mapping):
            continue
        if processor.get("type") == "ByteLevel":
            vocabulary.add_bos = bool(vocabulary.add_bos)
            vocabulary.add_eos = bool(vocabulary.add_eos)
        elif processor.get("type") == "TemplateProcessing":
            single = processor.get("single")
            ends = [single[0], single[-1]] if isinstance(single, list) and single else []
            names = [_special_name(end) for end in ends]
            if ends and ends[0] is not ends[1]:
                vocabulary.add_bos, vocabulary.add_eos = names[0] is not None, names[1] is not None
                if names[0] is not None:
                    vocabulary.special_names.setdefault("bos", names[0])
                if names[1] is not None:
                    vocabulary.special_names.setdefault("eos", names[1])
            else:
                vocabulary.add_bos = vocabulary.add_eos = False


def _special_name(item: Any) -> str | None:
    token = item.get("SpecialToken") if isinstance(item, Mapping) else None
    name = token.get("id") if isinstance(token, Mapping) else None
    return name if isinstance(name, str) else None
