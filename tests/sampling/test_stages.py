"""The stages that change a distribution's shape, each against its published definition, on cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggpy.sampling.stages import (
    Candidates,
    dynamic_temperature,
    min_p,
    temperature,
    top_k,
    top_n_sigma,
    top_p,
    typical,
    xtc,
)


def of_probs(*probs: float) -> Candidates:
    """Candidates of these probabilities, with some other constant added to the logarithms."""
    with np.errstate(divide="ignore"):
        return Candidates(np.log(np.array(probs, np.float32)) + np.float32(3.0), None, descending=False)


def left(c: Candidates) -> list[int]:
    return list(range(c.logits.size)) if c.ids is None else sorted(c.ids.tolist())


@pytest.mark.parametrize(
    ("stage", "value", "probs", "expected"),
    [
        (top_k, 2, (0.1, 0.4, 0.2, 0.3), [1, 3]),
        (top_k, 0, (0.1, 0.4, 0.2, 0.3), [0, 1, 2, 3]),
        (top_k, 9, (0.1, 0.4, 0.2, 0.3), [0, 1, 2, 3]),
        (top_k, 2, (0.25, 0.25, 0.25, 0.25), [0, 1]),  # of equal ones the lower ids
        (top_p, 0.39, (0.1, 0.4, 0.2, 0.3), [1]),
        (top_p, 0.41, (0.1, 0.4, 0.2, 0.3), [1, 3]),
        (top_p, 0.71, (0.1, 0.4, 0.2, 0.3), [1, 2, 3]),
        (top_p, 0.95, (0.1, 0.4, 0.2, 0.3), [0, 1, 2, 3]),
        (top_p, 0.0, (0.1, 0.4, 0.2, 0.3), [1]),  # one at least
        (min_p, 0.49, (0.1, 0.4, 0.2, 0.3), [1, 2, 3]),  # of 0.4: 0.196
        (min_p, 0.51, (0.1, 0.4, 0.2, 0.3), [1, 3]),
        (min_p, 1.0, (0.1, 0.4, 0.2, 0.3), [1]),
        (min_p, 0.0, (0.1, 0.4, 0.2, 0.3), [0, 1, 2, 3]),
        # Surprises of 1, 2, 3 and 3 bits, an entropy of 1.75: 0.75, 0.25, 1.25 and 1.25 from it.
        (typical, 0.2, (0.5, 0.25, 0.125, 0.125), [1]),
        (typical, 0.3, (0.5, 0.25, 0.125, 0.125), [0, 1]),
        (typical, 0.8, (0.5, 0.25, 0.125, 0.125), [0, 1, 2]),
        (typical, 0.9, (0.5, 0.25, 0.125, 0.125), [0, 1, 2, 3]),
        (typical, 0.0, (0.9, 0.05, 0.05), [0]),  # 0.152 bits of an entropy of 0.569; the others have 4.3
        (typical, 0.0, (0.3, 0.3, 0.3, 0.1), [0]),  # 1.74 bits of 1.9
    ],
)
def test_what_a_stage_leaves(stage: Any, value: float, probs: tuple[float, ...], expected: list[int]) -> None:
    assert left(stage(of_probs(*probs), value)) == expected
    after_another = stage(top_k(of_probs(*probs, 1e-6), len(probs)), value)  # candidates in descending order
    assert left(after_another) == expected
    assert after_another.descending


# Mean 4, squared deviations 16 + 1 + 1 + 16, of four: variance 8.5, deviation 2.9155.
@pytest.mark.parametrize(
    ("n", "expected"),
    [(1.0, [3]), (1.02, [3]), (1.03, [2, 3]), (1.72, [1, 2, 3]), (3.0, [0, 1, 2, 3]), (-1.0, [0, 1, 2, 3])],
)
def test_top_n_sigma(n: float, expected: list[int]) -> None:
    logits = np.array([0.0, 3.0, 5.0, 8.0], np.float32)
    assert left(top_n_sigma(Candidates(logits, None, False), n)) == expected
    assert left(top_n_sigma(Candidates(logits + np.float32(100), None, False), n)) == expected
    large = np.float32(1e30) * logits  # whose squares are more than float32 holds
    assert left(top_n_sigma(Candidates(large, None, False), n)) == expected
    # What a bias forbade counts neither for the deviation nor among what is left.
    barred = np.append(logits, np.float32(-np.inf))
    assert left(top_n_sigma(Candidates(barred, None, False), n)) == expected + ([4] if n < 0 else [])


@pytest.mark.parametrize(
    ("probs", "threshold", "expected"),
    [
        ((0.4, 0.3, 0.2, 0.1), 0.15, [2, 3]),  # 0, 1 and 2 reach it; the least likely of them stays
        ((0.4, 0.3, 0.2, 0.1), 0.25, [1, 2, 3]),
        ((0.1, 0.2, 0.3, 0.4), 0.25, [0, 1, 2]),
        ((0.4, 0.3, 0.2, 0.1), 0.35, [0, 1, 2, 3]),  # one alone
        ((0.4, 0.3, 0.2, 0.1), 0.45, [0, 1, 2, 3]),  # none
        ((0.5, 0.5), 0.5, [1]),
        ((0.5, 0.5), 0.51, [0, 1]),  # more than one cannot reach it
        ((0.3, 0.3, 0.3, 0.1), 0.2, [2, 3]),
    ],
)
def test_xtc(probs: tuple[float, ...], threshold: float, expected: list[int]) -> None:
    c = of_probs(*probs)._replace(logits=np.log(np.array(probs, np.float32)))
    assert left(xtc(c, threshold)) == expected


def test_xtc_keeps_the_falling_order() -> None:
    c = xtc(top_k(of_probs(0.1, 0.4, 0.2, 0.3), 3), 0.25)
    assert c.descending
    assert c.ids is not None
    assert c.ids.tolist() == [3, 2]


def test_dynamic_temperature() -> None:
    probs = np.array([0.5, 0.25, 0.25])
    part = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)  # entropy, as a part of three equal tokens'
    for t, spread, exponent in ((0.8, 0.5, 1.0), (0.8, 0.5, 2.0), (0.3, 0.5, 1.0)):
        low, high = max(0.0, t - spread), t + spread
        found = dynamic_temperature(of_probs(*probs), t, spread, exponent).probs()
        expected = probs ** (1 / (low + (high - low) * part**exponent))
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


def test_dynamic_temperature_at_its_ends() -> None:
    equal, certain = of_probs(0.25, 0.25, 0.25, 0.25), of_probs(1.0, 1e-30)
    np.testing.assert_allclose(dynamic_temperature(equal, 0.8, 0.5, 1.0).probs(), np.full(4, 0.25), rtol=1e-6)
    cold = dynamic_temperature(certain, 0.8, 0.5, 1.0)
    np.testing.assert_allclose(cold.logits, temperature(certain, 0.3).logits, rtol=1e-5)
    assert dynamic_temperature(of_probs(1.0), 0.8, 0.5, 1.0).logits.tolist() == of_probs(1.0).logits.tolist()
    # A range as wide as the temperature reaches down to 0, which is the likeliest token alone.
    assert dynamic_temperature(of_probs(1.0, 1e-30), 0.5, 0.5, 1.0).probs()[0] == 1.0
