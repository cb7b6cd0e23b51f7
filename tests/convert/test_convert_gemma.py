"""Gemma 2 and 3 from a checkpoint: converted and run, they give the logits that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.models import by_gguf_name
from tests.support import hf_families_gemma as families
from tests.support.gguf_names import unknown_names

with np.load(Path(__file__).parents[1] / "data" / "hf_families_gemma.npz") as recorded:
    LOGITS = dict(zip(recorded["names"].tolist(), recorded["logits"], strict=True))

FULL, SLIDING = "full_attention", "sliding_attention"


def converted(tmp_path: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The keys of a case's file and the notes; `changes` of config.json."""
    families.write(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    notes: list[str] = []
    convert(tmp_path, "f32", tmp_path / "out.gguf", note=notes.append)
    return {key: f.contents() for key, f in gguf.GGUFReader(tmp_path / "out.gguf").fields.items()}, notes


@pytest.mark.parametrize("name", families.CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name)
    with LLM(tmp_path / "out.gguf", n_ctx=128, n_threads=1, n_parallel=1) as llm:
        logits = llm.logits(families.TOKENS)[families.POSITIONS][:, list(families.COLUMNS)]
    expected = LOGITS[name]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_names_are_those_of_the_gguf_package(tmp_path: Path, name: str) -> None:
    keys, notes = converted(tmp_path, name)
    assert unknown_names(tmp_path / "out.gguf") == (set(), set())
    assert notes == []
    wanted = {"attention.key_length": 14, "attention.sliding_window": 15, "vocab_size": 461, "rope.freq_base": 500.0}
    assert {key: keys[f"{name}.{key}"] for key in wanted} == wanted


def test_norms_are_stored_plus_one(tmp_path: Path) -> None:
    converted(tmp_path, "gemma3")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    stored = families.random_tensors(families.settings("gemma3"))
    for target, source in (
        ("blk.3.attn_norm", "model.layers.3.input_layernorm"),
        ("blk.3.post_attention_norm", "model.layers.3.post_attention_layernorm"),
        ("blk.3.ffn_norm", "model.layers.3.pre_feedforward_layernorm"),
        ("blk.3.post_ffw_norm", "model.layers.3.post_feedforward_layernorm"),
        ("blk.3.attn_k_norm", "model.layers.3.self_attn.k_norm"),
        ("output_norm", "model.norm"),
    ):
        np.testing.assert_array_equal(tensors[target + ".weight"], stored[source + ".weight"] + 1)


def test_windows_are_said_where_readers_do_not_know_them(tmp_path: Path) -> None:
    """Readers of these files know that every second (Gemma 2) or sixth (Gemma 3) layer has no window."""
    key = "attention.sliding_window_pattern"
    assert f"gemma2.{key}" not in converted(tmp_path, "gemma2")[0]
    assert converted(tmp_path, "gemma2, layer types")[0][f"gemma2.{key}"] == [False, True, True, False]
    assert converted(tmp_path, "gemma2, no windows")[0][f"gemma2.{key}"] == 1
    assert f"gemma3.{key}" not in converted(tmp_path, "gemma3")[0]
    assert converted(tmp_path, "gemma3, period")[0][f"gemma3.{key}"] == 3
    assert converted(tmp_path, "gemma3, windows alone")[0][f"gemma3.{key}"] == 0
    keys = converted(tmp_path, "gemma3, no windows")[0]
    assert "gemma3.attention.sliding_window" not in keys
    assert "gemma3.rope.freq_base_swa" not in keys


def test_scale_is_said_where_readers_derive_another(tmp_path: Path) -> None:
    """The largest size of each generation has as query scalar n_embd / n_head, not the head's width."""
    keys, notes = converted(tmp_path, "gemma3, query scalar")
    assert keys["gemma3.attention.scale"] == pytest.approx(30**-0.5)
    assert "'query_pre_attn_scalar' 30" in notes[0]
    metadata = {
        key: value for key, value in keys.items() if key.startswith("gemma3.") and key != "gemma3.attention.scale"
    }
    metadata = {key: value for key, value in metadata.items() if "pattern" not in key}
    assert by_gguf_name("gemma3")(metadata, 461).attention_scale() == pytest.approx(14**-0.5)
    for arch, n_layer in (("gemma2", 46), ("gemma3", 62)):
        sizes = {key.replace("gemma3", arch): value for key, value in metadata.items()} | {
            f"{arch}.block_count": n_layer
        }
        assert by_gguf_name(arch)(sizes, 461).attention_scale() == pytest.approx(10**-0.5)


def test_softcaps_that_files_leave_out() -> None:
    """Files of Gemma 2 from before there were keys have its caps; Gemma 3 has none."""
    sizes = {
        "block_count": 2, "context_length": 64, "embedding_length": 60, "feed_forward_length": 90,
        "attention.head_count": 6, "attention.key_length": 14, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }  # fmt: skip
    for arch, caps, windows in (("gemma2", (50.0, 30.0), [4096, 0]), ("gemma3", (0.0, 0.0), [0, 0])):
        model = by_gguf_name(arch)({f"{arch}.{key}": value for key, value in sizes.items()}, 461)
        assert model.softcaps() == caps
        assert [layer.window for layer in model.hparams.layers] == windows
    for key, value in (("attn_logit_softcapping", -1.0), ("attention.scale", 0.0), ("rope.freq_base_swa", 0.0)):
        with pytest.raises(GGPYError, match="impossible"):
            by_gguf_name("gemma3")({f"gemma3.{k}": v for k, v in {**sizes, key: value}.items()}, 461).check()


def test_ropes_of_files_with_other_keys() -> None:
    """The first base has to be said: a file without it would be read with a wrong one. Ollama once named both anew."""
    sizes: dict[str, Any] = {
        "block_count": 2, "context_length": 64, "embedding_length": 60, "feed_forward_length": 90,
        "attention.head_count": 6, "attention.key_length": 4, "attention.layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip

    def frequencies(**bases: float) -> list[float]:
        entries = {f"gemma3.{key}": value for key, value in {**sizes, **bases}.items()}
        return [rope.inv_freq[1] for rope in by_gguf_name("gemma3")(entries, 461).ropes()]  # type: ignore[attr-defined]

    assert frequencies(**{"rope.freq_base": 1e6}) == pytest.approx([1e-3, 1e-2])
    assert frequencies(**{"rope.freq_base": 1e6, "rope.freq_base_swa": 1e2}) == pytest.approx([1e-3, 1e-1])
    old = {"rope.global.freq_base": 1e6, "rope.local.freq_base": 1e2}
    assert frequencies(**old) == pytest.approx([1e-3, 1e-1])
    assert frequencies(**old, **{"rope.freq_base": 1e2}) == pytest.approx([1e-1, 1e-1])
    with pytest.raises(GGPYError, match=r"lacks the metadata key 'gemma3\.rope\.freq_base'"):
        frequencies()


def test_images_are_left_out_with_a_word(tmp_path: Path) -> None:
    keys, notes = converted(tmp_path, "gemma3, images")
    assert notes == ["images are not read: the file holds the text model."]
    assert keys["gemma3.block_count"] == 6
    families.write(tmp_path, "gemma3, images")
    vision = {"model.vision_tower.x": np.ones(3, np.float32), "model.multi_modal_projector.y": np.ones(3, np.float32)}
    before = (tmp_path / "out.gguf").read_bytes()
    text = families.random_tensors(families.settings("gemma3, images")["text_config"])
    new = {name.replace("model.", "model.language_model.", 1): values for name, values in text.items()}
    families.write_safetensors(tmp_path / "model.safetensors", new | vision)  # the names of transformers 5
    convert(tmp_path, "f32", tmp_path / "new.gguf")
    assert (tmp_path / "new.gguf").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"hidden_activation": "gelu"}, "'hidden_activation' as 'gelu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' as True"),
        ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope's settings by kind of layer"),
        ("gemma3", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 8.0}}}, "scales rope of sliding"),
        ("gemma3", {"rope_parameters": {FULL: {"rope_type": "longrope", "factor": 8.0}}}, "'longrope'"),
        ("gemma3", {"sliding_window": None}, "no window for them"),
        ("gemma3", {"query_pre_attn_scalar": -1}, "'query_pre_attn_scalar' as -1"),
        ("gemma2", {"attn_logit_softcapping": 0}, "'attn_logit_softcapping' as 0"),
        ("gemma3, images", {"text_config": {"model_type": "llama"}}, "whose text model is a 'gemma3_text'"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        converted(tmp_path, name, **changes)
