"""Tiny checkpoints of the text models of Llama 4, Gemma 3n and Qwen-VL, whose logits transformers has computed.

`tests/data/hf_families_multimodal.npz` is as `tests.support.recorded` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support import recorded
from tests.support.hf_families_hybrid import tensors
from tests.support.recorded import ABSENT, Refusal, Shapes, present, recorded_shapes, unpack, write_folder

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(80)]  # longer than every chunk and window
POSITIONS = [1, 15, 16, 40, 60, 79]
COLUMNS = range(0, 461, 24)
DATA = Path(__file__).parents[1] / "data" / "hf_families_multimodal.npz"

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14,
    "max_position_embeddings": 256, "torch_dtype": "float32", "bos_token_id": 456, "eos_token_id": 458,
}  # fmt: skip
_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_LLAMA3 = {
    "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

#: Each family's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama4_text": {
        **_SHARED, "architectures": ["Llama4ForCausalLM"], "intermediate_size": 46, "intermediate_size_mlp": 90,
        "num_hidden_layers": 5, "num_local_experts": 6, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16, "floor_scale": 20, "attn_scale": 0.5, "attn_temperature_tuning": True,
        "rope_theta": 500.0, "hidden_act": "silu", "rms_norm_eps": 1e-5, "use_qk_norm": True,
        "tie_word_embeddings": False, "pad_token_id": 456,
    },
    "gemma3n_text": {
        **_SHARED, "architectures": ["Gemma3nForCausalLM"], "hidden_size": 64, "intermediate_size": [90] * 6,
        "num_hidden_layers": 6, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "sliding_window": 15,
        "layer_types": [_SLIDING, _SLIDING, _FULL] * 2, "vocab_size_per_layer_input": 300, "laurel_rank": 10,
        "hidden_size_per_layer_input": 12, "altup_active_idx": 0, "altup_correct_scale": True, "altup_num_inputs": 4,
        "num_kv_shared_layers": 3, "activation_sparsity_pattern": [0.95, 0.7, 0.3, 0.0, 0.0, 0.0],
        "final_logit_softcapping": 5.0, "tie_word_embeddings": True, "attention_bias": False, "pad_token_id": 0,
        "rope_parameters": {_SLIDING: {"rope_type": "default", "rope_theta": 90.0},
                            _FULL: {"rope_type": "default", "rope_theta": 500.0}},
    },
}  # fmt: skip
CONFIGS = {kind: present({"model_type": kind, **config}) for kind, config in CONFIGS.items()}
for _kind, _class, _others in (
    ("llama4", "Llama4ForConditionalGeneration", {"image_token_index": 457, "boi_token_index": 458}),
    ("gemma3n", "Gemma3nForConditionalGeneration", {"image_token_id": 457, "audio_config": {"hidden_size": 8}}),
):
    _text = {key: value for key, value in CONFIGS[_kind + "_text"].items() if key != "architectures"}
    CONFIGS[_kind] = {
        "architectures": [_class], "model_type": _kind, **_others, "vision_config": {"hidden_size": 8},
        "tie_word_embeddings": _text["tie_word_embeddings"], "text_config": _text,
    }  # fmt: skip

_PICTURE: dict[str, Any] = {
    "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 56, "patch_size": 4,
    "num_position_embeddings": 16,
}  # fmt: skip
_SEES: dict[str, Any] = {
    **{key: value for key, value in _SHARED.items() if key not in ("head_dim", "bos_token_id", "eos_token_id")},
    "hidden_size": 56, "num_hidden_layers": 3, "intermediate_size": 90, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 3, 2]},
}  # fmt: skip
for _kind, _class, _settings in (
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", {}),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", {}),
    ("qwen3_vl", "Qwen3VLForConditionalGeneration", {"head_dim": 14}),
    ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration",
     {"head_dim": 14, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 46}),
):  # fmt: skip
    _tied = _kind == "qwen2_5_vl"
    _text = {**_SEES, **_settings, "model_type": _kind + "_text"}
    _vision = {**_PICTURE, "deepstack_visual_indexes": [0]} if "3" in _kind else _PICTURE
    if _kind == "qwen2_vl":
        _vision = {"depth": 1, "embed_dim": 16, "hidden_size": 56, "num_heads": 2, "patch_size": 4}
    _class_of_text = _class.replace("ForConditionalGeneration", "TextModel")
    CONFIGS[_kind + "_text"] = {**_text, "tie_word_embeddings": False, "architectures": [_class_of_text]}
    CONFIGS[_kind] = {
        "architectures": [_class], "model_type": _kind, "image_token_id": 457, "video_token_id": 458,
        "vision_start_token_id": 459, "vision_end_token_id": 460, "vision_config": _vision, "text_config": _text,
        "tie_word_embeddings": _tied,
    }  # fmt: skip
#: Model classes of transformers that read these.
AUTO_CLASSES = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "AutoModelForImageTextToText")


class Case(recorded.Case):
    configs = CONFIGS

    def write(self, folder: Path, shapes: Shapes | None = None) -> None:
        write_folder(folder, self.config, tensors(shapes or recorded_shapes(DATA, CASES, self)))


#: Each kind as it is, and with what is changed.
CASES: dict[str, Case] = {
    "llama4_text": Case("llama4_text"),
    "llama4_text, two experts, no norms": Case(
        "llama4_text", {"num_experts_per_tok": 2, "use_qk_norm": False, "interleave_moe_layer_step": 1,
                        "attn_temperature_tuning": False, "num_hidden_layers": 4}
    ),
    "llama4_text, llama3": Case("llama4_text", {"rope_scaling": _LLAMA3, "tie_word_embeddings": True}),
    "llama4_text, whole attention": Case(
        "llama4_text", {"attention_chunk_size": None, "no_rope_layers": [1] * 5, "attention_bias": True}
    ),
    "llama4_text, other layers": Case(
        "llama4_text",
        {"no_rope_layers": [0, 1, 1, 0, 1], "layer_types": [_FULL, _CHUNKED, _FULL, _CHUNKED, _CHUNKED],
         "moe_layers": [2]},
    ),
    "llama4_text, whole blocks": Case(
        "llama4_text", {"hidden_size": 64, "intermediate_size": 64, "intermediate_size_mlp": 96, "head_dim": 16,
                        "no_rope_layers": []}
    ),
    "qwen2_vl": Case("qwen2_vl"),
    "qwen2_vl, mrope": Case("qwen2_vl", {"text_config": {
        **CONFIGS["qwen2_vl"]["text_config"], "rope_theta": 500.0, "rope_parameters": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 2]}}}),
    "qwen2_5_vl": Case("qwen2_5_vl"),
    "qwen3_vl": Case("qwen3_vl"),
    "qwen3_vl_moe": Case("qwen3_vl_moe"),
    "gemma3n_text": Case("gemma3n_text"),
    "gemma3n_text, three streams": Case("gemma3n_text", {
        "altup_num_inputs": 3, "altup_active_idx": 1, "altup_correct_scale": False, "num_kv_shared_layers": 0,
        "attention_bias": True, "tie_word_embeddings": False, "intermediate_size": [90, 90, 46, 90, 46, 90],
    }),
    "gemma3n_text, absent keys": Case("gemma3n_text", {
        "activation_sparsity_pattern": ABSENT, "layer_types": ABSENT, "rope_parameters": ABSENT,
        "num_hidden_layers": 11, "intermediate_size": 46, "vocab_size_per_layer_input": 461,
        "rope_theta": 500.0, "rope_local_base_freq": 90.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "final_logit_softcapping": ABSENT,
    }),
    "gemma3n_text, whole blocks": Case("gemma3n_text", {
        "intermediate_size": [96] * 6, "head_dim": 16, "laurel_rank": 32, "hidden_size_per_layer_input": 32,
    }),
}  # fmt: skip

CUT = ["llama4_text", "gemma3n_text", "qwen3_vl_moe"]
#: Metadata that no model can have.
ABSURD: list[Refusal] = [
    ("llama4_text", {"attention.rope_pattern": np.array([True])}, "says of 1 layers whether they have rope"),
    ("llama4_text", {"attention.temperature_length": 0}, "for every 0 positions"),
    ("llama4_text", {"attention.chunk_size": -5}, "a sliding window of -5 tokens"),
    ("gemma3n_text", {"altup.active_idx": 4}, "stream 4 of 4"),
    ("gemma3n_text", {"altup.num_inputs": 3}, "this model needs"),
    ("gemma3n_text", {"attention.shared_kv_layers": 6}, "6 of 6 layers"),
    ("gemma3n_text", {"activation_sparsity_scale": np.array([1.5], np.float32)}, "for each of 6 layers"),
]
#: Settings of a config.json that are not followed.
REFUSED: list[Refusal] = [
    ("llama4_text", {"interleave_moe_layer_step": 0}, "'interleave_moe_layer_step' as 0"),
    ("llama4_text", {"moe_layers": [0, 1]}, "can say every how many layers"),
    ("llama4_text", {"moe_layers": [7]}, "must list some of 5 layers"),
    ("llama4_text", {"no_rope_layers": [1]}, "'no_rope_layers' as"),
    ("llama4_text", {"layer_types": ["sliding_attention"] * 5}, "'sliding_attention' in 'layer_types'"),
    ("gemma3n_text", {"layer_types": ["chunked_attention"] * 6}, "'chunked_attention' in 'layer_types'"),
    ("gemma3n_text", {"num_kv_shared_layers": 5}, "no earlier layer of each kind"),
    ("gemma3n_text", {"hidden_size": 60, "head_dim": 14}, "a multiple of 32"),
    ("gemma3n_text", {"intermediate_size": [90]}, "'intermediate_size' as"),
    ("gemma3n_text", {"activation_sparsity_pattern": [1.0] * 6}, "'activation_sparsity_pattern' as"),
    ("gemma3n_text", {"vocab_size_per_layer_input": 500}, "'vocab_size_per_layer_input' as 500"),
]


def logits(name: str) -> np.ndarray:
    return recorded.recorded(DATA)[name][0]


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json that is one of CONFIGS, but for keys that leave the shapes alone; of one that
    sees as it is published."""
    kind, known = config["model_type"], recorded.recorded(DATA)
    if kind in AUTO_CLASSES:
        write_folder(folder, config, published(kind))
        return
    if kind.removesuffix("_text") in AUTO_CLASSES:
        weights = {
            name: values for name, values in published(kind.removesuffix("_text")).items() if "visual" not in name
        }
        weights = {name.replace(".language_model", ""): values for name, values in weights.items()}
        write_folder(folder, config, {"lm_head.weight": weights["model.embed_tokens.weight"]} | weights)
        return
    of = config.get("text_config", config)
    weights = tensors(unpack(known[of["model_type"]][1]))
    if kind == "llama4":
        weights = {f"language_model.{name}": values for name, values in weights.items()}
        weights["vision_model.class_embedding"] = np.zeros(8, np.float32)
    elif of is not config:
        weights = {name.replace("model.", "model.language_model.", 1): values for name, values in weights.items()}
        weights["model.vision_tower.std_bias"] = np.zeros(8, np.float32)
    write_folder(folder, config, weights)


def published(kind: str) -> dict[str, np.ndarray]:
    """The tensors of one of Qwen's models that see, as published: experts stand on their side."""
    weights = tensors(unpack(recorded.recorded(DATA)[kind][1]))
    return {
        name: np.ascontiguousarray(values.transpose(0, 2, 1)) if ".mlp.experts." in name else values
        for name, values in weights.items()
    }
