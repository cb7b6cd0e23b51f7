"""Every key of a tokenizer.json and a tokenizer_config.json, and what becomes of it. A key that is not listed is
reported.

tokenizer.json: https://huggingface.co/docs/tokenizers; tokenizer_config.json: what transformers' classes for Llama,
Mistral, Qwen and BERT take. The options of a step stand under its part and kind.
`tests/convert/test_convert_tokenizer_keys.py` goes through the list and shows that each does what is said here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ggpy.convert.pre_tokenizer import flat
from ggpy.errors import quoted

FOLLOWED = "followed"  # written into the GGUF file, or decides what is
REFUSED = "refused"  # a value that would change tokens and that no key of GGUF or ours says
NOTED = "noted"  # not followed, and the user is told

_OFFSETS = "says where in the text a token stands, not which one it is"
_CALL = "a default of calls that pad or cut; transformers sets it aside unless a call asks for it"
_SAVED = "what the program that wrote the file remembers for itself"

#: Path of a key → FOLLOWED, REFUSED, NOTED, or the reason why it does not matter. A part, its steps and their `type`
#: are followed where the options of the kind stand here or it has none; other kinds are refused.
TOKENIZER_JSON: Mapping[str, str] = {
    "version": _SAVED,
    "truncation": _CALL,
    "padding": _CALL,
    "added_tokens": FOLLOWED,
    "added_tokens.id": FOLLOWED,
    "added_tokens.content": FOLLOWED,
    "added_tokens.special": FOLLOWED,
    "added_tokens.single_word": FOLLOWED,
    "added_tokens.lstrip": FOLLOWED,
    "added_tokens.rstrip": FOLLOWED,
    "added_tokens.normalized": FOLLOWED,
    "normalizer": FOLLOWED,
    "normalizer.Strip.strip_left": FOLLOWED,
    "normalizer.Strip.strip_right": FOLLOWED,
    "normalizer.Replace.pattern": FOLLOWED,
    "normalizer.Replace.content": FOLLOWED,
    "normalizer.Prepend.prepend": FOLLOWED,
    "normalizer.Precompiled.precompiled_charsmap": FOLLOWED,
    "normalizer.BertNormalizer.clean_text": FOLLOWED,
    "normalizer.BertNormalizer.handle_chinese_chars": FOLLOWED,
    "normalizer.BertNormalizer.strip_accents": FOLLOWED,
    "normalizer.BertNormalizer.lowercase": FOLLOWED,
    "pre_tokenizer": FOLLOWED,
    "pre_tokenizer.ByteLevel.add_prefix_space": FOLLOWED,
    "pre_tokenizer.ByteLevel.use_regex": FOLLOWED,
    "pre_tokenizer.ByteLevel.trim_offsets": _OFFSETS,
    "pre_tokenizer.Split.pattern": FOLLOWED,
    "pre_tokenizer.Split.behavior": FOLLOWED,
    "pre_tokenizer.Split.invert": FOLLOWED,
    "pre_tokenizer.Digits.individual_digits": FOLLOWED,
    "pre_tokenizer.Punctuation.behavior": FOLLOWED,
    "pre_tokenizer.Metaspace.replacement": REFUSED,
    "pre_tokenizer.Metaspace.str_rep": "repeats 'replacement'",
    "pre_tokenizer.Metaspace.prepend_scheme": FOLLOWED,
    "pre_tokenizer.Metaspace.add_prefix_space": FOLLOWED,
    "pre_tokenizer.Metaspace.split": NOTED,
    "post_processor": FOLLOWED,
    "post_processor.ByteLevel.add_prefix_space": _OFFSETS,
    "post_processor.ByteLevel.trim_offsets": _OFFSETS,
    "post_processor.ByteLevel.use_regex": _OFFSETS,
    "post_processor.TemplateProcessing.single": FOLLOWED,
    "post_processor.TemplateProcessing.pair": "for two texts at once, which no language model is given",
    "post_processor.TemplateProcessing.special_tokens": FOLLOWED,
    "post_processor.BertProcessing.cls": FOLLOWED,
    "post_processor.BertProcessing.sep": FOLLOWED,
    "post_processor.RobertaProcessing.cls": FOLLOWED,
    "post_processor.RobertaProcessing.sep": FOLLOWED,
    "post_processor.RobertaProcessing.trim_offsets": _OFFSETS,
    "post_processor.RobertaProcessing.add_prefix_space": _OFFSETS,
    "decoder": NOTED,
    "decoder.ByteLevel.add_prefix_space": "does nothing to decoding",
    "decoder.ByteLevel.trim_offsets": "does nothing to decoding",
    "decoder.ByteLevel.use_regex": "does nothing to decoding",
    "decoder.Metaspace.replacement": REFUSED,
    "decoder.Metaspace.str_rep": "repeats 'replacement'",
    "decoder.Metaspace.prepend_scheme": "an answer continues a text, so no space of its own is taken off",
    "decoder.Metaspace.add_prefix_space": "an answer continues a text, so no space of its own is taken off",
    "decoder.Metaspace.split": "does nothing to decoding",
    "decoder.Replace.pattern": REFUSED,
    "decoder.Replace.content": REFUSED,
    "decoder.Strip.content": REFUSED,
    "decoder.Strip.start": "an answer continues a text, so no space of its own is taken off",
    "decoder.Strip.stop": REFUSED,
    "decoder.WordPiece.prefix": REFUSED,
    "decoder.WordPiece.cleanup": "takes spaces before punctuation off decoded text; here text is what the tokens spell",
    "model": FOLLOWED,
    "model.BPE.vocab": FOLLOWED,
    "model.BPE.merges": FOLLOWED,
    "model.BPE.dropout": REFUSED,
    "model.BPE.unk_token": FOLLOWED,
    "model.BPE.fuse_unk": FOLLOWED,
    "model.BPE.byte_fallback": FOLLOWED,
    "model.BPE.ignore_merges": FOLLOWED,
    "model.BPE.continuing_subword_prefix": REFUSED,
    "model.BPE.end_of_word_suffix": REFUSED,
    "model.Unigram.vocab": FOLLOWED,
    "model.Unigram.unk_id": FOLLOWED,
    "model.Unigram.byte_fallback": FOLLOWED,
    "model.WordPiece.vocab": FOLLOWED,
    "model.WordPiece.unk_token": FOLLOWED,
    "model.WordPiece.continuing_subword_prefix": FOLLOWED,
    "model.WordPiece.max_input_chars_per_word": FOLLOWED,
}

_IDS = "tokens are found by their text"
_SLOW = "how transformers' slow tokenizers join the tokens that they decode; here text is what the tokens spell"

_SLOW_ALONE = "for transformers' slow tokenizers alone"

#: The same for tokenizer_config.json. A key that ends in `_token` is a name that templates may write: followed.
TOKENIZER_CONFIG: Mapping[str, str] = {
    "add_bos_token": FOLLOWED,
    "add_eos_token": FOLLOWED,
    "add_prefix_space": FOLLOWED,
    "added_tokens_decoder": FOLLOWED,
    "additional_special_tokens": FOLLOWED,
    "auto_map": NOTED,
    "backend": _SAVED,
    "bos_token_id": _IDS,
    "chat_template": FOLLOWED,
    "clean_up_tokenization_spaces": _SLOW,
    "device_map": _SAVED,
    "do_basic_tokenize": _SLOW_ALONE,
    "do_lower_case": FOLLOWED,
    "eos_token_id": _IDS,
    "errors": "bytes that are no text are shown as U+FFFD, as by default",
    "extra_special_tokens": FOLLOWED,
    "fix_mistral_regex": NOTED,
    "from_slow": _SAVED,
    "is_local": _SAVED,
    "legacy": FOLLOWED,
    "local_files_only": _SAVED,
    "max_length": _CALL,
    "merges_file": _SAVED,
    "model_input_names": _SAVED,
    "model_max_length": "the context is the model's",
    "model_specific_special_tokens": FOLLOWED,
    "name_or_path": _SAVED,
    "never_split": _SLOW_ALONE,
    "pad_to_multiple_of": _CALL,
    "pad_token_id": _IDS,
    "pad_token_type_id": _CALL,
    "padding": _CALL,
    "padding_side": _CALL,
    "processor_class": "names what prepares images and sound",
    "response_schema": "how a program may read answers",
    "return_token_type_ids": _SAVED,
    "sp_model_kwargs": NOTED,
    "spaces_between_special_tokens": _SLOW,
    "special_tokens_map_file": _SAVED,
    "split_special_tokens": REFUSED,
    "stride": _CALL,
    "strip_accents": FOLLOWED,
    "tokenize_chinese_chars": FOLLOWED,
    "tokenizer_class": FOLLOWED,
    "tokenizer_file": _SAVED,
    "transformers_version": _SAVED,
    "truncation": _CALL,
    "truncation_side": _CALL,
    "truncation_strategy": _CALL,
    "unk_token_id": _IDS,
    "use_default_system_prompt": "transformers reads it no more; a system message is the user's",
    "use_fast": "both kinds are the same tokenizer",
    "vocab_file": _SAVED,
    "vocab_size": "that of the model counts",
}

_MOST = 20  # notes on keys of one file

_STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
          "decoder": "decoders"}  # fmt: skip


def unknown_keys(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """A note for each key that is in neither list; what it would do is not known, so it is not followed."""
    known = {"tokenizer.json": TOKENIZER_JSON, "tokenizer_config.json": TOKENIZER_CONFIG}
    found = [("tokenizer.json", path) for path in dict.fromkeys(_paths(tokenizer))]
    found += [("tokenizer_config.json", key) for key in config if not key.endswith("_token")]
    unknown = [(file, path) for file, path in found if path not in known[file] and not path.endswith(".type")]
    notes = [f"{file} has {quoted(path)}, which ggpy does not know and does not follow." for file, path in unknown]
    more = f"there are {len(unknown) - _MOST} more keys that ggpy does not know."
    return [*notes[:_MOST], more] if len(notes) > _MOST else notes


def _paths(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    yield from tokenizer
    entries = tokenizer.get("added_tokens")
    for entry in entries if isinstance(entries, list) else []:
        yield from (f"added_tokens.{key}" for key in entry)
    model = tokenizer.get("model")
    if isinstance(model, Mapping):
        yield from (f"model.{model.get('type', 'BPE')}.{key}" for key in model)
    for part, inner in _STEPS.items():
        yield from (f"{part}.{step.get('type')}.{key}" for step in flat(tokenizer.get(part), inner) for key in step)
