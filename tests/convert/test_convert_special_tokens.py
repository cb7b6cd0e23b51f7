"""Roles of tokens, ends of generation, chat templates, and how added tokens are matched, on their way into GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ggpy import Tokenizer
from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.pipeline import convert
from ggpy.convert.tokenizer_export import export_tokenizer
from ggpy.errors import GGPYError
from ggpy.text.chat_template import ChatTemplate
from tests.support.tiny import (
    CHATML,
    LLAMA3_SPECIALS,
    QWEN2_SPECIALS,
    QWEN2_SPLIT,
    byte_level_json,
    split_step,
    tiny_checkpoint,
    tiny_ranks,
)
from tests.support.tokenizer_folders import export, exported, put, spm_like_json, tokenizer_of, update

N = len(tiny_ranks())

# Roles and ends


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


def test_ends_of_a_model_of_more_than_text(tmp_path: Path) -> None:
    """Its config may name them inside, with the text model's settings."""
    folder = tiny_checkpoint(tmp_path, "qwen2")
    put(folder, "tokenizer.json", byte_level_json((*QWEN2_SPECIALS, "<bye>"), split_step(QWEN2_SPLIT)))
    put(folder, "generation_config.json", {})
    update(folder, "config.json", eos_token_id=None, text_config={"eos_token_id": [N + 2, N + 3]})
    assert export(folder)["tokenizer.ggml.eom_token_id"] == N + 3
    update(folder, "config.json", text_config=[1])
    assert "tokenizer.ggml.eom_token_id" not in export(folder)


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
    by_name = {entry["name"]: entry["template"] for entry in named}
    update(folder, "tokenizer_config.json", chat_template=by_name)
    told = export(folder)
    assert all(told[key] == keys[key] for key in keys if "chat_template" in key)
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


# No end-of-text token


@pytest.mark.parametrize("n_vocab", [512, N + 3])
@pytest.mark.parametrize("config", [{"eos_token_id": None}, {"eos_token_id": 1 << 20}])
def test_no_end_of_text(tmp_path: Path, n_vocab: int, config: dict[str, Any]) -> None:
    """Readers take token 11 where no key names an end, a comma in most vocabularies; llama.cpp also where the id is
    beyond the vocabulary. So the key holds a token that no answer has: padding, or the byte 255, which no UTF-8 has."""
    folder = tiny_checkpoint(tmp_path, "smollm2", **config)
    update(folder, "tokenizer_config.json", eos_token=None, tokenizer_class="PreTrainedTokenizerFast")
    put(folder, "generation_config.json", config)
    keys, notes = exported(folder, n_vocab)
    stand_in = keys["tokenizer.ggml.eos_token_id"]
    if n_vocab == 512:
        assert keys["tokenizer.ggml.token_type"][stand_in] == 5
    else:
        assert keys["tokenizer.ggml.tokens"][stand_in] == "ÿ"
    assert any("no end-of-text token is named" in text for text in notes)
    tokenizer = Tokenizer(keys)
    assert tokenizer.eos is None
    assert {tokenizer.token_text(id) for id in tokenizer.eog} == {"<|im_end|>", "<|endoftext|>"}  # by their text


def test_no_end_of_text_in_sentencepiece(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "mistral")
    put(folder, "tokenizer_config.json", {"eos_token": None})
    assert export(folder)["tokenizer.ggml.eos_token_id"] == 2  # the model's own file names it
    whole = spm_like_json()
    whole["added_tokens"] = whole["added_tokens"][:2]
    (folder / "tokenizer.model").unlink()
    put(folder, "tokenizer.json", whole)
    keys = export(folder, len(whole["model"]["vocab"]))
    assert keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]] == "<0xFF>"
    assert Tokenizer(keys).eos is None


# What templates see

SEEN = "[{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}|{{ foo_token }}]"
END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("kind", "config", "map_", "rendered"),
    [  # recorded with transformers 5.24
        ("qwen2", {"bos_token": None}, None, f"[|{END}|{END}|{END}||]"),
        ("qwen2", {}, None, f"[|{END}|{END}|{END}||]"),
        ("qwen2", {}, {"bos_token": "<|im_start|>", "eos_token": END}, f"[<|im_start|>|{END}|{END}|{END}||]"),
        ("qwen2", {"bos_token": None, "eos_token": "<|im_end|>", "added_tokens_decoder": {}},
         {"bos_token": "<|im_start|>"}, f"[|<|im_end|>|{END}|{END}||]"),
        ("qwen2", {"image_token": "<|im_start|>"}, None, f"[|{END}|{END}|{END}|<|im_start|>|]"),
        ("qwen2", {"extra_special_tokens": {"foo_token": "<|im_start|>"}}, None,
         f"[|{END}|{END}|{END}||<|im_start|>]"),
        ("qwen2", {"extra_special_tokens": ["<|im_start|>"]}, None, f"[|{END}|{END}|{END}||]"),
        ("qwen3", {"tokenizer_class": "GPT2Tokenizer"}, None, f"[{END}|{END}||{END}||]"),
        ("qwen3", {"tokenizer_class": "PreTrainedTokenizerFast"}, None, "[|||||]"),
        ("smollm2", {}, None, "[|||||]"),
        ("smollm2", {"tokenizer_class": "GPT2Tokenizer"}, None, f"[{END}|{END}||{END}||]"),
        ("smollm2", {"tokenizer_class": "LlamaTokenizer"}, None, "[|||||]"),
    ],
)  # fmt: skip
def test_templates_see_what_the_original_sees(
    tmp_path: Path, kind: str, config: dict[str, Any], map_: dict[str, str] | None, rendered: str
) -> None:
    folder = tiny_checkpoint(tmp_path, kind)
    put(folder, "tokenizer_config.json", {"chat_template": SEEN, **config})
    if map_ is not None:
        put(folder, "special_tokens_map.json", map_)
    assert chat_template(export(folder)).render([{"role": "user", "content": "x"}]) == rendered


def chat_template(keys: dict[str, Any]) -> ChatTemplate:
    template = ChatTemplate.from_gguf(SimpleNamespace(metadata=keys, path="x.gguf"), Tokenizer(keys))  # type: ignore[arg-type]
    assert template is not None
    return template


def test_bos_null_beside_an_id(tmp_path: Path) -> None:
    """Qwen2 has no bos_token, but a bos_token_id: templates write nothing, tokenizers add nothing, the id stays."""
    folder = tiny_checkpoint(tmp_path, "qwen2")
    update(folder, "tokenizer_config.json", chat_template="{{ bos_token }}" + CHATML)
    keys, notes = exported(folder)
    assert keys["tokenizer.ggml.bos_token_id"] == N
    assert any("'bos_token' is empty in the original" in text for text in notes)
    rendered = chat_template(keys).render([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert Tokenizer(keys).tokenize_chat(rendered)[0] == N + 1


def test_a_template_that_writes_a_token_that_is_none(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "smollm2")
    (folder / "generation_config.json").unlink()
    put(folder, "tokenizer_config.json", {"chat_template": "[{{ bos_token }}{{ eos_token }}]"})
    keys, notes = exported(folder)
    assert any("writes 'bos_token', but there is none" in text for text in notes)
    assert chat_template(keys).render([{"role": "user", "content": "x"}]) == "[]"  # not the stand-in for the end


@pytest.mark.parametrize("told", [1, "{", "[]", '{"bos_token": 1}', b"x"])
def test_template_tokens_that_are_none(tmp_path: Path, told: Any) -> None:
    keys = {**export(tiny_checkpoint(tmp_path, "qwen2")), "ggpy.tokenizer.template_tokens": told}
    with pytest.raises(GGPYError, match="template_tokens"):
        chat_template(keys)


def test_templates_in_files_of_their_own(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    (more / "rag-2.jinja").write_text("rag")
    keys, notes = exported(folder)  # they win over tokenizer_config.json, all together
    assert "tokenizer.chat_template" not in keys
    assert any("no chat template is the default" in text for text in notes)
    assert ChatTemplate.from_gguf(SimpleNamespace(metadata=keys, path="x"), Tokenizer(keys)) is None  # type: ignore[arg-type]
    (more / "default.jinja").write_text("here")
    keys = export(folder)
    assert keys["tokenizer.chat_template"] == "here"
    assert keys["tokenizer.chat_template.tool_use"] == "tools"
    assert keys["tokenizer.chat_templates"] == ["rag-2", "tool_use"]
    template = chat_template(keys)
    said = [{"role": "user", "content": "x"}]
    assert template.render(said) == "here"
    assert template.render(said, tools=[{"type": "function"}]) == "tools"
    (folder / "chat_template.jinja").write_text("top")
    (more / "default.jinja").unlink()
    assert export(folder)["tokenizer.chat_template"] == "top"
    (more / "a b.jinja").write_text("odd")
    with pytest.raises(GGPYError, match="has the name 'a b'"):
        export(folder)


# What a text gets around it, and how added tokens are matched


@pytest.mark.parametrize(
    ("single", "config", "around"),
    [
        (["<|im_start|>", "A"], {"bos_token": "<|im_start|>"}, ([N + 1], [])),
        (["<|im_start|>", "A"], {}, ([N + 1], [])),
        (["<|im_start|>", "A", "<|im_end|>"], {"eos_token": "<|im_end|>"}, ([N + 1], [N + 2])),
        (["<|endoftext|>", "<|im_start|>", "A"], {}, ([N, N + 1], [])),
        (["<|endoftext|>", "A"], {"bos_token": "<|im_start|>"}, ([N], [])),
        (["A", "<|im_end|>", "<|endoftext|>"], {"eos_token": "<|endoftext|>"}, ([], [N + 2, N])),
        (["A"], {"bos_token": "<|im_start|>"}, ([], [])),
        (["<|im_start|>", "A"], {"bos_token": "<|im_start|>", "add_bos_token": False}, ([], [])),
        (["A"], {"bos_token": "<|im_start|>", "add_bos_token": True}, ([N + 1], [])),
        (["A"], {"bos_token": None, "add_bos_token": True}, ([], [])),
        (["<|im_start|>", "A"], {"eos_token": "<|im_end|>", "add_eos_token": True}, ([N + 1], [N + 2])),
    ],
)
def test_what_a_text_gets_around_it(
    tmp_path: Path, single: list[str], config: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    folder = tiny_checkpoint(tmp_path, "smollm2")
    put(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    (folder / "generation_config.json").unlink()
    items = [{"Sequence": {"id": "A", "type_id": 0}} if i == "A" else {"SpecialToken": {"id": i, "type_id": 0}}
             for i in single]  # fmt: skip
    ids = {text: N + i for i, text in enumerate(QWEN2_SPECIALS)}
    known = {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in ids.items()}
    template = {"type": "TemplateProcessing", "single": items, "pair": items, "special_tokens": known}
    update(folder, "tokenizer.json", post_processor={"type": "Sequence", "processors": [template]})
    keys, notes = exported(folder)
    tokenizer = Tokenizer(keys)
    assert tokenizer.tokenize("x") == [*around[0], *tokenizer.tokenize("x", add_special=False), *around[1]]
    own = [key for key in keys if key.startswith("ggpy.") and "token_ids" in key]
    assert len(own) == sum("which ggpy follows" in text for text in notes)
    if not any("add_" in name for name in config):
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert tokenizer.tokenize("x") == theirs.encode("x").ids


@pytest.mark.parametrize("item", [{"SpecialToken": {"id": "<none>"}}, {"SpecialToken": 3}, 5])
def test_a_template_that_adds_no_token(tmp_path: Path, item: Any) -> None:
    folder = tiny_checkpoint(tmp_path, "smollm2")
    text = {"Sequence": {"id": "A", "type_id": 0}}
    refused = (([item, text], "which is no token of it"), ([text, text], "the text once"), (7, "the text once"))
    for single, said in refused:
        update(folder, "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": single})
        with pytest.raises(GGPYError, match=said):
            export(folder)


_FLAG = st.lists(st.sampled_from(QWEN2_SPECIALS), max_size=3)


@pytest.fixture(scope="module")
def flag_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_checkpoint(tmp_path_factory.mktemp("flags"), kind) for kind in ("qwen2", "smollm2")}


@given(
    lstrip=_FLAG, rstrip=_FLAG, single_word=_FLAG, normalized=_FLAG, kind=st.sampled_from(["qwen2", "smollm2"]),
    pieces=st.lists(st.sampled_from([*QWEN2_SPECIALS, " ", "\n", "x", "the", "e\u0301", "_"]), max_size=9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_added_tokens_are_matched_as_in_the_original(
    flag_folders: dict[str, Path], kind: str, pieces: list[str], **flags: list[str]
) -> None:
    folder = flag_folders[kind]
    whole = json.loads((folder / "tokenizer.json").read_text())
    for token in whole["added_tokens"]:
        token.update({name: token["content"] in texts for name, texts in flags.items()})
    put(folder, "tokenizer.json", whole)
    keys, notes = exported(folder)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(whole))
    assert Tokenizer(keys).tokenize("".join(pieces), parse_special=True) == theirs.encode("".join(pieces)).ids
    for name in ("lstrip", "rstrip", "single_word"):
        assert bool(flags[name]) == any(f"with '{name}', which ggpy follows" in text for text in notes)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "smollm2"])
def test_whether_merges_count(tmp_path: Path, kind: str) -> None:
    """A token that no merges make: `ignore_merges` takes it, and a note says so where the name does not say it."""
    folder = tiny_checkpoint(tmp_path, kind)
    for ignore in (True, False):
        whole = json.loads((folder / "tokenizer.json").read_text())
        whole["model"]["vocab"]["zqzq"] = 500
        whole["model"]["ignore_merges"] = ignore
        put(folder, "tokenizer.json", whole)
        keys, notes = exported(folder)
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("zqzq").ids
        assert Tokenizer(keys).tokenize("zqzq") == theirs
        assert (500 in theirs) is ignore
        expected = ignore and kind != "llama"
        assert ("ggpy.tokenizer.ignore_merges" in keys) is any("takes a word" in text for text in notes) is expected


def test_added_tokens_that_are_not_special_are_shown(tmp_path: Path) -> None:
    """Added tokens of any spelling, like Qwen's <|repo_name|> or a <|tool_call|>: transformers hides special ones
    alone."""
    folder = tiny_checkpoint(tmp_path, "qwen2")
    whole = json.loads((folder / "tokenizer.json").read_text())
    for i, text in enumerate(("<|tool_call|>", "<think>", "<|reserved|>")):
        whole["added_tokens"].append({**whole["added_tokens"][0], "id": N + 3 + i, "content": text, "special": i == 2})
    put(folder, "tokenizer.json", whole)
    tokenizer, theirs = tokenizer_of(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = theirs.encode("<|im_start|>the<|tool_call|><think>x<|reserved|><|im_end|>").ids
    assert tokenizer.detokenize(ids, skip_special=True) == theirs.decode(ids) == "the<|tool_call|><think>x"


def test_words_of_html_stay_words(tmp_path: Path) -> None:
    """Qwen's vocabularies hold </s> as a word that merges make; some readers take it for a control token."""
    folder = tiny_checkpoint(tmp_path, "qwen2")
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
    for i, pair in enumerate(["< /", "s >", "</ s>"]):
        vocab[pair.replace(" ", "")] = N + 3 + i
        merges.append(pair)
    put(folder, "tokenizer.json", whole)
    tokenizer, theirs = tokenizer_of(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    code = "<s>the</s></s><p>x</p> f('</s>')"
    assert tokenizer.tokenize(code, parse_special=True) == theirs.encode(code).ids
    assert N + 5 not in tokenizer.eog
    assert not tokenizer.is_control(N + 5)
    assert tokenizer.detokenize([N + 5], skip_special=True) == "</s>"
