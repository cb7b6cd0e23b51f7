"""Settings of a checkpoint's config.json: converted and run, a model gives the logits that transformers gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy import LLM
from ggpy.convert.pipeline import convert
from tests.support import hf_cases

with np.load(Path(__file__).parents[1] / "data" / "hf_logits.npz") as recorded:
    LOGITS = dict(zip(recorded["names"].tolist(), recorded["logits"], strict=True))


@pytest.mark.parametrize("name", hf_cases.CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    hf_cases.write(tmp_path, hf_cases.CASES[name])
    convert(tmp_path, "f32", tmp_path / "out.gguf")
    with LLM(tmp_path / "out.gguf", n_ctx=128, n_threads=1, n_parallel=1) as llm:
        logits = llm.logits(hf_cases.TOKENS)[hf_cases.POSITIONS][:, list(hf_cases.COLUMNS)]
    expected = LOGITS[name]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
