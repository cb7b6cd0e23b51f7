"""Decoders that vary Llama's: what their files say, contexts beyond the first, files of other converters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.graph.operations import Attention
from ggpy.models import by_gguf_name
from tests.support.converted import Make, exact, metadata
from tests.support.hf_families_dense import CASES, TOKENS


def test_keys_of_each_architecture(make: Make) -> None:
    def keys(name: str) -> dict[str, Any]:
        return metadata(make(CASES[name]))

    assert "attention.rope_pattern" not in keys("smollm3")  # as readers have it
    assert keys("smollm3, other layers")["attention.rope_pattern"] == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]

    long = keys("phi3, long")
    assert (long["rope.scaling.type"], long["rope.scaling.original_context_length"]) == ("longrope", 48)
    assert long["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(256 / 48) / math.log(48)))
    assert (long["rope.dimension_count"], long["attention.sliding_window"]) == (8, 0)
    assert keys("phi3")["attention.sliding_window"] == 15

    yarn = keys("ministral3")
    assert yarn["rope.scaling.yarn_log_multiplier"] == 1.0
    assert yarn["attention.temperature_scale"] == pytest.approx(0.3)
    assert "rope.scaling.attn_factor" not in yarn
    assert "rope.scaling.yarn_log_multiplier" not in keys("ministral3, other scales")

    granite = {"embedding_scale": 3.0, "residual_scale": 0.6, "attention.scale": 0.4, "logit_scale": 1.7}
    shared = keys("granitemoeshared")
    assert {key: shared[key] for key in granite} == pytest.approx(granite)
    assert (shared["expert_count"], shared["expert_used_count"], shared["feed_forward_length"]) == (6, 2, 46)
    assert shared["expert_shared_feed_forward_length"] == 38
    scales = {"embedding_scale": 3.0, "residual_scale": 0.6, "logit_scale": 60 / 36}
    small = keys("minicpm")
    assert {key: small[key] for key in scales} == pytest.approx(scales)

    glm = keys("glm4_moe")
    assert (glm["leading_dense_block_count"], glm["expert_gating_func"], glm["expert_shared_count"]) == (2, 2, 1)
    assert glm["expert_weights_scale"] == pytest.approx(1.3)
    assert (glm["block_count"], glm["rope.dimension_count"]) == (4, 8)

    olmo = keys("olmo3")
    assert olmo["attention.sliding_window"] == 15
    assert not {"attention.sliding_window_pattern", "rope.freq_base_swa"} & olmo.keys()  # as readers have it
    assert keys("olmo3, other layers")["rope.freq_base_swa"] == 70.0

    assert keys("hunyuan_v1_dense, alpha")["rope.freq_base"] == pytest.approx(500.0 * 50.0 ** (14 / 12))
    ernie = keys("ernie4_5_moe")
    assert (ernie["interleave_moe_layer_step"], ernie["leading_dense_block_count"]) == (2, 1)
    assert ernie["expert_shared_feed_forward_length"] == 92
    assert keys("exaone4, other layers")["attention.sliding_window_pattern"] == [False, True] * 4
    assert keys("cohere2")["logit_scale"] == pytest.approx(0.7)
    assert "attention.layer_norm_rms_epsilon" not in keys("cohere2")


def test_long_contexts_have_divisors_of_their_own(make: Make) -> None:
    """The context decides, whatever a text's length, as keys in the cache stay as they are."""
    path, ids = make(CASES["phi3, long"]), TOKENS[:40]
    found = []
    for n_ctx in (48, 49):
        with LLM(path, n_ctx=n_ctx, n_threads=1, n_parallel=1) as llm:
            found.append(llm.logits(ids))
    assert np.abs(found[0] - found[1]).max() > 0.1
    state, greedy = path.with_name("state"), SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with LLM(path, n_ctx=48, n_threads=1, n_parallel=1) as llm:
        llm.generate(prompt_token_ids=[ids], sampling_params=greedy)
        llm.save_state(state)
        assert llm.load_state(state)
    with LLM(path, n_ctx=49, n_threads=1) as llm, pytest.raises(GGPYError, match="rope turns otherwise"):
        llm.load_state(state)
    short = exact(path, ids)
    assert np.abs(found[0] - short).max() <= 1e-4 * np.abs(short).max()


def test_files_of_other_converters(make: Make) -> None:
    """They write what ggpy does not: rope by sections, blocks that predict further tokens, factors left away."""
    with GGUFFile(make(CASES["glm4"])) as file:
        sections = np.array([2, 1, 1, 0], np.int32)
        architecture = by_gguf_name("glm4")({**file.metadata, "glm4.rope.dimension_sections": sections}, 461)
        assert architecture.rope().style == "neox"
        assert by_gguf_name("glm4")(file.metadata, 461).rope().style == "interleaved"
    with GGUFFile(make(CASES["granite"])) as file:
        found = {**file.metadata, "granite.rope.scaling.finetuned": False}
        graph = Graph(file)
        by_gguf_name("granite")(found, 461).build(graph)
        assert {node.operation.rope for node in graph.nodes if isinstance(node.operation, Attention)} == {None}
    with GGUFFile(make(CASES["minicpm"])) as file:
        found = {key: value for key, value in file.metadata.items() if not key.endswith("_scale")}
        old = by_gguf_name("minicpm")(found, 461)
        assert (old.residual_factor(), old.logit_factor()) == (0.7, pytest.approx(256 / 60))


def test_a_context_beyond_learned_positions_is_refused(make: Make) -> None:
    with pytest.raises(GGPYError, match="knows 4096 positions"):
        LLM(make(CASES["gpt2"]), n_ctx=4160, n_threads=1)
