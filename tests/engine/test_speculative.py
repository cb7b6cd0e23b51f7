"""Speculation: the same texts with and without, in fewer steps where they repeat themselves, and drafts
only where they pay."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.engine.drafts import Draft, HitRates, StepTimes
from ggpy.engine.engine import Engine
from ggpy.engine.ngram_lookup import POOL, NGramLookup, NGramPool, first_rates
from ggpy.engine.speculative import SpeculativeConfig, speculative_config
from ggpy.sampling.structured import StructuredOutputsParams
from tests.support import hf_beams
from tests.support.doubles import BOS, EOS, ByteTokenizer, FakeRuntime, FixedTimes, PassingRuntime, finish

KINDS: dict[str, Any] = {
    "full": FakeRuntime,
    "small steps": lambda **given: FakeRuntime(**{**given, "n_batch": 5}),
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
    "both": lambda **given: PassingRuntime(True, 128, 40, **given),
}
TEXT = b"the quick brown fox jumps over the lazy dog, and the slow brown dog looks on. "


def copying(every: int) -> Any:
    """A script that repeats what stood 78 tokens before, but for one token of so many."""

    def script(prefix: list[int]) -> int:
        if len(prefix) % every == 0:
            return ord("#")
        return prefix[-len(TEXT)] if len(prefix) >= len(TEXT) else EOS

    return script


def engine_of(kind: str, slope: float | None = 0.05, every: int = 11, **given: Any) -> Engine:
    """An engine that speculates; slope None: one that does not."""
    config = None if slope is None else SpeculativeConfig()
    runtime = KINDS[kind](**{"script": copying(every), **given})
    engine = Engine(runtime, ByteTokenizer(), speculative=config)  # type: ignore[arg-type]
    if engine.speculator is not None and slope is not None:
        engine.speculator.times = FixedTimes(1.0, slope)
    return engine


def params(**given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 90, **given}).resolved()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 1.5, "seed": 5},
        {"temperature": 0.9, "seed": 6, "repetition_penalty": 1.2, "top_k": 0},
        {"stop": "slow"},
        {"stop_token_ids": [ord("z")]},
        {"max_tokens": 7},
        {"temperature": 1.5, "seed": 7, "logprobs": 2, "prompt_logprobs": 1},
        {"max_tokens": 1},
        {"max_tokens": None},
    ],
)
def test_the_text_is_the_same(kind: str, given: dict[str, Any]) -> None:
    made = [engine_of(kind, slope) for slope in (0.05, None)]
    found = [engine.request([BOS, *TEXT], params(**given)) for engine in made]
    steps = [finish(engine, request) for engine, request in zip(made, found, strict=True)]
    assert found[0].tokens == found[1].tokens
    assert (found[0].logprobs, found[0].prompt_logprobs) == (found[1].logprobs, found[1].prompt_logprobs)
    assert (found[0].text, found[0].finish_reason, found[0].stop_reason) == (
        found[1].text, found[1].finish_reason, found[1].stop_reason,
    )  # fmt: skip
    if found[0].n_chosen > 40:
        assert steps[0] < 0.7 * steps[1]
        timings = found[0].timings
        assert 0.25 < timings.acceptance_rate < 1
        assert timings.n_decode == found[1].timings.n_decode
        assert found[1].timings.acceptance_rate == 0


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_a_grammar_forces(kind: str) -> None:
    pytest.importorskip("llguidance")
    form = StructuredOutputsParams(regex="(the (quick|slow) brown (dog|fox) looks on[.] ){3}[a-c]{8}")
    found = []
    for slope in (0.05, None):
        engine = engine_of(kind, slope)
        request = engine.request([BOS, *TEXT], params(structured_outputs=form, temperature=1, seed=3, max_tokens=130))
        finish(engine, request)
        found.append(request.tokens)
    assert found[0] == found[1]
    assert request.finish_reason == "stop"


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_and_requests_beside(kind: str) -> None:
    """Slots hold what was said afterwards: nothing that was drafted and not said is gone on from."""
    texts = []
    for slope in (0.05, None):
        engine = engine_of(kind, slope)
        several = [engine.request([BOS, *TEXT[i:]], params(max_tokens=50, seed=i, temperature=1)) for i in range(4)]
        finish(engine, *several)
        following = [engine.request([*one.tokens[:-3], *b" What next?"], params(max_tokens=20)) for one in several]
        finish(engine, *following)
        texts.append([one.tokens for one in (*several, *following)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", hf_beams.WRITERS)
def test_models_of_every_kind_of_state(kind: str, tmp_path: Path) -> None:
    hf_beams.write(tmp_path / kind, kind)
    convert(tmp_path / kind, "f32", tmp_path / "model.gguf")
    prompt = np.random.default_rng(0).integers(0, 456, 40).tolist() * 30  # longer than the cells of a ring
    found = []
    for speculative in ("ngram", None):
        with LLM(tmp_path / "model.gguf", n_ctx=2304, n_threads=2, n_parallel=2, speculative=speculative) as llm:
            if llm.engine.speculator is not None:
                llm.engine.speculator.times = FixedTimes(1.0)
            few = dict.fromkeys((5, 9, 17), 1e4)  # tokens to choose from, so that they repeat
            options = {"max_tokens": 60, "logit_bias": few, "min_p": 0.0, "top_p": 1.0}
            several = [SamplingParams(seed=i, temperature=25.0 * i, **options) for i in range(3)]
            found_here = llm.generate(prompt_token_ids=[prompt] * 3, sampling_params=several)
            outputs = [output.outputs[0] for output in found_here]
            found.append([output.token_ids for output in outputs])
            n_accepted = sum(output.timings.n_accepted for output in outputs)
            assert 0 < n_accepted < sum(output.timings.n_drafted for output in outputs) or speculative is None
    assert found[0] == found[1]


def test_drafts_that_cost_too_much_are_not_made() -> None:
    engine = engine_of("full", slope=1.0)
    request = engine.request([BOS, *TEXT], params())
    assert finish(engine, request) == 90 + len(TEXT) // 16
    assert request.n_drafted == 0


def test_drafts_stop_where_they_do_not_come_true() -> None:
    """Foreseen tokens are counted whether they are drafted or not, so that drafts come back too."""
    engine = engine_of("full", slope=0.3, script=lambda prefix: zlib.crc32(bytes(prefix[1:])) % 5 + 97)
    request = engine.request([BOS, *b"abcabcabcabc"], params(max_tokens=200))
    finish(engine, request)
    assert request.n_drafted < 60
    assert request.lookup is not None
    assert request.lookup._own.rate(0) < 0.4


def test_a_busy_batch_shares_what_pays() -> None:
    engine = engine_of("full", n_slots=4, n_batch=12, n_ctx=1024)
    requests = [engine.request([BOS, *TEXT], params(max_tokens=60)) for _ in range(4)]
    finish(engine, *requests)
    runtime: Any = engine.runtime
    assert max(runtime.batches) == 12  # drafts fill a step, and no more
    assert all(request.n_accepted for request in requests)
    assert len({tuple(request.tokens) for request in requests}) == 1


def test_devices_that_sample_are_left_alone() -> None:
    for given in ({"max_sampled": 8}, {"by_kind": True}):
        assert engine_of("full", **given).speculator is None


def test_an_error_in_a_draft_is_its_requests_own() -> None:
    class Broken(FakeRuntime):
        def _logits(self, slot: int, n: int) -> Any:
            logits = super()._logits(slot, n)
            return np.full_like(logits, np.nan) if n == 105 and self.of(slot)[0][0] == BOS else logits

    engine = engine_of("full")
    engine = Engine(Broken(script=copying(11)), ByteTokenizer(), speculative=SpeculativeConfig())  # type: ignore[arg-type]
    assert engine.speculator is not None
    engine.speculator.times = FixedTimes(1.0)
    broken, fine = engine.request([BOS, *TEXT], params()), engine.request([ord(" "), *TEXT], params())
    finish(engine, broken, fine)
    assert broken.error is not None
    assert len(broken.tokens) == 105
    assert fine.n_chosen == 90


def lookup_of(tokens: list[int], n_prompt: int | None = None, pool: NGramPool | None = None) -> NGramLookup:
    pool = pool or NGramPool(2, 8)
    lookup = NGramLookup(len(tokens) if n_prompt is None else n_prompt, HitRates(first_rates(2, 8)), pool)
    lookup.extend(tokens)
    return lookup


def test_the_longest_match_is_taken_and_goes_on() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3]
    lookup = lookup_of(tokens)
    assert lookup.draft(4).tokens == [4, 5, 9, 2]  # after 1 2 3, not after the later 2 3
    lookup.extend([*tokens, 9, 2, 3])
    assert lookup.draft(3).tokens == [7, 8, 1]
    assert lookup_of([5, 6, 7] * 3).draft(7).tokens == [5, 6, 7, 5, 6, 7, 5]
    assert lookup_of([1, 2, 3]).draft(4) == Draft()


def test_answers_to_others_are_looked_up_too() -> None:
    pool = NGramPool(2, 8)
    pool.add([1, 2, 3, 4, 5, 6])
    pool.add([9, 9, 2, 3, 7])
    assert lookup_of([1, 2, 3], pool=pool).draft(9).tokens == [4, 5, 6]  # and not on into the next answer
    assert lookup_of([4, 2, 3], pool=pool).draft(9).tokens == [7]  # the later of equals
    assert lookup_of([5, 6], pool=pool).draft(9) == Draft()
    for _ in range(40):
        lookup_of([1, 2, 3, 8], 3, pool)  # in vain
    assert lookup_of([1, 2, 3, 9, 1, 2, 3], pool=pool).draft(1).tokens == [9]
    for _ in range(POOL // 8):
        pool.add([11, 12, 13, 14, 15, 16, 17])
    assert len(pool._index.tokens) + len(pool._older.tokens) <= POOL
    assert lookup_of([1, 2, 3], pool=pool).draft(9) == Draft()


def test_a_request_learns_from_those_before() -> None:
    engine = engine_of("full", script=lambda prefix: zlib.crc32(bytes(prefix[-3:])) % 255)
    for n_steps in (60, 30):
        request = engine.request([BOS, *b"once upon"], params(max_tokens=60))
        assert finish(engine, request) <= n_steps
    plain = engine_of("full", None, script=lambda prefix: zlib.crc32(bytes(prefix[-3:])) % 255)
    again = plain.request([BOS, *b"once upon"], params(max_tokens=60))
    finish(plain, again)
    assert again.tokens == request.tokens


def test_rates_are_those_of_what_was_seen() -> None:
    shared = HitRates(first_rates(2, 4))
    before = shared.rates()
    assert before == sorted(before)
    for i in range(300):
        shared.learn(1, hit=i % 4 == 0)
    assert shared.rate(1) == pytest.approx(0.25, abs=0.05)
    assert (shared.rates()[0], shared.rates()[2]) == (before[0], before[2])
    assert shared.rate(99) == shared.rate(2)


def test_step_times() -> None:
    times = StepTimes()
    assert times.estimate(1) < times.estimate(8) < 2 * times.estimate(1)
    times.learn(1, 2.0)
    times.learn(1, 9.0)  # somebody else's work
    assert times.estimate(1) == 2.0
    assert times.estimate(8) == pytest.approx(2.0 * 1.8 / 1.1)
    times.learn(9, 10.0)
    assert times.estimate(9) == pytest.approx(2.0 * 1.9 / 1.1)  # of one that may have been disturbed
    for _ in range(2):
        times.learn(9, 10.0)
    assert times.estimate(9) == 10.0
    assert times.estimate(5) == pytest.approx(6.0)
    assert times.estimate(17) == pytest.approx(10.0 * 2.7 / 1.9)
    for _ in range(400):
        times.learn(1, 3.0)
    assert times.estimate(9) == pytest.approx(3.0 * 1.9 / 1.1)  # its time was too long ago to count


def test_settings() -> None:
    assert speculative_config(None, None, None) is None
    assert speculative_config("ngram", None, None) == SpeculativeConfig()
    assert speculative_config(None, "small.gguf", None) == SpeculativeConfig("draft_model", model=Path("small.gguf"))
    given = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
    for config, meant in (
        (given, SpeculativeConfig("ngram", 5, 4, 2)),
        ({"method": "ngram", "prompt_lookup_max": 1}, SpeculativeConfig("ngram", 24, 1, 1)),
        ({"prompt_lookup_min": 14}, SpeculativeConfig("ngram", 24, 14, 14)),
        ({"model": "x", "num_speculative_tokens": 5}, SpeculativeConfig("draft_model", 5, model="x")),
    ):
        assert speculative_config(None, None, config) == meant
    for wrong, message in (
        (("eagle", None, None), "speculative method is 'eagle', but it must be 'ngram' or 'mtp' or 'draft_model'"),
        (("ngram", None, given), "speculative and speculative_config both say .*leave one of them out"),
        (("ngram", "x", None), "speculative and draft_model both say"),
        (("draft_model", None, None), "needs a model"),
        ((None, None, {"method": "ngram", "model": "x"}), "no other does"),
        ((None, None, {"method": "ngram", "draft": "x"}), "speculative_config is"),
        ((None, None, {"num_speculative_tokens": 0}), "num_speculative_tokens is 0"),
        ((None, None, {"prompt_lookup_min": 5, "prompt_lookup_max": 3}), "the least may not be above the most"),
    ):
        with pytest.raises(GGPYError, match=message):
            speculative_config(*wrong)
