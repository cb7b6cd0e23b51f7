"""Decoders that transformers lacks: converted and run, they give the logits of a plain numpy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.gguf.file import GGUFFile
from ggpy.models.hf_sources import Stored
from tests.support.gguf_names import unknown_names
from tests.support.plain_decoders import CASES, TOKENS, Case, logits, write_checkpoint


def converted(tmp_path: Path, case: Case) -> Path:
    write_checkpoint(tmp_path, case.config)
    convert(tmp_path, "f32", tmp_path / "out.gguf", n_threads=1)
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_plain_model(tmp_path: Path, name: str) -> None:
    expected = logits(CASES[name].config, TOKENS)
    with LLM(converted(tmp_path, CASES[name]), n_ctx=128, n_threads=1, n_parallel=1) as llm:
        assert np.abs(llm.logits(TOKENS) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_gguf(tmp_path: Path, name: str) -> None:
    assert unknown_names(converted(tmp_path, CASES[name])) == (set(), set())


def test_keys(tmp_path: Path) -> None:
    def metadata(name: str) -> dict[str, object]:
        with GGUFFile(converted(tmp_path, CASES[name])) as file:
            return dict(file.metadata)

    glm = metadata("chatglm, all heads")
    assert (glm["chatglm.rope.dimension_count"], glm["chatglm.attention.head_count_kv"]) == (6, 6)
    assert glm["chatglm.rope.freq_base"] == pytest.approx(500.0)
    slopes = metadata("baichuan, slopes")
    assert (slopes["baichuan.attention.max_alibi_bias"], slopes["baichuan.context_length"]) == (8.0, 4096)
    assert "baichuan.attention.max_alibi_bias" not in metadata("baichuan")


def test_rows_of_unit_length() -> None:
    stored = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    rows = Stored("head", (7, 5)).unit_rows().rows(lambda name, start, stop: stored[start:stop], 2, 6)
    assert np.allclose(rows, stored[2:6] / np.linalg.norm(stored[2:6], axis=1, keepdims=True))
