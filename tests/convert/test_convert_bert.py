"""BERT from a checkpoint: converted, it gives the embeddings that transformers gives, as a graph and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggpy import LLM, GGUFFile
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.graph.language import Graph
from ggpy.models import architecture_of, by_gguf_name
from tests.support import hf_families_bert as families
from tests.support.evaluate import evaluate
from tests.support.gguf_names import unknown_names

with np.load(Path(__file__).parents[1] / "data" / "hf_families_bert.npz") as recorded:
    EMBEDDINGS = dict(zip(recorded["names"].tolist(), recorded["embeddings"], strict=True))

POOLER = "the pooler is left out: it feeds classifiers, and embeddings are made without it."


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def converted(tmp_path: Path, name: str = "mean", **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The keys of a case's file and the notes; `changes` of config.json."""
    families.write(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    put(tmp_path / "config.json", {**config, **changes})
    return convert_again(tmp_path)


def convert_again(tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=notes.append)
    return {key: f.contents() for key, f in gguf.GGUFReader(tmp_path / "out.gguf").fields.items()}, notes


@pytest.mark.parametrize("name", families.CASES)
def test_the_graphs_embeddings_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    with GGUFFile(tmp_path / "out.gguf") as file:
        graph = Graph(file)
        pooled = architecture_of(file).build(graph)
        texts = [np.array(text) for text in families.TEXTS]
        found = [evaluate(graph, pooled, text, np.array([len(text) - 1]))[0] for text in texts]
    assert np.abs(found - EMBEDDINGS[name]).max() <= 1e-5 * np.abs(EMBEDDINGS[name]).max()


@pytest.mark.parametrize("name", families.CASES)
def test_embeddings_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    with LLM(tmp_path / "out.gguf", n_ctx=100, n_threads=2, n_parallel=2) as llm:
        found = np.stack([o.outputs.embedding for o in llm.embed(families.TEXTS, normalize=False)])
        ends = llm.embed(families.TEXTS[0])[0].outputs.embedding
        with pytest.raises(GGPYError, match=r"out\.gguf is a bert model: it embeds texts and writes none"):
            llm.generate("hello")
        with pytest.raises(GGPYError, match="embeds texts"):
            llm.logits([1, 2])
    expected = EMBEDDINGS[name]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(ends, expected[0] / np.linalg.norm(expected[0]), atol=1e-5)


def test_names_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    keys, notes = converted(tmp_path)
    assert unknown_names(tmp_path / "out.gguf") == (set(), set())
    assert notes == [POOLER]
    wanted = {
        "bert.attention.causal": False, "bert.pooling_type": int(gguf.PoolingType.MEAN), "bert.context_length": 100,
        "tokenizer.ggml.token_type_count": 2, "tokenizer.ggml.model": "bert",
    }  # fmt: skip
    assert {key: keys[key] for key in wanted} == wanted
    assert keys["bert.attention.layer_norm_epsilon"] == pytest.approx(1e-12)
    tensors = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert {"token_types.weight", "position_embd.weight", "token_embd_norm.bias", "blk.0.attn_q.bias"} <= tensors.keys()


def test_delicate_matrices_of_a_quantized_file_stay_f32(tmp_path: Path) -> None:
    families.write(tmp_path, "mean")
    convert(tmp_path, "q8_0", tmp_path / "out.gguf")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert types["position_embd.weight"] == types["token_types.weight"] == "F32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "'hidden_act' as 'relu'"),
        ({"position_embedding_type": "relative_key"}, "'position_embedding_type' as 'relative_key'"),
        ({"is_decoder": True}, "'is_decoder' as True"),
        ({"num_attention_heads": 7}, "7 'num_attention_heads'"),
        ({"num_attention_heads": 20}, "even number of dimensions"),
        ({"architectures": ["BertForTokenClassification"]}, "'BertForTokenClassification', which ggpy does not"),
        ({"feed_forward_type": "glu"}, "'feed_forward_type' as 'glu'"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        converted(tmp_path, **changes)


# Pooling


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "CLS"),
        ({"pooling_mode": "mean", "embedding_dimension": 60}, "MEAN"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode": "mean"}, "MEAN"),
    ],
)
def test_the_kinds_of_pooling(tmp_path: Path, settings: dict[str, Any], kind: str) -> None:
    families.write(tmp_path, "mean")
    put(tmp_path / "1_Pooling" / "config.json", settings)
    assert convert_again(tmp_path)[0]["bert.pooling_type"] == int(gguf.PoolingType[kind])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "pools by nothing"),
        ({"pooling_mode_max_tokens": True}, "'pooling_mode_max_tokens'"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token', 'pooling_mode_mean"),
        ({"pooling_mode": "weightedmean"}, "'weightedmean'"),
    ],
)
def test_other_kinds_of_pooling_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    families.write(tmp_path, "mean")
    put(tmp_path / "1_Pooling" / "config.json", settings)
    with pytest.raises(GGPYError, match=message):
        convert_again(tmp_path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "lists 'Dense', which changes"),
        ([{"type": "models.Pooling", "path": "../1_Pooling"}], "no folder beside it"),
        ([{"type": "models.Pooling"}], "no folder beside it"),
        ({"type": "Pooling"}, "must hold a list"),
        ([1], "must hold a list"),
    ],
)
def test_modules_that_a_file_has_no_place_for(tmp_path: Path, modules: Any, message: str) -> None:
    families.write(tmp_path, "mean")
    put(tmp_path / "modules.json", modules)
    with pytest.raises(GGPYError, match=message):
        convert_again(tmp_path)


def test_what_is_done_to_texts_before_the_model_is_noted(tmp_path: Path) -> None:
    families.write(tmp_path, "mean")
    put(tmp_path / "sentence_bert_config.json", {"max_seq_length": 64})
    put(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}})
    notes = convert_again(tmp_path)[1]
    assert "cuts this model's texts at 64 tokens; the file takes them up to 100." in notes[0]
    assert "'query: '" in notes[1]


def test_a_pooling_that_nobody_knows() -> None:
    sizes = {
        "block_count": 2, "context_length": 64, "embedding_length": 60, "feed_forward_length": 90,
        "attention.head_count": 6, "attention.layer_norm_epsilon": 1e-12,
    }  # fmt: skip
    for number, kind in ((0, "none"), (1, "mean"), (2, "cls"), (3, "last"), (4, "rank"), (None, "mean")):
        entries = {f"bert.{key}": value for key, value in sizes.items()}
        entries |= {"bert.pooling_type": number} if number is not None else {}
        assert by_gguf_name("bert")(entries, 461).hparams.pooling == kind
    with pytest.raises(GGPYError, match=r"by method 5 .*; ggpy knows 0 \(none\)"):
        by_gguf_name("bert")({**entries, "bert.pooling_type": 5}, 461)
