"""Mixtures of experts and hybrids: what their files say, and texts after and beside others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.models import by_gguf_name
from tests.support import hf_families_moe as families
from tests.support.converted import Make, exact, metadata
from tests.support.hf_families_moe import CASES, COLUMNS, POSITIONS, TOKENS


def test_mxfp4_blocks_are_taken_over(make: Make) -> None:
    """The same numbers, in files of any type; of these the float64 logits are transformers'."""
    path, theirs = make(CASES["gpt-oss, mxfp4"]), families.logits("gpt-oss, mxfp4")
    with GGUFFile(path) as file:
        types = {name: info.type_name for name, info in file.tensors.items() if "_exps.weight" in name}
    assert len(types) == 12
    assert set(types.values()) == {"MXFP4"}
    assert np.abs(exact(path, TOKENS)[POSITIONS][:, list(COLUMNS)] - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["gpt-oss", "qwen35moe", "lfm2"])
def test_a_text_is_the_same_after_and_beside_others(make: Make, name: str) -> None:
    """Prompts that share beginnings, one after the other in a cache of one slot and all together, against each alone:
    rings and recurrent states cannot be cut as keys and values are."""
    path, greedy = make(CASES[name]), SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    start = "The capital of France is Paris, and the river that runs through the city is the Seine. "
    prompts = [start + "Once", start, start[:40] + "def main", start + "Once upon a time", "The capital"]

    def texts(groups: list[list[str]], n_parallel: int) -> list[list[int]]:
        with LLM(path, n_ctx=192, n_threads=1, n_parallel=n_parallel) as llm:
            return [output.outputs[0].token_ids for group in groups for output in llm.generate(group, greedy)]

    alone = [texts([[prompt]], 1)[0] for prompt in prompts]
    assert texts([[prompt] for prompt in prompts], 1) == alone
    assert texts([prompts], 3) == alone


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe"])
def test_the_text_model_of_one_that_sees(make: Make, name: str) -> None:
    """A checkpoint with pictures and layers that predict further tokens gives the text model's file, and says so."""
    alone = make(CASES[name]).read_bytes()
    notes: list[str] = []
    assert make(replace(CASES[name], nested=True), note=notes.append).read_bytes() == alone
    assert any("sees with is left out" in note for note in notes)
    assert any("('mtp') are left out" in note for note in notes)


def test_keys_of_each_architecture(make: Make) -> None:
    def keys(name: str) -> dict[str, Any]:
        return metadata(make(CASES[name]))

    moe = keys("qwen3moe")
    assert (moe["expert_count"], moe["expert_used_count"], moe["expert_feed_forward_length"]) == (8, 2, 46)
    assert "expert_weights_norm" not in moe
    assert keys("qwen3moe, weights as they are")["expert_weights_norm"] is False

    oss = keys("gpt-oss")
    assert oss["attention.sliding_window"] == 16
    assert "attention.sliding_window_pattern" not in oss  # every second layer, which readers know
    assert oss["rope.scaling.type"] == "yarn"
    assert "rope.scaling.yarn_truncate" not in oss  # as these models have it, whatever readers round
    assert keys("gpt-oss, truncated")["rope.scaling.yarn_truncate"] is True
    assert keys("gpt-oss, other layers")["attention.sliding_window_pattern"] == [False, True, True, True]

    hybrid = keys("qwen35, interval")
    assert hybrid["full_attention_interval"] == 3
    assert hybrid["rope.dimension_count"] == 6
    assert hybrid["rope.dimension_sections"] == [1, 1, 1, 0]
    sizes = {"group_count": 2, "time_step_rank": 6, "state_size": 10, "inner_size": 60, "conv_kernel": 4}
    assert {key: hybrid[f"ssm.{key}"] for key in sizes} == sizes
    assert keys("qwen35, other layers")["attention.recurrent_layers"] == [False, True, True, False]

    liquid = keys("lfm2moe")
    assert liquid["attention.head_count_kv"] == [0, 2, 0, 2]
    assert (liquid["leading_dense_block_count"], liquid["expert_gating_func"]) == (1, 2)
    assert keys("lfm2")["feed_forward_length"] == 70


def test_value_heads_are_tiled(make: Make) -> None:
    """Six value heads of two key heads: those of the first place of each, then of the second, then of the third."""
    case = CASES["qwen35"]
    path = make(case)
    rng = np.random.RandomState(1)
    stored = {name: families.values(rng, case, name, shape) for name, shape in families.tensor_shapes(case).items()}
    order = [0, 3, 1, 4, 2, 5]
    with GGUFFile(path) as file:
        decay = np.frombuffer(file.data("blk.0.ssm_a"), np.float32)
        gate = np.frombuffer(file.data("blk.0.attn_gate.weight"), np.float32).reshape(6, 10, 60)
        out = np.frombuffer(file.data("blk.0.ssm_out.weight"), np.float32).reshape(60, 6, 10)
    at = "model.layers.0.linear_attn."
    assert np.allclose(decay, -np.exp(stored[at + "A_log"][order]))
    assert np.array_equal(gate, stored[at + "in_proj_z.weight"].reshape(6, 10, 60)[order])
    assert np.array_equal(out, stored[at + "out_proj.weight"].reshape(60, 6, 10)[:, order])


def test_blocks_that_predict_further_tokens_are_passed_over(make: Make) -> None:
    """Files count them among the blocks, behind the model's own."""
    with GGUFFile(make(CASES["qwen35"])) as file:
        found = dict(file.metadata) | {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
        architecture = by_gguf_name("qwen35")(found, 461)
        graph = Graph(file)
        architecture.build(graph)
    assert architecture.hparams.n_layer == 4
    assert {node.layer for node in graph.nodes if node.layer is not None} == {0, 1, 2, 3}
