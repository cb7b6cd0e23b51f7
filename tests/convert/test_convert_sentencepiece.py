"""SentencePiece's vocabularies on their way into GGUF, from tokenizer.model and from tokenizer.json."""

from __future__ import annotations

import io
import json
import random
from contextlib import suppress
from functools import cache
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
from tests.support.vocabularies import BYTE, CORPUS, USER_DEFINED, random_texts
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


# Gemma: no space before a text, runs of white space and tags as tokens, bytes for what is unknown

RUNS = [char * i for char in ("\u2581", "\n", "\t") for i in range(2, 9)]
TURNS = ["<start_of_turn>", "<end_of_turn>"]


@cache
def gemma_model() -> sentencepiece.SentencePieceProcessor:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()), model_writer=out,
        model_type="bpe", vocab_size=800, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=["<mask>", "\n", "\t", *RUNS, *TURNS, "<s>", "</s>"],
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def gemma_json() -> dict[str, Any]:
    """The tokenizer.json that is made of it: every way to cut a piece is a merge, by the piece's score. The runs have
    one score, so their merges are mixed."""
    model = gemma_model()
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    vocab = {text: i for i, text in enumerate(pieces)}
    merges = [
        (model.get_score(vocab[text]), i, text[:i], text[i:])
        for text in pieces
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab and not model.is_control(vocab[text])
    ]
    merges.sort(key=lambda merge: (-merge[0], -merge[1]))
    added = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *RUNS, *TURNS, "<s>", "</s>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    space = {"String": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": vocab[text], "content": text, "special": i < 4 or text in TURNS, **flags}
            for i, text in enumerate(added)
        ],
        "normalizer": {"type": "Replace", "pattern": space, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [[left, right] for _, _, left, right in merges],
        },
    }  # fmt: skip


@pytest.mark.parametrize("files", ["model", "json", "both"])
def test_gemma(tmp_path: Path, files: str) -> None:
    folder = tiny_checkpoint(tmp_path, "mistral")
    put(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>"},
    )
    (folder / "tokenizer.model").write_bytes(gemma_model().serialized_model_proto())
    put(folder, "tokenizer.json", gemma_json())
    if files != "both":
        (folder / f"tokenizer.{'json' if files == 'model' else 'model'}").unlink()
    keys, notes = exported(folder, gemma_model().vocab_size())
    assert notes == []
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.bos_token_id"]) == (True, 2)
    assert not [key for key in keys if key.startswith("ggpy.")]
    kinds = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"].tolist(), strict=True))
    assert (kinds["  "], kinds["\n\n"], kinds["<mask>"], kinds["<0x0A>"]) == (USER_DEFINED,) * 3 + (BYTE,)
    ours, theirs = Tokenizer(keys), gemma_model()
    whole = tokenizers.Tokenizer.from_str(json.dumps(gemma_json()))
    assert ours.eog == {1, theirs.piece_to_id("<end_of_turn>")}
    for text in ("a     b\n\n\nc\t\t d<s>e</s>", "<start_of_turn>user\n  x", *random_texts(200, seed=8)):
        ids = ours.tokenize(text, parse_special=True)
        assert ids == [2, *theirs.encode(text)] == whole.encode(text).ids, repr(text)
        assert ours.detokenize(ids[1:]) == text


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
