"""Encoders, and decoders that embed texts: converted, they give the rows that transformers gives, as a graph and run;
their files say what other engines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggpy import LLM, GGUFFile
from ggpy.convert.pipeline import convert
from ggpy.engine.embed import Embedder, TokenizedText
from ggpy.errors import GGPYError
from ggpy.graph.language import Graph
from ggpy.models import architecture_of
from tests.support import hf_families_encoders as families
from tests.support.evaluate import evaluate
from tests.support.gguf_names import unknown_names
from tests.support.hf_families_encoders import CASES, TEXTS

ROWS = families.recorded()


def converted(tmp_path: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The keys of a case's file and the notes; `changes` of config.json."""
    families.write(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    notes: list[str] = []
    convert(tmp_path, "f32", tmp_path / "out.gguf", n_threads=1, note=notes.append)
    with GGUFFile(tmp_path / "out.gguf") as file:
        return dict(file.metadata), notes


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    expected = ROWS[name]
    with LLM(tmp_path / "out.gguf", n_ctx=100, n_threads=2, n_parallel=2) as llm:
        hparams = llm.runtime.hparams
        assert hparams.pooling == (CASES[name].pooling or "rank")
        if CASES[name].ranks:
            texts = [TokenizedText(text, families.second(text)) for text in TEXTS]
            found = np.stack([row for step in _embedder(llm).steps(texts) for row in _rows(llm, texts, step)])
            with pytest.raises(GGPYError, match=r"ranks documents by a query and embeds none; use LLM\.rank"):
                llm.embed("text")
        else:
            found = np.stack([o.outputs.embedding for o in llm.embed(TEXTS, normalize=False)])
        graph = Graph(llm.file)
        pooled = architecture_of(llm.file).build(graph)
        exact = [evaluate(graph, pooled, np.array(text), np.array([len(text) - 1]))[0] for text in TEXTS]
    if name != "bert reranker":  # whose second text is of another type, which numpy's graph knows nothing of
        assert np.abs(np.stack(exact) - expected).max() <= 2e-5 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def _embedder(llm: LLM) -> Embedder:
    return Embedder(llm.runtime, llm.runtime.n_types)


def _rows(llm: LLM, texts: list[TokenizedText], step: list[int]) -> list[np.ndarray]:
    """A step's rows in the order of the texts."""
    rows = _embedder(llm).run([texts[place] for place in step])
    return [rows[step.index(place)] for place in sorted(step)]


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_the_gguf_package(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    tensors, keys = unknown_names(tmp_path / "out.gguf")
    dense = {f"gemma-embedding.dense_{i}_feat_{side}" for i in (2, 3) for side in ("in", "out")}  # "{arch}.{dense}_…"
    assert (tensors, keys - dense) == (set(), set())


def test_keys_of_each_architecture(tmp_path: Path) -> None:
    def keys(name: str, *wanted: str) -> list[Any]:
        found = converted(tmp_path / name.replace(" ", ""), name)[0]
        arch = found["general.architecture"]
        return [arch, *(_plain(found.get(f"{arch}.{key}", found.get(key))) for key in wanted)]

    cls, mean, last, rank = (int(gguf.PoolingType[kind]) for kind in ("CLS", "MEAN", "LAST", "RANK"))
    assert keys("xlm-roberta", "context_length", "pooling_type") == ["bert", 100, cls]
    assert keys("xlm-roberta reranker", "pooling_type", "classifier.output_labels") == ["bert", rank, None]
    assert keys("nomic_bert", "rope.freq_base", "attention.causal") == ["nomic-bert", 1000.0, False]
    assert keys("nomic_bert, experts", "moe_every_n_layers", "expert_count", "expert_used_count", "context_length") == [
        "nomic-bert-moe", 2, 5, 2, 100,
    ]  # fmt: skip
    assert any("llama.cpp leaves out: it does not load" in n for n in converted(tmp_path, "nomic_bert, experts")[1])
    assert keys("jina v2", "pooling_type") == ["jina-bert-v2", mean]
    assert keys("jina v3", "rope.freq_base") == ["jina-bert-v3", 300.0]
    sliding = ("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base", "rope.freq_base_swa")
    assert keys("modernbert", *sliding) == ["modern-bert", 15, 2, 700.0, 90.0]
    assert keys("modernbert, other layers", *sliding[:2]) == ["modern-bert", 15, [True, False, False, True]]
    assert keys("modernbert reranker", "ggpy.classifier.pooling") == ["modern-bert", "mean"]
    assert keys("eurobert", "attention.head_count_kv", "attention.causal") == ["eurobert", 3, False]
    assert keys("gemma", *sliding[:2], "dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_out") == [
        "gemma-embedding", 14, 2, 60, 132, 44,
    ]  # fmt: skip
    assert keys("qwen3", "pooling_type") == ["qwen3", last]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("xlm-roberta", {"hidden_act": "relu"}, "'hidden_act' as 'relu'"),
        ("xlm-roberta", {"lora_adaptations": ["retrieval.query"]}, "'lora_adaptations' as .* one of these adapters"),
        ("nomic_bert, experts", {"activation_function": "swiglu"}, "'activation_function' as 'swiglu'"),
        ("nomic_bert, experts", {"moe_normalize_expert_weights": True}, "'moe_normalize_expert_weights' as True"),
        ("nomic_bert, experts", {"rotary_emb_fraction": 0.5}, "'rotary_emb_fraction' as 0.5"),
        ("jina v2", {"feed_forward_type": "reglu"}, "'feed_forward_type' as 'reglu'"),
        ("modernbert", {"hidden_activation": "silu"}, "'hidden_activation' as 'silu'"),
        ("modernbert", {"layer_types": ["full_attention", "linear"]}, "'layer_types'"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "scales rope of 'full_attention'"),
        ("eurobert", {"hidden_act": "gelu"}, "'hidden_act' as 'gelu'"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        converted(tmp_path, name, **changes)


@pytest.mark.parametrize("change", [{"bias": True}, {"activation_function": "torch.nn.modules.activation.Tanh"}])
def test_matrices_behind_the_pooling_that_gguf_has_no_place_for(tmp_path: Path, change: dict[str, Any]) -> None:
    families.write(tmp_path, "gemma")
    path = tmp_path / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(GGPYError, match="has a bias, or the activation"):
        convert(tmp_path, "f32", tmp_path / "out.gguf")
