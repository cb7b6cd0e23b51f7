"""SentencePiece's vocabularies on their way into GGUF, from tokenizer.model and from tokenizer.json."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ggpy import Tokenizer
from ggpy.convert.pipeline import convert
from ggpy.convert.sentencepiece_model import read_sentencepiece_model
from ggpy.errors import GGPYError
from tests.support.tiny import TEXT, sentencepiece_model, sentencepiece_pieces, tiny_checkpoint
from tests.support.tokenizer_folders import export, exported, put, remove, spm_like_json, tokenizer_of, update
from tests.support.vocabularies import random_texts
from tests.support.vocabularies import sentencepiece_model as trained

SAMPLES = (TEXT, "Hello, world! 12345 \n\n\tx  y", "写一首诗。🙂 naïve café", "I'll don't WE'RE")

# tokenizer.model


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_model(tmp_path: Path, prefix: bool) -> None:
    folder, out = tiny_checkpoint(tmp_path, "mistral"), tmp_path / "out.gguf"
    data = sentencepiece_model(sentencepiece_pieces(), dummy_prefix=prefix)
    (folder / "tokenizer.model").write_bytes(data)
    convert(folder, "f16", out)
    keys = export(folder)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=data)
    for id in range(oracle.vocab_size()):
        assert keys["tokenizer.ggml.tokens"][id] == oracle.id_to_piece(id)
        if id > 2:  # the added tokens of tokenizer_config.json stand over the first three
            assert keys["tokenizer.ggml.scores"][id] == oracle.get_score(id)
    assert keys["tokenizer.ggml.token_type"][:4].tolist() == [2, 3, 3, 6]
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    tokenizer = Tokenizer.from_gguf(out)
    for text in SAMPLES:
        assert tokenizer.tokenize(text) == [1, *oracle.encode(text)]


def test_a_tokenizer_json_beside_it_says_what_stands_around_a_text(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "mistral")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()))
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
    special = {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}
    around = {"type": "TemplateProcessing", "single": [text, end], "pair": [], "special_tokens": special}
    put(folder, "tokenizer.json", {"post_processor": around})
    remove(folder, "tokenizer_config.json", "add_bos_token", "add_eos_token")  # they would decide
    keys = export(folder)
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.add_eos_token"] is True
    put(folder, "tokenizer.json", {"decoder": {"type": "CTC"}})
    with pytest.raises(GGPYError, match=r"the decoder .*CTC"):
        export(folder)


def test_sentencepieces_own_rules(tmp_path: Path) -> None:
    """Full-width letters, ligatures, runs of spaces: by the map of characters in the model, as sentencepiece does."""
    theirs = trained(rule="nmt_nfkc", remove_extra_whitespaces=True)
    folder = tiny_checkpoint(tmp_path, "mistral")
    (folder / "tokenizer.model").write_bytes(theirs.serialized_model_proto())
    keys, notes = exported(folder, theirs.vocab_size())
    assert keys["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert len(keys["tokenizer.ggml.precompiled_charsmap"]) > 1000
    assert len(notes) == 2
    ours = Tokenizer(keys)
    for text in [*random_texts(150, seed=5)[1:], "\ufb01 ＡＢＣ\u3000 ① ½", "  a   b  "]:
        if "\u2581" not in text:
            assert ours.tokenize(text, add_special=False) == theirs.encode(text), repr(text)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_sentencepiece_models_end_in_a_sentence(data: st.DataObject) -> None:
    model = bytearray(sentencepiece_model(sentencepiece_pieces()))
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with suppress(GGPYError):
        read_sentencepiece_model(bytes(model[: data.draw(st.integers(0, len(model)))]), "tokenizer.model")


# The same in tokenizer.json


def test_sentencepiece_as_tokenizer_json(tmp_path: Path) -> None:
    folder, out = tiny_checkpoint(tmp_path, "mistral"), tmp_path / "out.gguf"
    (folder / "tokenizer.model").unlink()
    put(folder, "tokenizer.json", spm_like_json())
    convert(folder, "f16", out)
    keys = export(folder)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"][:4].tolist() == [2, 3, 3, 6]
    assert keys["tokenizer.ggml.add_bos_token"]
    assert keys["tokenizer.ggml.add_space_prefix"]
    tokenizer = Tokenizer.from_gguf(out)
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES:
        assert tokenizer.tokenize(text) == oracle.encode(text).ids


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("legacy", [None, True, False])
def test_where_the_space_comes(tmp_path: Path, scheme: str, legacy: bool | None) -> None:
    """After each special token or before the text alone; tokenizer_config.json's `legacy` rules, as in transformers."""
    folder = tiny_checkpoint(tmp_path, "mistral")
    (folder / "tokenizer.model").unlink()
    steps = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    told = {**spm_like_json(), "normalizer": None, "pre_tokenizer": steps}
    put(folder, "tokenizer.json", told)
    if legacy is not None:
        update(folder, "tokenizer_config.json", legacy=legacy)
        if scheme != "never":
            told["pre_tokenizer"] = {**steps, "prepend_scheme": "always" if legacy else "first"}
    theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(told)), tokenizer_of(folder)
    for text in ("the</s>the river</s> is", "</s>the", " the", ""):
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, text


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_unknown_characters(tmp_path: Path, byte_fallback: bool) -> None:
    folder = tiny_checkpoint(tmp_path, "mistral")
    (folder / "tokenizer.model").unlink()
    for fuse in (True, False):
        told = spm_like_json()
        told["model"].update(byte_fallback=byte_fallback, fuse_unk=fuse)
        put(folder, "tokenizer.json", told)
        theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(told)), tokenizer_of(folder)
        for text in ("龘龘 the 龘", "\U0001f642", "龘"):
            assert ours.tokenize(text) == theirs.encode(text).ids


@pytest.mark.parametrize("seed", range(6))
def test_merges_that_scores_cannot_say(tmp_path: Path, seed: int) -> None:
    """Lists of merges that leave ways to make a piece out, or rank them apart."""
    folder, rng = tiny_checkpoint(tmp_path, "mistral"), random.Random(seed)
    (folder / "tokenizer.model").unlink()
    told = spm_like_json()
    whole = export_of(folder, told)
    merges = told["model"]["merges"]
    told["model"]["merges"] = rng.sample(merges, len(merges) * 2 // 3) if seed % 2 else merges[::-1]
    keys = export_of(folder, told)
    assert ("ggpy.tokenizer.merges" in keys) > ("ggpy.tokenizer.merges" in whole) or seed % 2 == 0
    theirs = tokenizers.Tokenizer.from_str(json.dumps(told))
    for text in (*SAMPLES, *TEXT.split(".")):
        assert Tokenizer(keys).tokenize(text) == theirs.encode(text).ids


def export_of(folder: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    put(folder, "tokenizer.json", tokenizer)
    return export(folder)
