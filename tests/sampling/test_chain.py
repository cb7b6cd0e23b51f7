"""The chain as a whole: the order of its stages, what it forbids, and its random numbers."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ggpy.errors import GGPYError
from ggpy.sampling.sample_spec import TopKChain
from ggpy.sampling.sampler import Sampler
from ggpy.sampling.sampling_params import DEFAULTS, SAMPLERS, SamplingParams, file_sampling_defaults

PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


def sampler_of(n_ctx: int = 100, rest: dict[str, Any] | None = None, **asked: Any) -> Sampler:
    return Sampler(SamplingParams(**{**PLAIN, **asked}).resolved(), n_ctx=n_ctx, **(rest or {}))


def frequencies(sampler: Sampler, probs: list[float], n: int = 8000) -> list[float]:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(probs, np.float32))
    counts = Counter(sampler.sample(logits) for _ in range(n))
    return [counts[token] / n for token in range(len(probs))]


def close(found: list[float], expected: list[float]) -> bool:
    assert [a == 0 for a in found] == [b == 0 for b in expected]
    return found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 8000))


def test_the_order_of_samplers() -> None:
    probs = [0.4, 0.3, 0.2, 0.1]
    asked = {"min_p": 0.6, "temperature": 0.5, "seed": 1}
    # At half the temperature, probabilities are as 16 : 9 : 4 : 1, and 9 is less than 0.6 of 16.
    assert close(frequencies(sampler_of(**asked, samplers="min_p;temperature"), probs), [16 / 25, 9 / 25, 0, 0])
    assert close(frequencies(sampler_of(**asked, samplers="temperature;min_p"), probs), [1, 0, 0, 0])
    assert close(frequencies(sampler_of(**asked, samplers=["min_p"]), probs), [4 / 7, 3 / 7, 0, 0])
    assert close(frequencies(sampler_of(**asked, samplers=""), probs), probs)
    # Top-p after top-k counts what top-k left: 0.4 is then 4/7, and reaches 0.5.
    asked = {"top_k": 2, "top_p": 0.5, "seed": 1}
    assert close(frequencies(sampler_of(**asked), probs), [1, 0, 0, 0])
    assert close(frequencies(sampler_of(**asked, samplers="top_p;top_k"), probs), [4 / 7, 3 / 7, 0, 0])


def test_penalties_after_other_stages() -> None:
    probs = [0.4, 0.3, 0.2, 0.1]
    asked = {"presence_penalty": 2.0, "top_k": 2, "seed": 1, "frequency_penalty": 1.0}
    for samplers, left in (("penalties;top_k", [0, 3, 2, 0]), ("top_k;penalties", [4 * math.exp(-4), 3, 0, 0])):
        sampler = sampler_of(**asked, samplers=samplers)
        sampler.accept([0, 0, 3], of_prompt=True)
        assert close(frequencies(sampler, probs), [one / sum(left) for one in left])
    greedy = sampler_of(**{**asked, "temperature": 0}, samplers="top_k;penalties")
    greedy.accept([0, 0, 3], of_prompt=True)
    assert greedy.sample(np.log(np.array(probs, np.float32))) == 1


def test_dry_in_the_chain() -> None:
    logits = np.zeros(5, np.float32)
    sampler = sampler_of(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2, seed=1)
    sampler.accept([0, 1, 2, 3, 0, 1, 2], of_prompt=True)
    expected = np.array([1, 1, 1, math.exp(-2), 1])  # 3 would prolong three tokens
    assert close(frequencies(sampler, np.ones(5).tolist()), (expected / expected.sum()).tolist())
    assert (logits == 0).all()
    off = sampler_of(dry_multiplier=1.0, dry_penalty_last_n=0)
    assert off.params.active_samplers() == ()


def test_xtc_by_chance() -> None:
    probs = [0.5, 0.3, 0.2]
    found = frequencies(sampler_of(xtc_probability=0.25, xtc_threshold=0.3, seed=1), probs)
    assert close(found, [0.75 * 0.5, 0.75 * 0.3 + 0.25 * 0.6, 0.75 * 0.2 + 0.25 * 0.4])
    assert close(frequencies(sampler_of(xtc_probability=1.0, xtc_threshold=0.3, seed=1), probs), [0, 0.6, 0.4])


def test_mirostat_takes_the_place_of_the_stages_that_leave_tokens_out() -> None:
    params = SamplingParams(mirostat=2, repetition_penalty=1.1, xtc_probability=0.5, top_n_sigma=1.0, seed=1).resolved()
    assert params.active_samplers() == ("penalties", "temperature")
    sampler = Sampler(params, n_ctx=10)
    assert sampler._mirostat is not None
    assert len({sampler.sample(np.zeros(50, np.float32)) for _ in range(400)}) > 40  # which top-k would leave
    assert SamplingParams(mirostat=1, temperature=0).resolved().active_samplers() == ()


def test_only_the_usual_chain_is_left_to_kernels_and_devices() -> None:
    def chain(**asked: Any) -> TopKChain | None:
        return TopKChain.of(SamplingParams(**asked).resolved())

    usual = chain()
    assert usual is not None
    assert chain(samplers=SAMPLERS) == chain(samplers="top_k;top_p;min_p;temp") == usual
    assert chain(repetition_penalty=1.1, dry_multiplier=0.5) == usual  # these change the logits before
    assert chain(samplers="top_k;top_p;temperature") == usual._replace(least=-math.inf)
    assert chain(samplers="top_k;min_p;temperature") == usual._replace(top_p=2.0)
    assert chain(samplers="top_k") == (40, 1.0, 2.0, -math.inf)
    assert chain(xtc_probability=0.5, xtc_threshold=0.6) == usual  # no two tokens reach it
    for other in (
        {"samplers": "top_p;top_k"}, {"samplers": "top_k;temperature;top_p"}, {"samplers": "top_k;penalties"} |
        {"presence_penalty": 1.0}, {"samplers": "temperature"}, {"samplers": "top_k;top_k"}, {"mirostat": 1},
        {"dynatemp_range": 0.1}, {"xtc_probability": 0.1}, {"top_n_sigma": 1.0}, {"typical_p": 0.9},
    ):  # fmt: skip
        assert chain(**other) is None, other  # type: ignore[arg-type]


def test_no_end_before_min_tokens() -> None:
    logits = np.array([0.0, 9.0, 5.0, 8.0], np.float32)
    for most in (4, 1):  # within and beyond what a spec can forbid
        sampler = Sampler(SamplingParams(temperature=0, min_tokens=2).resolved(), ends=[1, 3] * most)
        specs = [sampler.spec(4, 128, ahead) for ahead in range(3)]
        assert all(spec is not None for spec in specs)
        found = []
        for _ in range(3):
            spec = sampler.spec(4, 128)
            assert spec is not None
            assert spec["banned"][: spec["n_banned"]].tolist() == ([1, 3] if len(found) < 2 else [])
            found.append(sampler.sample(logits))
            sampler.accept(found[-1:])
        assert found == [2, 2, 1]
    many = Sampler(SamplingParams(temperature=0, min_tokens=1).resolved(), ends=range(11))
    assert many.spec(20, 128) is None
    assert many.spec(20, 128, ahead=1) is not None


def test_bad_words() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    sampler = sampler_of(temperature=0, rest={"bad_words": [(0, 1), (2,), (0, 3, 0)]})
    sampler.accept([0], of_prompt=True)  # only what was generated counts
    assert sampler.spec(100, 50) is None

    def after(*tokens: int) -> list[int]:
        sampler.accept(tokens)
        return [token for token in range(4) if sampler.sample(np.where(np.arange(4) == token, 9, logits)) == token]

    assert after() == [0, 1, 3]
    assert after(0) == [0, 3]
    assert after(3) == [1, 3]
    assert after(3) == [0, 1, 3]
    alone = sampler_of(temperature=0, rest={"bad_words": [(2,)]})
    spec = alone.spec(100, 50)
    assert spec is not None
    assert spec["banned"][: spec["n_banned"]].tolist() == [2]


def test_a_spec_is_kept_and_its_random_number_changes() -> None:
    sampler = Sampler(SamplingParams(seed=3).resolved())
    first = sampler.spec(100, 50)
    assert first is not None
    one = first.copy()
    assert sampler.spec(100, 50, 1) is first
    assert one["uniform"] != first["uniform"]
    assert (one["candidates"], one["top_p"]) == (first["candidates"], first["top_p"])
    assert Sampler(SamplingParams(logprobs=0).resolved()).spec(100, 50) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"xtc_probability": 0.5}, {"mirostat": 1}, {"mirostat": 2}, {"dynatemp_range": 0.3}, {"dry_multiplier": 0.8},
        {"top_n_sigma": 1.0}, {"samplers": "temperature;top_p"},
    ],
    ids=str,
)  # fmt: skip
def test_a_seed_gives_the_same_text(asked: dict[str, Any]) -> None:
    def text(seed: int) -> list[int]:
        sampler, rng = Sampler(SamplingParams(seed=seed, **asked).resolved(), n_ctx=100), np.random.default_rng(0)
        tokens: list[int] = []
        for _ in range(20):
            tokens.append(sampler.sample(rng.standard_normal(300).astype(np.float32)))
            sampler.accept(tokens[-1:])
        return tokens

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_values_that_contradict_each_other() -> None:
    for asked in ({"min_tokens": 5, "max_tokens": 4}, {"best_of": 2, "n": 3}, {"best_of": 2, "temperature": 0}):
        with pytest.raises(GGPYError, match=next(iter(asked))):
            SamplingParams(**asked)  # type: ignore[arg-type]
    with pytest.raises(GGPYError, match="temperature 0"):
        SamplingParams(best_of=2).resolved({"temperature": 0.0})


def test_names_of_samplers() -> None:
    assert SamplingParams().resolved().samplers == SAMPLERS
    assert SamplingParams(samplers="typical;nucleus; temp;").samplers == ("typ_p", "top_p", "temperature")
    with pytest.raises(GGPYError, match=r"samplers names 'outfill', which is no sampler here; write names out of pen"):
        SamplingParams(samplers=["outfill"])


def test_a_file_may_name_samplers_and_more() -> None:
    file = {
        "general.sampling.sequence": "top_k;temperature",
        "general.sampling.xtc_probability": np.float32(0.25),
        "general.sampling.mirostat": 2,
        "general.sampling.mirostat_tau": 4.0,
    }
    params = SamplingParams().resolved(file_sampling_defaults(file))
    assert (params.samplers, params.xtc_probability) == (("top_k", "temperature"), 0.25)
    assert (params.mirostat, params.mirostat_tau, params.mirostat_eta) == (2, 4.0, DEFAULTS["mirostat_eta"])
    with pytest.raises(GGPYError, match="samplers in the model's file names 'adaptive_p'"):
        SamplingParams().resolved(file_sampling_defaults({"general.sampling.sequence": "adaptive_p"}))
