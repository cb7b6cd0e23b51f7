"""Every stage against an obvious version that sorts everything, and the chain's draws against its distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggpy.errors import GGPYError
from ggpy.sampling.sampler import Sampler
from ggpy.sampling.sampling_params import DEFAULTS, FILE_KEYS, SamplingParams, file_sampling_defaults
from ggpy.sampling.stages import (
    Candidates,
    draw,
    largest,
    min_p,
    penalize,
    temperature,
    top_k,
    top_p,
    typical,
)

SIZES = (1, 2, 7, 300, 5000, 49152, 152064)


def logits_of(n: int, seed: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def all_of(logits: np.ndarray) -> Candidates:
    return Candidates(logits, None, descending=False)


def ids_of(c: Candidates) -> set[int]:
    return set(range(c.logits.size) if c.ids is None else c.ids.tolist())


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(e / e.sum())


def slow_prefix(order: np.ndarray, probs: np.ndarray, p: float, over: bool) -> list[int]:
    mass = np.cumsum(probs[order])
    reached = np.flatnonzero(mass > p if over else mass >= p)
    return order[: reached[0] + 1].tolist() if reached.size else order.tolist()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 5, 40, 200, 1000, 20000])
def test_largest_is_the_head_of_a_stable_sort(n: int, k: int) -> None:
    for seed in range(3):
        values = logits_of(n, seed, 3.0)
        np.testing.assert_array_equal(largest(values, k), np.argsort(-values, kind="stable")[:k])
    ties = np.round(logits_of(n, 9, 2.0))
    np.testing.assert_array_equal(largest(ties, k), np.argsort(-ties, kind="stable")[:k])


def test_largest_with_forbidden_tokens() -> None:
    values = np.full(50000, -np.inf, np.float32)
    values[[7, 40000]] = 1.0, 2.0
    assert largest(values, 3).tolist() == [40000, 7, 0]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("after_top_k", [0, 40])
def test_stages_against_a_full_sort(n: int, scale: float, after_top_k: int) -> None:
    logits = logits_of(n, n, scale)
    c = top_k(all_of(logits), after_top_k)
    rows = np.arange(n) if c.ids is None else c.ids
    probs = np.zeros(n)
    probs[rows] = softmax(logits[rows])
    if after_top_k:
        assert set(rows.tolist()) == set(sorted(range(n), key=lambda i: -logits[i])[:after_top_k])

    for p in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
        order = rows[np.argsort(-logits[rows], kind="stable")]
        expected = slow_prefix(order, probs, p, over=False) if p < 1 else rows.tolist()
        agree(ids_of(top_p(c, p)), set(expected), probs)

        surprise = -np.log(np.maximum(probs[rows], 1e-38))
        distance = np.abs(surprise - (probs[rows] * surprise).sum())
        order = rows[np.argsort(distance, kind="stable")]
        expected = slow_prefix(order, probs, p, over=True) if p < 1 else rows.tolist()
        agree(ids_of(typical(c, p)), set(expected), probs)

        expected = rows[probs[rows] >= p * probs.max() * (1 - 1e-6)].tolist()
        agree(ids_of(min_p(c, p)), set(expected), probs)


def agree(got: set[int], expected: set[int], probs: np.ndarray) -> None:
    """The same set, but for tokens at the edge, where float32 sums may fall on either side or two may change places."""
    different = list(got ^ expected)
    assert got
    assert len(different) <= max(2, len(expected) // 500)
    assert probs[different].sum() < 1e-3 or len(expected) < 50


def test_stages_keep_the_falling_order() -> None:
    c = top_k(all_of(logits_of(5000, 1, 2.0)), 100)
    for stage, value in ((typical, 0.7), (top_p, 0.7), (min_p, 0.05)):
        out = stage(c, value)
        assert out.descending
        assert (np.diff(out.logits) <= 0).all()


def test_temperature() -> None:
    logits = logits_of(100, 1, 2.0)
    np.testing.assert_allclose(softmax(temperature(all_of(logits), 0.5).logits), softmax(logits * 2), rtol=1e-4)
    assert draw(temperature(all_of(logits), 1e-38), 0.999999) == logits.argmax()


def test_penalize() -> None:
    logits = np.array([2.0, -2.0, 0.5, 1.0], np.float32)
    penalize(logits, np.array([0, 1, 2]), np.array([1, 2, 3], np.float32), repetition=2.0, frequency=0.1, presence=0.5)
    np.testing.assert_allclose(logits, [1.0 - 0.1 - 0.5, -4.0 - 0.2 - 0.5, 0.25 - 0.3 - 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("last_n", "expected"), [(0, {}), (2, {1: 1, 3: 1}), (3, {1: 1, 3: 2}), (-1, {1: 2, 2: 1, 3: 2})]
)
def test_penalty_window(last_n: int, expected: dict[int, int]) -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=1.5, repeat_last_n=last_n).resolved(), n_ctx=100)
    sampler.accept([1, 2])
    for token in (3, 1, 3):
        sampler.accept([token])
    assert sampler._counts == expected


@pytest.mark.parametrize("n", [50, 40000])
def test_draw_is_the_inverse_of_the_cumulative_distribution(n: int) -> None:
    c = all_of(logits_of(n, 3, 2.0))
    mass = np.cumsum(softmax(c.logits))
    for u in (0.0, 0.1, 0.33, 0.5, 0.77, 0.9999):
        assert abs(draw(c, u) - int(np.searchsorted(mass, u, side="right"))) <= (1 if n > 100 else 0)
    assert draw(c, np.nextafter(1.0, 0.0)) < n


def test_draw_never_takes_a_forbidden_token() -> None:
    logits = np.full(20000, -np.inf, np.float32)
    logits[12345] = 3.0
    for u in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        assert draw(all_of(logits), float(u)) == 12345


def test_the_chain_follows_its_distribution() -> None:
    logits = logits_of(60, 5, 1.5)
    sampler = Sampler(SamplingParams(temperature=0.7, top_k=10, top_p=0.9, min_p=0.02, seed=1).resolved())
    order = np.argsort(-logits)[:10]
    order = np.array(slow_prefix(order, _spread(order, softmax(logits[order]), 60), 0.9, over=False))
    order = order[softmax(logits[order]) >= 0.02 * softmax(logits[order]).max()]
    expected = _spread(order, softmax(logits[order] / 0.7), 60)
    counts = np.bincount([sampler.sample(logits) for _ in range(20000)], minlength=60)
    assert counts[expected == 0].sum() == 0
    assert np.abs(counts / 20000 - expected).max() < 4 * math.sqrt(0.25 / 20000)


def _spread(order: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n)
    out[order] = values
    return out


@pytest.mark.parametrize(
    "kwargs", [{}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"typical_p": 0.8, "top_k": 0}]
)
def test_a_seed_gives_the_same_tokens_twice(kwargs: dict[str, Any]) -> None:
    logits = logits_of(49152, 5, 2.0)
    draws = [
        [Sampler(SamplingParams(seed=seed, **kwargs).resolved()).sample(logits) for seed in (7, 8, 9)] for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


def test_sampling_leaves_the_logits_alone() -> None:
    logits = logits_of(1000, 2, 2.0)
    before = logits.copy()
    params = SamplingParams(repetition_penalty=1.3, logit_bias={3: 5.0, 6: -math.inf}).resolved()
    sampler = Sampler(params, banned=(1,), n_ctx=10)
    sampler.accept([5, 6])
    sampler.sample(logits)
    np.testing.assert_array_equal(logits, before)
    with pytest.raises(GGPYError, match="no usable logits"):
        sampler.sample(np.full(1000, np.nan, np.float32))


def test_greedy_bias_and_ban() -> None:
    logits = np.array([0.0, 5.0, 4.0], np.float32)
    assert Sampler(SamplingParams(temperature=0).resolved()).sample(logits) == 1
    assert Sampler(SamplingParams(temperature=0).resolved(), banned=(1,)).sample(logits) == 2
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 9.0}).resolved()).sample(logits) == 0


@pytest.mark.filterwarnings("error")  # numpy's would go to the user's terminal
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_logits(bad: float) -> None:
    logits = logits_of(5000, 1, 1.0)
    logits[4321] = bad
    for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=0)):
        with pytest.raises(GGPYError, match="no usable logits"):
            Sampler(params.resolved()).sample(logits)
        with pytest.raises(GGPYError, match="no usable logits"):
            Sampler(params.resolved(), banned=(4321,)).sample(logits)
    with pytest.raises(GGPYError, match="no usable logits"):
        Sampler(SamplingParams().resolved()).sample(np.full(10, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", v) for v in (-0.1, math.nan, math.inf, "hot", True)],
        *[("top_p", v) for v in (-0.1, 1.1)],
        *[("min_p", v) for v in (-0.1, 1.1)],
        *[("typical_p", v) for v in (-0.1, 1.1)],
        *[("top_k", v) for v in (-2, 1.5, math.nan)],
        *[("repetition_penalty", v) for v in (0, -1)],
        *[("repeat_last_n", v) for v in (-2, 0.5)],
        *[("presence_penalty", v) for v in (-2.1, 2.1)],
        *[("frequency_penalty", v) for v in (-2.1, 2.1)],
        *[("max_tokens", v) for v in (0, -5)],
        *[("n", v) for v in (0, None)],
        *[("best_of", v) for v in (0, 1025)],
        *[("min_tokens", v) for v in (-1, None)],
        *[("logprobs", v) for v in (-2, 0.5)],
        *[("prompt_logprobs", v) for v in (-2, True)],
        *[("truncate_prompt_tokens", v) for v in (-2, 0)],
        *[("top_n_sigma", v) for v in (-1.5, math.nan)],
        *[("xtc_probability", v) for v in (-0.1, 1.1)],
        *[("xtc_threshold", v) for v in (-0.1, 1.1)],
        *[("dynatemp_range", v) for v in (-0.1, math.inf)],
        *[("dynatemp_exponent", v) for v in (-0.1, "1")],
        *[("mirostat", v) for v in (-1, 3, 0.5)],
        *[("mirostat_tau", v) for v in (-0.1, 101)],
        *[("mirostat_eta", v) for v in (-0.1, math.nan)],
        *[("dry_multiplier", v) for v in (-0.1, math.inf)],
        *[("dry_base", v) for v in (0.9, math.nan)],
        *[("dry_allowed_length", v) for v in (-1, 0.5)],
        *[("dry_penalty_last_n", v) for v in (-2, 0.5)],
        ("dry_sequence_breakers", ""),
        ("samplers", "top_k;outfill"),
        ("samplers", [3]),
        ("bad_words", [""]),
        ("skip_special_tokens", 1),
        ("include_stop_str_in_output", None),
        *[("seed", v) for v in (-2, 1.5)],
        ("stop", ""),
        ("stop", ["a", ""]),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", 3),
    ],
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(GGPYError, match=name):
        SamplingParams(**{name: value})


def test_unset_values_come_from_the_file_then_from_the_defaults() -> None:
    file = file_sampling_defaults({"general.sampling.temp": np.float32(0.25), "general.sampling.top_k": 7, "other": 1})
    params = SamplingParams(top_k=3).resolved(file)
    assert (params.temperature, params.top_k, params.top_p) == (0.25, 3, DEFAULTS["top_p"])
    assert params.stop == ()
    assert params.max_tokens is None
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(stop="x").stop == ("x",)
    with pytest.raises(GGPYError, match=r"top_p in the model's file is 3\.0"):
        SamplingParams().resolved({"top_p": 3.0})
    assert SamplingParams(top_p=0.5).resolved({"top_p": 3.0}).top_p == 0.5  # what nobody uses harms nobody


def test_a_temperature_of_zero_is_greedy_whatever_the_file_says() -> None:
    file = {"repetition_penalty": 1.5, "repeat_last_n": 32, "temperature": 0.7}
    sampler = Sampler(SamplingParams(temperature=0).resolved(file))
    sampler.accept([1])
    assert sampler.sample(np.array([1.0, 2.0, 1.9], np.float32)) == 1
    asked = SamplingParams(temperature=0, repetition_penalty=1.2).resolved(file)  # the caller's own penalty holds
    assert asked.repetition_penalty == 1.2
    assert SamplingParams().resolved(file).repetition_penalty == 1.5


def test_file_keys_are_those_of_the_format() -> None:
    from gguf.constants import Keys

    general = {v for k, v in vars(Keys.General).items() if k.startswith("SAMPLING_")}
    assert set(FILE_KEYS.values()) == general
