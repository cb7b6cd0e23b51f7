"""BERT's tokenizers on their way into GGUF: tokenizer.json and vocab.txt, and what tokenizer_config.json changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers.normalizers import BertNormalizer

from ggpy import Tokenizer
from ggpy.errors import GGPYError
from tests.support.tiny import tiny_checkpoint
from tests.support.tokenizer_folders import export, exported, put, update
from tests.support.vocabularies import BERT_SPECIALS, CONTROL, NORMAL, UNUSED, hf_wordpiece, random_texts, write_gguf

TEXTS = ("The naïve Café, [MASK] 中文!", "ΣΊΣΥΦΟΣ İstanbul\x07\u200d x", *random_texts(100, seed=6))
N = 512


def bert_folder(tmp_path: Path, **config: Any) -> Path:
    """A folder with a tokenizer.json of 400 pieces and a tokenizer_config.json; `config` changes config.json."""
    folder = tiny_checkpoint(tmp_path, "mistral", **config)
    (folder / "tokenizer.model").unlink()
    put(folder, "tokenizer.json", json.loads(hf_wordpiece(size=400).to_str()))
    roles = {f"{text[1:-1].lower()}_token": text for text in BERT_SPECIALS}
    put(folder, "tokenizer_config.json", {**roles, "tokenizer_class": "BertTokenizer", "do_lower_case": True})
    for name in ("special_tokens_map.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    update(folder, "config.json", bos_token_id=None, eos_token_id=None)
    return folder


def vocab_txt(folder: Path, last: str = "\n") -> None:
    """Have a vocab.txt in place of the tokenizer.json."""
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + last, encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def check(folder: Path, theirs: tokenizers.Tokenizer, path: Path) -> list[str]:
    """The notes; the tokens in the file are those of the original."""
    keys, notes = exported(folder, N)
    ours = Tokenizer.from_gguf(write_gguf(path, {"general.architecture": "bert", **plain(keys)}))
    for text in TEXTS:
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, repr(text)
    return notes


def plain(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in keys.items()}


def test_the_keys_are_llama_cpps(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path, type_vocab_size=2)
    keys = plain(export(folder, N))
    vocab = hf_wordpiece(size=400).get_vocab()
    tokens, types = keys.pop("tokenizer.ggml.tokens"), keys.pop("tokenizer.ggml.token_type")
    assert tokens[:6] == [*BERT_SPECIALS, "▁!"]
    assert tokens[vocab["the"]] == "▁the"
    continuing = [id for text, id in vocab.items() if text.startswith("##")]
    assert continuing
    assert not any(tokens[id].startswith(("#", "▁")) for id in continuing)
    assert types == [CONTROL] * 5 + [NORMAL] * (len(vocab) - 5) + [UNUSED] * (N - len(vocab))
    assert keys == {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.normalizer.lowercase": True,
        "tokenizer.ggml.normalizer.strip_accents": True,
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
    }


def test_tokenizer_json(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    assert export(folder, N)["tokenizer.ggml.token_type_count"] == 1
    assert check(folder, hf_wordpiece(size=400), tmp_path / "m.gguf") == []


@pytest.mark.parametrize("last", ["\n", ""])
def test_vocab_txt_alone(tmp_path: Path, last: str) -> None:
    folder = bert_folder(tmp_path)
    whole = plain(export(folder, N))
    vocab_txt(folder, last)
    assert plain(export(folder, N)) == whole
    put(folder, "tokenizer_config.json", {"do_lower_case": False})
    update(folder, "config.json", model_type="bert")
    theirs = tokenizers.Tokenizer.from_str(hf_wordpiece(size=400).to_str())
    theirs.normalizer = BertNormalizer(lowercase=False)
    assert check(folder, theirs, tmp_path / "m.gguf") == []
    put(folder, "tokenizer_config.json", {"cls_token": "[NONE]"})
    with pytest.raises(GGPYError, match=r"vocab\.txt lacks the tokens that stand around a text"):
        export(folder, N)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {"lowercase": True}),
        ({"do_lower_case": False}, {"lowercase": False}),
        ({"do_lower_case": True, "strip_accents": False}, {"lowercase": True, "strip_accents": False}),
        ({"do_lower_case": False, "strip_accents": True}, {"lowercase": False, "strip_accents": True}),
        ({"tokenize_chinese_chars": False}, {"handle_chinese_chars": False}),
    ],
)
def test_the_class_takes_the_config_before_the_tokenizer(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any]
) -> None:
    folder = bert_folder(tmp_path)
    put(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast", **config})
    theirs = tokenizers.Tokenizer.from_str(hf_wordpiece(size=400).to_str())
    theirs.normalizer = BertNormalizer(**options)
    notes = check(folder, theirs, tmp_path / "m.gguf")
    assert any("prepares text otherwise" in note for note in notes) == (config != {})
    update(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    check(folder, hf_wordpiece(size=400), tmp_path / "n.gguf")


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": True, "lowercase": True},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": False, "lowercase": False},
        {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [
            {"type": "NFKC"},
            {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False},
        ]},
    ],
)  # fmt: skip
def test_other_ways_to_prepare_text_have_a_key_of_our_own(tmp_path: Path, normalizer: Any) -> None:
    folder = bert_folder(tmp_path)
    update(folder, "tokenizer.json", normalizer=normalizer)
    update(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    notes = check(folder, theirs, tmp_path / "m.gguf")
    assert any("other readers of GGUF do not" in note for note in notes)
    assert "ggpy.tokenizer.normalizer" in export(folder, N)


def test_the_longest_word_and_other_spellings(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["max_input_chars_per_word"] = 4
    del whole["model"]["type"]  # as the first files are
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"},
    ]}  # fmt: skip
    put(folder, "tokenizer.json", whole)
    notes = check(folder, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path / "m.gguf")
    assert any("more than 4 characters" in note for note in notes)


def test_pieces_that_gguf_cannot_write(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, count = whole["model"]["vocab"], len(whole["model"]["vocab"])
    for i, text in enumerate(("##", "##▁the", "##[CLS]", "▁", "##q▁")):
        vocab[text] = count + i
    put(folder, "tokenizer.json", whole)
    keys, notes = exported(folder, N)
    tokens = keys["tokenizer.ggml.tokens"]
    assert tokens[count : count + 5] == [f"[PAD{count}]", f"[PAD{count + 1}]", f"[PAD{count + 2}]", "▁▁", "q▁"]
    assert keys["tokenizer.ggml.token_type"].tolist()[count : count + 5] == [UNUSED] * 3 + [NORMAL] * 2
    assert sum("no way to write the piece" in note for note in notes) == 3
    ours, theirs = Tokenizer(keys), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("▁ the▁ xq▁ ##", *TEXTS):
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, text


def test_added_tokens(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.add_tokens(
        [tokenizers.AddedToken("Zürich"), tokenizers.AddedToken("qq", single_word=True, normalized=False)]
    )
    theirs.add_special_tokens([tokenizers.AddedToken("[E]", lstrip=True)])
    theirs.save(str(folder / "tokenizer.json"))
    keys, _ = exported(folder, N)
    assert {"▁Zürich", "▁qq", "[E]"} < set(keys["tokenizer.ggml.tokens"])
    ours = Tokenizer(keys)
    for text in ("in zurich, Zürichs ZÜRICH", "qq aqq qqa qq.", "a [E] b", *TEXTS):
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text by .*Whitespace"),
        ({"pre_tokenizer": None}, r"cuts text by \[\]"),
        ({"decoder": {"type": "ByteLevel"}}, "the decoder"),
        ({"normalizer": {"type": "Nmt"}}, "'Nmt' is a normalizer"),
        ({"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}}}, "'unk_token' is '.UNK.'"),
        ({"model": {"type": "WordPiece", "unk_token": "a", "vocab": {}}}, "no vocabulary"),
        ({"model": {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}, "continuing_subword_prefix": ""}},
         "marks no pieces"),
        ({"model": {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}, "max_input_chars_per_word": -1}},
         "max_input_chars_per_word"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = bert_folder(tmp_path)
    update(folder, "tokenizer.json", **changes)
    with pytest.raises(GGPYError, match=said):
        export(folder, N)
