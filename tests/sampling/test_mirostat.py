"""Mirostat's cuts by hand, and the surprise of what it draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ggpy.sampling.mirostat import Mirostat
from ggpy.sampling.stages import Candidates


def of_probs(*probs: float) -> Candidates:
    return Candidates(np.log(np.array(probs, np.float32)), None, descending=False)


@pytest.mark.parametrize(
    ("mu", "expected"), [(0.5, [0]), (1.0, [0]), (1.9, [0]), (2.01, [0, 2]), (3.01, [0, 1, 2, 3]), (-1.0, [0])]
)
def test_version_2_leaves_out_what_surprises_more_than_mu(mu: float, expected: list[int]) -> None:
    mirostat = Mirostat(2, 5.0, 0.1)
    assert mirostat.mu == 10.0
    mirostat.mu = mu
    c = mirostat.cut(of_probs(0.5, 0.125, 0.25, 0.125), 4)
    assert c.ids is not None
    assert sorted(c.ids.tolist()) == expected


def test_mu_follows_the_surprise_of_the_token_drawn() -> None:
    mirostat = Mirostat(2, 1.5, 0.5)
    assert mirostat.choose(of_probs(0.5, 0.125, 0.25, 0.125), 0.4, 4) == 0
    assert mirostat.mu == pytest.approx(3.0 - 0.5 * (1.0 - 1.5), rel=1e-5)
    mirostat.mu = 2.5  # of 1/2 and 1/4 the second is one of three: log2(3) bits
    assert mirostat.choose(of_probs(0.5, 0.125, 0.25, 0.125), 0.9, 4) == 2
    assert mirostat.mu == pytest.approx(2.5 - 0.5 * (math.log2(3) - 1.5), rel=1e-5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.2, 2.0])
@pytest.mark.parametrize("mu", [1.0, 4.0, 8.0])
def test_version_1_keeps_the_rank_that_zipfs_law_gives(exponent: float, mu: float) -> None:
    n = 1000
    logits = -exponent * np.log(np.arange(1, n + 1))
    mirostat = Mirostat(1, 5.0, 0.1)
    mirostat.mu = mu
    shuffled = np.random.default_rng(0).permutation(n)
    c = mirostat.cut(Candidates(logits[shuffled].astype(np.float32), None, False), n)
    excess = exponent - 1 if exponent != 1 else 1e-6
    rank = (excess * 2**mu / (1 - n**-excess)) ** (1 / exponent)
    assert abs(c.logits.size - min(max(int(rank), 1), n)) <= 1
    assert (np.diff(c.logits) <= 0).all()


def test_version_1_at_its_ends() -> None:
    for logits in (np.zeros(5), np.array([3.0]), np.array([3.0, -np.inf]), np.array([0.0, -1e30, -1e30])):
        c = Mirostat(1, 5.0, 0.1).cut(Candidates(logits.astype(np.float32), None, False), len(logits))
        assert c.logits.size >= 1


@pytest.mark.parametrize("version", [1, 2])
def test_the_mean_surprise_is_near_the_target(version: int) -> None:
    rng = np.random.default_rng(1)
    n, target = 5000, 4.0
    mirostat = Mirostat(version, target, 0.1)
    found = []
    for _ in range(1500):
        logits = (-1.1 * np.log(np.arange(1, n + 1)) + rng.normal(0, 0.3, n)).astype(np.float32)
        before = mirostat.mu
        mirostat.choose(Candidates(logits, None, False), float(rng.random()), n)
        found.append((before - mirostat.mu) / 0.1 + target)
    assert np.mean(found[200:]) == pytest.approx(target, abs=0.15)
