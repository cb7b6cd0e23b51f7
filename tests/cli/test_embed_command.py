"""`ggpy embed` and `ggpy rank`: texts from arguments, files and stdin, and the forms of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ggpy import LLM
from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from tests.support import hf_families_encoders as families
from tests.support.families import family_checkpoint

TEXTS = ["one", "two words", "3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    convert(family_checkpoint(folder, "bert"), "f32", folder / "bert.gguf")
    families.write(folder / "ranker", "bert reranker")
    convert(folder / "ranker", "f32", folder / "ranker.gguf")
    return folder


def call(*words: Any, stdin: str = "") -> Result:
    return CliRunner().invoke(main, [*map(str, words), "-t", "2"], input=stdin)


def test_the_forms_of_vectors(models: Path, tmp_path: Path) -> None:
    with LLM(models / "bert.gguf", n_threads=2) as llm:
        expected = np.stack([output.outputs.embedding for output in llm.embed(TEXTS)])
    embed = ("embed", "-m", models / "bert.gguf")
    out = tmp_path / "vectors.npy"
    assert call(*embed, *TEXTS, "-o", out).exit_code == 0
    saved = np.load(out)
    assert saved.dtype == np.float32
    assert np.array_equal(saved, expected)
    (tmp_path / "texts").write_text("two words\n\n3\n")
    lines = call(*embed, "one", "-f", tmp_path / "texts", "--format", "json").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["text"] for line in found] == TEXTS
    assert np.allclose([line["embedding"] for line in found], expected, atol=1e-7)
    table = call(*embed, stdin="one\ntwo words\n3\n").stdout.splitlines()
    assert table[0].split() == ["cosine", "shape", "vector", "text"]
    assert [row.split()[0] for row in table[1:]] == [f"{expected[0] @ row:.4f}" for row in expected]
    cut = call(*embed, "one", "--dimensions", 5, "--format", "json", "--pooling", "cls").stdout
    assert len(json.loads(cut)["embedding"]) == 5


def test_documents_by_their_score(models: Path) -> None:
    rank = ("rank", "-m", models / "ranker.gguf", "-q", "one")
    rows = [json.loads(line) for line in call(*rank, "--json", stdin="\n".join(TEXTS)).stdout.splitlines()]
    assert sorted(row["document"] for row in rows) == sorted(TEXTS)
    plain = call(*rank, *TEXTS, "-n", 2).stdout.splitlines()
    assert plain == [f"{row['score']:9.4f}  {row['document']}" for row in rows[:2]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("embed", "text"), "There is no model: name one made for it"),
        (("embed", "-m", "bert.gguf"), "There is no text"),
        (("embed", "-m", "bert.gguf", "text", "-o", "x.npy", "--pooling", "none"), "no .npy holds"),
        (("embed", "-m", "bert.gguf", "text", "-o", "no/folder/x.npy"), "no/folder"),
        (("embed", "-m", "ranker.gguf", "text"), "use LLM.rank (ggpy rank)"),
        (("rank", "-m", "bert.gguf", "-q", "one", "text"), "embeds texts; rank takes a reranker"),
        (("rank", "-m", "ranker.gguf", "text"), "Missing option '-q'"),
    ],
)
def test_errors(models: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    result = call(*words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
