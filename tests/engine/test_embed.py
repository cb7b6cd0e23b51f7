"""Texts as vectors, through a tiny BERT: several in a step, each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError
from ggpy.convert.pipeline import convert
from tests.support.families import family_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    convert(family_checkpoint(folder, "bert"), "f32", folder / "bert.gguf")
    return folder / "bert.gguf"


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=2, n_parallel=3) as llm:
        yield llm


def test_each_text_as_if_it_were_alone(llm: LLM) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, llm.n_vocab, n).tolist() for n in (5, 1, 40, 3, llm.n_ctx, 17, 2, 9)]
    together = llm.embed(ids)
    assert [output.prompt_token_ids for output in together] == ids
    for one, output in zip(ids, together, strict=True):
        alone = llm.embed([one])[0].outputs.embedding
        assert np.abs(alone - output.outputs.embedding).max() < 1e-6
        assert np.linalg.norm(alone) == pytest.approx(1.0, abs=1e-6)


def test_a_text_and_its_raw_vector(llm: LLM) -> None:
    (one,) = llm.embed("some text")
    (raw,) = llm.embed("some text", normalize=False)
    assert one.prompt == "some text"
    vector = raw.outputs.embedding
    assert vector.shape == (llm.runtime.hparams.n_embd,)
    assert np.allclose(vector / np.linalg.norm(vector), one.outputs.embedding, atol=1e-6)


def test_rows_are_pooled_as_asked(llm: LLM) -> None:
    ids = [[5, 9, 20], [7], [*range(10, 50)]]

    def vectors(**asked: Any) -> list[np.ndarray]:
        return [output.outputs.embedding for output in llm.embed(ids, normalize=False, **asked)]

    rows = vectors(pooling="none")
    assert [row.shape for row in rows] == [(len(text), 60) for text in ids]
    for kind, of in (("mean", lambda r: r.mean(0)), ("cls", lambda r: r[0]), ("last", lambda r: r[-1])):
        for pooled, row in zip(vectors(pooling=kind), rows, strict=True):
            assert np.abs(pooled - of(row)).max() < 1e-5
    assert all(map(np.array_equal, vectors(pooling="mean"), vectors()))  # as the file says


def test_the_first_dimensions_have_length_1_again(llm: LLM) -> None:
    whole, cut = (llm.embed([[5, 9, 20]], dimensions=n)[0].outputs.embedding for n in (None, 7))
    assert cut.shape == (7,)
    assert np.allclose(cut, whole[:7] / np.linalg.norm(whole[:7]), atol=1e-6)
    (raw,) = llm.embed([[5, 9, 20]], dimensions=7, normalize=False)
    assert np.array_equal(raw.outputs.embedding, llm.embed([[5, 9, 20]], normalize=False)[0].outputs.embedding[:7])


def test_lists_of_any_length(llm: LLM) -> None:
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, llm.n_vocab, n).tolist() for n in rng.integers(1, 12, 300)]
    found = llm.embed(ids)
    assert len(found) == 300
    for place in (0, 150, 299):
        alone = llm.embed([ids[place]])[0].outputs.embedding
        assert np.abs(alone - found[place].outputs.embedding).max() < 1e-6
    assert llm.embed([]) == []


def test_every_token_sees_those_after_it(llm: LLM) -> None:
    ids = list(range(10, 40))
    (a, b) = llm.embed([ids, [*ids[:-1], 50]], normalize=False)
    assert not np.allclose(a.outputs.embedding, b.outputs.embedding, atol=1e-3)


def test_errors(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(GGPYError, match=f"The text has {llm.n_ctx + 1} tokens, but the context holds {llm.n_ctx}"):
        llm.embed([[5] * (llm.n_ctx + 1)])
    with pytest.raises(GGPYError, match="Text 2 of 2 holds the token id 461"):
        llm.embed([[5], [461]])
    with pytest.raises(GGPYError, match="dimensions is 61, but the model's embeddings have 60"):
        llm.embed("some text", dimensions=61)
    with pytest.raises(GGPYError, match="pooling is 'max'"):
        llm.embed("some text", pooling="max")
    with pytest.raises(GGPYError, match="it embeds texts and writes none"):
        llm.generate("some text")
    convert(family_checkpoint(tmp_path, "llama", dtype="f32"), "f32", tmp_path / "llama.gguf")
    with LLM(tmp_path / "llama.gguf", n_ctx=64) as other, pytest.raises(GGPYError, match="a llama model that writes"):
        other.embed("some text")
