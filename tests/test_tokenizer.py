"""Tokenizers against the libraries that define them, and the rules that llama.cpp adds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.normalizers import NFC
from vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    USER_DEFINED,
    bpe_metadata,
    hf_bpe,
    random_texts,
    sentencepiece_model,
    spm_metadata,
    write_gguf,
)

from ggpy.errors import GGPYError
from ggpy.gguf_file import GGUFFile
from ggpy.tokenizer import StreamDecoder, Tokenizer, bpe, sentencepiece

TEXTS = random_texts(400, seed=1)


@pytest.fixture(params=["own", "library"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Merging by our own code throughout, or by tiktoken and sentencepiece from the first text on."""
    threshold = 0 if request.param == "library" else 1 << 60
    monkeypatch.setattr(bpe, "_BYTES_UNTIL_CORE", threshold)
    monkeypatch.setattr(sentencepiece, "_CHARACTERS_UNTIL_CORE", threshold)
    return str(request.param)


# Byte-level BPE


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_bpe_equals_tokenizers(pre: str, engine: str) -> None:
    ours, theirs = Tokenizer(bpe_metadata(pre)), hf_bpe(pre)
    for text in TEXTS:
        assert ours.tokenize(text, add_special=False) == theirs.encode(text).ids, repr(text)
    assert ours._bpe is not None
    assert (ours._bpe._core is not None) == (engine == "library")


def test_bpe_round_trip(engine: str) -> None:
    tokenizer = Tokenizer(bpe_metadata("qwen2"))
    for text in TEXTS:
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == unicodedata.normalize("NFC", text)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    shown = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # lone surrogates are no text
    assert _LLAMA3.detokenize(_LLAMA3.tokenize(text, add_special=False)) == shown
    assert _QWEN2.detokenize(_QWEN2.tokenize(text, add_special=False)) == unicodedata.normalize("NFC", shown)


_QWEN2, _LLAMA3 = Tokenizer(bpe_metadata("qwen2")), Tokenizer(bpe_metadata("llama-bpe"))


def test_qwen_composes_as_the_original_does() -> None:
    """Decomposed text, as macOS and Vietnamese keyboards write it, has the tokens of the composed one. llama.cpp does
    not compose, so there the same file gives other tokens: the models were trained on these."""
    decomposed = unicodedata.normalize("NFD", "Tiếng Việt")
    assert len(decomposed) > 10
    assert _QWEN2.tokenize(decomposed) == _QWEN2.tokenize("Tiếng Việt") == hf_bpe("qwen2").encode(decomposed).ids
    assert _LLAMA3.tokenize(decomposed) != _LLAMA3.tokenize("Tiếng Việt")
    # A special token is matched on the text as it is.
    tokenizer = Tokenizer(bpe_metadata("qwen2", {"<e\u0301>": CONTROL}))
    assert tokenizer.tokenize("<e\u0301>", parse_special=True) == [tokenizer.token_id("<e\u0301>")]
    assert len(tokenizer.tokenize("<\u00e9>", parse_special=True)) > 1


def test_ignore_merges_takes_a_whole_piece_for_its_token() -> None:
    metadata = bpe_metadata("llama-bpe")
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens.append("zqzqz")  # no merges make it
    metadata["tokenizer.ggml.token_type"].append(NORMAL)
    assert Tokenizer(metadata).tokenize("zqzqz") == [len(tokens) - 1]
    metadata["tokenizer.ggml.pre"] = "qwen2"
    assert len(Tokenizer(metadata).tokenize("zqzqz")) > 1


def test_a_merge_of_tokens_that_are_not_there_falls_back_to_characters() -> None:
    metadata = _tiny_bpe(["a", "b", "abc"], ["a b", "ab c", "x y"])
    tokenizer = Tokenizer(metadata)
    assert tokenizer.tokenize("ab") == [0, 1]  # `ab` is merged but no token
    assert tokenizer.tokenize("abc") == [2]
    assert tokenizer.tokenize("xy") == []  # nothing stands for these characters
    assert tokenizer.tokenize("aéb") == [0, 1]


def test_the_first_of_two_equal_merges_counts() -> None:
    tokenizer = Tokenizer(_tiny_bpe(["a", "b", "c", "ab", "bc"], ["b c", "a b", "b c"]))
    assert tokenizer.tokenize("abc") == [0, 4]


def _tiny_bpe(tokens: list[str], merges: list[str], **extra: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


@pytest.mark.parametrize("unit", ["a", " ", "\n", "中"])
def test_long_runs_take_linear_time(unit: str) -> None:
    # A quadratic step anywhere would take minutes here.
    text = unit * 50_000
    deepseek = Tokenizer({**bpe_metadata("gpt-2"), "tokenizer.ggml.pre": "deepseek-llm"})
    for tokenizer in (_QWEN2, deepseek, Tokenizer(spm_metadata())):
        assert tokenizer.detokenize(tokenizer.tokenize(text, add_special=False)) == text


# SentencePiece


def test_spm_equals_sentencepiece(engine: str) -> None:
    ours, theirs = Tokenizer(spm_metadata()), sentencepiece_model()
    for text in TEXTS[1:]:
        if "▁" not in text:
            assert ours.tokenize(text, add_special=False) == theirs.encode(text), repr(text)
    assert ours._spm is not None
    assert (ours._spm._core is not None) == (engine == "library")


def test_spm_round_trip(engine: str) -> None:
    tokenizer = Tokenizer(spm_metadata())
    for text in TEXTS:
        assert tokenizer.detokenize(tokenizer.tokenize(text, add_special=False)) == text
        assert tokenizer.detokenize(tokenizer.tokenize(text), skip_special=True) == text


def test_spm_space_prefix_follows_special_tokens() -> None:
    tokenizer = Tokenizer(spm_metadata({"<turn>": CONTROL}))
    turn = tokenizer.token_id("<turn>")
    the = tokenizer.tokenize("the", add_special=False)
    assert tokenizer.tokenize("the<turn>the", parse_special=True) == [1, *the, turn, *the]
    bare = Tokenizer(spm_metadata({"<turn>": CONTROL}, add_space_prefix=False))
    assert bare.tokenize("the", add_special=False) == the[1:] or len(bare.tokenize("the", add_special=False)) >= 1
    assert bare.detokenize(bare.tokenize(" the", add_special=False)) == " the"


def test_spm_text_that_continues_gets_no_space_prefix() -> None:
    tokenizer = Tokenizer(spm_metadata({"<turn>": CONTROL}))
    whole = tokenizer.tokenize("the<turn>the the", add_special=False, parse_special=True)
    begun = tokenizer.tokenize("the<turn>the", add_special=False, parse_special=True)
    rest = tokenizer.tokenize(" the", add_special=False, parse_special=True, continues=True)
    assert begun + rest == whole
    turn = tokenizer.tokenize("<turn>the", add_special=False, parse_special=True)
    assert tokenizer.tokenize("<turn>the", add_special=False, parse_special=True, continues=True) == turn


def test_spm_empty_text_and_flags() -> None:
    assert Tokenizer(spm_metadata()).tokenize("") == [1]
    assert Tokenizer(spm_metadata()).tokenize("", add_special=False) == []
    assert Tokenizer(spm_metadata(add_bos_token=False, add_eos_token=True)).tokenize("") == [2]


def test_spm_without_byte_tokens_uses_the_unknown_token(engine: str) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL],
    }
    assert Tokenizer(metadata).tokenize("a龥a") == [1, 5, 0, 4]


# Special tokens


def test_special_tokens_are_parsed_only_where_wanted() -> None:
    tokenizer = Tokenizer(bpe_metadata("qwen2", {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "[x]": USER_DEFINED}))
    start, end, user = (tokenizer.token_id(t) for t in ("<|im_start|>", "<|im_end|>", "[x]"))
    text = "<|im_start|>the<|im_end|>[x]"
    the = tokenizer.tokenize("the")
    assert tokenizer.tokenize(text, parse_special=True) == [start, *the, end, user]
    plain = tokenizer.tokenize(text)
    assert start not in plain
    assert end not in plain
    assert plain[-1] == user  # user-defined tokens are found always
    assert tokenizer.detokenize(plain) == text


# Special tokens that overlap, and letters, marks, signs and spaces to stand beside them.
_SPECIALS = ("<a>", "<a>b", "b<a", "<<a>", "\u00e9x", "e\u0301", "abx", "_cx", " <")
_AROUND = st.text(
    alphabet=["a", "b", "c", "x", "é", "e", "\u0301", "<", ">", " ", "\n", "\u3000", "_", "5", "½", "Ⓐ", "d"]
)
_FLAG = st.lists(st.sampled_from(_SPECIALS), max_size=4)


@given(
    lstrip=_FLAG, rstrip=_FLAG, single_word=_FLAG, normalized=_FLAG, composes=st.booleans(),
    pieces=st.lists(st.sampled_from(_SPECIALS) | _AROUND, max_size=8),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_added_tokens_are_found_as_in_tokenizers(pieces: list[str], composes: bool, **flags: list[str]) -> None:
    theirs = HFTokenizer.from_str(hf_bpe("gpt-2").to_str())
    if composes:
        theirs.normalizer = NFC()
    added = [AddedToken(t, special=True, **{name: t in texts for name, texts in flags.items()}) for t in _SPECIALS]
    theirs.add_special_tokens(added)
    metadata = bpe_metadata("gpt-2", dict.fromkeys(_SPECIALS, CONTROL))
    ids = {text: theirs.token_to_id(text) for text in _SPECIALS}
    if composes:
        metadata["ggpy.tokenizer.normalizer"] = '{"type": "NFC"}'
    metadata |= {f"ggpy.tokenizer.{name}_token_ids": [ids[t] for t in texts] for name, texts in flags.items()}
    text = "".join(pieces)
    assert Tokenizer(metadata).tokenize(text, parse_special=True) == theirs.encode(text).ids


def test_tokens_that_the_file_calls_normal_are_text() -> None:
    """Qwen's vocabularies hold </s> and the like as pieces of HTML; some readers take them for control tokens."""
    html, names = "<p></s></p><s>", ("</s>", "<PRE>", "[EOS]")
    metadata = bpe_metadata("qwen2", {**dict.fromkeys(names, NORMAL), "<|im_end|>": CONTROL})
    tokenizer = Tokenizer(metadata)
    ids = [tokenizer.token_id(name) for name in names]
    assert not set(ids) & set(tokenizer.tokenize("".join(names) + html, parse_special=True))  # no merges make them here
    assert tokenizer.eog == {tokenizer.token_id("<|im_end|>")}
    assert not any(tokenizer.is_control(i) for i in ids if i is not None)
    # A type that is none, and a file that types nothing, leave it to the text.
    for kinds in ({"</s>": USER_DEFINED, "<|im_end|>": CONTROL}, {"</s>": NORMAL, "<|im_end|>": NORMAL}):
        tokenizer = Tokenizer(bpe_metadata("qwen2", kinds))
        ends = {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("</s>")}
        assert tokenizer.eog == ends
        assert all(tokenizer.is_control(i) for i in ends if i is not None)


def test_roles_that_no_key_names_have_no_token() -> None:
    """llama.cpp takes token 11 then, a comma in most vocabularies, and 1 and 2 of a SentencePiece vocabulary."""
    metadata = bpe_metadata("llama-bpe", {"<x>": CONTROL})
    for key in ("bos_token_id", "eos_token_id", "add_bos_token"):
        del metadata[f"tokenizer.ggml.{key}"]
    tokenizer = Tokenizer(metadata)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos, tokenizer.eog) == (None, None, False, frozenset())
    asked = Tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    assert asked.tokenize("a") == asked.tokenize("a", add_special=False)
    spm = _without(_without(spm_metadata(), "bos_token_id"), "eos_token_id")
    assert (Tokenizer(spm).bos, Tokenizer(spm).eos) == (1, 2)  # by their names, <s> and </s>
    spm["tokenizer.ggml.tokens"] = ["<unk>", "a begin", "an end", *spm["tokenizer.ggml.tokens"][3:]]
    assert (Tokenizer(spm).bos, Tokenizer(spm).eos) == (None, None)
    # The key holds an id for the sake of other readers.
    stand_in = Tokenizer({**bpe_metadata("gpt-2", {"<x>": CONTROL}), "ggpy.tokenizer.no_eos": True})
    assert (stand_in.eos, stand_in.eog) == (None, frozenset())


def test_what_a_text_gets_around_it() -> None:
    metadata = bpe_metadata("gpt-2", {"[gMASK]": CONTROL, "<sop>": CONTROL})
    mask, sop = (metadata["tokenizer.ggml.tokens"].index(text) for text in ("[gMASK]", "<sop>"))
    around = {"ggpy.tokenizer.before_token_ids": [mask, sop], "ggpy.tokenizer.after_token_ids": [mask]}
    tokenizer = Tokenizer({**metadata, **around})
    assert tokenizer.tokenize("the") == [mask, sop, *tokenizer.tokenize("the", add_special=False), mask]
    with pytest.raises(GGPYError, match="before_token_ids must list token ids"):
        Tokenizer({**metadata, "ggpy.tokenizer.before_token_ids": [-1]})


def test_the_space_before_a_text_alone() -> None:
    metadata = spm_metadata({"<turn>": CONTROL})
    first = Tokenizer({**metadata, "ggpy.tokenizer.space_prefix": "first"})
    the, bare = first.tokenize("the", False), first.tokenize("the", False, continues=True)
    assert the != bare
    turn = first.token_id("<turn>")
    assert first.tokenize("the<turn>the", False, True) == [*the, turn, *bare]
    assert first.tokenize("<turn>the", False, True) == [turn, *bare]
    spaced = Tokenizer(bpe_metadata("gpt-2", add_space_prefix=True))
    assert spaced.tokenize("the") == spaced.tokenize(" the") == hf_bpe("gpt-2").encode(" the").ids


def test_unknown_characters_side_by_side() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "▁", "a"],
        "tokenizer.ggml.token_type": [UNKNOWN, NORMAL, NORMAL],
    }
    assert Tokenizer(metadata).tokenize("a龥龥a龥") == [1, 2, 0, 0, 2, 0]
    assert Tokenizer({**metadata, "ggpy.tokenizer.fuse_unk": True}).tokenize("a龥龥a龥") == [1, 2, 0, 2, 0]


def test_byte_pieces_spell_only_where_they_are_of_that_type() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "▁", "<0xC3>", "<0xA9>", "<s>"],
        "tokenizer.ggml.token_type": [UNKNOWN, NORMAL, BYTE, BYTE, CONTROL],
        "tokenizer.ggml.add_bos_token": False,
    }
    assert Tokenizer(metadata).tokenize("é") == [1, 2, 3]
    metadata["tokenizer.ggml.token_type"] = [UNKNOWN, NORMAL, NORMAL, NORMAL, CONTROL]
    assert Tokenizer(metadata).tokenize("é") == [1, 0]


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Prepend", "prepend": "_"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "[a]"},
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]},
        {"type": "Sequence", "normalizers": []},
    ],
    ids=lambda node: node["type"],
)  # fmt: skip
def test_normalizers_equal_tokenizers(normalizer: dict[str, Any]) -> None:
    theirs = json.loads(hf_bpe("gpt-2").to_str())
    theirs["normalizer"] = normalizer
    oracle = HFTokenizer.from_str(json.dumps(theirs))
    ours = Tokenizer({**bpe_metadata("gpt-2"), "ggpy.tokenizer.normalizer": json.dumps(normalizer)})
    for text in [*TEXTS[:150], "ΑΣ ΣΑΣ İ", "\x1c a \u2028"]:
        assert ours.tokenize(text) == oracle.encode(text).ids, repr(text)


def test_phi3_tokens_swallow_the_space_after_them() -> None:
    specials = {"<|user|>": CONTROL, "<|end|>": CONTROL, "<|endoftext|>": CONTROL}
    metadata = spm_metadata(specials)
    metadata["general.name"] = "Phi-3-mini"
    tokenizer = Tokenizer(metadata)
    user, text = tokenizer.token_id("<|user|>"), tokenizer.token_id("<|endoftext|>")
    the = tokenizer.tokenize("the", add_special=False)
    assert tokenizer.tokenize("<|user|> \n the", False, True) == [user, *the]
    assert tokenizer.tokenize("<|endoftext|>\n", False, True) != [text]  # this one keeps it


def test_tokens_that_end_generation() -> None:
    def ends(*names: str, **extra: int) -> set[str]:
        tokens = ["x", *names]
        tokenizer = Tokenizer(_tiny_bpe(tokens, [], **extra))
        return {tokens[i] for i in tokenizer.eog}

    assert ends("<|im_end|>", "<|endoftext|>", "<|im_start|>") == {"<|im_end|>", "<|endoftext|>"}
    assert ends("</s>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>") == {
        "</s>",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|eom_id|>",
    }
    assert ends("stop", eos_token_id=1) == {"stop"}
    assert ends("a", "b", eot_token_id=1, eom_token_id=2) == {"a", "b"}
    assert ends("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>") == {
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
    }
    assert ends("<|return|>", "<|call|>", "<|end|>") == {"<|return|>", "<|call|>"}
    assert ends("</s>", "<|tool_response>") == {"<|tool_response>"}


def test_special_ids_out_of_range_are_as_if_absent() -> None:
    tokenizer = Tokenizer(_tiny_bpe(["a", "b"], [], bos_token_id=7, eos_token_id=4_000_000_000))
    assert tokenizer.bos is None
    assert tokenizer.eos is None


def test_control_tokens_are_hidden_on_demand() -> None:
    tokenizer = Tokenizer(bpe_metadata("qwen2", {"<|im_end|>": CONTROL}))
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    assert tokenizer.is_control(end)
    assert tokenizer.token_bytes(end) == b"<|im_end|>"
    assert tokenizer.token_bytes(end, special=False) == b""
    assert tokenizer.detokenize([end]) == "<|im_end|>"
    assert tokenizer.detokenize([end], skip_special=True) == ""


def test_a_conversation_begins_with_bos_once() -> None:
    tokenizer = Tokenizer(spm_metadata())
    assert tokenizer.tokenize_chat("<s>the") == tokenizer.tokenize_chat("the") == [1, *tokenizer.tokenize("the")[1:]]


# Streaming


@pytest.mark.parametrize("make", [lambda: bpe_metadata("gpt-2"), spm_metadata], ids=["bpe", "spm"])
def test_stream_gives_whole_characters(make: Any) -> None:
    tokenizer = Tokenizer(make())
    text = "龘 héllo 👨‍👩‍👧‍👦 🤷🏽 中文字"
    decoder = StreamDecoder(tokenizer, start=True)
    ids = tokenizer.tokenize(text, add_special=False)
    pieces = [decoder.push(i) for i in ids]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == text
    assert "" in pieces  # some character was split over tokens
    assert decoder.flush() == ""


def test_stream_shows_broken_characters_when_flushed() -> None:
    tokenizer = Tokenizer(bpe_metadata("gpt-2"))
    head = tokenizer.tokenize("龘", add_special=False)[:-1]
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.push(i) for i in head) == ""
    assert decoder.flush() == "�"
    assert decoder.push(tokenizer.tokenize("a", add_special=False)[0]) == "a"


def test_stream_drops_the_prefix_space_only_at_the_start_of_a_text() -> None:
    tokenizer = Tokenizer(spm_metadata())
    ids = tokenizer.tokenize("the")
    assert "".join(map(StreamDecoder(tokenizer, start=True).push, ids)) == "the"
    assert "".join(map(StreamDecoder(tokenizer).push, ids)) == " the"


# Files, and what is wrong with them


@pytest.mark.parametrize("make", [lambda: bpe_metadata("gpt-2"), spm_metadata], ids=["bpe", "spm"])
def test_from_gguf(tmp_path: Path, make: Any) -> None:
    metadata = make()
    path = write_gguf(tmp_path / "词表.gguf", metadata)
    expected = [Tokenizer(metadata).tokenize(text) for text in TEXTS[:50]]
    by_path = Tokenizer.from_gguf(path)
    assert [by_path.tokenize(text) for text in TEXTS[:50]] == expected
    with GGUFFile(path) as file:
        by_file = Tokenizer.from_gguf(file)
    assert [by_file.tokenize(text) for text in TEXTS[:50]] == expected  # the file is closed by now
    assert by_path.n_vocab == len(metadata["tokenizer.ggml.tokens"])


def test_listed_ends_of_generation_count(tmp_path: Path) -> None:
    metadata = bpe_metadata("gpt-2")
    plain = Tokenizer(metadata)
    listed = Tokenizer.from_gguf(write_gguf(tmp_path / "v.gguf", {**metadata, "tokenizer.ggml.eog_token_ids": [5, 7]}))
    assert listed.eog == plain.eog | {5, 7}
    with pytest.raises(GGPYError, match="eog_token_ids"):
        Tokenizer({**metadata, "tokenizer.ggml.eog_token_ids": [plain.n_vocab]})


def _without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in metadata.items() if k != f"tokenizer.ggml.{key}"}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'.*gpt2.*llama"),
        ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model"),
        (_tiny_bpe(["a"], [], pre="klingon"), "'klingon'.*llama-bpe"),
        (_tiny_bpe([], []), "empty"),
        (_without(_tiny_bpe(["a"], []), "tokens"), "empty"),
        (_tiny_bpe([1, 2], []), "must be a list of texts"),  # type: ignore[list-item]
        (_tiny_bpe("abc", []), "must be a list"),  # type: ignore[arg-type]
        (_tiny_bpe(["a", "b", "a"], []), "tokens 0 and 2.*'a'"),
        (_tiny_bpe(["a", "b"], [], token_type=[1]), "token_type has 1 entries for 2 tokens"),
        (_tiny_bpe(["a"], [], token_type=[1.5]), "whole numbers"),
        (_without(_tiny_bpe(["a"], []), "merges"), "merges"),
        (_tiny_bpe(["a"], [], eos_token_id="x"), "eos_token_id' .*found 'x'"),
        (_tiny_bpe(["a"], [], add_eos_token="yes"), "add_eos_token"),
        (spm_metadata(scores=[0.0]), "scores has 1 entries"),
        ({**_tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": "{"}, "cannot be normalized"),
        ({**_tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": '{"type": "Nmt"}'}, "'Nmt' is a normalizer"),
        ({**_tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": '{"type":' * 5000}, "cannot be normalized"),
        (spm_metadata(precompiled_charsmap=[1, 2, 3]), "precompiled_charsmap is no map"),
        ({**_tiny_bpe(["a"], []), "ggpy.tokenizer.lstrip_token_ids": [7]}, "lstrip_token_ids must list"),
        (spm_metadata(scores=[float("nan")] * 999), "finite"),
    ],
)
def test_bad_vocabularies_are_one_sentence(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(GGPYError, match=f"(?s)some.gguf.*{said}"):
        Tokenizer(metadata, "some.gguf")


def test_merges_that_are_no_strings() -> None:
    with pytest.raises(GGPYError, match="merges' must be a list of texts"):
        Tokenizer(_tiny_bpe(["a", "b"], [1, 2])).tokenize("ab")  # type: ignore[list-item]


@pytest.mark.parametrize("token", [-1, 10_000, 2**40])
def test_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(GGPYError, match=f"token id {token} is outside"):
        _QWEN2.token_bytes(token)


def test_a_byte_token_that_names_no_byte() -> None:
    tokenizer = Tokenizer(_tiny_bpe(["a", "zz"], [], token_type=[NORMAL, BYTE]))
    with pytest.raises(GGPYError, match="byte token"):
        tokenizer.token_bytes(1)


def test_mutated_vocabularies_never_crash() -> None:
    rng = random.Random(5)
    odd: list[Any] = [
        None,
        -1,
        2**63,
        1.5,
        "",
        "\udcff",
        [],
        ["", ""],
        b"x",
        True,
        {"a": 1},
        [None],
        ["a b c", " ", "x"],
    ]
    for _ in range(400):
        metadata = bpe_metadata("gpt-2") if rng.random() < 0.5 else spm_metadata()
        for key in rng.sample(sorted(metadata), rng.randrange(1, 3)):
            value = metadata[key]
            if isinstance(value, list) and rng.random() < 0.7:
                value = list(value)
                value[rng.randrange(len(value))] = rng.choice([value[0], value[-1]])
                metadata[key] = value[: rng.randrange(len(value) + 1)] if rng.random() < 0.5 else value
            else:
                metadata[key] = rng.choice(odd)
        try:
            tokenizer = Tokenizer(metadata)
            tokenizer.detokenize(tokenizer.tokenize("The 龘 fox\n", parse_special=True))
        except GGPYError:
            pass


def test_importing_is_light() -> None:
    heavy = ["numba", "llvmlite", "gguf", "tiktoken", "sentencepiece", "regex", "jinja2"]
    code = f"import sys, ggpy.tokenizer, ggpy.chat_template; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
