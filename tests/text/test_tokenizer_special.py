"""Special tokens: which are found, how they are matched, what ends an answer, what a text gets around it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.normalizers import NFC

from ggpy.errors import GGPYError
from ggpy.text.tokenizer import Tokenizer
from tests.support.hangs import ends
from tests.support.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    bpe_metadata,
    hf_bpe,
    random_texts,
    spm_metadata,
    tiny_bpe,
    without,
)

TEXTS = random_texts(150, seed=1)


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


def test_gemmas_tag_is_no_end() -> None:
    """</s> is a user-defined token beside <eos> there, for text that is struck through."""
    tokenizer = Tokenizer(bpe_metadata("gpt-2", {"<eos>": CONTROL, "</s>": USER_DEFINED, "<end_of_turn>": CONTROL}))
    tag = tokenizer.token_id("</s>")
    assert tokenizer.eog == {tokenizer.token_id("<eos>"), tokenizer.token_id("<end_of_turn>")}
    assert tokenizer.tokenize("</s>") == [tag]
    assert tokenizer.detokenize([tag or 0], skip_special=True) == "</s>"


def test_thousands_of_special_tokens_are_found_in_one_pass() -> None:
    texts = ["<a>", "<unu", *(f"<unused{i}>" for i in range(6000)), *(" " * i for i in range(2, 32)), "<unused1>>"]
    theirs = HFTokenizer.from_str(hf_bpe("gpt-2").to_str())
    theirs.add_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer = Tokenizer(bpe_metadata("gpt-2", dict.fromkeys(texts, USER_DEFINED)))
    rng = random.Random(7)
    pieces = [*texts[:2], *texts[-40:], "<unused", "<unused12", "<<unused5>", "<unused77>", "x", "the", "5>"]
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=8))
        assert tokenizer.tokenize(text) == theirs.encode(text).ids, text
    with ends():  # one by one each token would be looked for in the megabyte
        tokenizer.tokenize("the <unused5> quick <unused brown fox\n" * 30_000)


def test_a_run_of_spaces_may_be_written_either_way() -> None:
    """SentencePiece writes a space as ▁, and takes one in the text for a space."""
    tokenizer = Tokenizer(spm_metadata({"   ": USER_DEFINED}, add_space_prefix=False))
    run = tokenizer.token_id("   ")
    for text in ("x   y", "x ▁ y", "x▁▁▁y"):
        assert run in tokenizer.tokenize(text)


def test_roles_that_no_key_names_have_no_token() -> None:
    """llama.cpp takes token 11 then, a comma in most vocabularies, and 1 and 2 of a SentencePiece vocabulary."""
    metadata = bpe_metadata("llama-bpe", {"<x>": CONTROL})
    for key in ("bos_token_id", "eos_token_id", "add_bos_token"):
        del metadata[f"tokenizer.ggml.{key}"]
    tokenizer = Tokenizer(metadata)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos, tokenizer.eog) == (None, None, False, frozenset())
    asked = Tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    assert asked.tokenize("a") == asked.tokenize("a", add_special=False)
    spm = without(without(spm_metadata(), "bos_token_id"), "eos_token_id")
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
        tokenizer = Tokenizer(tiny_bpe(tokens, [], **extra))
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
    tokenizer = Tokenizer(tiny_bpe(["a", "b"], [], bos_token_id=7, eos_token_id=4_000_000_000))
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
