"""The vocabulary in a tokenizer.json: byte-level BPE and WordPiece as they stand, SentencePiece's BPE and Unigram as
scored pieces."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from ggpy.convert import pre_tokenizer, wordpiece
from ggpy.convert.pre_tokenizer import flat
from ggpy.convert.vocabulary import (
    BYTE,
    NORMAL,
    UNKNOWN,
    Vocabulary,
    added_tokens,
    set_charsmap,
    token_ids,
)
from ggpy.errors import GGPYError
from ggpy.text.tokenizer.byte_alphabet import CHARACTER_OF_BYTE
from ggpy.text.tokenizer.normalize import normalizer
from ggpy.text.tokenizer.pretokenize import PRE_TOKENIZERS
from ggpy.text.tokenizer.vocabulary import OWN

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """True where the vocabulary is written in the byte-level alphabet: a ByteLevel step pre-tokenizes or decodes."""
    steps = [*flat(tokenizer.get("pre_tokenizer"), "pretokenizers"), *flat(tokenizer.get("decoder"), "decoders")]
    return any(step.get("type") == "ByteLevel" for step in steps)


def read_tokenizer_json(tokenizer: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; `config` is tokenizer_config.json. GGPYError says what is wrong."""
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and kind is None and "merges" in model:
        kind = "BPE"  # files of the first versions leave it out
    if isinstance(model, Mapping) and kind is None and "max_input_chars_per_word" in model:
        kind = "WordPiece"
    if kind not in ("BPE", "Unigram", "WordPiece") or not isinstance(model, Mapping):
        raise GGPYError(
            f"{where} holds a tokenizer of the kind {kind!r:.40}; ggpy converts BPE, Unigram and WordPiece."
        )
    if kind != "WordPiece" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise GGPYError(f"{where} marks parts of words with a prefix or suffix, which GGUF's tokenizers do not do.")
    if model.get("dropout"):
        raise GGPYError(
            f"{where} has 'dropout' {model['dropout']!r:.20}: it cuts the same text otherwise each time, as only"
            " training wants it; set it to null."
        )
    added = added_tokens(tokenizer.get("added_tokens") or [], f"{where}, 'added_tokens',")
    if kind == "WordPiece":
        vocabulary = wordpiece.read_pieces(model, where)
        wordpiece.check_cuts(tokenizer, where)
    elif kind == "Unigram":
        vocabulary = _unigram(model, where)
    elif is_byte_level(tokenizer):
        vocabulary = _byte_level(tokenizer, model, config, where)
    else:
        vocabulary = _pieces(model, {token.content for token in added}, where)
    for token in added:
        vocabulary.put_added(token)
    unknown = vocabulary.find(model["unk_token"]) if isinstance(model.get("unk_token"), str) else None
    if unknown is not None:
        vocabulary.special_ids["unk"] = unknown
    if vocabulary.in_pieces:
        _read_spaces(vocabulary, tokenizer, where)
    if vocabulary.model == "bert":
        wordpiece.set_normalizer(vocabulary, tokenizer.get("normalizer"), where)
    else:
        set_normalizer(vocabulary, tokenizer.get("normalizer"), where)
    implied = vocabulary.model == "gpt2" and PRE_TOKENIZERS[vocabulary.pre].ignore_merges
    if vocabulary.model != "bert" and (model.get("ignore_merges") is True) != implied:
        vocabulary.extra[f"{OWN}ignore_merges"] = not implied
        takes = "takes a word that is a token whole" if not implied else "merges words even if they are tokens"
        vocabulary.note(f"the tokenizer {takes}", own=True)
    read_post_processor(vocabulary, tokenizer.get("post_processor"), where)
    check_decoder(vocabulary, tokenizer.get("decoder"), where)
    return vocabulary


def set_normalizer(vocabulary: Vocabulary, node: Any, where: str) -> None:
    """Record how the original normalizes text, in a key of our own where GGUF's keys and names do not say it."""
    steps: list[Mapping[str, Any]] = []
    pieces = vocabulary.in_pieces
    for step in flat(node, "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled":
            data = step.get("precompiled_charsmap")
            try:
                charsmap = base64.b64decode(data, validate=True) if isinstance(data, str) else b""
            except ValueError:
                raise GGPYError(f"{where} has a 'precompiled_charsmap' that is no base64.") from None
            set_charsmap(vocabulary, charsmap)
        elif kind == "Replace" and _is_a_space(step.get("pattern")) and step.get("content") == "\u2581" and pieces:
            continue  # spaces as SentencePiece writes them
        elif kind == "Prepend" and step.get("prepend") == "\u2581" and pieces:
            continue
        else:
            steps.append(step)
    named = vocabulary.model == "gpt2" and PRE_TOKENIZERS[vocabulary.pre].composes
    if [step.get("type") for step in steps] == (["NFC"] if named else []):
        return
    node = steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}
    try:
        normalizer(node)
    except GGPYError as error:
        raise GGPYError(f"{where}: {error}") from None
    vocabulary.extra[f"{OWN}normalizer"] = json.dumps(node, ensure_ascii=False)
    kinds = " and ".join(str(step["type"]) for step in steps)
    vocabulary.note(f"the tokenizer {f'normalizes text by {kinds}' if steps else 'does not compose text'}", own=True)


def _is_a_space(pattern: Any) -> bool:
    return isinstance(pattern, Mapping) and pattern.get("String") == " "


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
    vocab = token_ids(model.get("vocab"), where)
    vocabulary = Vocabulary("gpt2", pre_tokenizer.recognise(tokenizer, config))
    for text, id in vocab.items():
        vocabulary.put(id, text, NORMAL)
    # A space inside a token would end it in GGUF's "a b", so it is written as the alphabet writes spaces.
    vocabulary.merges = [f"{a.replace(' ', 'Ġ')} {b.replace(' ', 'Ġ')}" for a, b in _pairs(model, vocab, where)]
    alone = isinstance(node := tokenizer.get("pre_tokenizer"), Mapping) and node.get("type") == "ByteLevel"
    prefix = pre_tokenizer.adds_prefix_space(tokenizer)
    if alone and isinstance(config.get("add_prefix_space"), bool):
        prefix = config["add_prefix_space"]
    if prefix and not alone:
        raise GGPYError(f"{where} puts a space before every piece of a text, which no reader of GGUF does.")
    vocabulary.add_space_prefix = prefix
    if prefix:
        vocabulary.note("the tokenizer puts a space before a text", own=True)
    missing = sum(character not in vocab for character in CHARACTER_OF_BYTE)
    if missing and model.get("unk_token") is not None:
        raise GGPYError(
            f"{where} lacks {missing} of the 256 single bytes and writes 'unk_token' for them, as no reader of"
            " byte-level GGUF does."
        )
    return vocabulary


def _pieces(model: Mapping[str, Any], added: Collection[str], where: str) -> Vocabulary:
    """SentencePiece BPE as tokenizer.json keeps it: a merge's rank takes the place of its piece's score. `added` are
    the texts of added tokens."""
    vocab = token_ids(model.get("vocab"), where)
    vocabulary = Vocabulary("llama", "default", scores={})
    if model.get("fuse_unk") is True and model.get("byte_fallback") is not True:
        vocabulary.extra[f"{OWN}fuse_unk"] = True
    rank: dict[str, int] = {}
    pairs = _pairs(model, vocab, where)
    for i, (a, b) in enumerate(pairs):
        rank.setdefault(a + b, i)
    for text, id in vocab.items():
        # Pieces that no merge makes (single characters, bytes) come after all that are made.
        vocabulary.put(id, text, _piece_type(text, model), -float(rank.get(text, len(pairs))))
    # A text is cut at added tokens first: what is left has none of them for merges to make.
    if not _scores_suffice([pair for pair in pairs if pair[0] + pair[1] not in added], vocab.keys() - added):
        if any(" " in part for pair in pairs for part in pair):
            raise GGPYError(f"{where} merges tokens with spaces in them, which ggpy has no way to write.")
        vocabulary.extra[f"{OWN}merges"] = [f"{a} {b}" for a, b in pairs]
        vocabulary.note("the tokenizer merges some pairs of pieces and not others that spell the same", own=True)
    return vocabulary


def _scores_suffice(pairs: list[tuple[str, str]], vocab: Collection[str]) -> bool:
    """True where joining any two pieces that spell a piece, best score first, gives what the merges give: every way to
    cut a piece in two is a merge, and no other piece's merges are ranked between a piece's own."""
    made: set[str] = set()
    last = ""
    for a, b in pairs:
        if a + b != last and a + b in made:
            return False
        last = a + b
        made.add(last)
    known = set(pairs)
    return all(
        text[:i] not in vocab or text[i:] not in vocab or (text[:i], text[i:]) in known
        for text in vocab
        for i in range(1, len(text))
    )


def _unigram(model: Mapping[str, Any], where: str) -> Vocabulary:
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or not pieces:
        raise GGPYError(f"{where} has no vocabulary.")
    vocabulary = Vocabulary("t5", "default", scores={})
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


def _read_spaces(vocabulary: Vocabulary, tokenizer: Mapping[str, Any], where: str) -> None:
    """Read where, if anywhere, the tokenizer adds a space that the text lacks, like SentencePiece's dummy prefix."""
    steps = flat(tokenizer.get("normalizer"), "normalizers")
    vocabulary.add_space_prefix = any(
        step.get("type") == "Prepend" and step.get("prepend") == "\u2581" for step in steps
    )
    spaces = any(step.get("type") == "Replace" and _is_a_space(step.get("pattern")) for step in steps)
    for step in flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "WhitespaceSplit" and vocabulary.model == "t5":
            vocabulary.extra["tokenizer.ggml.remove_extra_whitespaces"] = True
            continue
        if step.get("type") == "Split" and _is_a_space(step.get("pattern")) and spaces:
            continue  # there are none left to cut at
        if step.get("type") != "Metaspace" or step.get("replacement", "\u2581") != "\u2581":
            shown = json.dumps(step, ensure_ascii=False)[:80]
            raise GGPYError(f"{where} cuts text by {shown}, which GGUF's SentencePiece tokenizers do not do.")
        scheme = step.get("prepend_scheme", "always")
        if scheme != "never" and step.get("add_prefix_space") is not False:
            vocabulary.add_space_prefix = True
            vocabulary.set_space_prefix(str(scheme))
        inside = next((text for text in vocabulary.texts.values() if "\u2581" in text[1:].lstrip("\u2581")), None)
        runs = any(text.startswith("\u2581\u2581") for text in vocabulary.texts.values())
        if step.get("split", True) is True and (inside or runs) and vocabulary.model == "t5":
            vocabulary.extra[f"{OWN}cuts_at_spaces"] = True
            vocabulary.note("the tokenizer cuts a text at spaces before it looks for pieces", own=True)
        elif step.get("split", True) is True and (inside or runs):
            vocabulary.note("the tokenizer cuts a text at spaces before it merges, which readers of GGUF do not.")


def space_prefix_scheme(tokenizer: Mapping[str, Any]) -> str | None:
    """Where a tokenizer.json says that a space is put: "first", "always" or "never"; None where it does not say."""
    for step in flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            return str(step.get("prepend_scheme", "always"))
    return None


def read_post_processor(vocabulary: Vocabulary, node: Any, where: str) -> None:
    """Read the tokens that are added before and after a text."""
    for processor in flat(node, "processors"):
        kind = processor.get("type")
        if kind == "ByteLevel":
            continue
        if kind in ("BertProcessing", "RobertaProcessing"):
            vocabulary.before, vocabulary.after = (
                (_token_id(processor.get(name), vocabulary, where),) for name in ("cls", "sep")
            )
            continue
        if kind != "TemplateProcessing":
            raise GGPYError(f"{where} puts tokens around a text by {kind!r:.60}, which ggpy does not follow.")
        single, known = processor.get("single"), processor.get("special_tokens")
        items = single if isinstance(single, list) else []
        texts = [i for i, item in enumerate(items) if isinstance(item, Mapping) and "Sequence" in item]
        if len(texts) != 1:
            raise GGPYError(f"{where} has a TemplateProcessing whose 'single' does not hold the text once.")
        ids = [_special_ids(item, known, vocabulary, where) for i, item in enumerate(items) if i != texts[0]]
        vocabulary.before = tuple(id for some in ids[: texts[0]] for id in some)
        vocabulary.after = tuple(id for some in ids[texts[0] :] for id in some)


def _token_id(entry: Any, vocabulary: Vocabulary, where: str) -> int:
    """The id in a pair of a token's text and its id."""
    id = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if type(id) is not int or id not in vocabulary.texts:
        raise GGPYError(f"{where} puts {entry!r:.60} beside a text, which is no token of it.")
    return id


def check_decoder(vocabulary: Vocabulary, node: Any, where: str) -> None:
    """Refuse a decoder that would turn tokens into other text than readers of GGUF do."""
    plain: tuple[dict[str, Any], ...] = ({"type": "ByteLevel"},)
    if vocabulary.in_pieces:
        plain = (
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "Strip", "content": " ", "stop": 0},
            {"type": "Metaspace", "replacement": "\u2581"},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        )
    if vocabulary.model == "bert":
        plain = ({"type": "WordPiece", "prefix": vocabulary.continuing_prefix},)
    if node is None:
        vocabulary.note("the tokenizer names no decoder; text is what its tokens spell.")
    for step in flat(node, "decoders"):
        if not any(all(step.get(key) == value for key, value in p.items()) for p in plain):
            raise GGPYError(f"{where} has the decoder {json.dumps(step)[:80]}, which ggpy does not follow.")


def _special_ids(item: Any, known: Any, vocabulary: Vocabulary, where: str) -> list[int]:
    """The token ids of a SpecialToken in a template."""
    token = item.get("SpecialToken") if isinstance(item, Mapping) else None
    name = token.get("id") if isinstance(token, Mapping) else None
    entry = known.get(name) if isinstance(known, Mapping) and isinstance(name, str) else None
    ids = entry.get("ids") if isinstance(entry, Mapping) else None
    if not isinstance(ids, list) or not all(type(id) is int and id in vocabulary.texts for id in ids):
        raise GGPYError(f"{where} has a TemplateProcessing that adds {name!r:.60}, which is no token of it.")
    return ids
