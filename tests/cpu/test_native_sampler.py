"""The sampler's chain in machine code beside the same stages in numpy."""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggpy.codegen.native import isa
from ggpy.cpu import sampler as sampling
from ggpy.cpu.kernels import kernel
from ggpy.cpu.sampler import MAX_TOP_K, NativeSampler
from ggpy.errors import GGPYError
from ggpy.sampling.sampler import Sampler
from ggpy.sampling.sampling_params import SamplingParams

TIERS = sorted({"plain", "portable", isa()})
SIZES = (2, 41, 63, 64, 65, 2600, 5000, 49152, 152064)


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sampling, "kernel", lambda name: kernel(name, request.param))
    return str(request.param)


def chain_of(params: SamplingParams) -> NativeSampler:
    chain = NativeSampler.of(params)
    assert chain is not None
    return chain


def both(params: SamplingParams, logits: np.ndarray) -> tuple[int, int]:
    """The tokens that numpy and machine code choose with the same seed."""
    return Sampler(params).sample(logits), Sampler(params, chain=chain_of(params)).sample(logits)


@pytest.mark.parametrize("n", SIZES)
def test_the_same_tokens(tier: str, n: int) -> None:
    rng = np.random.default_rng(n)
    settings = product((0.05, 0.8, 2.0), (1, 5, 40, MAX_TOP_K), (0.0, 0.53, 0.94, 1.0), (0.0, 0.05, 1.0))
    for seed, (temperature, k, top_p, min_p) in enumerate(settings):
        params = SamplingParams(temperature=temperature, top_k=k, top_p=top_p, min_p=min_p, seed=seed).resolved()
        logits = (rng.standard_normal(n) * rng.choice([0.5, 3.0, 20.0])).astype(np.float32)
        if seed % 3 == 0:
            logits[rng.integers(0, n, n // 2)] = -np.inf
        if seed % 4 == 0:
            logits[rng.integers(0, n, 3)] = logits.max()  # equal ones at the top
        expected, got = both(params, logits)
        assert got == expected


def test_where_the_largest_are_neighbours(tier: str) -> None:
    """Fewer runs than candidates hold the largest, and the last few logits fill no run."""
    logits = np.linspace(0, 4, 3000, dtype=np.float32)
    for seed in range(20):
        expected, got = both(SamplingParams(top_p=1.0, min_p=0.0, seed=seed).resolved(), logits)
        assert got == expected >= 2960


@pytest.mark.parametrize("n", [41, 64, 95, 2600, 49152])
def test_of_masked_logits_only_those_whose_bit_is_set(tier: str, n: int) -> None:
    """Beside numpy on logits that are minus infinity; the others are the largest, or NaN."""
    rng = np.random.default_rng(n)
    settings = product((0.0, 0.8), (1, 5, 40), (0.0, 0.9), (0.003, 0.1, 0.5, 1.0))
    for seed, (temperature, k, top_p, share) in enumerate(settings):
        params = SamplingParams(temperature=temperature, top_k=k, top_p=top_p, min_p=0.05, seed=seed).resolved()
        allowed = rng.random(n) < share
        allowed[rng.integers(0, n)] = True
        logits = rng.standard_normal(n).astype(np.float32) + np.where(allowed, 0, 9).astype(np.float32)
        if seed % 2:
            logits[~allowed] = np.nan
        bits = np.zeros(-(-n // 32), np.int32)
        bits.view(np.uint8)[: -(-n // 8)] = np.packbits(allowed, bitorder="little")
        grammar: Any = SimpleNamespace(mask=lambda bits=bits: (None, bits), accept=lambda token: None)
        expected = Sampler(params).sample(np.where(allowed, logits, np.float32(-np.inf)))
        chosen = Sampler(params, chain=chain_of(params), grammar=grammar).sample(logits)
        assert chosen == expected
        assert allowed[chosen]
        assert chain_of(params)(logits, 0.5, bits[:-1]) == -1  # of the last tokens nothing is known


@pytest.mark.parametrize("at", [0, 100, 4999])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_logits(tier: str, at: int, bad: float) -> None:
    params = SamplingParams(seed=1).resolved()
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    logits[at] = bad
    assert chain_of(params)(logits, 0.5) == -1
    with pytest.raises(GGPYError, match="no usable logits"):
        Sampler(params, chain=chain_of(params)).sample(logits)
    with pytest.raises(GGPYError, match="no usable logits"):
        Sampler(params, chain=chain_of(params)).sample(np.full(5000, -np.inf, np.float32))


def test_what_it_leaves_to_numpy() -> None:
    for other in ({"top_k": 0}, {"top_k": MAX_TOP_K + 1}, {"typical_p": 0.9}):
        assert NativeSampler.of(SamplingParams(**other).resolved()) is None
    chain = chain_of(SamplingParams(top_k=40).resolved())
    assert chain(np.zeros(40, np.float32), 0.5) == -1  # top-k is off
    for wrong in (np.zeros(100), np.zeros(200, np.float32)[::2]):
        with pytest.raises(TypeError, match=r"float32|contiguous"):
            chain(wrong, 0.5)
