"""The text models of Llama 4, Gemma 3n and Qwen-VL: what their files say, and checkpoints as they are published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.gguf.file import GGUFFile
from ggpy.models import by_hf_name
from ggpy.models.hf_config import Config
from ggpy.models.hf_keys import known_config
from tests.support import hf_families_multimodal as families
from tests.support.converted import Make, metadata
from tests.support.hf_families_multimodal import CASES
from tests.support.recorded import ABSENT, present, write_folder


def test_keys_of_llama_4(make: Make) -> None:
    plain, other = metadata(make(CASES["llama4_text"])), metadata(make(CASES["llama4_text, other layers"]))
    sizes = {
        "feed_forward_length": 90, "expert_feed_forward_length": 46, "expert_count": 6, "expert_used_count": 1,
        "interleave_moe_layer_step": 2, "attention.chunk_size": 16, "attention.temperature_length": 20,
        "attention.temperature_scale": 0.5,
    }  # fmt: skip
    assert {key: plain[key] for key in sizes} == sizes
    # Every fourth layer without rope and chunks, which readers know.
    assert {"attention.rope_pattern", "attention.sliding_window", "use_qk_norm"}.isdisjoint(plain)
    assert other["attention.rope_pattern"] == [False, True, True, False, True]
    assert other["attention.sliding_window_pattern"] == [False, True, False, True, True]
    assert other["interleave_moe_layer_step"] == 3
    assert metadata(make(CASES["llama4_text, whole attention"]))["attention.sliding_window"] == 0
    notes: list[str] = []
    assert metadata(make(CASES["llama4_text, two experts, no norms"], note=notes.append))["use_qk_norm"] is False
    assert any("llama4.use_qk_norm" in note for note in notes)


def test_keys_of_gemma_3n(make: Make) -> None:
    plain = metadata(make(CASES["gemma3n_text"]))
    sizes = {
        "attention.sliding_window_pattern": [True, True, False] * 2, "attention.sliding_window": 15,
        "attention.shared_kv_layers": 3, "embedding_length_per_layer_input": 12, "feed_forward_length": 90,
        "altup.num_inputs": 4, "altup.active_idx": 0, "rope.freq_base": 500.0, "rope.freq_base_swa": 90.0,
        "final_logit_softcapping": 5.0,
    }  # fmt: skip
    assert {key: plain[key] for key in sizes} == sizes
    # The quantiles of the normal distribution, as torch has them.
    expected = [1.6448535, 0.5244005, -0.5244005, *[-math.inf] * 3]
    assert plain["activation_sparsity_scale"] == pytest.approx(expected, rel=1e-6)
    other = metadata(make(CASES["gemma3n_text, three streams"]))
    assert other["feed_forward_length"] == [90, 90, 46, 90, 46, 90]
    usual = metadata(make(CASES["gemma3n_text, absent keys"]))
    assert usual["activation_sparsity_scale"][9:] == pytest.approx([1.6448535, -math.inf])
    assert usual["attention.sliding_window_pattern"] == [True] * 4 + [False] + [True] * 4 + [False, True]
    assert usual["final_logit_softcapping"] == 30.0


def test_tokens_beyond_the_table_of_layers_have_its_first_row(make: Make) -> None:
    """As transformers looks them up; llama.cpp's converter gives them zeros."""
    with GGUFFile(make(CASES["gemma3n_text"])) as file:
        table = np.frombuffer(file.data("per_layer_token_embd.weight"), np.float32).reshape(461, -1)
    assert (table[300:] == table[0]).all()
    assert not (table[299] == table[0]).all()


def test_keys_of_qwens_models_that_see(make: Make) -> None:
    two, three, mixed = (metadata(make(CASES[kind])) for kind in ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe"))
    assert two["rope.dimension_sections"] == three["rope.dimension_sections"] == [2, 3, 2, 0]
    assert (three["n_deepstack_layers"], mixed["n_deepstack_layers"]) == (1, 1)
    assert (mixed["expert_count"], mixed["expert_used_count"], mixed["expert_feed_forward_length"]) == (6, 2, 46)


@pytest.mark.parametrize("kind", families.AUTO_CLASSES)
def test_settings_of_the_text_model_may_stand_beside_the_others(tmp_path: Path, make: Make, kind: str) -> None:
    """As Qwen2-VL's published files have them; experts may stand upright or on their side."""
    nested = make(CASES[kind]).read_bytes()
    config = {**families.CONFIGS[kind], **CASES[kind].changes}
    flat = {**config.pop("text_config"), **config, "rope_theta": 500.0}
    families.write_checkpoint(tmp_path, flat)
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=lambda note: None)
    assert (tmp_path / "out.gguf").read_bytes() == nested


@pytest.mark.parametrize(
    ("kind", "beside", "inside", "tied"),
    [
        ("qwen2_5_vl", ABSENT, True, True),
        ("qwen2_vl", False, True, True),
        ("qwen2_vl", True, False, True),
        ("qwen3_vl", ABSENT, True, False),
        ("qwen3_vl", True, False, True),
        ("qwen3_vl_moe", ABSENT, ABSENT, False),
        ("qwen2_5_vl_text", True, None, True),
        ("qwen3_vl_text", ABSENT, None, False),
        ("qwen3_vl_moe_text", ABSENT, None, True),
    ],
)
def test_where_the_output_is_tied(kind: str, beside: object, inside: object, tied: bool) -> None:
    """As in transformers 5.24's configurations: either place may say it for Qwen2-VL, the outer one for the others; a
    text model that stands alone says it itself."""
    config = present({**families.CONFIGS[kind], "tie_word_embeddings": beside})
    if "text_config" in config:
        config["text_config"] = present({**config["text_config"], "tie_word_embeddings": inside})
    model_class, known, _ = known_config(Config(config))
    assert by_hf_name(model_class, known).hf_layout(known).tied is tied


def test_a_text_model_that_was_saved_alone(tmp_path: Path, make: Make) -> None:
    """It has no head and shorter names, and is tied by its own config."""
    whole = make(CASES["qwen2_5_vl"]).read_bytes()
    weights = {name.removeprefix("model."): values for name, values in families.published("qwen2_5_vl").items()
               if not name.startswith(("visual.", "lm_head."))}  # fmt: skip
    write_folder(tmp_path, {**families.CONFIGS["qwen2_5_vl_text"], "tie_word_embeddings": True}, weights)
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=lambda note: None)
    assert (tmp_path / "out.gguf").read_bytes() == whole


@pytest.mark.parametrize("kind", ["llama4", "gemma3n"])
def test_the_text_model_of_one_that_sees(tmp_path: Path, make: Make, kind: str) -> None:
    alone = make(CASES[kind + "_text"]).read_bytes()
    notes: list[str] = []
    families.write_checkpoint(tmp_path, families.CONFIGS[kind])
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=notes.append)
    assert (tmp_path / "out.gguf").read_bytes() == alone
    assert any("images" in note and "not read" in note for note in notes)
