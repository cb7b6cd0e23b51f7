"""Embeddings through OpenAI's client, by a tiny model that embeds; lists of any length, whatever a step holds."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openai")

import httpx
import openai
from openai import OpenAI

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.server.models import ModelSpec
from tests.support.families import family_checkpoint
from tests.support.serving import Running


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    convert(family_checkpoint(folder, "bert"), "f32", folder / "embedder.gguf")
    return folder / "embedder.gguf"


@pytest.fixture(scope="module")
def client(path: Path) -> Iterator[OpenAI]:
    with Running([ModelSpec("embedder", str(path), {"n_threads": 2})]) as server:
        yield OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_vectors_are_the_librarys(client: OpenAI, path: Path) -> None:
    texts = [f"text {i} " * (1 + i % 5) for i in range(100)]
    with LLM(path, n_threads=2) as llm:
        expected = [output.outputs.embedding for output in llm.embed(texts)]
    answer = client.embeddings.create(model="embedder", input=texts)  # base64, which the client decodes
    assert [row.index for row in answer.data] == list(range(100))
    assert np.allclose([row.embedding for row in answer.data], expected, atol=1e-6)
    plain = client.embeddings.create(model="embedder", input=texts[0], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, expected[0], atol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 100


def test_what_it_cannot_do(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embeds texts and writes none"):
        client.completions.create(model="embedder", prompt="a")
    for wrong in (0, 10**6):
        with pytest.raises(openai.BadRequestError, match="dimensions is") as refused:
            client.embeddings.create(model="embedder", input="a", dimensions=wrong)
        assert refused.value.param == "dimensions"
    ranked = httpx.post(f"{client.base_url}rerank", json={"query": "a", "documents": ["b"]}, timeout=60)
    assert (ranked.status_code, ranked.json()["error"]["param"]) == (400, "model")


def test_fewer_dimensions_are_the_first_of_all_at_length_1(client: OpenAI, path: Path) -> None:
    with LLM(path, n_threads=2) as llm:
        (expected,) = llm.embed("a text", dimensions=5)
    whole = client.embeddings.create(model="embedder", input="a text").data[0].embedding
    short = client.embeddings.create(model="embedder", input="a text", dimensions=5).data[0].embedding
    assert np.allclose(short, np.array(whole[:5]) / np.linalg.norm(whole[:5]), atol=1e-6)
    assert np.allclose(short, expected.outputs.embedding, atol=1e-6)
    body = {"model": "embedder", "input": ["a text"], "dimensions": 5}
    ollama = httpx.post(str(client.base_url).replace("/v1/", "/api/embed"), json=body, timeout=60)
    assert np.allclose(ollama.json()["embeddings"], [short], atol=1e-6)


def test_base64_holds_little_endian_floats(client: OpenAI) -> None:
    asked = {"input": ["one", "two words"]}
    plain = httpx.post(f"{client.base_url}embeddings", json=asked, timeout=60).json()
    coded = httpx.post(f"{client.base_url}embeddings", json={**asked, "encoding_format": "base64"}, timeout=60).json()
    for row, code in zip(plain["data"], coded["data"], strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(code["embedding"]), "<f4"), np.float32(row["embedding"]))
    assert plain["usage"] == coded["usage"]
