"""Vocabularies of ranks, as tiktoken has them: merges from ranks, the first Qwen's files, GLM-4's."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from ggpy import Tokenizer
from ggpy.convert.bpe_merges import rebuild_merges
from ggpy.convert.pipeline import convert
from ggpy.convert.vocabulary import byte_level_text
from ggpy.errors import GGPYError
from tests.support import plain_decoders
from tests.support.hangs import ends
from tests.support.tiny import (
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    TEXT,
    slow_encode,
    tiny_checkpoint,
    tiny_merges,
    tiny_ranks,
)
from tests.support.tokenizer_folders import export, put, tokenizer_of, update

N = len(tiny_ranks())
SAMPLES = (TEXT, "Hello, world! 12345 \n\n\tx  y", "写一首诗。🙂 naïve café", "I'll don't WE'RE", "<|im_start|>", "")


def test_merges_of_the_tiny_vocabulary() -> None:
    assert rebuild_merges(tiny_ranks()) == tiny_merges()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=60), st.randoms())
def test_merges_are_what_encoding_ends_on(picks: list[tuple[int, int]], random: Any) -> None:
    """Over few letters tokens can be cut in many ways, and only one is reached."""
    ranks = {bytes([b]): i for i, b in enumerate(b"abc")}
    for first, second in picks:
        known = list(ranks)
        token = known[first % len(known)] + known[second % len(known)]
        # Only tokens that encoding reaches belong in a vocabulary.
        if token not in ranks and len(slow_encode(ranks, token, len(ranks))) == 2:
            ranks[token] = len(ranks)
    expected = [tuple(slow_encode(ranks, token, rank)) for token, rank in ranks.items() if len(token) > 1]
    assert rebuild_merges(ranks) == expected


def test_merges_at_the_size_of_a_real_vocabulary() -> None:
    """GPT-2-like ranks of 50k tokens: exact on a sample, and soon."""
    ranks = {bytes([b]): b for b in range(256)}
    state = 1
    while len(ranks) < 50_000:
        known = list(ranks)
        for _ in range(2000):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            a, b = known[(state >> 20) % len(known)], known[(state >> 40) % min(len(known), 3000)]
            if len(a + b) <= 16 and a + b not in ranks and len(slow_encode(ranks, a + b, len(ranks))) == 2:
                ranks[a + b] = len(ranks)
    with ends():
        merges = rebuild_merges(ranks)
    longer = [token for token in ranks if len(token) > 1]
    assert len(merges) == len(longer)
    for token, pair in list(zip(longer, merges, strict=True))[::97]:
        assert tuple(slow_encode(ranks, token, ranks[token])) == pair


def test_a_token_that_nothing_makes_is_named() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"xyz": 256}
    with pytest.raises(GGPYError, match="b'xyz' of rank 256"):
        rebuild_merges(ranks)


def test_qwen_tiktoken(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    folder = tiny_checkpoint(tmp_path, "qwen")
    convert(folder, "q8_0", out)
    keys = export(folder, 704)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 704
    assert tokens[N : N + 4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>"]
    assert tokens[N + 207 : N + 209] == ["<|extra_204|>", f"[PAD{N + 208}]"]
    assert types.tolist() == [1] * N + [3] * 208 + [5] * (704 - N - 208)
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    assert keys["tokenizer.ggml.eos_token_id"] == N
    assert keys["tokenizer.ggml.eot_token_id"] == N + 2
    assert not keys["tokenizer.ggml.add_bos_token"]
    assert "<|im_start|>assistant" in keys["tokenizer.chat_template"]
    assert keys["tokenizer.ggml.merges"] == [f"{byte_level_text(a)} {byte_level_text(b)}" for a, b in tiny_merges()]
    tokenizer = Tokenizer.from_gguf(out)
    oracle = tiktoken.Encoding("tiny", pat_str=QWEN2_SPLIT, mergeable_ranks=tiny_ranks(), special_tokens={})
    for text in SAMPLES:
        assert tokenizer.tokenize(text) == oracle.encode(text, disallowed_special=())
    assert {N, N + 2} <= tokenizer.eog


def test_glm_4s_tiktoken(tmp_path: Path) -> None:
    """Its tokenizer.model is no SentencePiece model; its special tokens stand in tokenizer_config.json."""
    case = plain_decoders.Case("chatglm", {"padded_vocab_size": N + 8, "eos_token_id": [N, N + 4]})
    case.write(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in tiny_ranks().items())
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    specials = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>")
    added = {str(N + i): {"content": text, "special": True} for i, text in enumerate(specials)}
    put(
        tmp_path, "tokenizer_config.json",
        {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added, "eos_token": "<|endoftext|>"},
    )  # fmt: skip
    keys = export(tmp_path, N + 8)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "chatglm-bpe")
    assert keys["tokenizer.ggml.token_type"].tolist() == [1] * N + [3] * 5 + [5] * 3
    tokenizer = tokenizer_of(tmp_path, N + 8)
    oracle = tiktoken.Encoding("tiny", pat_str=LLAMA3_SPLIT, mergeable_ranks=tiny_ranks(), special_tokens={})
    for text in SAMPLES:
        assert tokenizer.tokenize(text) == [N + 1, N + 2, *oracle.encode(text, disallowed_special=())]
    assert {N, N + 4} <= tokenizer.eog


def test_a_base_qwen_gets_no_template(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen")
    update(folder, "generation_config.json", chat_format="raw")
    assert "tokenizer.chat_template" not in export(folder, 704)
