"""The sampler for infill, by hand-made probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from ggpy.sampling.infill import Infill
from ggpy.sampling.stages import Candidates

TEXTS = [b"re", b"return", b"r", b"x", b"xy", b"", b""]  # the last two end generation
ENDS = (5, 6)


def after(probs: list[float]) -> dict[int, float]:
    """The probabilities of tokens by their ids, after the stage."""
    logits = np.log(np.maximum(np.array(probs, np.float32), 1e-30))
    found = Infill(TEXTS.__getitem__, ENDS, 6)(Candidates(logits, None, False))
    assert found.ids is not None
    return dict(zip(found.ids.tolist(), found.probs().tolist(), strict=True))


def test_an_end_is_chosen_where_it_is_likely() -> None:
    # 3 × 0.06 × 7 candidates is more than the 0.94 of the texts.
    assert after([0.5, 0.1, 0.1, 0.1, 0.14, 0.04, 0.02]) == pytest.approx({5: 2 / 3, 6: 1 / 3}, abs=1e-5)


def test_tokens_that_begin_alike_are_one() -> None:
    # re, return and r go together into the likeliest of them, which is r at first, then return; x and xy into xy.
    found = after([0.1, 0.3, 0.2, 0.1, 0.3, 0.0, 0.0])
    assert {id: p for id, p in found.items() if p > 1e-6} == pytest.approx({1: 0.6, 4: 0.4}, abs=1e-5)


def test_unlikely_tokens_leave_and_the_rest_share_their_place() -> None:
    # 0.45 and 0.4 pass 0.2; of 0.529 and 0.471 both pass a third.
    found = after([0.45, 0, 0, 0.4, 0, 0.0, 0.0])
    assert {id for id, p in found.items() if p > 1e-6} == {0, 3}
    # A half is asked for where one word is left beside the end.
    found = after([0.78, 0, 0, 0.18, 0, 0.001, 0.001])
    assert found[0] == pytest.approx(0.78 / 0.782, abs=1e-3)
    assert 3 not in found


def test_without_a_likely_word_it_ends() -> None:
    texts = [bytes([i]) for i in range(65, 75)] + [b""]
    logits = np.log(np.array([0.1] * 10 + [1e-9], np.float32))
    found = Infill(texts.__getitem__, (10,), 10)(Candidates(logits, None, False))
    assert found.ids is not None
    assert found.ids.tolist() == [10]
