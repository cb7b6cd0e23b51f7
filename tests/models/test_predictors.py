"""Models' own heads that predict a further token: logits against those that torch computes of the same checkpoints, and
texts with and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.engine.drafts import HitRates
from ggpy.engine.prediction_head import HeadDrafter
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.prediction_head import PredictionHead
from ggpy.runtime.runtime import Runtime
from tests.support import hf_beams
from tests.support import hf_predictors as cases
from tests.support.doubles import FixedTimes
from tests.support.gguf_names import unknown_names


@pytest.fixture(scope="module", params=cases.CASES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    cases.write(folder / "checkpoint", request.param)
    convert(folder / "checkpoint", "f32", folder / f"{request.param}.gguf")
    return folder / f"{request.param}.gguf"


@pytest.mark.parametrize("chunks", [[95], [1, 64, 30]])
def test_logits_are_those_of_torch(path: Path, chunks: list[int]) -> None:
    """In a slot that is not the first, with the rows of steps of several sizes."""
    with np.load(cases.DATA) as data:
        expected = data[path.stem]
    ids = cases.TOKENS
    with GGUFFile(path) as file:
        runtime = Runtime(file, 192, n_threads=2, n_slots=2)
        head = PredictionHead(runtime, print)
        found, at = [], 0
        for n in chunks:
            slots, positions = [1] * n, range(at, at + n)
            runtime.step(ids[at : at + n], slots, [*positions], [n - 1])
            hidden = head.hidden(0, n)
            logits, rows = head.step(hidden, ids[at + 1 : at + n + 1], slots, [*positions], range(n))
            found.append(logits.copy())
            at += n
        found.append(head.step(rows[-1:], [cases.FURTHER], [1], [at], [0])[0].copy())
        whole = np.concatenate(found)[[*cases.POSITIONS, 95]][:, list(cases.COLUMNS)]
        assert np.abs(whole - expected).max() < 3e-3 * expected.std()
        head.close()
        runtime.close()


def test_files_are_as_other_readers_have_them(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    names = {name for tensor, name in gguf.constants.TENSOR_NAMES.items() if tensor.name.startswith("NEXTN")}
    tensors, _ = unknown_names(path)
    assert tensors <= names | {"blk.{bid}"}  # which the package does not list for Qwen's yet
    with GGUFFile(path) as file:
        arch = file.metadata["general.architecture"]
        assert file.metadata[f"{arch}.block_count"] == 5
        assert file.metadata[f"{arch}.nextn_predict_layers"] == 1
        assert file.tensors["blk.4.nextn.eh_proj.weight"].shape == (60, 120)


def test_texts_are_the_same(path: Path) -> None:
    """Alone and together, long prompts and short ones, the next turn, also of a conversation that comes from host
    memory; with drafts that fail and some that do not."""
    few = dict.fromkeys((5, 9, 17), 1e4)  # tokens to choose from, so that some are foreseen
    options = {"max_tokens": 40, "logit_bias": few, "min_p": 0.0, "top_p": 1.0}
    several = [SamplingParams(seed=i, temperature=25.0 * i, **options) for i in range(4)]
    prompts = [[*cases.TOKENS, *cases.TOKENS[: 20 * i]] for i in range(4)]
    found = []
    for method in ("mtp", None):
        with LLM(path, n_ctx=256, n_threads=2, n_parallel=2, speculative=method) as llm:
            if llm.engine.speculator is not None:
                llm.engine.speculator.times = FixedTimes(1e6)
                llm.engine.speculator.drafter.times = FixedTimes(1e-3)  # type: ignore[attr-defined]
            outputs = llm.generate(prompt_token_ids=prompts, sampling_params=several)
            talk = [*prompts[3], *outputs[3].outputs[0].token_ids, 4, 5]
            outputs += llm.generate(prompt_token_ids=talk[:120] + talk[130:], sampling_params=several[1])
            for i in (10, 40, 70):  # whose slots others take: the first comes back without the head's cells
                outputs += llm.generate(
                    prompt_token_ids=[*cases.TOKENS[i:], *cases.TOKENS[:i]], sampling_params=several[2]
                )
            first = outputs[-3]
            talk = [*first.prompt_token_ids, *first.outputs[0].token_ids, 4, 5]
            assert llm.engine.cache.parked
            outputs += llm.generate(prompt_token_ids=talk, sampling_params=several[3])
            assert outputs[-1].outputs[0].timings.n_reused > 96
            found.append([output.outputs[0].token_ids for output in outputs])
            timings = [output.outputs[0].timings for output in outputs]
            if method:
                assert any(one.n_accepted for one in timings)
    assert found[0] == found[1]


def test_a_file_without_a_head_is_refused(tmp_path: Path) -> None:
    hf_beams.write(tmp_path / "checkpoint", "qwen35")
    convert(tmp_path / "checkpoint", "f32", tmp_path / "model.gguf")
    with pytest.raises(GGPYError, match=r"model\.gguf has no block that predicts further tokens"):
        LLM(tmp_path / "model.gguf", n_ctx=64, speculative="mtp")


def test_drafts_are_of_what_was_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drafted in vain before: the head's logits are those of the text read at once."""
    seen: list[tuple[Any, int, np.ndarray]] = []
    read = HeadDrafter._read

    def watched(self: HeadDrafter, pending: Any) -> Any:
        requests, logits = read(self, pending)
        seen.extend(
            (request, len(request.tokens) - 2, row.copy()) for request, row in zip(requests, logits, strict=True)
        )
        return requests, logits

    monkeypatch.setattr(HeadDrafter, "_read", watched)
    monkeypatch.setattr(HitRates, "learn", lambda self, grade, hit: None)  # drafts go on, come true or not
    with LLM(path, n_ctx=256, n_threads=2, n_parallel=2, speculative="mtp") as llm:
        assert llm.engine.speculator is not None
        llm.engine.speculator.times = FixedTimes(1e6)
        llm.engine.speculator.drafter.times = FixedTimes(1e-3)  # type: ignore[attr-defined]
        greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        llm.generate(prompt_token_ids=[cases.TOKENS, cases.TOKENS[:50]], sampling_params=greedy)
        assert len(seen) > 24
        for request in {one: None for one, _, _ in seen}:
            tokens, n = request.tokens, len(request.tokens) - 1
            llm.engine.runtime.step(tokens[:n], [0] * n, range(n), [n - 1])
            assert llm.runtime.head is not None
            whole, _ = llm.runtime.head.step(llm.runtime.head.hidden(0, n), tokens[1:], [0] * n, range(n), range(n))
            for _, position, row in (one for one in seen if one[0] is request):
                assert np.abs(row - whole[position]).max() < 1e-3 * whole.std()
