"""Documents ranked by a query: cross-encoders, and models that answer yes or no."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError
from ggpy.convert.pipeline import convert
from ggpy.models.qwen3 import INSTRUCTION, RERANK_TEMPLATE
from tests.support import hf_families_encoders as families
from tests.support.hf_families_encoders import CASES
from tests.support.tiny import write_safetensors
from tests.support.vocabularies import hf_bpe

QUERY, DOCUMENTS = "what is said", ["the one", "another that is longer than the one", "", "the one"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("rank")
    families.write(folder, "bert reranker")
    convert(folder, "f32", folder / "out.gguf")
    with LLM(folder / "out.gguf", n_threads=2) as llm:
        yield llm


def test_the_best_document_is_first(encoder: LLM) -> None:
    found = encoder.rank(QUERY, DOCUMENTS)
    assert [output.score for output in found] == sorted((output.score for output in found), reverse=True)
    assert {output.index: output.document for output in found} == dict(enumerate(DOCUMENTS))
    assert found.index(next(o for o in found if o.index == 0)) + 1 == found.index(
        next(o for o in found if o.index == 3)
    )
    assert encoder.rank(QUERY, DOCUMENTS, top_n=2) == found[:2]
    assert encoder.rank(QUERY, []) == []
    (alone,) = encoder.rank(QUERY, DOCUMENTS[1:2])
    assert alone.score == pytest.approx(next(o.score for o in found if o.index == 1), abs=1e-6)
    assert alone.n_tokens == len(encoder.tokenize(QUERY)) + len(encoder.tokenize(DOCUMENTS[1])) - 1


def test_scores_as_the_model_gives_them(encoder: LLM) -> None:
    for one, raw in zip(encoder.rank(QUERY, DOCUMENTS), encoder.rank(QUERY, DOCUMENTS, normalize=False), strict=True):
        assert one.score == pytest.approx(1 / (1 + math.exp(-raw.score)), abs=1e-9)


def test_a_texts_parts_are_told_apart(encoder: LLM) -> None:
    ids, second = encoder.tokenizer.tokenize_pair("one two", "three")
    sep = encoder.tokenizer.token_id("[SEP]")
    assert ids == [*encoder.tokenize("one two"), *encoder.tokenize("three")[1:]]
    assert ids[second - 1] == sep
    assert ids.count(sep) == 2


def test_errors(encoder: LLM) -> None:
    with pytest.raises(GGPYError, match=r"Document 2 of 2 with its query has \d+ tokens, but the context holds 100"):
        encoder.rank(QUERY, ["one", "one " * 200])
    with pytest.raises(GGPYError, match="documents is 'one'"):
        encoder.rank(QUERY, "one")
    with pytest.raises(GGPYError, match="top_n"):
        encoder.rank(QUERY, DOCUMENTS, top_n=0)
    with pytest.raises(GGPYError, match="is told no instruction"):
        encoder.rank(QUERY, DOCUMENTS, instruction="Find a text.")


# Models that answer in words


def write_answering(folder: Path, **changes: Any) -> None:
    """A tiny Qwen3 whose vocabulary has "yes" and "no"."""
    config = {**CASES["qwen3"].config, "vocab_size": 700, "max_position_embeddings": 1024, **changes}
    families.write_checkpoint(folder, config)
    tokenizer = json.loads(hf_bpe("qwen2").to_str())
    words = [w for w in ("yes", "no") if w not in tokenizer["model"]["vocab"]]
    n = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] = [
        {"id": n + i, "content": text, "special": text[0] == "<", "normalized": False, "lstrip": False,
         "rstrip": False, "single_word": False}
        for i, text in enumerate([*words, "<|im_start|>", "<|im_end|>"])
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"})
    )


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of one checkpoint: as a reranker, as a text model, as one whose name says that it ranks."""
    folder = tmp_path_factory.mktemp("answers")
    for name in ("tiny", "Qwen3-Reranker-tiny"):
        write_answering(folder / name)
        convert(folder / name, "f32", folder / f"{name}.gguf")
    (folder / "some-rerank.gguf").write_bytes((folder / "tiny.gguf").read_bytes())
    return folder


def test_yes_and_no_are_weighed(answering: Path) -> None:
    documents = ["a panda is a bear", "<|im_end|>", "{query}"]
    with LLM(answering / "tiny.gguf", n_ctx=1024, n_threads=2, n_parallel=1) as llm:
        yes, no = llm.tokenizer.token_id("yes"), llm.tokenizer.token_id("no")
        expected = []
        for document in documents:
            text = RERANK_TEMPLATE.split("{query}")[0] + QUERY
            text += RERANK_TEMPLATE.split("{query}")[1].replace("{document}", document)
            last = llm.logits(llm.tokenize_chat(text))[-1]
            pair = np.exp(last[[yes, no]] - last[[yes, no]].max())
            expected.append(pair[0] / pair.sum())
        with pytest.raises(GGPYError, match="writes text; rank takes a reranker"):
            llm.rank(QUERY, documents)
    for name in ("Qwen3-Reranker-tiny.gguf", "some-rerank.gguf"):
        with LLM(answering / name, n_ctx=1024, n_threads=2, n_parallel=1) as llm:
            found = llm.rank(QUERY, documents)
            assert llm.rank(QUERY, documents, instruction=INSTRUCTION) == found
            assert llm.rank(QUERY, documents, instruction="Find a bear.") != found
        np.testing.assert_allclose([o.score for o in sorted(found, key=lambda o: o.index)], expected, atol=2e-5)


def test_a_classifier_in_place_of_words(tmp_path: Path) -> None:
    write_answering(tmp_path, architectures=["Qwen3ForSequenceClassification"], id2label={"0": "LABEL_0"})
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = families.random_tensors(families.tensor_shapes({**config, "architectures": ["Qwen3Model"]}))
    weights = {f"model.{name}": values for name, values in tensors.items()}
    weights["score.weight"] = np.random.RandomState(0).standard_normal((1, 60)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", weights)
    convert(tmp_path, "f32", tmp_path / "out.gguf")
    with LLM(tmp_path / "out.gguf", n_ctx=1024, n_threads=2, n_parallel=1) as llm:
        first, second = llm.rank(QUERY, ["one", "two"], normalize=False)
        assert first.score > second.score
