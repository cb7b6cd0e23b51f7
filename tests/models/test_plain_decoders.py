"""Decoders that transformers lacks: what their files say."""

from __future__ import annotations

import numpy as np
import pytest

from ggpy.models.hf_sources import Stored
from tests.support.converted import Make, metadata
from tests.support.plain_decoders import CASES


def test_keys(make: Make) -> None:
    glm = metadata(make(CASES["chatglm, all heads"]))
    assert (glm["rope.dimension_count"], glm["attention.head_count_kv"]) == (6, 6)
    assert glm["rope.freq_base"] == pytest.approx(500.0)
    notes: list[str] = []
    slopes = metadata(make(CASES["baichuan, slopes"], note=notes.append))
    assert (slopes["attention.max_alibi_bias"], slopes["context_length"]) == (8.0, 4096)
    assert any("scores fall with the distance (ALiBi); other engines go by the number of layers" in n for n in notes)
    assert "attention.max_alibi_bias" not in metadata(make(CASES["baichuan"]))


def test_rows_of_unit_length() -> None:
    stored = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    rows = Stored("head", (7, 5)).unit_rows().rows(lambda name, start, stop: stored[start:stop], 2, 6)
    assert np.allclose(rows, stored[2:6] / np.linalg.norm(stored[2:6], axis=1, keepdims=True))
