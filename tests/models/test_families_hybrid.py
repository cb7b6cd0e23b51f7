"""State-space models, their hybrids, latent attention and Gemma 4: what their files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.graph.operations import Attention
from ggpy.graph.state import LatentState
from ggpy.models import architecture_of
from ggpy.quant import FORMATS
from tests.support import hf_families_hybrid as families
from tests.support.converted import Make, logits, metadata
from tests.support.hf_families_hybrid import CASES, COLUMNS, DATA, POSITIONS, TOKENS
from tests.support.recorded import recorded, unpack


def test_keys_of_state_space_models(make: Make) -> None:
    one = metadata(make(CASES["mamba, tied"]))
    sizes = {"conv_kernel": 3, "inner_size": 120, "state_size": 6, "time_step_rank": 7}
    assert {key: one[f"ssm.{key}"] for key in sizes} == sizes
    assert (one["attention.head_count"], one["feed_forward_length"], one["context_length"]) == (0, 0, 1 << 20)
    assert "ssm.dt_b_c_rms" not in one
    normed = metadata(make(CASES["falcon_mamba"]))
    assert normed["ssm.dt_b_c_rms"] is True
    assert "ssm.dt_b_c_rms_epsilon" not in normed
    notes: list[str] = []
    assert metadata(make(CASES["falcon_mamba, epsilon"], note=notes.append))["ssm.dt_b_c_rms_epsilon"] == pytest.approx(
        0.3
    )
    assert any("an epsilon of 0.3" in note for note in notes)
    two = metadata(make(CASES["mamba2"]))
    sizes = {"conv_kernel": 4, "inner_size": 120, "state_size": 6, "time_step_rank": 6, "group_count": 2}
    assert {key: two[f"ssm.{key}"] for key in sizes} == sizes


def test_keys_of_one_mixer_a_layer(make: Make) -> None:
    dense, mixed = metadata(make(CASES["nemotron_h"])), metadata(make(CASES["nemotron_h_moe"]))
    assert dense["feed_forward_length"] == [0, 90, 0, 0, 90, 0, 0, 90]
    assert dense["attention.head_count_kv"] == [0, 0, 0, 2, 0, 0, 2, 0]
    assert {"expert_count", "rope.dimension_count", "rope.freq_base"}.isdisjoint(dense)
    assert mixed["feed_forward_length"] == [0, 46, 0, 46, 0, 90, 0]
    assert mixed["attention.head_count_kv"] == [0, 0, 2, 0, 0, 0, 2]
    sizes = {
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 46, "expert_gating_func": 2,
        "expert_shared_feed_forward_length": 38, "expert_group_count": 4, "expert_group_used_count": 2,
        "expert_weights_norm": True, "ssm.inner_size": 60, "ssm.group_count": 3,
    }  # fmt: skip
    assert {key: mixed[key] for key in sizes} == sizes
    assert metadata(make(CASES["nemotron_h_moe, narrow"]))["moe_latent_size"] == 34


def test_keys_of_granite_4(make: Make) -> None:
    dense, mixed = metadata(make(CASES["granitemoehybrid"])), metadata(make(CASES["granitemoehybrid_moe"]))
    factors = {"embedding_scale": 3.0, "residual_scale": 0.6, "attention.scale": 0.4, "logit_scale": 1.7}
    assert {key: dense[key] for key in factors} == pytest.approx(factors)
    assert dense["attention.head_count_kv"] == [0, 2, 0, 0, 2]
    assert (dense["feed_forward_length"], dense["rope.scaling.finetuned"]) == (38, False)
    sizes = {
        "expert_count": 6,
        "feed_forward_length": 46,
        "expert_shared_feed_forward_length": 38,
        "ssm.group_count": 2,
    }
    assert {key: mixed[key] for key in sizes} == sizes
    names = [metadata_name(make(CASES["granitemoehybrid" + end])) for end in (", attention alone", "")]
    assert names == ["granite", "granitehybrid"]
    assert metadata_name(make(CASES["granitemoehybrid, experts and attention"])) == "granitemoe"


def metadata_name(path: Path) -> str:
    with GGUFFile(path) as file:
        return str(file.metadata["general.architecture"])


def test_keys_of_latent_attention(make: Make) -> None:
    three, two = metadata(make(CASES["deepseek_v3"])), metadata(make(CASES["deepseek_v2"]))
    sizes = {
        "attention.head_count": 3, "attention.head_count_kv": 1, "attention.key_length": 38,
        "attention.value_length": 32, "attention.key_length_mla": 38, "attention.value_length_mla": 64,
        "attention.kv_lora_rank": 32, "attention.q_lora_rank": 26, "rope.dimension_count": 6,
        "leading_dense_block_count": 1, "expert_gating_func": 2, "expert_weights_norm": True, "expert_shared_count": 2,
        "expert_group_count": 4, "expert_group_used_count": 2,
    }  # fmt: skip
    assert {key: three[key] for key in sizes} == sizes
    assert three["rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1)
    assert "rope.scaling.attn_factor" not in three
    assert two["rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert (two["expert_gating_func"], two["expert_weights_norm"]) == (1, False)
    assert {"attention.q_lora_rank", "expert_group_count"}.isdisjoint(two)
    notes: list[str] = []
    assert "rope.scaling.attn_factor" in metadata(make(CASES["deepseek_v3, other scales"], note=notes.append))
    assert any("what rope turns is scaled" in note for note in notes)


def test_only_the_latent_vector_is_cached(make: Make) -> None:
    with GGUFFile(make(CASES["deepseek_v3"])) as file:
        graph = Graph(file)
        architecture_of(file).build(graph)
    states = [node.operation.state for node in graph.nodes if isinstance(node.operation, Attention)]
    assert states == [LatentState(layer, 1, 38, 32) for layer in range(3)]


def test_files_from_before_latent_caches(make: Make) -> None:
    """Their keys and values come out of one matrix, and every head's are cached."""
    with GGUFFile(make(CASES["deepseek_v2"])) as file:
        found = dict(file.metadata)
        tensors = {
            name: np.frombuffer(file.data(name), np.float32).reshape(info.shape) for name, info in file.tensors.items()
        }
        path = file.path.with_name("old.gguf")
    for layer in range(3):
        k, v = (tensors.pop(f"blk.{layer}.attn_{part}_b.weight") for part in "kv")
        tensors[f"blk.{layer}.attn_kv_b.weight"] = np.concatenate([k.transpose(0, 2, 1), v], 1).reshape(-1, 32)
    for key in ("key_length_mla", "value_length_mla"):
        del found[f"deepseek2.attention.{key}"]
    found |= {f"deepseek2.attention.{key}": n for key, n in (("value_length", 64), ("head_count_kv", 3))}
    outputs = [OutputTensor(name, x.shape, FORMATS["F32"]) for name, x in tensors.items()]
    with write_gguf(path, found, outputs) as writer:
        for x in tensors.values():
            writer.write(FORMATS["F32"].quantize(np.ascontiguousarray(x.reshape(-1, x.shape[-1]))))
    ours, theirs = logits(path, TOKENS)[POSITIONS][:, list(COLUMNS)], families.logits("deepseek_v2")
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_keys_of_gemma_4(make: Make) -> None:
    plain, mixed = metadata(make(CASES["gemma4_text"])), metadata(make(CASES["gemma4_text_moe"]))
    sizes = {
        "attention.sliding_window_pattern": [True, True, False] * 2, "attention.sliding_window": 15,
        "attention.key_length": 24, "attention.value_length": 24, "attention.key_length_swa": 14,
        "attention.value_length_swa": 14, "attention.shared_kv_layers": 3, "attention.head_count_kv": [2] * 6,
        "embedding_length_per_layer_input": 10, "feed_forward_length": [90] * 3 + [180] * 3,
        "rope.dimension_count": 24, "rope.dimension_count_swa": 14, "rope.freq_base": 500.0, "rope.freq_base_swa": 90.0,
    }  # fmt: skip
    assert {key: plain[key] for key in sizes} == sizes
    sizes = {
        "attention.head_count_kv": [2, 3, 2, 3], "expert_count": 8, "expert_used_count": 3,
        "expert_feed_forward_length": 46, "attention.shared_kv_layers": 0,
    }  # fmt: skip
    assert {key: mixed[key] for key in sizes} == sizes
    with GGUFFile(make(CASES["gemma4_text"])) as file:
        divisors = np.frombuffer(file.data("rope_freqs.weight"), np.float32)
        assert not {"blk.3.attn_k.weight", "blk.5.attn_v.weight"} & file.tensors.keys()
    assert divisors.tolist() == [1.0] * 3 + [np.float32(1e30)] * 9


def test_the_text_model_of_one_that_sees_and_hears(tmp_path: Path, make: Make) -> None:
    alone = make(CASES["gemma4_text"]).read_bytes()
    notes: list[str] = []
    families.write_checkpoint(tmp_path, families.CONFIGS["gemma4"])
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=notes.append)
    assert (tmp_path / "out.gguf").read_bytes() == alone
    assert any("images and sound are not read" in note for note in notes)
    assert any("read an earlier one's are left out" in note for note in notes)


def test_factors_are_multiplied_into_matrices(make: Make) -> None:
    """As llama.cpp's converter does, whose keys say nothing of them."""
    stored = families.tensors(unpack(recorded(DATA)["falcon_h1"][1]))
    path, at = make(CASES["falcon_h1"]), "model.layers.1."
    given = stored[at + "mamba.in_proj.weight"] * 1.3
    for first, last, factor in ((0, 72, 0.7), (72, 144, 1.1), (144, 156, 0.9), (156, 168, 1.2), (168, 174, 0.6)):
        given[first:last] *= factor
    expected = {
        "token_embd.weight": 3.0 * stored["model.embed_tokens.weight"],
        "output.weight": 0.7 * stored["lm_head.weight"],
        "blk.1.attn_k.weight": 1.1 * 0.8 * stored[at + "self_attn.k_proj.weight"],
        "blk.1.ffn_down.weight": 1.2 * stored[at + "feed_forward.down_proj.weight"],
        "blk.1.ssm_in.weight": given,
        "blk.1.ssm_out.weight": 0.8 * stored[at + "mamba.out_proj.weight"],
    }
    with GGUFFile(path) as file:
        for name, values in expected.items():
            assert np.allclose(np.frombuffer(file.data(name), np.float32).reshape(values.shape), values), name
    two_factors = make(CASES["falcon_h1, biases"])
    with GGUFFile(two_factors) as file:
        head, table = (np.frombuffer(file.data(name), np.float32) for name in ("output.weight", "token_embd.weight"))
    assert np.allclose(head / 0.7, table / 3.0)


def test_tensors_of_state_space_models_have_llama_cpps_shapes(make: Make) -> None:
    path = make(CASES["mamba2"])
    stored = families.tensors(unpack(recorded(DATA)["mamba2"][1]))
    with GGUFFile(path) as file:
        shapes = {name: tuple(file.tensors[f"blk.1.{name}"].shape) for name in ("ssm_a", "ssm_d", "ssm_norm.weight")}
        decays = np.frombuffer(file.data("blk.1.ssm_a"), np.float32)
    assert shapes == {"ssm_a": (6, 1), "ssm_d": (6, 1), "ssm_norm.weight": (2, 60)}
    assert np.allclose(decays, -np.exp(stored["backbone.layers.1.mixer.A_log"]))
