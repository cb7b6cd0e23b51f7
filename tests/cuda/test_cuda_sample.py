"""Tokens chosen on a GPU: its kernels against the sampler, in the emulator and on a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.cuda.ops.sample_layout import (
    LANES,
    MAX_TOP_K,
    PEAK_BLOCKS,
    PEAK_THREADS,
    PICK_SHARED,
    SEGMENTS,
    segment_length,
)
from ggpy.engine.engine import Engine
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.runtime import Runtime
from ggpy.sampling.sample_spec import SAMPLE_SPEC
from ggpy.sampling.sampler import Sampler
from ggpy.sampling.sampling_params import SamplingParams
from tests.cuda.test_cuda import gpu, need_compiler  # noqa: F401
from tests.support.blocks import slow_but
from tests.support.doubles import ByteTokenizer
from tests.support.tiny import tiny_checkpoint

VOCABULARIES = (457, 5000, 9001)
ASKED = {
    "greedy": {"temperature": 0},
    "usual": {"top_p": 0.96},  # not 0.95: of 40 equal tokens the 38th would end at just that, up to rounding
    "one": {"top_k": 1, "temperature": 1.3},
    "hot": {"temperature": 5.0, "top_k": 128, "top_p": 1.0, "min_p": 0.0},
    "cold": {"temperature": 1e-4, "top_p": 1.0},
    "nucleus": {"temperature": 1.0, "top_k": 100, "top_p": 0.704, "min_p": 0.0},
    "narrow": {"temperature": 1.0, "top_k": 64, "top_p": 0.0, "min_p": 0.0},
    "min_p": {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.2},
    "equals": {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 1.0},
}


def logits_of(kind: str, n_vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Random logits of a kind that makes some stage work."""
    logits = (3 * rng.standard_normal(n_vocab)).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits / 2)
        logits[rng.integers(0, n_vocab, n_vocab // 3)] = -0.0
    elif kind == "flat":
        logits[:] = 0.25
    elif kind == "peaked":
        logits[rng.integers(n_vocab)] = 60.0
    elif kind == "falling":
        logits = np.sort(logits)[::-1].copy()
    elif kind == "few":  # fewer tokens with any mass than candidates
        logits[rng.permutation(n_vocab)[7:]] = -np.inf
    elif kind == "negative":
        logits -= 500
    return logits


KINDS = ("random", "ties", "flat", "peaked", "falling", "few", "negative")


def chosen(device: Any, logits: np.ndarray, samplers: list[Sampler]) -> list[int]:
    """The tokens that the kernels choose from logits [rows, n_vocab], as samplers ask."""
    n, n_vocab = logits.shape
    stride = -(-n_vocab // 32) * 32
    wide = np.full((n, stride), np.nan, np.float32)
    wide[:, :n_vocab] = logits
    specs = np.zeros(n + 1, SAMPLE_SPEC)
    for row, sampler in enumerate(samplers):
        choice = sampler.spec(n_vocab, MAX_TOP_K)
        assert choice is not None
        specs[row] = choice
    slots = np.arange(n, dtype=np.int32)[::-1].copy()
    outs = np.full(n + 1, 7, np.int32), np.full(2 * (n + 1), 7, np.int32)
    header = np.array([n, 4 * (n + 1)], np.int32)
    tables = header, specs, slots, wide, np.zeros((n + 1, SEGMENTS), np.uint32), *outs
    at = []
    for table in tables:
        at.append(device.allocate(table.nbytes))
        device.upload(at[-1], table.ctypes.data, table.nbytes)
    head, choice_at, slot_at, logit_at, peaks, token_at, answers = at
    device.kernel(f"sample.peaks.{n_vocab}").launch(
        (PEAK_BLOCKS, n + 1), head, choice_at, logit_at, 4 * stride, peaks, threads=PEAK_THREADS
    )
    device.kernel(f"sample.pick.{n_vocab}").launch(
        n + 1, head, choice_at, slot_at, logit_at, 4 * stride, peaks, token_at, answers, shared=PICK_SHARED
    )
    for table, address in zip(outs, at[-2:], strict=True):
        device.download(table.ctypes.data, address, table.nbytes)
    device.synchronize()
    assert outs[0][n] == 7
    assert (outs[1][: n + 1] == 7).all()
    answers_, tokens = outs[1][n + 1 : -1].tolist(), outs[0][slots].tolist()
    assert [max(answer, 0) for answer in answers_] == tokens
    for address in at:
        device.free(address)
    return answers_


def compare(device: Any, n_vocab: int, rounds: int, part: slice = slice(None)) -> None:
    """Compare every kind of logits with every set of parameters, or a part of these pairs, in one batch a round."""
    rng = np.random.default_rng(n_vocab)
    for _ in range(rounds):
        cases = [(kind, name) for kind in KINDS for name in ASKED][part]
        logits = np.stack([logits_of(kind, n_vocab, rng) for kind, _ in cases])
        seeds = rng.integers(0, 1 << 30, len(cases)).tolist()
        params = [
            SamplingParams(seed=seed, **ASKED[name]).resolved()  # type: ignore[arg-type]
            for seed, (_, name) in zip(seeds, cases, strict=True)
        ]
        expected = [Sampler(p, banned=(3,)).sample(row) for p, row in zip(params, logits, strict=True)]
        ours = chosen(device, logits, [Sampler(p, banned=(3,)) for p in params])
        wrong = [(case, a, b) for case, a, b in zip(cases, ours, expected, strict=True) if a != b]
        assert not wrong


def test_segments_cover_the_vocabulary() -> None:
    assert PEAK_BLOCKS * PEAK_THREADS == SEGMENTS * LANES
    for n_vocab in (1, 456, 1024, 4097, 151936):
        length = segment_length(n_vocab)
        assert length % 4 == 0
        assert n_vocab <= SEGMENTS * length < n_vocab + 4 * SEGMENTS


def test_what_a_choice_says() -> None:
    def choice(n_vocab: int = 1000, banned: tuple[int, ...] = (), **asked: Any) -> Any:
        return Sampler(SamplingParams(**asked).resolved(), banned=banned).spec(n_vocab, MAX_TOP_K)

    for asked in ASKED.values():
        assert choice(**asked) is not None
    assert choice(banned=(5, 6))["banned"][:2].tolist() == [5, 6]
    assert choice(temperature=0, typical_p=0.5, top_k=0) is not None  # greedy looks at neither
    for asked in (
        {"top_k": 0}, {"top_k": 129}, {"typical_p": 0.9}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.5},
        {"temperature": 0, "frequency_penalty": 1.0}, {"logit_bias": {4: 1.0}},
        {"logit_bias": dict.fromkeys(range(11), -np.inf)}, {"n_vocab": 40},
    ):  # fmt: skip
        assert choice(**asked) is None  # type: ignore[arg-type]


def test_random_numbers_wait_for_their_token() -> None:
    """A random number that is requested ahead, discarded and requested again is the same."""
    params = SamplingParams(seed=5, top_k=20).resolved()
    logits = np.random.default_rng(0).standard_normal((6, 300)).astype(np.float32)
    plain, ours = Sampler(params), Sampler(params)
    expected = [plain.sample(row) for row in logits]
    for _ in range(2):
        seen = [float(ours.spec(300, 128, ahead)["uniform"]) for ahead in (0, 1)]  # type: ignore[index]
    assert ours.take(expected[0]) == expected[0]
    assert ours.spec(300, 128)["uniform"] == seen[1]  # type: ignore[index]
    assert [ours.sample(row) for row in logits[1:]] == expected[1:]


@pytest.mark.parametrize(("chosen_", "value"), [(-1, "nan"), (-2, "inf"), (-3, "-inf")])
def test_no_distribution(chosen_: int, value: str) -> None:
    with pytest.raises(GGPYError, match=rf"the largest is {value}\)"):
        Sampler(SamplingParams().resolved()).take(chosen_)


def test_the_sampler_says_the_same_of_bad_logits() -> None:
    need_compiler()
    from tests.support.emulated_device import EmulatedDevice

    bad(EmulatedDevice())


def bad(device: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((5, 500)).astype(np.float32)
    logits[0, 77], logits[1, 400], logits[2], logits[3, 3] = np.nan, np.inf, -np.inf, np.inf
    logits[4, 3] = -np.inf
    params = [SamplingParams(temperature=t).resolved() for t in (0, 1, 0, 1, 0)]
    found = chosen(device, logits, [Sampler(p, banned=(3,)) for p in params])
    assert found[:4] == [-1, -2, -3, -1]  # minus infinity added to infinity is no number
    assert found[4] >= 0
    for p, row, answer in zip(params, logits, found[:4], strict=False):
        with pytest.raises(GGPYError) as said:
            Sampler(p, banned=(3,)).sample(row)
        with pytest.raises(GGPYError) as ours:
            Sampler(p).take(answer)
        assert str(said.value) == str(ours.value)


@pytest.mark.parametrize(("part", "n_vocab"), slow_but([(0, VOCABULARIES[0])], enumerate(VOCABULARIES)))
def test_tokens_are_the_samplers(part: int, n_vocab: int) -> None:
    need_compiler()
    from tests.support.emulated_device import EmulatedDevice

    compare(EmulatedDevice(), n_vocab, 1, slice(part, None, len(VOCABULARIES) + 1))


@pytest.mark.parametrize("cc", [(9, 0), (8, 0)])
def test_choosing_compiles_and_keeps_to_registers(cc: tuple[int, int]) -> None:
    need_compiler()
    from ggpy.cuda.compile import compile_kernel

    for name in ("sample.peaks.151936", "sample.pick.151936"):
        made = compile_kernel(name, cc)
        assert made.stack == 0
        assert made.registers * made.threads <= 65536


ASKERS = ({"temperature": 0}, {"seed": 3, "temperature": 2.0, "top_k": 100, "ignore_eos": True})


def texts(runtime: Any, max_sampled: int, n: int, max_tokens: int) -> list[list[int]]:
    """The tokens generated together from short prompts with these parameters."""
    runtime.max_sampled = max_sampled
    engine = Engine(runtime, ByteTokenizer())  # type: ignore[arg-type]
    params = [SamplingParams(max_tokens=max_tokens, **ASKERS[i % 2]).resolved() for i in range(n)]  # type: ignore[arg-type]
    sequences = [engine.request([17 + i], one) for i, one in enumerate(params)]
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
    return [sequence.token_ids for sequence in sequences]


@pytest.mark.slow
def test_a_whole_model_chooses_as_the_sampler_does(tmp_path: Path) -> None:
    need_compiler()
    from tests.support.emulated_device import EmulatedDevice

    path = tmp_path / "qwen3.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32"), "q4_0", path)
    with pytest.MonkeyPatch.context() as patch, GGUFFile(path) as file:
        patch.setattr("ggpy.cuda.executor.compile_missing", lambda *_: [])
        patch.setattr("ggpy.cuda.driver.Device", lambda _: EmulatedDevice())
        patch.setattr("ggpy.cuda.driver.device_count", lambda: 1)
        patch.setattr("ggpy.cuda.memory.available", lambda _: 1 << 30)
        runtime = Runtime(file, 64, n_slots=2, n_batch=8, device="cuda")
        most = runtime.max_sampled
        assert most == 8
        assert texts(runtime, most, 2, 3) == texts(runtime, 0, 2, 3)
        runtime.max_sampled, one, two = most, np.zeros(1, SAMPLE_SPEC), np.zeros(2, SAMPLE_SPEC)
        unknown = [runtime.n_vocab]
        for wrong in (([-3], [0], [0], one), (unknown, [0], [0], one), ([1], [2], [0], one), ([1], [0], [64], one),
                      ([1, 1], [0, 0], [0, 1], two), ([1], [0], [0], two)):  # fmt: skip
            with pytest.raises(ValueError, match=r"outside|slots of their own|specs"):
                runtime.sample(*wrong)
        runtime.close()


# ---- what needs a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("n_vocab", [456, 32000, 151936, 262144])
def test_tokens_are_the_samplers_on_gpu(gpu: None, n_vocab: int) -> None:  # noqa: F811
    from ggpy.cuda.driver import Device

    device = Device()
    compare(device, n_vocab, 2)
    if n_vocab == 456:
        bad(device)
    device.close()


@pytest.mark.cuda
@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_a_model_on_gpu_chooses_as_the_sampler_does(gpu: None, tmp_path: Path, n: int) -> None:  # noqa: F811
    path = tmp_path / "model.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen2", dtype="f32"), "f16", path)
    with GGUFFile(path) as file:
        runtime = Runtime(file, 128, n_slots=n, device="cuda")
        assert texts(runtime, runtime.max_sampled, n, 60) == texts(runtime, 0, n, 60)
        runtime.close()
