"""Which tokens play which role and where generation ends: the keys beside the vocabulary itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import chat_templates
from ggpy.convert.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary, byte_level_text, text_of
from ggpy.convert.wordpiece import CLASSES as WORDPIECE
from ggpy.errors import GGPYError, quoted
from ggpy.text.tokenizer.vocabulary import OWN

_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # spelt so in GGUF
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "cls": "tokenizer.ggml.cls_token_id",  # BERT's, for older readers; others take the one for BOS
}

#: Texts that end a turn, the likelier first. Readers of GGUF take a token of this text as an end whatever the keys say.
END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
END_OF_MESSAGE = "<|eom_id|>"
_KNOWN_ENDS = frozenset((*END_OF_TURN, END_OF_MESSAGE, "<|return|>", "<|call|>", "</s>", "[EOS]", "<eos>"))

#: The tokens that a class of tokenizer has where no file names others, as transformers has them.
CLASS_TOKENS: Mapping[str, dict[str, str]] = {
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "Qwen3_5Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    **{
        name: {f"{text.lower()}_token": f"[{text}]" for text in ("UNK", "SEP", "PAD", "CLS", "MASK")}
        for name in WORDPIECE
    },
}

#: Kinds of models whose config.json, where it names no class of tokenizers, means BERT's.
_BERTS = ("bert", "distilbert", "electra", "nomic_bert")

#: Ends that neither a text nor a key of their own tells; ggpy's readers take them from here.
EXTRA_ENDS = "tokenizer.ggml.eog_token_ids"


def special_token_metadata(
    checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Ids of the special tokens, the tokens added around a text, every end of generation, and the chat template."""
    ids_by_text = {text: id for id, text in vocabulary.texts.items()}
    generation = checkpoint.json("generation_config.json")
    text_config = checkpoint.config.values.get("text_config")  # of a model of more than text
    configs = [checkpoint.config.values, *([text_config] if isinstance(text_config, Mapping) else [])]
    named = named_tokens(checkpoint, vocabulary, tokenizer_config)
    first, last = vocabulary.before[-1:], vocabulary.after[:1]  # where the tokenizer's own file puts BOS and EOS
    around = {"bos": first[0] if first else None, "eos": last[0] if last else None}

    def role(name: str) -> int | None:
        if named.get(f"{name}_token") in ids_by_text:
            return ids_by_text[named[f"{name}_token"]]
        if name in vocabulary.special_ids:
            return vocabulary.special_ids[name]
        if around.get(name) is not None:
            return around[name]
        for source in (*configs, generation):
            ids = _id_list(source.get(f"{name}_token_id"), len(ids_by_text))
            if ids:
                return ids[0]
        return None

    result: dict[str, Any] = {}
    for name, key in _KEYS.items():
        id = role(name)
        if id is not None and (name != "cls" or vocabulary.model == "bert"):
            result[key] = id
    templates = chat_templates(checkpoint, tokenizer_config, vocabulary)
    eos = result.get(_KEYS["eos"])
    ends = {eos} if eos is not None else set()
    for source in (generation, *configs):
        for id in _id_list(source.get("eos_token_id"), len(ids_by_text)):
            if vocabulary.types[id] in (CONTROL, USER_DEFINED):
                ends.add(id)
            elif id not in ends:  # a config's default that nobody set: text would stop in its midst
                text = quoted(vocabulary.texts[id])
                vocabulary.note(f"'eos_token_id' names {text}, which is no special token; left out.")
    result.update(_ends(eos, ends, ids_by_text, vocabulary, templates.get("tokenizer.chat_template", "")))
    result.update(_around(result, vocabulary, tokenizer_config))
    if eos is None and vocabulary.model != "bert":
        result.update(_no_eos(vocabulary))
    result.update(_template_tokens(result, named, vocabulary, "".join(str(text) for text in templates.values())))
    return {**result, **templates}


def named_tokens(checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens, `bos_token` and so on, as the original's templates see them: what the files name, else the
    default of the tokenizer's class. A null in a file is no token, whatever the class."""
    if vocabulary.in_pieces:
        defaults = {f"{role}_token": vocabulary.texts[id] for role, id in vocabulary.special_ids.items()}
    else:
        defaults = CLASS_TOKENS.get(tokenizer_class(checkpoint, tokenizer_config) or "", {})
    named = {name: text for name, text in defaults.items() if vocabulary.find(text) is not None}
    for source in special_sources(checkpoint, tokenizer_config):
        entries = {name: entry for name, entry in source.items() if name.endswith("_token")}
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            more = source.get(key)
            entries.update(more if isinstance(more, Mapping) else {})
        for name, entry in entries.items():
            text = text_of(entry)
            if text is not None:
                named[name] = text
            elif entry is None:
                named.pop(name, None)
    return named


def special_sources(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files that name special tokens, later ones overriding earlier ones. A tokenizer_config.json that lists its
    added tokens names them all, and transformers then reads no special_tokens_map.json."""
    if "added_tokens_decoder" in tokenizer_config:
        return [tokenizer_config]
    return [tokenizer_config, checkpoint.json("special_tokens_map.json")]


def tokenizer_class(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The class that transformers loads the tokenizer with, without the suffix for fast ones; None where it takes the
    file as it is. Qwen2's and Qwen3.5's are fixed there, as many of their models name a wrong one."""
    kind = checkpoint.config.values.get("model_type")
    named = tokenizer_config.get("tokenizer_class") or checkpoint.config.values.get("tokenizer_class")
    if isinstance(kind, str) and kind.startswith("qwen3_5"):
        return "Qwen3_5Tokenizer"
    if kind == "qwen2" or (kind in ("qwen3", "qwen3_moe") and named is None):
        return "Qwen2Tokenizer"
    if kind in _BERTS and named is None:
        return "BertTokenizer"
    return named.removesuffix("Fast") if isinstance(named, str) else None


def _around(keys: Mapping[str, Any], vocabulary: Vocabulary, tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys for adding BOS, EOS and other tokens around a text. Flags in tokenizer_config.json override the
    tokenizer's file."""
    result: dict[str, Any] = {}
    if any(id not in vocabulary.texts for id in (*vocabulary.before, *vocabulary.after)):
        raise GGPYError("The tokenizer puts tokens around a text that are beyond the model's vocab_size.")
    beside = (("bos", vocabulary.add_bos, vocabulary.before), ("eos", vocabulary.add_eos, vocabulary.after))
    for name, default, own in beside:
        id = keys.get(_KEYS[name])
        said = tokenizer_config.get(f"add_{name}_token")
        added = own if own else (id,) if default and id is not None else ()
        if isinstance(said, bool):
            added = (id,) if said and id is not None else ()
        result[f"tokenizer.ggml.add_{name}_token"] = added == (id,)
        if added and added != (id,):
            place = {"bos": "before", "eos": "after"}[name]
            result[f"{OWN}{place}_token_ids"] = np.array(added, np.int32)
            vocabulary.note(f"the tokenizer puts {vocabulary.some(added)} {place} a text", own=True)
    if vocabulary.model == "bert":  # readers would add a separator that no key denies
        result["tokenizer.ggml.add_sep_token"] = False
    return result


def _no_eos(vocabulary: Vocabulary) -> dict[str, Any]:
    """An end for readers that would take token 11, a comma, or 2 where none is named: one that no answer holds."""
    unused = (id for id, type in vocabulary.types.items() if type == UNUSED)
    byte = vocabulary.find("<0xFF>" if vocabulary.in_pieces else byte_level_text(b"\xff"))
    stand_in = next(unused, byte)  # the byte 255 is in no text
    if stand_in is None:
        vocabulary.note("no end-of-text token is named, and other readers of GGUF may take a token of text for it.")
        return {}
    vocabulary.note(
        f"no end-of-text token is named; the key for it holds {quoted(vocabulary.texts[stand_in])}, which no text has,"
        " for readers that would take another one."
    )
    return {_KEYS["eos"]: stand_in, f"{OWN}no_eos": True}


def _template_tokens(
    keys: Mapping[str, Any], named: Mapping[str, str], vocabulary: Vocabulary, templates: str
) -> dict[str, Any]:
    """The texts that templates see as `bos_token` and so on, where the ids alone do not give them."""
    told = {f"{name}_token": vocabulary.texts[keys[key]] for name, key in _KEYS.items() if key in keys}
    unlike = [name for name in {**named, **told} if named.get(name) != told.get(name) and name in templates]
    for name in ("bos_token", "eos_token"):
        if name in templates and name not in named and name not in told:
            vocabulary.note(f"the chat template writes {name!r}, but there is none; other readers may write some word.")
    if not unlike:
        return {}
    for name in unlike:
        what = quoted(named[name]) if name in named else "empty"
        vocabulary.note(f"the chat template's {quoted(name)} is {what} in the original", own=True)
    return {f"{OWN}template_tokens": json.dumps({n: t for n, t in named.items() if n in templates}, ensure_ascii=False)}


def _id_list(value: Any, n_vocab: int) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [id for id in values if type(id) is int and 0 <= id < n_vocab]


def _ends(
    eos: int | None, ends: set[int], ids_by_text: Mapping[str, int], vocabulary: Vocabulary, template: str
) -> dict[str, Any]:
    """EOT and EOM keys, so that every end of generation is known to a reader by a key or by its text."""
    result: dict[str, Any] = {}
    turn = next((t for t in END_OF_TURN if t in template and t in ids_by_text), None)
    turn = turn or next((t for t in END_OF_TURN if t in ids_by_text and ids_by_text[t] in ends), None)
    untold = sorted(id for id in ends - {eos} if vocabulary.texts[id] not in _KNOWN_ENDS)
    if turn is not None:
        result["tokenizer.ggml.eot_token_id"] = ids_by_text[turn]
    elif untold:
        result["tokenizer.ggml.eot_token_id"] = untold.pop(0)
    if END_OF_MESSAGE in ids_by_text:
        result["tokenizer.ggml.eom_token_id"] = ids_by_text[END_OF_MESSAGE]
    elif untold:
        result["tokenizer.ggml.eom_token_id"] = untold.pop(0)
    if untold:
        result[EXTRA_ENDS] = np.array(sorted(ends), np.int32)
        vocabulary.note(
            f"GGUF has keys for three ends of generation; {vocabulary.some(untold)}"
            f" stand in {EXTRA_ENDS!r}, which not every reader knows."
        )
    return result
