"""A checkpoint's tokenizer as GGUF's `tokenizer.*` keys, from whichever of its files says most."""

from __future__ import annotations

from typing import Any

from ggpy.convert import wordpiece
from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import qwen_template
from ggpy.convert.sentencepiece_model import read_sentencepiece_model
from ggpy.convert.special_tokens import named_tokens, special_sources, special_token_metadata, tokenizer_class
from ggpy.convert.tiktoken_ranks import GLM4, GLM4_BEFORE, read_tiktoken
from ggpy.convert.tokenizer_json import (
    check_decoder,
    is_byte_level,
    read_post_processor,
    read_tokenizer_json,
    set_normalizer,
    space_prefix_scheme,
)
from ggpy.convert.tokenizer_keys import unknown_keys
from ggpy.convert.vocab_files import tokenizer_of_words
from ggpy.convert.vocabulary import (
    NORMAL,
    UNKNOWN,
    UNUSED,
    AddedToken,
    Vocabulary,
    added_tokens,
    looks_special,
    text_of,
)
from ggpy.errors import GGPYError
from ggpy.text.tokenizer.vocabulary import OWN


def export_tokenizer(checkpoint: Checkpoint, n_vocab: int) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.*` keys for a model with `n_vocab` embedding rows, and notes for the user.

    GGPYError where the folder has no tokenizer, or one that GGUF or ggpy has no place for.
    """
    config = checkpoint.json("tokenizer_config.json")
    vocabulary = _read_vocabulary(checkpoint, config)
    _check_config(vocabulary, config, str(checkpoint.folder / "tokenizer_config.json"))
    vocabulary.fit(n_vocab)
    keys = {**vocabulary.metadata(), **special_token_metadata(checkpoint, vocabulary, config)}
    types = checkpoint.config.values.get("type_vocab_size", 1 if vocabulary.model == "bert" else None)
    if type(types) is int and types >= 0:
        keys["tokenizer.ggml.token_type_count"] = types  # rows of the embedding of token types
    return keys, vocabulary.notes


def _read_vocabulary(checkpoint: Checkpoint, config: dict[str, Any]) -> Vocabulary:
    folder = checkpoint.folder
    name = tokenizer_class(checkpoint, config)
    ranks = checkpoint.bytes("qwen.tiktoken")
    tokenizer = checkpoint.json("tokenizer.json")
    model = checkpoint.bytes("tokenizer.model")
    if ranks is not None and not tokenizer:
        vocabulary = read_tiktoken(ranks, str(folder / "qwen.tiktoken"))
        vocabulary.fallback_template = qwen_template(checkpoint)
    elif tokenizer and (model is None or is_byte_level(tokenizer)):
        tokenizer, notes = wordpiece.as_its_class_has_it(tokenizer, config, name)
        vocabulary = read_tokenizer_json(tokenizer, config, str(folder / "tokenizer.json"))
        vocabulary.notes += [*notes, *unknown_keys(tokenizer, {})]
    elif model is not None and name == GLM4:
        vocabulary = read_tiktoken(model, str(folder / "tokenizer.model"), "chatglm-bpe", ())
    elif model is not None:
        # The scores stand here alone; a tokenizer.json beside it repeats the pieces and adds tokens.
        vocabulary = read_sentencepiece_model(model, str(folder / "tokenizer.model"))
        for token in added_tokens(tokenizer.get("added_tokens") or [], str(folder / "tokenizer.json")):
            vocabulary.put_added(token)
        vocabulary.set_space_prefix(space_prefix_scheme(tokenizer))
        where = str(folder / "tokenizer.json")
        set_normalizer(vocabulary, tokenizer.get("normalizer"), where)
        if tokenizer.get("post_processor"):  # says what stands around a text, in place of SentencePiece's custom
            vocabulary.add_bos = vocabulary.add_eos = None
            read_post_processor(vocabulary, tokenizer["post_processor"], where)
        if tokenizer.get("decoder"):
            check_decoder(vocabulary, tokenizer["decoder"], where)
        vocabulary.notes += unknown_keys(tokenizer, {})
    elif (lines := checkpoint.text("vocab.txt")) is not None and name in wordpiece.CLASSES:
        where = str(folder / "vocab.txt")
        vocabulary = read_tokenizer_json(wordpiece.tokenizer_of_lines(lines, config), config, where)
        wordpiece.put_around(vocabulary, named_tokens(checkpoint, vocabulary, config), where)
    elif (words := checkpoint.json("vocab.json")) and (merges := checkpoint.text("merges.txt")) is not None:
        built = tokenizer_of_words(words, merges, name, str(folder))
        vocabulary = read_tokenizer_json(built, config, str(folder / "vocab.json"))
    else:
        raise GGPYError(
            f"{folder} has no tokenizer that ggpy reads: no tokenizer.json, tokenizer.model, vocab.json with"
            " merges.txt, BERT's vocab.txt, or qwen.tiktoken."
        )
    _add_tokens(checkpoint, vocabulary, config)
    if name == GLM4 and not vocabulary.before:
        vocabulary.before = tuple(id for text in GLM4_BEFORE if (id := vocabulary.find(text)) is not None)
    if vocabulary.in_pieces:
        if isinstance(config.get("add_prefix_space"), bool):
            vocabulary.add_space_prefix = config["add_prefix_space"]
        if isinstance(config.get("legacy"), bool):
            known = f"{OWN}space_prefix" in vocabulary.extra
            vocabulary.set_space_prefix("first" if not config["legacy"] else "always" if known else None)
        if vocabulary.extra.get(f"{OWN}space_prefix") == "first":
            vocabulary.note("the tokenizer puts no space after special tokens", own=True)
    return vocabulary


def _add_tokens(checkpoint: Checkpoint, vocabulary: Vocabulary, config: dict[str, Any]) -> None:
    """Tokens that stand beside the tokenizer's own file: in added_tokens.json, and in tokenizer_config.json."""
    for text, id in checkpoint.json("added_tokens.json").items():
        entry = {"id": id, "content": text, "special": looks_special(text)}
        for token in added_tokens([entry], str(checkpoint.folder / "added_tokens.json")):
            if token.id not in vocabulary.texts:
                vocabulary.put_added(token)
    where = f"{checkpoint.folder / 'tokenizer_config.json'}, 'added_tokens_decoder',"
    for token in added_tokens(config.get("added_tokens_decoder") or {}, where):
        vocabulary.put_added(token)
    specials = list(named_tokens(checkpoint, vocabulary, config).values())
    for source in special_sources(checkpoint, config):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = source.get(key)
            specials += [t for entry in more if (t := text_of(entry))] if isinstance(more, list) else []
    ids = {text: id for id, text in vocabulary.texts.items()}
    for text in dict.fromkeys(specials):
        id = ids.setdefault(text, max(vocabulary.texts) + 1)  # transformers adds them after the last
        if id not in vocabulary.flags and vocabulary.types.get(id, NORMAL) in (NORMAL, UNUSED, UNKNOWN):
            # A word that is named, such as a pad_token "!", is found whole, but stays a part of text.
            vocabulary.put_added(AddedToken(id, text, text[0] in "<[" and text[-1] in ">]", frozenset()))


def _check_config(vocabulary: Vocabulary, config: dict[str, Any], where: str) -> None:
    """Refuse or report the settings of tokenizer_config.json that are not followed."""
    if config.get("split_special_tokens") is True:
        raise GGPYError(
            f"{where} wants special tokens cut like other text ('split_special_tokens'); ggpy finds them whole."
        )
    vocabulary.notes += unknown_keys({}, config)
    if config.get("sp_model_kwargs"):
        vocabulary.note("tokenizer_config.json has 'sp_model_kwargs', which ggpy does not follow.")
    if config.get("fix_mistral_regex"):
        vocabulary.note("tokenizer_config.json has 'fix_mistral_regex'; ggpy cuts text as tokenizer.json says.")
    if config.get("auto_map") and vocabulary.fallback_template is None:
        vocabulary.note("the tokenizer comes with code of its own ('auto_map'), which ggpy does not run.")
