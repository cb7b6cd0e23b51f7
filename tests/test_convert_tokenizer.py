"""Tokenizers on their way into GGUF: merges from ranks, pre-tokenizers by structure, special tokens, templates."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    CHATML,
    CONFIGS,
    DIGITS_STEP,
    LLAMA3_SPECIALS,
    LLAMA3_SPLIT,
    QWEN2_SPECIALS,
    QWEN2_SPLIT,
    TEXT,
    byte_level_json,
    sentencepiece_model,
    sentencepiece_pieces,
    slow_encode,
    split_step,
    tiny_checkpoint,
    tiny_merges,
    tiny_ranks,
)

from ggpy import Tokenizer
from ggpy.convert.bpe_merges import rebuild_merges
from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.pipeline import convert
from ggpy.convert.pre_tokenizer import recognise
from ggpy.convert.sentencepiece_model import read_sentencepiece_model
from ggpy.convert.tokenizer_export import export_tokenizer
from ggpy.convert.vocabulary import byte_alphabet, byte_level_text
from ggpy.errors import GGPYError

N = len(tiny_ranks())
SAMPLES = (TEXT, "Hello, world! 12345 \n\n\tx  y", "写一首诗。🙂 naïve café", "I'll don't WE'RE", "<|im_start|>", "")


def export(folder: Path, n_vocab: int = 512) -> dict[str, Any]:
    with Checkpoint(folder) as checkpoint:
        return export_tokenizer(checkpoint, n_vocab)[0]


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def update(folder: Path, name: str, **changes: Any) -> None:
    put(folder, name, {**json.loads((folder / name).read_text(encoding="utf-8")), **changes})


# Merges


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
    """GPT-2-like ranks of 50k tokens: exact on a sample, and in seconds."""
    ranks = {bytes([b]): b for b in range(256)}
    state = 1
    while len(ranks) < 50_000:
        known = list(ranks)
        for _ in range(2000):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            a, b = known[(state >> 20) % len(known)], known[(state >> 40) % min(len(known), 3000)]
            if len(a + b) <= 16 and a + b not in ranks and len(slow_encode(ranks, a + b, len(ranks))) == 2:
                ranks[a + b] = len(ranks)
    began = time.perf_counter()
    merges = rebuild_merges(ranks)
    assert time.perf_counter() - began < 5
    longer = [token for token in ranks if len(token) > 1]
    assert len(merges) == len(longer)
    for token, pair in list(zip(longer, merges, strict=True))[::97]:
        assert tuple(slow_encode(ranks, token, ranks[token])) == pair


def test_a_token_that_nothing_makes_is_named() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"xyz": 256}
    with pytest.raises(GGPYError, match="b'xyz' of rank 256"):
        rebuild_merges(ranks)


# Vocabularies, whole


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


def test_a_base_qwen_gets_no_template(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen")
    update(folder, "generation_config.json", chat_format="raw")
    assert "tokenizer.chat_template" not in export(folder, 704)


@pytest.mark.parametrize(
    ("kind", "pre"), [("llama", "llama-bpe"), ("smollm2", "smollm"), ("qwen2", "qwen2"), ("qwen3", "qwen2")]
)
def test_tokenizer_json(tmp_path: Path, kind: str, pre: str) -> None:
    folder, out = tiny_checkpoint(tmp_path, kind), tmp_path / "out.gguf"
    convert(folder, "f16", out)
    assert export(folder)["tokenizer.ggml.pre"] == pre
    tokenizer = Tokenizer.from_gguf(out)
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES:
        assert tokenizer.tokenize(text, parse_special=True) == oracle.encode(text).ids


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
    for text in SAMPLES[:4]:
        assert tokenizer.tokenize(text) == [1, *oracle.encode(text)]


def spm_like_json() -> dict[str, Any]:
    """What the fast version of a SentencePiece tokenizer looks like: merges in place of scores."""
    pieces = sentencepiece_pieces()
    vocab = {text: id for id, (text, _, _) in enumerate(pieces)}
    merges = [
        [text[:i], text[i:]]
        for text, _, kind in pieces
        if kind == 1
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab
    ]
    tokenizer = byte_level_json((), [])
    tokenizer.update(
        added_tokens=[
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]},
        pre_tokenizer=None,
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    )  # fmt: skip
    tokenizer["model"].update(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return tokenizer


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
    for text in SAMPLES[:4]:
        assert tokenizer.tokenize(text) == oracle.encode(text).ids


# Pre-tokenizers, by what they do

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
APOSTROPHES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
NFC = {"type": "NFC"}


def isolated(*regexes: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in regexes]


@pytest.mark.parametrize(
    ("name", "steps", "extra"),
    [
        ("gpt-2", [{**BYTES}], {}),
        ("mpt", [{**BYTES}], {"normalizer": NFC}),
        ("llama-bpe", split_step(LLAMA3_SPLIT), {"model": {"ignore_merges": True}}),
        ("llama-bpe", split_step(LLAMA3_SPLIT), {"post_processor": {"type": "TemplateProcessing"}}),
        ("chatglm-bpe", split_step(LLAMA3_SPLIT), {"added_tokens": [{"id": 1, "content": "[gMASK]"}]}),
        ("qwen2", split_step(QWEN2_SPLIT), {"normalizer": NFC}),
        ("qwen2", split_step(QWEN2_SPLIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)",
         "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")), {}),
        ("smollm", DIGITS_STEP, {}),
        ("starcoder", DIGITS_STEP, {"config": {"clean_up_tokenization_spaces": True}}),
        ("command-r", DIGITS_STEP, {"normalizer": NFC}),
        ("tekken", split_step(CASED % ("", "", "")), {}),
        ("gpt-4o", split_step(CASED % (APOSTROPHES, APOSTROPHES, "{1,3}")), {}),
        ("deepseek-coder", [*isolated("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
         {"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": False}], {}),
        ("deepseek-llm", [*isolated("[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
         "[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": False}], {}),
        ("falcon", [{"type": "Punctuation", "behavior": "Contiguous"}, {**BYTES, "use_regex": True},
         {"type": "Digits", "individual_digits": False}, *isolated("[0-9][0-9][0-9]")], {}),
    ],
)  # fmt: skip
def test_pre_tokenizers_are_recognised(name: str, steps: list[dict[str, Any]], extra: dict[str, Any]) -> None:
    config = extra.pop("config", {}) if "config" in extra else {}
    tokenizer = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}, **extra}
    assert recognise(tokenizer, config) == name
    if len(steps) == 1:
        assert recognise({**tokenizer, "pre_tokenizer": steps[0]}, config) == name


@pytest.mark.parametrize(
    "steps", [[], [{"type": "WhitespaceSplit"}], split_step(r"\p{L}+"), isolated(QWEN2_SPLIT), [{"type": "Metaspace"}]]
)
def test_an_unknown_pre_tokenizer_is_described(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(GGPYError, match=r"none of the pre-tokenizers ggpy knows \(default, gpt-2"):
        recognise({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}}, {})


# Roles, ends, templates


def test_llama3_ends(tmp_path: Path) -> None:
    keys = export(tiny_checkpoint(tmp_path, "llama"))
    ids = {text: N + i for i, text in enumerate(LLAMA3_SPECIALS)}
    assert keys["tokenizer.ggml.bos_token_id"] == ids["<|begin_of_text|>"]
    assert keys["tokenizer.ggml.eos_token_id"] == ids["<|eot_id|>"]
    assert keys["tokenizer.ggml.eot_token_id"] == ids["<|eot_id|>"]
    assert keys["tokenizer.ggml.eom_token_id"] == ids["<|eom_id|>"]
    assert keys["tokenizer.ggml.add_bos_token"]
    assert not keys["tokenizer.ggml.add_eos_token"]


def test_ends_that_no_text_gives_away_get_keys(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    put(folder, "tokenizer.json", byte_level_json((*QWEN2_SPECIALS, "<bye>", "<over>"), split_step(QWEN2_SPLIT)))
    update(folder, "generation_config.json", eos_token_id=[N + 2, N + 3, N + 4])
    keys = export(folder)
    assert keys["tokenizer.ggml.eot_token_id"] == N + 2  # the template's own end marker
    assert keys["tokenizer.ggml.eom_token_id"] == N + 3
    assert keys["tokenizer.ggml.eog_token_ids"].tolist() == [N + 2, N + 3, N + 4]


def test_an_ordinary_token_is_no_end(tmp_path: Path) -> None:
    """Configs carry a default eos_token_id that nobody set; only where nothing else names an end does it count."""
    folder = tiny_checkpoint(tmp_path, "qwen2", eos_token_id=2)
    update(folder, "generation_config.json", eos_token_id=2)
    with Checkpoint(folder) as checkpoint:
        keys, notes = export_tokenizer(checkpoint, 512)
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.eot_token_id"] == N + 2
    assert "tokenizer.ggml.eom_token_id" not in keys
    assert len(notes) == 1
    update(folder, "tokenizer_config.json", eos_token=None)
    assert export(folder)["tokenizer.ggml.eos_token_id"] == 2


def test_bos_of_config_json_counts_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    keys = export(tiny_checkpoint(tmp_path, "qwen2"))
    assert keys["tokenizer.ggml.bos_token_id"] == N
    assert keys["tokenizer.ggml.padding_token_id"] == N
    assert not keys["tokenizer.ggml.add_bos_token"]


def test_chat_templates(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    assert export(folder)["tokenizer.chat_template"] == CHATML
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    update(folder, "tokenizer_config.json", chat_template=named)
    keys = export(folder)
    assert keys["tokenizer.chat_template"] == "a"
    assert keys["tokenizer.chat_template.tool_use"] == "b"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("c")
    assert export(folder)["tokenizer.chat_template"] == "c"


def test_added_tokens(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    put(folder, "added_tokens.json", {"<tool>": N + 3, "<|looks|>": N + 4})
    decoder = {str(N + 5): {"content": "a\u2581b", "special": False}, "600": {"content": "<far>", "special": True}}
    update(folder, "tokenizer_config.json", added_tokens_decoder=decoder)
    with Checkpoint(folder) as checkpoint:
        keys, notes = export_tokenizer(checkpoint, 512)
    assert keys["tokenizer.ggml.tokens"][N + 3 : N + 6] == ["<tool>", "<|looks|>", "a b"]
    assert keys["tokenizer.ggml.token_type"][N + 3 : N + 6].tolist() == [4, 3, 4]
    assert any("'<far>'" in text for text in notes)


def test_sampling_defaults_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    update(folder, "generation_config.json", top_p="high", temperature=-1, do_sample=False)
    notes: list[str] = []
    convert(folder, "f16", tmp_path / "out.gguf", note=notes.append)
    assert len(notes) == 2
    assert all("generation_config.json" in text for text in notes)


# What goes wrong


def broken(folder: Path, name: str, content: bytes | None) -> None:
    for other in ("tokenizer.json", "tokenizer.model", "qwen.tiktoken"):
        (folder / other).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no tokenizer that ggpy reads"),
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b"[1]", "must hold a JSON object"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "the kind 'WordPiece'"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no vocabulary"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "not a whole number"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}}', "the same id"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a b"]}}', "the merge 'a b'"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a"]}}', "not a pair"),
        ("tokenizer.json", b'{"added_tokens": [{"id": "x"}], "model": {"type": "BPE"}}', "not a token with an id"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": ["a"]}}', "not a piece and its score"),
        ("tokenizer.json", "你".encode("gbk"), "not UTF-8"),
        ("tokenizer.model", b"", "holds no pieces"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "not a SentencePiece model"),
        ("tokenizer.model", sentencepiece_model(sentencepiece_pieces())[:-1], "not a SentencePiece model"),
        ("tokenizer.model", sentencepiece_model(sentencepiece_pieces(), kind=3), "is a word model"),
        ("qwen.tiktoken", b"IQ== 0\nIg==\n", "on line 2"),
        ("qwen.tiktoken", b"IQ== 0\n???? 1\n", "on line 2"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 0\n", "the same rank"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", "256 single bytes"),
    ],
)
def test_broken_tokenizers_are_told(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    broken(folder, name, content)
    with pytest.raises(GGPYError, match=message):
        convert(folder, "q8_0", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", vocab_size=320)
    with pytest.raises(GGPYError, match="vocab_size is 320"):
        convert(folder, "q8_0", tmp_path / "out.gguf")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_sentencepiece_models_end_in_a_sentence(data: st.DataObject) -> None:
    model = bytearray(sentencepiece_model(sentencepiece_pieces()))
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with suppress(GGPYError):
        read_sentencepiece_model(bytes(model[: data.draw(st.integers(0, len(model)))]), "tokenizer.model")


def test_the_byte_alphabet_is_gpt2s() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41], alphabet[0xAD]) == ("Ġ", "Ċ", "A", "Ń")
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) == set(alphabet)


def test_kinds_cover_every_architecture() -> None:
    from ggpy.models import ARCHITECTURES

    shipped = {name for architecture in ARCHITECTURES for name in architecture.hf_names}
    assert {config["architectures"][0] for config in CONFIGS.values()} <= shipped
