"""Which tokens play which role and where generation ends: the keys beside the vocabulary itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import chat_templates
from ggpy.convert.vocabulary import CONTROL, USER_DEFINED, Vocabulary

_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # spelt so in GGUF
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}

#: Texts that end a turn, the likelier first. Readers of GGUF take a token of this text as an end whatever the keys say.
END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
END_OF_MESSAGE = "<|eom_id|>"
_KNOWN_ENDS = frozenset((*END_OF_TURN, END_OF_MESSAGE, "<|return|>", "<|call|>", "</s>", "[EOS]", "<eos>"))

#: Ends that neither a text nor a key of their own tells; ggpy's readers take them from here.
EXTRA_ENDS = "tokenizer.ggml.eog_token_ids"


def special_token_metadata(
    checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Ids of the special tokens, whether BOS and EOS are added, every end of generation, and the chat template."""
    ids_by_text = {text: id for id, text in vocabulary.texts.items()}
    generation = checkpoint.json("generation_config.json")
    names = _names(checkpoint, vocabulary, tokenizer_config)

    def role(name: str) -> int | None:
        if names.get(name) in ids_by_text:
            return ids_by_text[names[name]]
        if name in vocabulary.special_ids:
            return vocabulary.special_ids[name]
        for source in (checkpoint.config.values, generation):
            ids = _id_list(source.get(f"{name}_token_id"), len(ids_by_text))
            if ids:
                return ids[0]
        return None

    result: dict[str, Any] = {}
    for name, key in _KEYS.items():
        id = role(name)
        if id is not None:
            result[key] = id
    templates = chat_templates(checkpoint, tokenizer_config, vocabulary)
    eos = result.get(_KEYS["eos"])
    ends = {eos} if eos is not None else set()
    for source in (generation, checkpoint.config.values):
        for id in _id_list(source.get("eos_token_id"), len(ids_by_text)):
            if vocabulary.types[id] in (CONTROL, USER_DEFINED):
                ends.add(id)
            elif id not in ends:  # a config's default that nobody set: text would stop in its midst
                note = f"'eos_token_id' names {vocabulary.texts[id]!r}, which is no special token; left out."
                vocabulary.notes += [note] if note not in vocabulary.notes else []
    result.update(_ends(eos, ends, ids_by_text, vocabulary, templates.get("tokenizer.chat_template", "")))

    for name, said in (("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)):
        configured = tokenizer_config.get(f"add_{name}_token")
        # The slow tokenizers' flags rule for SentencePiece; elsewhere the tokenizer's own file knows best.
        if isinstance(configured, bool) and (said is None or vocabulary.model == "llama"):
            said = configured
        result[f"tokenizer.ggml.add_{name}_token"] = bool(said) and _KEYS[name] in result
    return {**result, **templates}


def _names(checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The text of each role's token, from tokenizer_config.json, special_tokens_map.json, or the tokenizer itself."""
    names = dict(vocabulary.special_names)
    for source in (checkpoint.json("special_tokens_map.json"), tokenizer_config):
        for name in _KEYS:
            entry = source.get(f"{name}_token")
            text = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(text, str):
                names[name] = text
    return names


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
        vocabulary.notes.append(
            f"GGUF has keys for three ends of generation; {', '.join(repr(vocabulary.texts[id]) for id in untold)}"
            f" stand in {EXTRA_ENDS!r}, which not every reader knows."
        )
    return result
