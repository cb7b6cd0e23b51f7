"""Tokenizers against the libraries that define them, and the rules that llama.cpp adds."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.text.tokenizer import _ENCODERS, StreamDecoder, Tokenizer, bpe, sentencepiece
from tests.support.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    bpe_metadata,
    hf_bpe,
    random_texts,
    sentencepiece_model,
    spm_metadata,
    tiny_bpe,
    without,
    write_gguf,
)

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
    assert (ours._encoder._core is not None) == (engine == "library")  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(("pre", "said"), [("mine\n1", r"'mine\n1' is none that ggpy knows"), ("", "no pre-tokenizer")])
def test_the_default_stands_in_for_an_unknown_pre_tokenizer(pre: str, said: str) -> None:
    metadata = {**bpe_metadata("gpt-2"), "tokenizer.ggml.pre": pre}
    tokenizer, default = Tokenizer(metadata), Tokenizer({**metadata, "tokenizer.ggml.pre": "default"})
    text = "I'll take 12345 €, naïve\n\n"
    assert tokenizer.tokenize(text) == default.tokenize(text) != Tokenizer(bpe_metadata("qwen2")).tokenize(text)
    assert said in (tokenizer.note or "")
    assert default.note is None


def test_a_merge_of_tokens_that_are_not_there_falls_back_to_characters() -> None:
    metadata = tiny_bpe(["a", "b", "abc"], ["a b", "ab c", "x y"])
    tokenizer = Tokenizer(metadata)
    assert tokenizer.tokenize("ab") == [0, 1]  # `ab` is merged but no token
    assert tokenizer.tokenize("abc") == [2]
    assert tokenizer.tokenize("xy") == []  # nothing stands for these characters
    assert tokenizer.tokenize("aéb") == [0, 1]


def test_the_first_of_two_equal_merges_counts() -> None:
    tokenizer = Tokenizer(tiny_bpe(["a", "b", "c", "ab", "bc"], ["b c", "a b", "b c"]))
    assert tokenizer.tokenize("abc") == [0, 4]


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
    assert (ours._encoder._core is not None) == (engine == "library")  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.ggml.model": "hybriddna"}, "'hybriddna'.*gpt2.*llama"),
        ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model"),
        (tiny_bpe([], []), "empty"),
        (without(tiny_bpe(["a"], []), "tokens"), "empty"),
        (tiny_bpe([1, 2], []), "must be a list of texts"),  # type: ignore[list-item]
        (tiny_bpe("abc", []), "must be a list"),  # type: ignore[arg-type]
        (tiny_bpe(["a", "b", "a"], []), "tokens 0 and 2.*'a'"),
        (tiny_bpe(["a", "b"], [], token_type=[1]), "token_type has 1 entries for 2 tokens"),
        (tiny_bpe(["a"], [], token_type=[1.5]), "whole numbers"),
        (without(tiny_bpe(["a"], []), "merges"), "merges"),
        (tiny_bpe(["a"], [], eos_token_id="x"), "eos_token_id' .*found 'x'"),
        (tiny_bpe(["a"], [], add_eos_token="yes"), "add_eos_token"),
        (spm_metadata(scores=[0.0]), "scores has 1 entries"),
        ({**tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": "{"}, "cannot be normalized"),
        ({**tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": '{"type": "Nmt"}'}, "'Nmt' is a normalizer"),
        ({**tiny_bpe(["a"], []), "ggpy.tokenizer.normalizer": '{"type":' * 5000}, "cannot be normalized"),
        (spm_metadata(precompiled_charsmap=[1, 2, 3]), "precompiled_charsmap is no map"),
        ({**tiny_bpe(["a"], []), "ggpy.tokenizer.lstrip_token_ids": [7]}, "lstrip_token_ids must list"),
        (spm_metadata(scores=[float("nan")] * 999), "finite"),
    ],
)
def test_bad_vocabularies_are_one_sentence(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(GGPYError, match=f"(?s)some.gguf.*{said}"):
        Tokenizer(metadata, "some.gguf")


def test_merges_that_are_no_strings() -> None:
    with pytest.raises(GGPYError, match="merges' must be a list of texts"):
        Tokenizer(tiny_bpe(["a", "b"], [1, 2])).tokenize("ab")  # type: ignore[list-item]


@pytest.mark.parametrize("token", [-1, 10_000, 2**40])
def test_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(GGPYError, match=f"token id {token} is outside"):
        _QWEN2.token_bytes(token)


def test_a_byte_token_that_names_no_byte() -> None:
    tokenizer = Tokenizer(tiny_bpe(["a", "zz"], [], token_type=[NORMAL, BYTE]))
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
    heavy += [f"ggpy.text.tokenizer.{home.partition('.')[0]}" for home in _ENCODERS.values()]
    code = (
        f"import sys, ggpy.text.tokenizer, ggpy.text.chat_template; print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
