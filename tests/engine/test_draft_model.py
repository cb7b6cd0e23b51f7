"""Drafts of a small model: the same texts with and without, its slots kept in step with what was said, and drafts only
where they pay."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.engine.engine import Engine
from ggpy.engine.speculative import SpeculativeConfig
from ggpy.sampling.structured import StructuredOutputsParams
from tests.support import hf_beams
from tests.support.doubles import BOS, N_VOCAB, ByteTokenizer, FakeRuntime, FixedTimes, PassingRuntime, finish

KINDS: dict[str, Any] = {
    "full": FakeRuntime,
    "carried": lambda **given: PassingRuntime(True, **given),
    "ring": lambda **given: PassingRuntime(False, 128, 40, **given),
    "both": lambda **given: PassingRuntime(True, 128, 40, **given),
}
PROMPT = [BOS, *b"once upon a time there was a model"]


def story(prefix: list[int]) -> int:
    """A text of which each token follows from the last three."""
    return zlib.crc32(bytes(token % 256 for token in prefix[-3:])) % 255


def nearly(prefix: list[int]) -> int:
    """The same, but for every fifth token."""
    return story(prefix) ^ (len(prefix) % 5 == 0)


def engine_of(
    kind: str = "full", draft: Any = None, cost: float | None = 1e-9, script: Any = story, **given: Any
) -> Engine:
    """An engine for which a model drafts, whose step takes this share of the large one's; None: without one. Seconds
    are large, so that those that tests take are nothing beside them."""
    runtime = KINDS[kind](script=script, **given)
    if cost is None:
        return Engine(runtime, ByteTokenizer())  # type: ignore[arg-type]
    draft = draft if draft is not None else FakeRuntime(script=nearly, **given)
    config = SpeculativeConfig("draft_model", 8, model="small")
    engine = Engine(runtime, ByteTokenizer(), speculative=config, draft=draft)  # type: ignore[arg-type]
    assert engine.speculator is not None
    engine.speculator.times = FixedTimes(1e6)
    engine.speculator.drafter.times = FixedTimes(1e6 * cost)  # type: ignore[attr-defined]
    return engine


def params(**given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 60, **given}).resolved()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafting", KINDS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.9, "seed": 6, "repetition_penalty": 1.2, "top_k": 0, "logit_bias": {97: 3.0}},
        {"temperature": 1.0, "seed": 7, "xtc_probability": 0.5, "xtc_threshold": 0.1},
        {"temperature": 1.0, "seed": 8, "mirostat": 2},
        {"max_tokens": None},
    ],
)
def test_the_text_is_the_same(kind: str, drafting: str, given: dict[str, Any]) -> None:
    engine, plain = engine_of(kind, KINDS[drafting](script=nearly)), engine_of(kind, cost=None)
    found = [one.request(PROMPT, params(**given)) for one in (engine, plain)]
    steps = [finish(one, request) for one, request in zip((engine, plain), found, strict=True)]
    assert found[0].tokens == found[1].tokens
    assert found[0].text == found[1].text
    timings = found[0].timings
    if "xtc_probability" not in given and "mirostat" not in given:
        assert steps[0] < 0.6 * steps[1]
        assert 0.4 < timings.acceptance_rate < 1


def test_a_grammar_and_other_parameters() -> None:
    pytest.importorskip("llguidance")
    form = StructuredOutputsParams(regex="(the (quick|slow) brown (dog|fox) looks on[.] ){2}[a-c]{8}")
    texts = []
    for cost in (1e-9, None):
        engine = engine_of(cost=cost)
        several = [
            engine.request(PROMPT, params(structured_outputs=form, temperature=1, seed=3, max_tokens=130)),
            engine.request(PROMPT, params(logprobs=2, min_tokens=9, stop="e")),
        ]
        finish(engine, *several)
        texts.append([(one.tokens, one.logprobs, one.finish_reason) for one in several])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("drafting", KINDS)
def test_slots_are_kept_in_step(drafting: str) -> None:
    """Other requests in a slot, a conversation that goes on, and one that is interrupted."""
    texts = []
    for cost in (1e-9, None):
        engine = engine_of(draft=KINDS[drafting](script=nearly, n_slots=2), cost=cost)
        several = [engine.request(PROMPT[: 20 + i], params(max_tokens=30, seed=i, temperature=1)) for i in range(5)]
        engine.add(several[0])
        for _ in range(5):
            engine.step()
        engine.logits([BOS, *b"between"])
        engine.logits([BOS, *b"and again"])
        finish(engine, *several[1:])
        following = [engine.request([*one.tokens[:-3], *b" What next?"], params(max_tokens=20)) for one in several]
        finish(engine, *following)
        texts.append([one.tokens for one in (*several, *following)])
    assert texts[0] == texts[1]


def test_the_small_model_reads_each_token_once() -> None:
    draft = FakeRuntime(script=story, n_batch=512)
    engine = engine_of(draft=draft, script=story)
    request = engine.request(PROMPT, params())
    finish(engine, request)
    assert request.n_accepted == request.n_drafted > 45
    assert sum(draft.batches) <= len(request.tokens) + 1
    again = engine.request([*request.tokens, *b" and on"], params(max_tokens=30))
    before = sum(draft.batches)
    finish(engine, again)
    assert sum(draft.batches) - before < 45


def test_long_prompts_are_read_in_steps() -> None:
    draft = FakeRuntime(script=story, n_batch=16)
    engine = engine_of(draft=draft, script=story, n_batch=100)
    request = engine.request([BOS, *b"a" * 150], params())
    finish(engine, request)
    assert max(draft.batches) == 16
    assert request.n_accepted > 30


def test_a_context_that_the_small_model_has_not() -> None:
    texts = []
    for cost in (1e-9, None):
        engine = engine_of(draft=FakeRuntime(script=story, n_ctx=64), cost=cost)
        requests = [engine.request(PROMPT, params(max_tokens=100)), engine.request([BOS, *b"b" * 100], params())]
        finish(engine, *requests)
        texts.append([one.tokens for one in requests])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("n_rows", [N_VOCAB - 2, N_VOCAB + 5])
def test_rows_of_padding(n_rows: int) -> None:
    class Padded(FakeRuntime):
        def step(self, *args: Any, **options: Any) -> Any:
            logits = super().step(*args, **options)
            wide = np.full((len(logits), N_VOCAB + 5), 99.0, np.float32)
            wide[:, :N_VOCAB] = logits
            return wide[:, :n_rows]

    engine, plain = engine_of(draft=Padded(script=nearly)), engine_of(cost=None)
    biased = params(logit_bias={N_VOCAB - 1: -1.0})
    found = [one.request(PROMPT, biased) for one in (engine, plain)]
    for one, request in zip((engine, plain), found, strict=True):
        finish(one, request)
    assert found[0].tokens == found[1].tokens
    assert found[0].n_accepted > 30


def test_sampled_texts_are_of_the_same_distribution() -> None:
    """Pairs of tokens over many seeds, against the chances that the logits give; the small model has others."""

    class Few(FakeRuntime):
        def __init__(self, sharp: float, **given: Any) -> None:
            super().__init__(**given)
            self.sharp = sharp

        def _logits(self, slot: int, n: int) -> Any:
            logits = np.full(N_VOCAB, -30.0, np.float32)
            last = self.of(slot)[0][n - 1] % 3
            logits[:3] = self.sharp * np.roll([0.0, 1.0, 2.0], last)
            return logits

    engine = engine_of(draft=Few(0.3))
    engine.runtime = Few(1.0)
    engine.scheduler.limits = engine.cache._state = engine.runtime
    n = 900
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = drafted = 0
    for seed in range(n):
        request = engine.request([BOS, 0], params(temperature=1, top_k=0, top_p=1, min_p=0, max_tokens=4, seed=seed))
        finish(engine, request)
        counts[tuple(request.token_ids[1:3])] += 1
        accepted, drafted = accepted + request.n_accepted, drafted + request.n_drafted
    first = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    step = np.array([np.roll(first, last) for last in range(3)])  # [last, next]
    expected = (first @ step)[:, None] * step
    found = np.array([[counts[a, b] for b in range(3)] for a in range(3)])
    chi2 = ((found - n * expected) ** 2 / (n * expected)).sum()
    assert chi2 < 26.1  # of 8 degrees of freedom: exceeded once in a thousand
    assert 0.4 < accepted / drafted < 0.95


def test_drafts_that_cost_too_much_are_not_made() -> None:
    engine = engine_of(cost=0.9)
    request = engine.request(PROMPT, params(max_tokens=200))
    finish(engine, request)
    assert request.n_drafted <= 2


def test_drafts_that_fail_are_tried_now_and_then() -> None:
    draft = FakeRuntime(script=lambda prefix: story(prefix) ^ 1, n_ctx=4096)
    engine = engine_of(draft=draft, cost=0.1, n_ctx=4096)
    for _ in range(2):
        request = engine.request(PROMPT, params(max_tokens=1000))
        finish(engine, request)
    assert 1 <= request.n_drafted < 12  # a hundredth of the time, for reading what was said meanwhile as well
    assert request.n_accepted == 0
    draft.script = story  # better from now on
    for _ in range(2):
        request = engine.request(PROMPT, params(max_tokens=1000))
        finish(engine, request)
    assert request.n_accepted > 800


def test_busy_batches_draft_less() -> None:
    for slope, busy in ((0.05, True), (0.9, False)):
        engine = engine_of(n_slots=8, n_batch=64, cost=0.1)
        assert engine.speculator is not None
        engine.speculator.times = FixedTimes(1e6, slope)
        requests = [engine.request(PROMPT, params(seed=i)) for i in range(8)]
        finish(engine, *requests)
        assert (sum(request.n_drafted for request in requests) > 100) == busy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft")
    for kind in ("qwen3", "qwen35", "gemma3"):
        hf_beams.write(folder / kind, kind)
        convert(folder / kind, "f32", folder / f"{kind}.gguf")
    return folder


@pytest.mark.parametrize("small", ["qwen3", "qwen35", "gemma3"])
def test_models_of_every_kind_of_state(small: str, files: Path) -> None:
    prompt = np.random.default_rng(0).integers(0, 456, 40).tolist() * 2
    few = dict.fromkeys((5, 9, 17), 1e4)  # tokens to choose from, so that some are foreseen
    options = {"max_tokens": 40, "logit_bias": few, "min_p": 0.0, "top_p": 1.0}
    several = [SamplingParams(seed=i, temperature=25.0 * i, **options) for i in range(3)]
    found = []
    for draft in (files / f"{small}.gguf", None):
        with LLM(files / "qwen3.gguf", n_ctx=512, n_threads=2, n_parallel=2, draft_model=draft) as llm:
            if llm.engine.speculator is not None:
                llm.engine.speculator.times = FixedTimes(1e6)
                llm.engine.speculator.drafter.times = FixedTimes(1e-3)  # type: ignore[attr-defined]
            outputs = llm.generate(prompt_token_ids=[prompt] * 3, sampling_params=several)
            found.append([output.outputs[0].token_ids for output in outputs])
            n_accepted = sum(output.outputs[0].timings.n_accepted for output in outputs)
            assert n_accepted or small != "qwen3" or not draft
            assert not draft or any(output.outputs[0].timings.n_drafted for output in outputs)
    assert found[0] == found[1]


def test_vocabularies_have_to_be_alike(files: Path, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "other"
    hf_beams.write(folder, "qwen3")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    one, two = list(vocab)[100:102]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    convert(folder, "f32", tmp_path / "other.gguf")
    with pytest.raises(GGPYError, match=r"other.gguf cannot draft for qwen3.gguf, as .* differ: token \d+ is '"):
        LLM(files / "qwen3.gguf", n_ctx=64, draft_model=tmp_path / "other.gguf")
    with pytest.raises(GGPYError, match=r"nothing\.gguf"):
        LLM(files / "qwen3.gguf", n_ctx=64, draft_model=tmp_path / "nothing.gguf")
