"""Documents ranked over HTTP by a tiny cross-encoder, in the shapes of Jina, Cohere and text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.server.models import ModelSpec
from tests.support import hf_families_encoders as families
from tests.support.serving import Running

QUERY, DOCUMENTS = "what is said", ["the one", "another that is longer than the one", "one of the many", "the one"]
ASKED: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerank")
    families.write(folder, "bert reranker")
    convert(folder, "f32", folder / "ranker.gguf")
    return folder / "ranker.gguf"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Running]:
    with Running([ModelSpec("ranker", str(path), {"n_threads": 2})]) as running:
        yield running


def post(server: Running, path: str = "/v1/rerank", status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_scores_are_the_librarys(server: Running, path: Path) -> None:
    with LLM(path, n_threads=2) as llm:
        expected, raw = llm.rank(QUERY, DOCUMENTS), llm.rank(QUERY, DOCUMENTS, normalize=False)
    found = post(server, **ASKED)
    assert [one["index"] for one in found["results"]] == [one.index for one in expected]
    assert [one["relevance_score"] for one in found["results"]] == pytest.approx([one.score for one in expected])
    assert all(0 < one["relevance_score"] < 1 for one in found["results"])
    n_tokens = sum(one.n_tokens for one in expected)
    assert found["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    scores = [one["relevance_score"] for one in post(server, **ASKED, raw_scores=True)["results"]]
    assert scores == pytest.approx([one.score for one in raw])


def test_the_best_alone_with_their_texts(server: Running) -> None:
    whole = post(server, **ASKED)["results"]
    for n in (1, 2, 99):
        assert post(server, **ASKED, top_n=n)["results"] == whole[:n]
    with_texts = post(server, **ASKED, top_n=2, return_documents=True)["results"]
    assert [one["document"]["text"] for one in with_texts] == [DOCUMENTS[one["index"]] for one in whole[:2]]
    parts = [{"text": document} for document in DOCUMENTS]
    for path in ("/rerank", "/reranking", "/v1/reranking", "/v2/rerank"):
        assert post(server, path, query=QUERY, documents=parts)["results"] == whole


def test_the_shape_of_text_embeddings_inference(server: Running) -> None:
    whole = post(server, **ASKED)["results"]
    found = post(server, "/rerank", query=QUERY, texts=DOCUMENTS)
    assert found == [{"index": one["index"], "score": one["relevance_score"]} for one in whole]
    short = post(server, "/rerank", query=QUERY, texts=DOCUMENTS, top_n=1, return_text=True)
    assert short == [{**found[0], "text": DOCUMENTS[found[0]["index"]]}]


@pytest.mark.parametrize("documents", [[], None, 123, [1, 2], [""], [{"text": 3}]])
def test_documents_that_are_none(server: Running, documents: Any) -> None:
    assert "documents" in post(server, status=400, query="a", documents=documents)["error"]["message"]


def test_documents_that_are_too_long(server: Running, path: Path) -> None:
    long = "a" * (1 << 21)
    for name, body in (("documents", {"query": QUERY, "documents": [long]}), ("query", {**ASKED, "query": long})):
        error = post(server, status=400, **body)["error"]
        assert (error["param"], error["code"]) == (name, "context_length_exceeded")
    with LLM(path, n_threads=2) as llm:
        most = max(one.n_tokens for one in llm.rank(QUERY, DOCUMENTS))
    for n, status in ((most, 200), (most - 1, 400)):
        with Running([ModelSpec("ranker", str(path), {"n_threads": 2})], max_prompt_tokens=n) as limited:
            answer = post(limited, status=status, **ASKED)
    assert f"A document has {most} tokens with its query, but the most are {n}" in answer["error"]["message"]


def test_what_a_reranker_cannot_do(server: Running) -> None:
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/completions", {"prompt": "a"})):
        error = post(server, path, status=400, **body)["error"]
        assert error["param"] == "model"
        assert "/v1/rerank" in error["message"]
