"""Tokenizers on their way into GGUF: pre-tokenizers by structure, special tokens, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from ggpy import Tokenizer
from ggpy.convert.pipeline import convert
from ggpy.convert.pre_tokenizer import NAMES, recognise
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.models import HOMES, architectures, by_gguf_name, by_hf_name
from ggpy.models.hf_config import Config
from ggpy.models.hf_keys import known_config
from ggpy.text.tokenizer.byte_alphabet import CHARACTER_OF_BYTE
from ggpy.text.tokenizer.pretokenize import PRE_TOKENIZERS
from tests.support import families
from tests.support.tiny import (
    DIGITS_STEP,
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    TEXT,
    byte_level_json,
    sentencepiece_model,
    sentencepiece_pieces,
    split_step,
    tiny_checkpoint,
    tiny_ranks,
)
from tests.support.tokenizer_folders import export, exported, put, tokenizer_of, update
from tests.support.vocabularies import random_texts

N = len(tiny_ranks())
SAMPLES = (TEXT, "Hello, world! 12345 \n\n\tx  y", "写一首诗。🙂 naïve café", "I'll don't WE'RE", "<|im_start|>", "")


# Vocabularies, whole


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


# Recorded with transformers 5.24: AutoTokenizer on the folder that `words_folder` makes, of a Qwen2 and of a Llama.
WORDS = {
    "Qwen2Tokenizer": [
        ("The capital of France is Paris. 12345  \n\n\tx  y",
         [51, 71, 68, 329, 355, 308, 263, 311, 13, 220, 16, 17, 18, 19, 20, 220, 220, 198, 198, 197, 87, 220, 220, 88]),
        ("写一首诗。🙂 naïve cafe\u0301",
         [161, 228, 247, 160, 116, 222, 165, 99, 244, 164, 107, 245, 273, 172, 253, 247, 224, 220, 77, 64, 127, 107, 85,
          68, 324, 69, 127, 102]),
        ("<|im_start|>the<|im_end|>", [457, 83, 71, 68, 458]),
    ],
    "GPT2Tokenizer": [
        ("写一首诗。🙂 naïve cafe\u0301",
         [161, 228, 247, 160, 116, 222, 165, 99, 244, 164, 107, 245, 273, 172, 253, 247, 224, 220, 77, 64, 127, 107, 85,
          68, 324, 69, 68, 136, 223]),
        ("<|im_start|>the<|im_end|>", [457, 83, 71, 68, 458]),
    ],
}  # fmt: skip


def words_folder(tmp_path: Path, name: str | None, kind: str = "qwen2") -> Path:
    """A folder whose tokenizer is vocab.json and merges.txt, its special tokens in tokenizer_config.json."""
    folder = tiny_checkpoint(tmp_path, kind)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    put(folder, "vocab.json", whole["model"]["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *whole["model"]["merges"], ""]), encoding="utf-8")
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    update(folder, "tokenizer_config.json", added_tokens_decoder=added, tokenizer_class=name)
    return folder


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", None])
def test_vocab_and_merges_alone(tmp_path: Path, name: str | None) -> None:
    """Qwen2's models are loaded with their own class whatever they name."""
    folder = words_folder(tmp_path, name)
    assert export(folder)["tokenizer.ggml.pre"] == "qwen2"
    for text, ids in WORDS["Qwen2Tokenizer"]:
        assert tokenizer_of(folder).tokenize(text, parse_special=True) == ids


def test_vocab_and_merges_of_gpt2s_class(tmp_path: Path) -> None:
    folder = words_folder(tmp_path, "GPT2Tokenizer", "smollm2")
    assert export(folder)["tokenizer.ggml.pre"] == "gpt-2"  # as transformers loads them, digits and all
    for text, ids in WORDS["GPT2Tokenizer"]:
        assert tokenizer_of(folder).tokenize(text, parse_special=True) == ids
    update(folder, "tokenizer_config.json", tokenizer_class="CLIPTokenizer")
    with pytest.raises(GGPYError, match="tokenizer_class is 'CLIPTokenizer'; ggpy knows how GPT2Tokenizer, Qwen2"):
        export(folder)


def test_vocab_and_merges_of_qwen35s_class(tmp_path: Path) -> None:
    """Whatever the folder names: Qwen3.5's own files say Qwen2's class, which cuts marks from their letters."""
    folder = words_folder(tmp_path, "Qwen2Tokenizer")
    update(folder, "config.json", model_type="qwen3_5_text")
    keys = export(folder)
    assert keys["tokenizer.ggml.pre"] == "qwen35"
    assert keys["tokenizer.ggml.unknown_token_id"] == N


# Normalizers


@pytest.mark.parametrize(
    ("kind", "normalizer", "key"),
    [
        ("qwen2", {"type": "NFC"}, None),
        ("qwen2", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, None),
        ("qwen2", None, "null"),
        ("llama", {"type": "NFC"}, "NFC"),
        ("llama", {"type": "NFKC"}, "NFKC"),
        ("smollm2", {"type": "NFC"}, None),
        ("smollm2", {"type": "Lowercase"}, "Lowercase"),
        ("qwen2", {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                   "lowercase": True}, "BertNormalizer"),
        ("qwen2", {"type": "Replace", "pattern": {"String": "the"}, "content": "The"}, "Replace"),
        ("qwen2", {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, "Replace"),
        ("qwen2", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip", "strip_left": True,
                                                                        "strip_right": True}]}, "Strip"),
    ],
)  # fmt: skip
def test_normalizers_are_followed(tmp_path: Path, kind: str, normalizer: Any, key: str | None) -> None:
    folder = tiny_checkpoint(tmp_path, kind)
    update(folder, "tokenizer.json", normalizer=normalizer)
    keys, notes = exported(folder)
    if key is None:
        assert "ggpy.tokenizer.normalizer" not in keys
        assert not notes
    else:
        assert key in keys["ggpy.tokenizer.normalizer"] or key == "null"
        assert any("other readers of GGUF do not" in text for text in notes)
    ours, theirs = Tokenizer(keys), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (
        *SAMPLES,
        "Tie\u0302\u0301ng Vie\u0323\u0302t \ufb01 ＡＢＣ",
        "  the   THE  ",
        *random_texts(40, seed=9),
    ):
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, repr(text)


@pytest.mark.parametrize(
    ("normalizer", "said"),
    [
        ({"type": "Nmt"}, "'Nmt' is a normalizer that ggpy does not follow"),
        ({"type": "BertNormalizer", "lowercase": 1}, "'BertNormalizer' has options that are neither true nor false"),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}, "Replace by the regular expression 'a"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Other"}]}, "'Other'"),
        ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "no map of characters"),
        ("NFC", "has 'NFC' where a step"),
    ],
)
def test_normalizers_that_are_not_followed_are_refused(tmp_path: Path, normalizer: Any, said: str) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    update(folder, "tokenizer.json", normalizer=normalizer)
    with pytest.raises(GGPYError, match=said):
        export(folder)


# Pre-tokenizers, by what they do

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
APOSTROPHES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
NFC = {"type": "NFC"}


# As the models' own files have them, line ends raw.
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
QWEN35 = QWEN2_SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
SEED_CODER = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+"
    "|\\s+(?!\\S)|\\s+"
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


def isolated(*regexes: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in regexes]


@pytest.mark.parametrize(
    ("name", "steps", "extra"),
    [
        ("gpt-2", [{**BYTES}], {}),
        ("mpt", [{**BYTES}], {"normalizer": NFC}),
        ("llama-bpe", split_step(LLAMA3_SPLIT), {"model": {"ignore_merges": True}}),
        ("lfm2", split_step(LLAMA3_SPLIT), {"model": {"ignore_merges": True}, "added_tokens": [
            {"id": 1, "content": "<|startoftext|>"}, {"id": 2, "content": "<|im_start|>"}]}),
        ("smaug-bpe", split_step(LLAMA3_SPLIT), {"post_processor": {"type": "TemplateProcessing"}}),
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
        ("bloom", [*isolated(BLOOM), {**BYTES, "use_regex": False}], {}),
        ("viking", [*isolated(BLOOM), DIGITS_STEP[0], {**BYTES, "use_regex": False}], {}),
        ("qwen35", split_step(QWEN35), {"normalizer": NFC}),
        ("tiny_aya", [*isolated(r"\d{1,3}(?=(?:\d{3})*\b)", CASED % (APOSTROPHES, APOSTROPHES, "{1,3}")),
         {**BYTES, "use_regex": False}], {}),
        ("minicpm5", [*isolated(r"\p{N}{1,3}", LLAMA3_SPLIT.replace("{1,3}", "+")), {**BYTES, "use_regex": False}],
         {"model": {"ignore_merges": True}}),
        ("seed-coder", split_step(SEED_CODER), {}),
        ("deepseek-v3", [*isolated(*DEEPSEEK_V3), {**BYTES, "use_regex": False}], {}),
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
    ("name", "steps"),
    [
        ("bloom", isolated(BLOOM)), ("viking", [*isolated(BLOOM), DIGITS_STEP[0]]), ("qwen35", isolated(QWEN35)),
        ("seed-coder", isolated(SEED_CODER)), ("tekken", isolated(CASED % ("", "", ""))),
        ("gpt-4o", isolated(CASED % (APOSTROPHES, APOSTROPHES, "{1,3}"))),
        ("deepseek-v3", isolated(*DEEPSEEK_V3)),
    ],
)  # fmt: skip
def test_pre_tokenizers_cut_as_the_originals(name: str, steps: list[dict[str, Any]]) -> None:
    whole = json.dumps({
        **byte_level_json((), []), "decoder": None, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    })  # fmt: skip
    theirs = tokenizers.Tokenizer.from_str(whole).pre_tokenizer
    ours = PRE_TOKENIZERS[name].splitter()
    assert theirs is not None
    for text in ("ЗаЯвка हिन्दी में Ǆabc ǅungla ÉCOLEÉcole ʰX don'T", *random_texts(150, seed=3)):
        assert ours(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], repr(text)


def test_every_pre_tokenizer_that_the_reader_knows_is_reached() -> None:
    """Every pre-tokenizer, reached by its own name or by one that cuts alike, but the default, which no model's
    tokenizer.json is, and those of models that are not converted."""
    reached = {PRE_TOKENIZERS[name].steps for name in NAMES}
    assert {name for name, kind in PRE_TOKENIZERS.items() if kind.steps not in reached} == {
        "default", "bailingmoe", "bailingmoe2", "llada-moe",  # these spell Qwen's expression otherwise
        "jais-2", "spark2_5", "youtu", "chameleon", "kimi-k2", "superbpe", "ufakzeka", "afmoe", "laguna", "exaone-moe",
    }  # fmt: skip


@pytest.mark.parametrize(
    "steps", [[], [{"type": "WhitespaceSplit"}], split_step(r"\p{L}+"), isolated(QWEN2_SPLIT), [{"type": "Metaspace"}]]
)
def test_an_unknown_pre_tokenizer_is_described(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(GGPYError, match=r"none of the pre-tokenizers ggpy knows \(gpt-2, smollm"):
        recognise({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}}, {})


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
        ("tokenizer.json", b'{"model": {"type": "WordLevel"}}', "the kind 'WordLevel'"),
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


def test_the_byte_alphabet_is_gpt2s() -> None:
    alphabet = CHARACTER_OF_BYTE
    assert len(set(alphabet)) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41], alphabet[0xAD]) == ("Ġ", "Ċ", "A", "Ń")
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) == set(alphabet)


def test_kinds_cover_every_architecture() -> None:
    found = set()
    for config in families.CONFIGS.values():
        model_class, settings, _ = known_config(Config(config))
        found.add(by_hf_name(model_class, settings).hf_layout(settings).arch)
    assert found == set(HOMES)


@pytest.mark.parametrize("name", dict.fromkeys(name for kind in architectures() for name in kind.hf_names))
def test_every_model_class_is_converted(tmp_path: Path, name: str) -> None:
    kinds = {config["architectures"][0]: kind for kind, config in reversed(families.CONFIGS.items())}
    alike = next(architecture.hf_names for architecture in architectures() if name in architecture.hf_names)
    kind = kinds.get(name) or next(kinds[other] for other in alike if other in kinds)
    folder = families.family_checkpoint(tmp_path, kind, architectures=[name])
    convert(folder, "q8_0", tmp_path / "m.gguf")
    with GGUFFile(tmp_path / "m.gguf") as file:
        config = known_config(Config({**families.CONFIGS[kind], "architectures": [name]}))[1]
        arch = by_hf_name(name, config).hf_layout(config).arch
        assert by_gguf_name(file.metadata["general.architecture"]) is by_gguf_name(arch)
