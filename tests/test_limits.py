"""A request with every parameter at its limit among 63 ordinary ones: these get what they get without it."""

from __future__ import annotations

from typing import Any

import pytest

import ggpy.llm
from ggpy import LLM, SamplingParams, StructuredOutputsParams
from ggpy.runtime.load import Model
from ggpy.sampling.sampling_params import SAMPLERS
from tests.support.doubles import EOS, N_VOCAB, ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate

MOST = 2**31 - 1
HIGHEST: dict[str, Any] = {
    "temperature": 100.0, "top_p": 1.0, "top_k": MOST, "min_p": 1.0, "typical_p": 1.0, "top_n_sigma": 1e6,
    "xtc_probability": 1.0, "xtc_threshold": 1.0, "dynatemp_range": 100.0, "dynatemp_exponent": 100.0, "mirostat": 2,
    "mirostat_tau": 100.0, "mirostat_eta": 100.0, "repetition_penalty": 1e3, "repeat_last_n": MOST,
    "presence_penalty": 2.0, "frequency_penalty": 2.0, "dry_multiplier": 1e6, "dry_base": 1e3,
    "dry_allowed_length": MOST, "dry_penalty_last_n": MOST,
    "dry_sequence_breakers": ["x" * 500, *map(chr, range(32, 500))],
    "samplers": SAMPLERS * 20, "seed": 2**64 - 1, "max_tokens": MOST, "min_tokens": MOST, "stop": ["y" * 500] * 50,
    "stop_token_ids": list(range(N_VOCAB)), "include_stop_str_in_output": True, "ignore_eos": True,
    "bad_words": [chr(i) * 40 for i in range(97, 123)], "skip_special_tokens": False,
    "logit_bias": dict.fromkeys(range(N_VOCAB), 1e30), "n": 2, "best_of": 3, "logprobs": MOST, "prompt_logprobs": MOST,
    "truncate_prompt_tokens": MOST,
}  # fmt: skip
LOWEST: dict[str, Any] = {
    "temperature": 1e-30, "top_p": 0.0, "top_k": 1, "min_p": 0.0, "typical_p": 0.0, "top_n_sigma": 1e-6,
    "xtc_probability": 1.0, "xtc_threshold": 0.0, "dynatemp_range": 1e-30, "dynatemp_exponent": 0.0, "mirostat": 1,
    "mirostat_tau": 0.0, "mirostat_eta": 0.0, "repetition_penalty": 1e-3, "repeat_last_n": -1,
    "presence_penalty": -2.0, "frequency_penalty": -2.0, "dry_multiplier": 1e-6, "dry_base": 1.0,
    "dry_allowed_length": 0, "dry_penalty_last_n": -1, "dry_sequence_breakers": (), "samplers": "", "seed": 0,
    "max_tokens": 1, "min_tokens": 0, "stop": "z", "stop_token_ids": (), "logit_bias": {0: -1e30, EOS: float("-inf")},
    "n": 1024, "logprobs": -1, "prompt_logprobs": -1, "truncate_prompt_tokens": 1,
}  # fmt: skip
#: The stages themselves, which mirostat takes the place of.
STAGES = {**HIGHEST, "mirostat": 0, "xtc_threshold": 0.0, "min_p": 1e-9, "typical_p": 0.0, "top_p": 0.0}
FORM = {"structured_outputs": StructuredOutputsParams(regex="[a-c]{20}"), "samplers": SAMPLERS, "max_tokens": 30}


@pytest.mark.parametrize(
    "limits",
    [
        HIGHEST,
        {**HIGHEST, "temperature": 1e-30},
        STAGES,
        LOWEST,
        {**LOWEST, "mirostat": 2, "n": 2},
        {**LOWEST, "n": 1, **FORM},
    ],
    ids=["highest", "cold", "stages", "lowest", "lowest of mirostat 2", "with a form"],
)
@pytest.mark.parametrize("max_sampled", [0, 8])
def test_a_request_at_its_limits_among_others(
    limits: dict[str, Any], max_sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "structured_outputs" in limits:
        pytest.importorskip("llguidance")
    if max_sampled:  # a second or two for the most answers there are, once
        limits = {**limits, "n": min(limits["n"], 9)}
    ordinary = [SamplingParams(seed=i, max_tokens=1 + i % 9, temperature=0.1 * (i % 11)) for i in range(63)]
    prompts = [f"prompt {i}" for i in range(63)]

    def texts(special: bool) -> list[list[int]]:
        runtime: Any = FakeRuntime(n_ctx=48, n_slots=8, n_batch=24, max_sampled=max_sampled)
        model = Model(FakeFile(), ByteTokenizer(), FakeTemplate(), runtime)  # type: ignore[arg-type]
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        llm = LLM("fake.gguf")
        place = [31] if special else []
        given, params = [*prompts], [*ordinary]
        for at in place:
            given.insert(at, "a prompt at its limits")
            params.insert(at, SamplingParams(**limits))
        outputs = llm.generate(given, params)
        for at in place:
            ended = outputs.pop(at).outputs
            assert len(ended) == limits["n"]
            assert {one.finish_reason for one in ended} <= {"stop", "length"}, ended[0].error
            assert all(one.token_ids for one in ended)
        return [output.outputs[0].token_ids for output in outputs]

    assert texts(special=True) == texts(special=False)
