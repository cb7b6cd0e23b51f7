"""Tiny checkpoints of state-space models and their hybrids with attention, of latent attention and of Gemma 4, whose
logits transformers has computed.

`tests/data/hf_families_hybrid.npz` is as `tests.support.recorded` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support import recorded
from tests.support.recorded import ABSENT, Refusal, Shapes, present, recorded_shapes, unpack, write_folder

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(80)]
POSITIONS = [1, 15, 16, 40, 60, 79]
COLUMNS = range(0, 461, 24)
DATA = Path(__file__).parents[1] / "data" / "hf_families_hybrid.npz"

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "num_hidden_layers": 4, "hidden_act": "silu", "torch_dtype": "float32",
    "bos_token_id": 456, "eos_token_id": 458, "pad_token_id": 456, "tie_word_embeddings": False,
}  # fmt: skip
_ATTENTION: dict[str, Any] = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 256,
    "intermediate_size": 90,
}  # fmt: skip
_FULL, _SLIDING = "full_attention", "sliding_attention"
_GEMMA4: dict[str, Any] = {
    **_SHARED, "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 14, "global_head_dim": 24, "intermediate_size": 90, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": ABSENT,
    "sliding_window": 15, "vocab_size_per_layer_input": 461, "tie_word_embeddings": True, "num_hidden_layers": 6,
    "rope_parameters": {
        _SLIDING: {"rope_type": "default", "rope_theta": 90.0},
        _FULL: {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
    },
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 256,
    "intermediate_size": 90, "kv_lora_rank": 32, "qk_rope_head_dim": 6, "qk_nope_head_dim": 32, "v_head_dim": 64,
    "moe_intermediate_size": 46, "num_experts_per_tok": 3, "n_shared_experts": 2, "n_routed_experts": 8,
    "routed_scaling_factor": 1.3, "first_k_dense_replace": 1, "rope_theta": 500.0, "rms_norm_eps": 1e-6,
}  # fmt: skip
_LATENT_YARN = {
    "type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1,
}  # fmt: skip
_UNLIMITED = [0.0, {"__float__": "Infinity"}]
_NEMOTRON = {
    **_SHARED, **_ATTENTION, "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h",
    "num_hidden_layers": ABSENT, "hidden_act": ABSENT, "mlp_hidden_act": "relu2", "mamba_num_heads": 6,
    "mamba_head_dim": 10, "n_groups": 3, "ssm_state_size": 6, "conv_kernel": 4, "layer_norm_epsilon": 1e-5,
    "time_step_limit": _UNLIMITED, "chunk_size": 32,
}  # fmt: skip
_GRANITE = {
    **_SHARED, **_ATTENTION, "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid",
    "head_dim": ABSENT, "hidden_size": 64, "num_hidden_layers": 5, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
    "layer_types": ["mamba", "attention", "mamba", "mamba", "attention"], "shared_intermediate_size": 38,
    "embedding_multiplier": 3.0, "logits_scaling": 1.7, "residual_multiplier": 0.6, "attention_multiplier": 0.4,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 6, "mamba_expand": 2,
    "time_step_limit": _UNLIMITED, "mamba_chunk_size": 32, "position_embedding_type": "nope",
}  # fmt: skip
_MAMBA = {**_SHARED, "state_size": 6, "layer_norm_epsilon": 1e-5, "expand": 2, "conv_kernel": 4, "num_hidden_layers": 2}

#: Each family's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {**_MAMBA, "architectures": ["MambaForCausalLM"], "use_bias": False, "use_conv_bias": True},
    "falcon_mamba": {**_MAMBA, "architectures": ["FalconMambaForCausalLM"], "mixer_rms_eps": 1e-5},
    "mamba2": {
        **_MAMBA, "architectures": ["Mamba2ForCausalLM"], "num_heads": 6, "head_dim": 20, "n_groups": 2,
        "chunk_size": 32, "time_step_limit": _UNLIMITED,
    },
    "deepseek_v3": {
        **_SHARED, **_LATENT, "architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 26, "n_group": 4,
        "topk_group": 2, "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "rope_theta": ABSENT, "rope_scaling": {**_LATENT_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek_v2": {
        **_SHARED, **_LATENT, "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": None, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "greedy",
        "rope_theta": ABSENT, "rope_scaling": {**_LATENT_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "glm4_moe_lite": {
        **_SHARED, **_LATENT, "architectures": ["Glm4MoeLiteForCausalLM"], "q_lora_rank": 26, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": True, "first_k_dense_replace": ABSENT, "topk_method": "noaux_tc",
        "rms_norm_eps": 1e-5, "num_nextn_predict_layers": 1,
    },
    "minicpm3": {
        **_SHARED, **_LATENT, "architectures": ["MiniCPM3ForCausalLM"], "q_lora_rank": 26, "scale_emb": 3,
        "scale_depth": 1.2, "dim_model_base": 36, "tie_word_embeddings": True, "num_hidden_layers": 2,
        "qk_nope_head_dim": 14, "v_head_dim": 18, "kv_lora_rank": 22,
        **dict.fromkeys(
            ("moe_intermediate_size", "num_experts_per_tok", "n_shared_experts", "n_routed_experts",
             "routed_scaling_factor", "first_k_dense_replace"), ABSENT,
        ),
    },
    "gemma4_text": {
        **_GEMMA4, "num_kv_shared_layers": 3, "hidden_size_per_layer_input": 10, "use_double_wide_mlp": True,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL], "final_logit_softcapping": 5.0,
    },
    "gemma4_text_moe": {
        **_GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 3,
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 46,
        "num_hidden_layers": 4, "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
    },
    "falcon_h1": {
        **_SHARED, **_ATTENTION, "architectures": ["FalconH1ForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 500.0,
        "mamba_d_ssm": 72, "mamba_n_heads": 6, "mamba_d_head": 12, "mamba_n_groups": 2, "mamba_d_state": 6,
        "mamba_chunk_size": 32, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "num_hidden_layers": 2,
        "time_step_limit": _UNLIMITED, "lm_head_multiplier": 0.7, "embedding_multiplier": 3.0,
        "mlp_multipliers": [0.9, 1.2], "key_multiplier": 0.8, "attention_in_multiplier": 1.1,
        "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.8,
        "ssm_multipliers": [0.7, 1.1, 0.9, 1.2, 0.6],
    },
    "granitemoehybrid": {**_GRANITE, "num_local_experts": 0},
    "granitemoehybrid_moe": {
        **_GRANITE, "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 46,
    },
    "nemotron_h": {**_NEMOTRON, "hybrid_override_pattern": "M-M*-M*-"},
    "nemotron_h_moe": {
        **_NEMOTRON, "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "mlp", "attention"],
        "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 46,
        "moe_shared_expert_intermediate_size": 38, "routed_scaling_factor": 1.3, "n_group": 4, "topk_group": 2,
    },
}  # fmt: skip
CONFIGS = {kind: present({"model_type": kind, **config}) for kind, config in CONFIGS.items()}
_TEXT = {key: value for key, value in CONFIGS["gemma4_text"].items() if key != "architectures"}
CONFIGS["gemma4"] = {
    "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "tie_word_embeddings": True,
    "image_token_id": 457, "vision_config": {"model_type": "gemma4_vision"}, "audio_config": None, "text_config": _TEXT,
}  # fmt: skip


class Case(recorded.Case):
    configs = CONFIGS

    def write(self, folder: Path, shapes: Shapes | None = None) -> None:
        write_folder(folder, self.config, tensors(shapes or recorded_shapes(DATA, CASES, self)))


#: Each kind as it is, and with what is changed.
CASES: dict[str, Case] = {kind: Case(kind) for kind in CONFIGS if kind != "gemma4"} | {
    "mamba, tied": Case("mamba", {"tie_word_embeddings": True, "time_step_rank": 7, "conv_kernel": 3}),
    "mamba, biases": Case("mamba", {"use_bias": True, "use_conv_bias": False, "expand": 1}),
    "falcon_mamba, epsilon": Case("falcon_mamba", {"mixer_rms_eps": 0.3}),
    "mamba2, biases": Case("mamba2", {"use_bias": True, "n_groups": 1, "tie_word_embeddings": True}),
    "nemotron_h, biases": Case("nemotron_h", {"mlp_bias": True, "use_bias": True, "use_conv_bias": False}),
    "nemotron_h, whole blocks": Case(
        "nemotron_h", {"hidden_size": 64, "intermediate_size": 96, "mamba_head_dim": 16, "head_dim": 16}
    ),
    "nemotron_h_moe, narrow": Case("nemotron_h_moe", {
        "moe_latent_size": 34, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    "gemma4_text, plain": Case("gemma4_text", {
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False,
        "final_logit_softcapping": None, "rope_parameters": ABSENT, "attention_bias": True,
        "tie_word_embeddings": False, "layer_types": ABSENT,
    }),
    "gemma4_text, by layer": Case("gemma4_text_moe", {
        "global_head_dim": ABSENT, "num_global_key_value_heads": ABSENT,
        "per_layer_config": {"1": {"head_dim": 24, "num_key_value_heads": 3},
                             "3": {"head_dim": 24, "num_key_value_heads": 3}},
    }),
    "gemma4_text, whole blocks": Case("gemma4_text_moe", {
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "head_dim": 16,
        "global_head_dim": 32,
    }),
    "falcon_h1, biases": Case("falcon_h1", {
        "attention_bias": True, "mlp_bias": True, "projectors_bias": True, "mamba_proj_bias": True,
        "mamba_rms_norm": False, "mamba_norm_before_gate": True, "tie_word_embeddings": True,
    }),
    "falcon_h1, plain": Case("falcon_h1", {
        "mamba_d_ssm": None, "mamba_d_head": "auto", "mamba_conv_bias": False, "tie_word_embeddings": True,
        "mlp_multipliers": ABSENT, "ssm_multipliers": ABSENT, "lm_head_multiplier": 1.0, "embedding_multiplier": 1.0,
    }),
    "deepseek_v3, other scales": Case("deepseek_v3", {
        "q_lora_rank": None, "first_k_dense_replace": 0, "norm_topk_prob": False, "attention_bias": True,
        "rope_scaling": {**_LATENT_YARN, "mscale": 0.5, "mscale_all_dim": 1.2}, "num_hidden_layers": 2,
    }),
    "deepseek_v2, biases": Case("deepseek_v2", {
        "q_lora_rank": 26, "attention_bias": True, "mlp_bias": True, "rope_scaling": ABSENT, "rope_theta": 500.0,
        "tie_word_embeddings": True, "num_hidden_layers": 2,
    }),
    "deepseek_v2, groups": Case("deepseek_v2", {
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_hidden_layers": 2,
    }),
    "deepseek_v2, whole blocks": Case("deepseek_v2", {
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "qk_rope_head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }),
    "glm4_moe_lite, two dense": Case("glm4_moe_lite", {"mlp_layer_types": ["dense", "dense", "sparse"]}),
    "minicpm3, long": Case("minicpm3", {
        "original_max_position_embeddings": 48, "attention_bias": True, "tie_word_embeddings": False,
        "v_head_dim": None, "scale_depth": None, "dim_model_base": None,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.0, 3.5]},
    }),
    "granitemoehybrid, rope": Case("granitemoehybrid", {
        "position_embedding_type": "rope", "attention_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False,
        "mamba_d_head": "auto", "tie_word_embeddings": True,
    }),
    "granitemoehybrid, attention alone": Case("granitemoehybrid", {
        "position_embedding_type": "rope", "layer_types": ["full_attention"] * 5}),
    "granitemoehybrid, experts and attention": Case("granitemoehybrid_moe", {
        "layer_types": ["attention"] * 5}),
    "granitemoehybrid, whole blocks": Case("granitemoehybrid", {"shared_intermediate_size": 96, "mamba_d_state": 16}),
    "falcon_h1, whole blocks": Case("falcon_h1", {
        "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "mamba_d_ssm": 96, "mamba_d_head": 16,
    }),
    "mamba, whole blocks": Case("mamba", {"hidden_size": 64, "state_size": 16, "time_step_rank": 32}),
    "minicpm3, whole blocks": Case("minicpm3", {
        "hidden_size": 64, "intermediate_size": 96, "q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }),
    "mamba2, whole blocks": Case("mamba2", {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16}),
}  # fmt: skip


CUT = [kind for kind in CONFIGS if kind in CASES]
#: Metadata that no model can have.
ABSURD: list[Refusal] = [
    ("mamba", {"ssm.conv_kernel": 1}, "convolutions of 1 tokens"),
    ("mamba", {"ssm.state_size": 0}, "with 0 states"),
    ("mamba", {"ssm.time_step_rank": -1}, "time_step_rank = -1"),
    ("mamba", {"ssm.inner_size": 121}, "this model needs 242 x 60"),
    ("mamba2", {"ssm.time_step_rank": 7}, "in 7 heads"),
    ("mamba2", {"ssm.group_count": 4}, "and 4 groups"),
    ("deepseek_v3", {"attention.key_length_mla": 6}, "with 0 and 6 dimensions"),
    ("deepseek_v3", {"rope.scaling.yarn_log_multiplier": -1.0}, "a yarn_log_multiplier of -1.0"),
    ("gemma4_text", {"attention.shared_kv_layers": 6}, "6 of 6 layers read keys"),
    ("gemma4_text", {"attention.shared_kv_layers": 5}, "layer 2 read keys and values"),
    ("gemma4_text", {"final_logit_softcapping": -1.0}, "caps logits at -1.0"),
    ("nemotron_h_moe", {"expert_group_used_count": 5}, "in 5 of 4 groups"),
    ("nemotron_h", {"feed_forward_length": np.array([90] * 6 + [0], np.int32)}, "for each of 8 layers"),
]
#: Settings of a config.json that are not followed.
REFUSED: list[Refusal] = [
    ("mamba2", {"time_step_limit": [0.0, 0.1]}, "gives 'time_step_limit' as "),
    ("mamba2", {"num_heads": 5}, "must make up 2.0 times the 'hidden_size' 60"),
    ("mamba", {"hidden_act": "gelu"}, "gives 'hidden_act' as 'gelu'"),
    ("nemotron_h", {"hybrid_override_pattern": "MX*"}, "'hybrid_override_pattern' as 'MX[*]'"),
    ("nemotron_h", {"hybrid_override_pattern": None}, "must say what its layers are"),
    ("nemotron_h", {"mlp_hidden_act": "silu"}, "gives 'mlp_hidden_act' as 'silu'"),
    ("granitemoehybrid", {"layer_types": ["mamba"]}, "must list 5 layers"),
    ("granitemoehybrid", {"layer_types": ["slow"] * 5}, "'slow' in 'layer_types'"),
    ("granitemoehybrid", {"mamba_d_head": 8}, "make up the 128 columns"),
    ("falcon_h1", {"mamba_norm_before_gate": True}, "normalise behind the gate"),
    ("falcon_h1", {"ssm_multipliers": [1.0]}, "must list 5 numbers"),
    ("falcon_h1", {"mamba_d_head": 8}, "make up 72 columns"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "gives 'topk_method' as 'noaux_tc'"),
    ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 3}, "8 experts in 3 groups"),
    ("deepseek_v2", {"num_key_value_heads": 1}, "gives 1 'num_key_value_heads'"),
    ("deepseek_v3", {"rope_interleave": False}, "gives 'rope_interleave' as False"),
    ("deepseek_v3", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1}}, "'mscale_all_dim'"),
    ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "'mlp_layer_types' as"),
    ("gemma4_text", {"num_kv_shared_layers": 5}, "no earlier layer of each kind"),
    ("gemma4_text", {"vocab_size_per_layer_input": 9}, "'vocab_size_per_layer_input' as 9"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "'use_bidirectional_attention' as 'all'"),
    ("gemma4_text", {"rope_parameters": {"rope_theta": 5.0}}, "rope's settings by kind of layer"),
    ("gemma4_text", {"per_layer_config": {"1": {"head_dim": 8}}}, "'per_layer_config' as"),
    ("mamba", {"time_step_rank": "full"}, "'time_step_rank' as 'full'"),
]


def logits(name: str) -> np.ndarray:
    return recorded.recorded(DATA)[name][0]


def values(rng: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep logits lively: decays from a token to hundreds, routers that choose."""
    drawn = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("A_log"):
        return np.broadcast_to(np.linspace(-5, 1, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1)),
                               shape).copy() + np.float32(0.2) * drawn  # fmt: skip
    if name.endswith("e_score_correction_bias"):
        return np.float32(0.2) * drawn
    if name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
        return np.float32(0.2) * drawn + np.float32(1)
    if name.endswith(("dt_bias", ".D")):
        return drawn
    if name.endswith("bias"):
        return np.float32(0.3) * drawn
    if len(shape) == 1 or "norm" in name:
        return np.float32(0.1) * drawn + np.float32(1)
    if "embed" in name:
        return np.float32(0.3) * drawn
    return drawn * np.float32(1.5 / np.sqrt(shape[-1]))


def tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    """Random tensors of these shapes, the same everywhere."""
    rng = np.random.RandomState(1)
    return {name: values(rng, name, shape) for name, shape in sorted(shapes.items())}


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json that is one of CONFIGS, but for keys that leave the shapes alone. The text model
    of one that sees has names of its own, and layers that read others' keys have some themselves, as published."""
    of = config.get("text_config", config)
    kind = max(CONFIGS, key=lambda kind: sum(of.get(key) == value for key, value in CONFIGS[kind].items()))
    weights = tensors(unpack(recorded.recorded(DATA)[kind][1]))
    if of is not config:
        text = "model.language_model."
        weights = {name.replace("model.", text, 1): values for name, values in weights.items()}
        weights["model.vision_tower.std_bias"] = np.zeros(8, np.float32)
        weights[text + "layers.5.self_attn.k_proj.weight"] = np.zeros((48, 60), np.float32)
    write_folder(folder, config, weights)
