"""The list of what becomes of each key of tokenizer.json and tokenizer_config.json, shown key by key.

A key that is followed, refused or noted changes what comes out of the folder: the tokens of some texts, what ends an
answer, what a template writes, the notes or an error. One that does not matter changes nothing. A key that is not
listed is reported.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

from ggpy import Tokenizer
from ggpy.convert.sentencepiece_model import read_sentencepiece_model
from ggpy.convert.tokenizer_keys import FOLLOWED, NOTED, REFUSED, TOKENIZER_CONFIG, TOKENIZER_JSON, unknown_keys
from ggpy.errors import GGPYError
from ggpy.text.chat_template import ChatTemplate
from tests.support.tiny import DIGITS_STEP, QWEN2_SPECIALS, byte_level_json, tiny_checkpoint, tiny_ranks
from tests.support.tokenizer_folders import exported, put, spm_like_json
from tests.support.vocabularies import hf_wordpiece, sentencepiece_model

N = len(tiny_ranks())
TEXTS = (
    "the  The <|im_start|>  the1 23 the<|im_end|>x!!<|endoftext|>", "cafe\u0301 \ufb01 <|im_start|>", " x ", "I'll. go",
    "<s>the</s>the  river</s>", "龘龘 the 龘", "zqzq", "Th\xe9 中文 q\ad[UNK]", "[MASK]the",
)  # fmt: skip
SEEN = "{{ bos_token }}|{{ image_token }}|{{ foo_token }}"

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the folders are made, once a kind."""
    return tmp_path_factory.mktemp("folders")


def outcome(folders: Path, kind: str, *changes: Change) -> Any:
    """The result of converting a folder with these changes to its tokenizer.json and tokenizer_config.json."""
    folder = folders / kind / f"tiny-{'mistral' if kind in ('spm', 'bert') else kind}"
    if not folder.exists():
        tiny_checkpoint(folder.parent, folder.name.removeprefix("tiny-"))
        (folder / "tokenizer.model").unlink(missing_ok=True)
        if kind == "spm":
            put(folder, "tokenizer.json", spm_like_json())
        if kind == "bert":
            put(folder, "tokenizer.json", json.loads(hf_wordpiece(size=400).to_str()))
        (folder / "tokenizer.json").rename(folder / "before.json")
    whole = json.loads((folder / "before.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": SEEN}
    for change in changes:
        change(whole, config)
    put(folder, "tokenizer.json", whole)
    put(folder, "tokenizer_config.json", config)
    try:
        keys, notes = exported(folder)
        tokenizer = Tokenizer(keys)
        template = ChatTemplate.from_gguf(SimpleNamespace(metadata=keys, path="x"), tokenizer)  # type: ignore[arg-type]
        shown = template.render([{"role": "user", "content": "x"}]) if template is not None else None
        ids = [tokenizer.tokenize(text, parse_special=True) for text in TEXTS]
        return ids, sorted(tokenizer.eog), [tokenizer.token_bytes(i, special=False) for i in range(512)], shown, notes
    except GGPYError as error:
        return f"refused: {error}"


def at(path: str, value: Any) -> Change:
    """Put a value under a path of tokenizer.json, numbers being places in a list."""

    def change(whole: dict[str, Any], config: dict[str, Any]) -> None:
        node: Any = whole
        *inner, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in inner:
            node = node[part]
        node[last] = value

    return change


def config(**values: Any) -> Change:
    return lambda whole, config: config.update(values)


def nothing(whole: dict[str, Any], config: dict[str, Any]) -> None:
    pass


def sequence(part: str, inner: str, *steps: dict[str, Any]) -> Change:
    return at(part, {"type": "Sequence", inner: list(steps)})


def added(**values: Any) -> Change:
    """Change the added token <|im_start|>."""

    def change(whole: dict[str, Any], config: dict[str, Any]) -> None:
        whole["added_tokens"][1].update(values)

    return change


def both(*changes: Change) -> Change:
    def change(whole: dict[str, Any], config: dict[str, Any]) -> None:
        for one in changes:
            one(whole, config)

    return change


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NFC, LOWER = {"type": "NFC"}, {"type": "Lowercase"}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
REPLACE = {"type": "Replace", "pattern": {"String": "the"}, "content": "The"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}
START, END = QWEN2_SPECIALS[1:]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {START: {"id": START, "ids": [N + 1], "tokens": [START]}},
}
BERT = {"type": "BertProcessing", "cls": [START, N + 1], "sep": [END, N + 2]}
ROBERTA = {**BERT, "type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}
UNIGRAM = {
    "type": "Unigram",
    "vocab": [[text, -float(i)] for i, text in enumerate(spm_like_json()["model"]["vocab"])],
    "unk_id": 0,
    "byte_fallback": True,
}


def word(text: str = "zqzq", **model: Any) -> Change:
    """A word of the vocabulary that no merges make."""

    def change(whole: dict[str, Any], config: dict[str, Any]) -> None:
        whole["model"]["vocab"][text] = 500
        whole["model"].update(model)

    return change


def charsmap(rule: str) -> dict[str, Any]:
    vocabulary = read_sentencepiece_model(sentencepiece_model(rule=rule).serialized_model_proto(), "x")
    data = bytes(vocabulary.extra["tokenizer.ggml.precompiled_charsmap"])
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def without_a_byte(whole: dict[str, Any], config: dict[str, Any]) -> None:
    del whole["model"]["vocab"]["÷"]  # the byte F7, which no merge takes


#: Of each key that matters: the kind of folder, what is done to it first, and the change that shows.
CHANGES: dict[str, tuple[str, Change, Change]] = {
    "added_tokens": ("qwen2", nothing, lambda whole, _: whole["added_tokens"].pop()),
    "added_tokens.id": ("qwen2", nothing, added(id=480)),
    "added_tokens.content": ("qwen2", nothing, added(content="<|im_begin|>")),
    "added_tokens.special": ("qwen2", added(content="<start>"), added(special=False)),
    "added_tokens.single_word": ("qwen2", added(content="<|im_start|>  the"), added(single_word=True)),
    "added_tokens.lstrip": ("qwen2", nothing, added(lstrip=True)),
    "added_tokens.rstrip": ("qwen2", nothing, added(rstrip=True)),
    "added_tokens.normalized": ("qwen2", both(at("normalizer", LOWER), added(content="The ")), added(normalized=True)),
    "normalizer": ("qwen2", nothing, at("normalizer", None)),
    "normalizer.Strip.strip_left": ("qwen2", at("normalizer", STRIP), at("normalizer.strip_left", False)),
    "normalizer.Strip.strip_right": ("qwen2", at("normalizer", STRIP), at("normalizer.strip_right", False)),
    "normalizer.Replace.pattern": ("qwen2", at("normalizer", REPLACE), at("normalizer.pattern", {"String": "x"})),
    "normalizer.Replace.content": ("qwen2", at("normalizer", REPLACE), at("normalizer.content", "x")),
    "normalizer.Prepend.prepend": (
        "qwen2", at("normalizer", {"type": "Prepend", "prepend": "x"}), at("normalizer.prepend", "y")),
    "normalizer.Precompiled.precompiled_charsmap": (
        "spm", at("normalizer", charsmap("nmt_nfkc")), at("normalizer", charsmap("nmt_nfkc_cf"))),
    "normalizer.BertNormalizer.clean_text": ("bert", nothing, at("normalizer.clean_text", False)),
    "normalizer.BertNormalizer.handle_chinese_chars": ("bert", nothing, at("normalizer.handle_chinese_chars", False)),
    "normalizer.BertNormalizer.strip_accents": ("bert", nothing, at("normalizer.strip_accents", False)),
    "normalizer.BertNormalizer.lowercase": ("bert", nothing, at("normalizer.lowercase", False)),
    "pre_tokenizer": ("qwen2", nothing, at("pre_tokenizer", None)),
    "pre_tokenizer.ByteLevel.add_prefix_space": (
        "smollm2", at("pre_tokenizer", {**BYTES}), at("pre_tokenizer.add_prefix_space", True)),
    "pre_tokenizer.ByteLevel.use_regex": (
        "smollm2", at("pre_tokenizer", {**BYTES}), at("pre_tokenizer.use_regex", False)),
    "pre_tokenizer.Split.pattern": ("qwen2", nothing, at("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "a"})),
    "pre_tokenizer.Split.behavior": ("qwen2", nothing, at("pre_tokenizer.pretokenizers.0.behavior", "Removed")),
    "pre_tokenizer.Split.invert": ("qwen2", nothing, at("pre_tokenizer.pretokenizers.0.invert", True)),
    "pre_tokenizer.Digits.individual_digits": (
        "smollm2", nothing, at("pre_tokenizer.pretokenizers", [{**DIGITS_STEP[0], "individual_digits": False}, BYTES])),
    "pre_tokenizer.Punctuation.behavior": (
        "smollm2",
        sequence(
            "pre_tokenizer", "pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, BYTES,
            {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}),
        at("pre_tokenizer.pretokenizers.0.behavior", "Isolated")),
    "pre_tokenizer.Metaspace.replacement": (
        "spm", at("pre_tokenizer", {**METASPACE}), at("pre_tokenizer.replacement", "_")),
    "pre_tokenizer.Metaspace.prepend_scheme": (
        "spm", both(at("normalizer", None), at("pre_tokenizer", {**METASPACE})),
        at("pre_tokenizer.prepend_scheme", "first")),
    "pre_tokenizer.Metaspace.add_prefix_space": (
        "spm", both(at("normalizer", None), at("pre_tokenizer", {**METASPACE})),
        at("pre_tokenizer.add_prefix_space", False)),
    "pre_tokenizer.Metaspace.split": (
        "spm", both(word("the\u2581river"), at("pre_tokenizer", {**METASPACE})), at("pre_tokenizer.split", True)),
    "post_processor": ("qwen2", nothing, at("post_processor", TEMPLATE)),
    "post_processor.TemplateProcessing.single": (
        "qwen2", at("post_processor", copy.deepcopy(TEMPLATE)),
        at("post_processor.single", [{"Sequence": {"id": "A", "type_id": 0}}])),
    "post_processor.TemplateProcessing.special_tokens": (
        "qwen2", at("post_processor", copy.deepcopy(TEMPLATE)),
        at(f"post_processor.special_tokens.{START}.ids", [N])),
    "post_processor.BertProcessing.cls": ("qwen2", at("post_processor", {**BERT}), at("post_processor.cls", [END, N])),
    "post_processor.BertProcessing.sep": ("qwen2", at("post_processor", {**BERT}), at("post_processor.sep", [END, N])),
    "post_processor.RobertaProcessing.cls": (
        "qwen2", at("post_processor", {**ROBERTA}), at("post_processor.cls", [END, N])),
    "post_processor.RobertaProcessing.sep": (
        "qwen2", at("post_processor", {**ROBERTA}), at("post_processor.sep", [END, N])),
    "decoder": ("qwen2", nothing, at("decoder", None)),
    "decoder.Metaspace.replacement": ("spm", at("decoder", {**METASPACE}), at("decoder.replacement", "_")),
    "decoder.Replace.pattern": (
        "spm", at("decoder", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}),
        at("decoder.pattern", {"String": "a"})),
    "decoder.Replace.content": (
        "spm", at("decoder", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}),
        at("decoder.content", "a")),
    "decoder.Strip.content": (
        "spm", at("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}), at("decoder.content", "x")),
    "decoder.Strip.stop": (
        "spm", at("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}), at("decoder.stop", 1)),
    "model": ("qwen2", nothing, lambda whole, _: whole.pop("model")),
    "model.BPE.vocab": ("qwen2", nothing, word("\u0120The")),
    "model.BPE.merges": ("qwen2", nothing, lambda whole, _: whole["model"]["merges"].pop(0)),
    "model.BPE.dropout": ("qwen2", nothing, at("model.dropout", 0.1)),
    "model.BPE.unk_token": ("qwen2", without_a_byte, at("model.unk_token", END)),
    "model.BPE.fuse_unk": ("spm", at("model.byte_fallback", False), at("model.fuse_unk", False)),
    "model.BPE.byte_fallback": ("spm", nothing, at("model.byte_fallback", False)),
    "model.BPE.ignore_merges": ("qwen2", word(), at("model.ignore_merges", True)),
    "model.BPE.continuing_subword_prefix": ("qwen2", nothing, at("model.continuing_subword_prefix", "##")),
    "model.BPE.end_of_word_suffix": ("qwen2", nothing, at("model.end_of_word_suffix", "</w>")),
    "model.Unigram.vocab": ("spm", at("model", copy.deepcopy(UNIGRAM)), at("model.vocab.261", ["\u2581thy", -1.0])),
    "model.Unigram.unk_id": ("spm", at("model", {**UNIGRAM, "byte_fallback": False}), at("model.unk_id", 300)),
    "model.Unigram.byte_fallback": ("spm", at("model", {**UNIGRAM}), at("model.byte_fallback", False)),
    "model.WordPiece.vocab": ("bert", nothing, at("model.vocab.##zqzq", 399)),
    "model.WordPiece.unk_token": ("bert", nothing, at("model.unk_token", "[MASK]")),
    "model.WordPiece.continuing_subword_prefix": ("bert", nothing, at("model.continuing_subword_prefix", "#")),
    "model.WordPiece.max_input_chars_per_word": ("bert", nothing, at("model.max_input_chars_per_word", 2)),
    "decoder.WordPiece.prefix": ("bert", nothing, at("decoder.prefix", "#")),
    "add_bos_token": ("smollm2", config(bos_token=START), config(add_bos_token=True)),
    "add_eos_token": ("smollm2", config(eos_token=END), config(add_eos_token=True)),
    "add_prefix_space": ("smollm2", at("pre_tokenizer", {**BYTES}), config(add_prefix_space=True)),
    "added_tokens_decoder": (
        "smollm2", nothing, config(added_tokens_decoder={"470": {"content": "x!", "special": True}})),
    "additional_special_tokens": ("smollm2", nothing, config(additional_special_tokens=["x!"])),
    "auto_map": ("smollm2", nothing, config(auto_map={"AutoTokenizer": ["own.Tokenizer", None]})),
    "chat_template": ("smollm2", nothing, config(chat_template="x")),
    "do_lower_case": ("bert", config(tokenizer_class="BertTokenizer"), config(do_lower_case=False)),
    "strip_accents": ("bert", config(tokenizer_class="BertTokenizer"), config(strip_accents=False)),
    "tokenize_chinese_chars": (
        "bert", config(tokenizer_class="BertTokenizer"), config(tokenize_chinese_chars=False)),
    "extra_special_tokens": ("smollm2", nothing, config(extra_special_tokens={"foo_token": START})),
    "fix_mistral_regex": ("smollm2", nothing, config(fix_mistral_regex=True)),
    "legacy": ("spm", nothing, config(legacy=False)),
    "model_specific_special_tokens": ("smollm2", nothing, config(model_specific_special_tokens={"foo_token": START})),
    "sp_model_kwargs": ("smollm2", nothing, config(sp_model_kwargs={"enable_sampling": True})),
    "split_special_tokens": ("smollm2", nothing, config(split_special_tokens=True)),
    "tokenizer_class": ("qwen3", nothing, config(tokenizer_class="GPT2Tokenizer")),
    "image_token": ("smollm2", nothing, config(image_token=START)),
    "bos_token": ("smollm2", nothing, config(bos_token=START)),
}  # fmt: skip

MATTER = (FOLLOWED, REFUSED, NOTED)
WHOLE = {**TOKENIZER_JSON, **TOKENIZER_CONFIG}


def test_every_key_that_matters_is_shown() -> None:
    named = {"image_token", "bos_token"}  # any name that ends so
    assert set(CHANGES) - named == {key for key, fate in WHOLE.items() if fate in MATTER}


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_matters_changes_something(folders: Path, key: str) -> None:
    kind, first, change = CHANGES[key]
    before, after = outcome(folders, kind, first), outcome(folders, kind, first, change)
    assert not isinstance(before, str), before
    fate = WHOLE.get(key, FOLLOWED)
    if fate == REFUSED:
        assert isinstance(after, str)
    elif fate == NOTED and not isinstance(after, str):
        assert before[:4] == after[:4]
        assert set(before[4]) < set(after[4])
    else:
        assert before != after
        assert isinstance(after, str) or before[:4] != after[:4]


def test_a_key_that_does_not_matter_changes_nothing(folders: Path) -> None:
    first: dict[str, tuple[str, Change]] = {
        "pre_tokenizer": ("smollm2", at("pre_tokenizer", {**BYTES})),
        "post_processor.ByteLevel": ("smollm2", at("post_processor", {**BYTES})),
        "post_processor.TemplateProcessing": ("smollm2", at("post_processor", copy.deepcopy(TEMPLATE))),
        "post_processor.RobertaProcessing": ("smollm2", at("post_processor", {**ROBERTA})),
        "decoder.ByteLevel": ("smollm2", at("decoder", {**BYTES})),
        "decoder.WordPiece": ("bert", nothing),
        "decoder.Metaspace": ("spm", at("decoder", {**METASPACE})),
        "pre_tokenizer.Metaspace": ("spm", at("pre_tokenizer", {**METASPACE})),
        "decoder.Strip": ("spm", at("decoder", {"type": "Strip", "content": " ", "stop": 0})),
    }
    befores: dict[str, Any] = {}
    for key, reason in WHOLE.items():
        if reason in MATTER:
            continue
        step, _, option = key.rpartition(".")
        kind, prepare = first.get(step, first.get(step.partition(".")[0], ("smollm2", nothing)))
        path = f"{key.partition('.')[0]}.{option}" if step else key
        if step not in befores:
            befores[step] = outcome(folders, kind, prepare)
        change = at(path, {"odd": 1}) if key in TOKENIZER_JSON else config(**{key: "odd"})
        assert outcome(folders, kind, prepare, change) == befores[step], key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (config(odd_switch=True), "tokenizer_config.json has 'odd_switch'"),
        (at("oddity", {}), "tokenizer.json has 'oddity'"),
        (at("model.oddity", 1), "tokenizer.json has 'model.BPE.oddity'"),
        (added(oddity=1), "tokenizer.json has 'added_tokens.oddity'"),
        (at("pre_tokenizer.pretokenizers.0.oddity", 1), "tokenizer.json has 'pre_tokenizer.Split.oddity'"),
        (at("decoder.oddity", 1), "tokenizer.json has 'decoder.ByteLevel.oddity'"),
        (at("normalizer.oddity", 1), "tokenizer.json has 'normalizer.NFC.oddity'"),
    ],
)
def test_a_key_that_is_not_known_is_told(folders: Path, change: Change, said: str) -> None:
    assert any(said in text for text in outcome(folders, "qwen2", change)[4])


@pytest.mark.parametrize(
    ("part", "inner"),
    [
        ("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("post_processor", "processors"),
        ("decoder", "decoders"),
    ],
)  # fmt: skip
def test_parts_that_are_none_are_refused(folders: Path, part: str, inner: str) -> None:
    nested: Any = {"type": "Odd"}
    for _ in range(200):
        nested = {"type": "Sequence", inner: [nested]}
    for value in ({"type": "Odd"}, {}, [], 5, "NFC", {"type": "Sequence"}, {"type": "Sequence", inner: 5}, nested):
        assert isinstance(outcome(folders, "qwen2", at(part, value)), str), value


ODD = (None, -1, 0, 2**63, 1.5, "", "x", [], {}, True, [None], {"type": "Odd"}, ["a", "b"], [[1]], {"a": 1})


@pytest.mark.parametrize("kind", ["qwen2", "smollm2", "spm", "bert"])
def test_mutated_tokenizers_end_in_a_sentence(folders: Path, kind: str) -> None:
    rng = random.Random(kind)

    def mutate(whole: dict[str, Any], config: dict[str, Any]) -> None:
        node = rng.choice([whole, whole, config])
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            inner = node[key]
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
                node[key] = copy.deepcopy(rng.choice(ODD))
                return
            node = inner

    starts = (nothing, at("post_processor", copy.deepcopy(BERT)), at("post_processor", copy.deepcopy(TEMPLATE)),
              at("normalizer", copy.deepcopy(STRIP)), added(lstrip=True))  # fmt: skip
    sound = [outcome(folders, kind, rng.choice(starts), mutate, mutate) for _ in range(60)]
    assert 0 < sum(isinstance(found, str) for found in sound) < 60


def test_many_unknown_keys_are_told_in_a_few_notes() -> None:
    notes = unknown_keys({}, {f"odd{'!' * 300}{i}": i for i in range(1000)})
    assert len(notes) == 21
    assert notes[-1] == "there are 980 more keys that ggpy does not know."
    assert all(len(text) < 400 for text in notes)


def test_keys_of_the_tiny_folders_are_all_known() -> None:
    assert unknown_keys(byte_level_json(QWEN2_SPECIALS, DIGITS_STEP, START), {}) == []
    assert unknown_keys(spm_like_json(), {"bos_token": None, "use_fast": True}) == []


def test_spaces_that_a_byte_level_tokenizer_replaces(folders: Path) -> None:
    """Only readers of SentencePiece's vocabularies write spaces as \u2581 by themselves."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    ids = outcome(folders, "qwen2", at("normalizer", replace))[0]
    theirs = tokenizers.Tokenizer.from_file(str(folders / "qwen2" / "tiny-qwen2" / "tokenizer.json"))
    assert ids == [theirs.encode(text).ids for text in TEXTS]
    assert ids != outcome(folders, "qwen2", nothing)[0]
