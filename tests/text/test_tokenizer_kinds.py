"""Vocabularies of rarer kinds: merges of the text itself (Gemma 4, Sarvam), of words, RWKV's bytes, PLaMo 2's cuts."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from ggpy.errors import GGPYError
from ggpy.text.tokenizer import Tokenizer
from tests.support.vocabularies import BYTE, CONTROL, CORPUS, NORMAL, UNKNOWN, random_texts

TEXTS = random_texts(300, seed=5)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def hf_text_bpe(words: bool) -> HFTokenizer:
    """BPE of characters with bytes for those that are no tokens, spaces written as ▁ or cut at, as Gemma and Jina have
    it."""
    unknown = {"unk_token": "<unk>"}
    tokenizer = HFTokenizer(BPE(byte_fallback=True, **({} if words else unknown)))
    if words:
        tokenizer.pre_tokenizer = WhitespaceSplit()
    else:
        tokenizer.normalizer = Replace(" ", "▁")
        tokenizer.pre_tokenizer = Split(" ", "merged_with_previous")
    trainer = BpeTrainer(
        vocab_size=900, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.splitlines(keepends=True)], trainer)
    return tokenizer


def text_bpe_metadata(model: str, pre: str | None = None, *, words: bool = False, **extra: Any) -> dict[str, Any]:
    found = json.loads(hf_text_bpe(words).to_str())["model"]
    tokens = sorted(found["vocab"], key=found["vocab"].get)
    return {
        "tokenizer.ggml.model": model,
        **({"tokenizer.ggml.pre": pre} if pre else {}),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 260),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in found["merges"]],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


@pytest.mark.parametrize(
    ("model", "pre"),
    [("gemma4", None), ("gpt2", "gemma4"), ("gpt2", "sarvam-moe"), ("gpt2", "granite-embed-multi-311m")],
)
def test_merges_of_text_equal_tokenizers(model: str, pre: str | None) -> None:
    ours, theirs = Tokenizer(text_bpe_metadata(model, pre)), hf_text_bpe(False)
    for text in TEXTS:
        assert ours.tokenize(text, add_special=False) == theirs.encode(text).ids, repr(text)
        if "▁" not in text:
            assert ours.detokenize(ours.tokenize(text, add_special=False)) == text
    assert ours.note is None
    assert ours.add_bos == (pre != "sarvam-moe")


def test_gemma_4_begins_with_bos_whatever_its_file_says() -> None:
    """As llama.cpp has it: its converter once denied it."""
    assert Tokenizer(text_bpe_metadata("gemma4", add_bos_token=False)).tokenize("a")[0] == 2
    assert Tokenizer(text_bpe_metadata("gpt2", "sarvam-moe", add_bos_token=False)).tokenize("a")[0] != 2


def test_merges_of_words_equal_tokenizers() -> None:
    ours, theirs = Tokenizer(text_bpe_metadata("whitespace", "whitespace", words=True)), hf_text_bpe(True)
    for text in TEXTS:
        text = text.translate(dict.fromkeys(range(0x1C, 0x20)))  # which only Python takes for white space
        assert ours.tokenize(text, add_special=False) == theirs.encode(text).ids, repr(text)


# RWKV


def rwkv_metadata() -> dict[str, Any]:
    """As llama.cpp's converter writes it: tokens as Python writes bytes."""
    rng = random.Random(0)
    pieces = [bytes([byte]) for byte in range(256)]
    data = "".join(CORPUS[:6]).encode()
    for length in (2, 3, 3, 4, 5, 7, 12):
        for _ in range(120):
            at = rng.randrange(len(data) - length)
            pieces.append(data[at : at + length])
    pieces = list(dict.fromkeys([*pieces, b"\n\n", b"'", b'"', b"\\", b"a'\"b", b"\\n"]))
    tokens = ["<s>", *(repr(piece)[2:-1] for piece in pieces)]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] + [NORMAL] * len(pieces),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": tokens.index("\\n\\n"),
    }


def test_rwkv_takes_the_longest_token() -> None:
    metadata = rwkv_metadata()
    tokenizer = Tokenizer(metadata)
    pieces = [token.encode().decode("unicode_escape").encode("latin-1") for token in metadata["tokenizer.ggml.tokens"]]
    for text in (*TEXTS, "a'\"b \\n \\\\ <s>"):
        data, expected = text.encode(), []
        while data:
            best = max(range(1, len(pieces)), key=lambda i: len(pieces[i]) if data.startswith(pieces[i]) else 0)
            expected.append(best)
            data = data[len(pieces[best]) :]
        assert tokenizer.tokenize(text) == expected, repr(text)
        assert tokenizer.detokenize(expected) == text
    assert tokenizer.eog == {0, metadata["tokenizer.ggml.eot_token_id"]}
    assert tokenizer.tokenize("<s>a", parse_special=True)[0] == 0


def test_what_stands_behind_a_backslash_of_rwkv() -> None:
    """It stands for itself where it is no code, as in llama.cpp."""
    metadata = rwkv_metadata()
    metadata["tokenizer.ggml.tokens"][-3:] = ["\\中\\é", "é\\xff\\t", "\\x4"]
    tokenizer = Tokenizer(metadata)
    n = tokenizer.n_vocab
    assert [tokenizer.token_bytes(i) for i in range(n - 3, n)] == ["中é".encode(), "é".encode() + b"\xff\t", b"x4"]


# PLaMo 2


def plamo_metadata() -> dict[str, Any]:
    rng = random.Random(1)
    text = "".join(CORPUS[:6])
    pieces = {char: -9.0 + rng.random() for char in set(text) if char not in "xй好"}
    for _ in range(500):
        at, length = rng.randrange(len(text) - 6), rng.randrange(2, 7)
        pieces[text[at : at + length]] = round(-12 * rng.random(), 1)  # with ties
    tokens = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", *BYTES, *pieces]
    return {
        "tokenizer.ggml.model": "plamo2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + list(pieces.values()),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_plamo_2_takes_the_best_cut() -> None:
    """Against all cuts, the best being that of the greatest sum; of equal ones that whose first piece is longer, the
    unknown last."""
    metadata = plamo_metadata()
    tokenizer = Tokenizer(metadata)
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    ids = {token: i for i, token in enumerate(scores)}

    @cache
    def best(rest: str) -> tuple[int, tuple[int, ...]]:
        if not rest:
            return 0, ()
        found = []
        for length in range(min(6, len(rest)), 0, -1):
            piece, (after, others) = rest[:length], best(rest[length:])
            if piece in scores and piece not in BYTES:
                found.append((after + round(scores[piece] * 10_000), (ids[piece], *others)))
        after, others = best(rest[1:])
        spelled = tuple(ids[f"<0x{byte:02X}>"] for byte in rest[0].encode())
        found.append((after - 10_000_000, spelled + others))
        return max(found, key=lambda one: one[0])  # the first of equal ones

    for text in TEXTS:
        assert tuple(tokenizer.tokenize(text)) == best(text.removeprefix("\ufeff"))[1], repr(text)
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text.removeprefix("\ufeff")
    assert not tokenizer.add_bos


def test_plamo_2_needs_a_token_for_each_byte() -> None:
    metadata = plamo_metadata()
    metadata["tokenizer.ggml.tokens"][3 + 0x41] = "[A]"
    with pytest.raises(GGPYError, match="<0x41> is missing"):
        Tokenizer(metadata)


def test_plamo_2_needs_scores_that_float32_has() -> None:
    metadata = plamo_metadata()
    metadata["tokenizer.ggml.scores"][-1] = 1e300
    with pytest.raises(GGPYError, match="does not hold finite numbers"):
        Tokenizer(metadata)
