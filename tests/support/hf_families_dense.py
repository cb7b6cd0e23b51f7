"""Tiny checkpoints of the decoders that vary Llama's, whose logits transformers has computed.

`tests/data/hf_families_dense.npz` is as `tests.support.recorded` says. MiniCPM, which transformers lacks, is its
Granite with the factors that MiniCPM's own code computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support import recorded
from tests.support.recorded import ABSENT, Refusal, Shapes, present, recorded_shapes, unpack, write_folder

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(96)]  # longer than every window
POSITIONS = [1, 15, 16, 40, 60, 95]
COLUMNS = range(0, 461, 24)
DATA = Path(__file__).parents[1] / "data" / "hf_families_dense.npz"

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "intermediate_size": 90, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 500.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float32",
    "bos_token_id": 456, "eos_token_id": 458, "pad_token_id": 456,
}  # fmt: skip
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LONG = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 3.5, 5.0],
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
}  # fmt: skip

#: Each family's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {
        **_SHARED, "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "smollm3": {
        **_SHARED, "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 8, "tie_word_embeddings": True,
    },
    "phi3": {
        **_SHARED, "architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 256, "sliding_window": 15,
    },
    "ministral3": {
        **_SHARED, "architectures": ["Ministral3ForCausalLM"], "head_dim": 14, "rope_parameters": _YARN,
        "rope_theta": ABSENT, "sliding_window": None,
    },
    "granite": {
        **_SHARED, "architectures": ["GraniteForCausalLM"], "embedding_multiplier": 3.0, "logits_scaling": 1.7,
        "residual_multiplier": 0.6, "attention_multiplier": 0.4, "attention_bias": False, "mlp_bias": False,
    },
    "granitemoe": {
        **_SHARED, "architectures": ["GraniteMoeForCausalLM"], "embedding_multiplier": 3.0, "logits_scaling": 1.7,
        "residual_multiplier": 0.6, "attention_multiplier": 0.4, "attention_bias": False, "num_local_experts": 6,
        "num_experts_per_tok": 2, "intermediate_size": 46,
    },
    "granitemoeshared": {
        **_SHARED, "architectures": ["GraniteMoeSharedForCausalLM"], "embedding_multiplier": 3.0,
        "logits_scaling": 1.7, "residual_multiplier": 0.6, "attention_multiplier": 0.4, "attention_bias": False,
        "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 46, "shared_intermediate_size": 38,
    },
    "minicpm": {
        **_SHARED, "architectures": ["MiniCPMForCausalLM"], "scale_emb": 3, "scale_depth": 1.2, "dim_model_base": 36,
    },
    "glm4": {**_SHARED, "architectures": ["Glm4ForCausalLM"], "head_dim": 16, "attention_bias": True,
             "partial_rotary_factor": 0.5},
    "glm4_moe": {
        **_SHARED, "architectures": ["Glm4MoeForCausalLM"], "head_dim": 16, "attention_bias": True,
        "partial_rotary_factor": 0.5, "moe_intermediate_size": 46, "num_experts_per_tok": 3, "n_shared_experts": 1,
        "n_routed_experts": 8, "routed_scaling_factor": 1.3, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 2, "norm_topk_prob": True, "use_qk_norm": True, "num_nextn_predict_layers": 1,
    },
    "olmo2": {**_SHARED, "architectures": ["Olmo2ForCausalLM"], "attention_bias": False},
    "olmo3": {
        **_SHARED, "architectures": ["Olmo3ForCausalLM"], "num_hidden_layers": 8, "sliding_window": 15,
        "attention_bias": False, "rope_theta": 500000.0,
        "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL] * 2,
    },
    "olmoe": {
        **_SHARED, "architectures": ["OlmoeForCausalLM"], "num_key_value_heads": 6, "intermediate_size": 46,
        "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False, "attention_bias": False, "clip_qkv": None,
    },
    "hunyuan_v1_dense": {
        **_SHARED, "architectures": ["HunYuanDenseV1ForCausalLM"], "head_dim": 14, "attention_bias": False,
        "use_qk_norm": True, "use_cla": False,
    },
    "hunyuan_v1_moe": {
        **_SHARED, "architectures": ["HunYuanMoEV1ForCausalLM"], "head_dim": 14, "attention_bias": False,
        "intermediate_size": 46, "num_experts": 6, "moe_topk": 2, "use_qk_norm": True,
    },
    "ernie4_5": {**_SHARED, "architectures": ["Ernie4_5ForCausalLM"], "head_dim": 14, "use_bias": False},
    "ernie4_5_moe": {
        **_SHARED, "architectures": ["Ernie4_5_MoeForCausalLM"], "use_bias": False, "moe_intermediate_size": 46,
        "moe_k": 2, "moe_num_experts": 6, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_end_index": 5, "moe_layer_interval": 2, "num_hidden_layers": 6,
    },
    "exaone4": {
        **_SHARED, "architectures": ["Exaone4ForCausalLM"], "head_dim": 14, "num_hidden_layers": 8,
        "sliding_window": 15, "sliding_window_pattern": 4, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL] * 2,
    },
    "cohere": {
        **_SHARED, "architectures": ["CohereForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5,
        "logit_scale": 0.7, "use_qk_norm": False, "tie_word_embeddings": True, "attention_bias": False,
    },
    "cohere2": {
        **_SHARED, "architectures": ["Cohere2ForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5,
        "logit_scale": 0.7, "tie_word_embeddings": True, "attention_bias": False, "num_hidden_layers": 8,
        "sliding_window": 15, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL] * 2,
        "position_embedding_type": "rope_gptj", "rotary_pct": 1.0,
    },
    "starcoder2": {
        **_SHARED, "architectures": ["Starcoder2ForCausalLM"], "rms_norm_eps": ABSENT, "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh", "use_bias": True, "tie_word_embeddings": True, "sliding_window": None,
    },
    "phi": {
        **_SHARED, "architectures": ["PhiForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new", "partial_rotary_factor": 0.4,
    },
    "gpt_neox": {
        **_SHARED, "architectures": ["GPTNeoXForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu", "rotary_pct": 0.4, "rope_theta": ABSENT, "rotary_emb_base": 500,
        "use_parallel_residual": True, "attention_bias": True, "num_key_value_heads": ABSENT,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "vocab_size": 461, "n_positions": 4096, "n_ctx": 4096, "n_embd": 60,
        "n_layer": 4, "n_head": 6, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "bos_token_id": 456, "eos_token_id": 458, "n_inner": None,
    },
    "stablelm": {
        **_SHARED, "architectures": ["StableLmForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.4, "use_qkv_bias": True, "qk_layernorm": False, "use_parallel_residual": False,
    },
    "falcon": {
        **_SHARED, "architectures": ["FalconForCausalLM"], "rms_norm_eps": ABSENT, "layer_norm_epsilon": 1e-5,
        "hidden_act": ABSENT, "intermediate_size": ABSENT, "num_key_value_heads": ABSENT, "activation": "gelu",
        "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "bias": False, "alibi": False,
        "tie_word_embeddings": True,
    },
    "bloom": {
        "architectures": ["BloomForCausalLM"], "vocab_size": 461, "hidden_size": 60, "n_layer": 4, "n_head": 6,
        "layer_norm_epsilon": 1e-5, "seq_length": 256, "bos_token_id": 456, "eos_token_id": 458, "pad_token_id": 456,
    },
}  # fmt: skip
CONFIGS = {kind: {"model_type": kind, **present(config)} for kind, config in CONFIGS.items()}


class Case(recorded.Case):
    configs = CONFIGS

    def write(self, folder: Path, shapes: Shapes | None = None) -> None:
        write_folder(folder, self.config, tensors(shapes or recorded_shapes(DATA, CASES, self)))


#: Each kind as it is, and with what is changed.
CASES: dict[str, Case] = {kind: Case(kind) for kind in CONFIGS} | {
    "mixtral, window": Case("mixtral", {"sliding_window": 15, "head_dim": 14}),
    "smollm3, other layers": Case("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0, 0, 1, 1], "attention_bias": True}),
    "smollm3, windows": Case(
        "smollm3", {"use_sliding_window": True, "sliding_window": 15, "no_rope_layer_interval": 3, "mlp_bias": True}
    ),
    "phi3, long": Case("phi3", {
        "original_max_position_embeddings": 48, "rope_scaling": {**_LONG}, "sliding_window": None,
        "partial_rotary_factor": 0.8,
    }),
    "phi3, short": Case("phi3", {
        "original_max_position_embeddings": 128, "sliding_window": None,
        "rope_scaling": {**_LONG, "type": "su", "original_max_position_embeddings": 128},
        "partial_rotary_factor": 0.8, "tie_word_embeddings": True,
    }),
    "ministral3, other scales": Case("ministral3", {
        "rope_parameters": {**_YARN, "mscale": 0.8, "llama_4_scaling_beta": 0.0}, "sliding_window": 15}),
    "granite, biases": Case("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "glm4, whole rope": Case("glm4", {"partial_rotary_factor": 1.0, "attention_bias": False}),
    "glm4_moe, plain": Case("glm4_moe", {
        "use_qk_norm": False, "norm_topk_prob": False, "attention_bias": False, "n_shared_experts": 2,
        "first_k_dense_replace": 0,
    }),
    "glm4_moe, groups": Case("glm4_moe", {"n_group": 4, "topk_group": 2}),
    "olmo2, biases": Case("olmo2", {"attention_bias": True}),
    "olmo3, yarn": Case("olmo3", {
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}}),
    "olmo3, other layers": Case("olmo3", {
        "layer_types": [_FULL, _SLIDING] * 4, "rope_theta": ABSENT,
        "rope_parameters": {_FULL: {"rope_type": "default", "rope_theta": 300.0},
                            _SLIDING: {"rope_type": "default", "rope_theta": 70.0}},
    }),
    "olmoe, normalised": Case("olmoe", {"norm_topk_prob": True}),
    "hunyuan_v1_dense, alpha": Case("hunyuan_v1_dense", {
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}, "attention_bias": True}),
    "hunyuan_v1_moe, alpha": Case("hunyuan_v1_moe", {
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}, "tie_word_embeddings": True}),
    "ernie4_5, biases": Case("ernie4_5", {"use_bias": True, "tie_word_embeddings": True}),
    "ernie4_5_moe, every layer": Case("ernie4_5_moe", {
        "moe_layer_interval": 1, "moe_layer_end_index": -1, "moe_num_shared_experts": 0, "num_hidden_layers": 4}),
    "exaone4, no windows": Case("exaone4", {"sliding_window": None, "layer_types": [_FULL] * 8, "head_dim": ABSENT}),
    "exaone4, other layers": Case("exaone4", {"layer_types": [_FULL, _SLIDING] * 4}),
    "cohere, normalised heads": Case("cohere", {"use_qk_norm": True, "attention_bias": True}),
    "starcoder2, window": Case("starcoder2", {"sliding_window": 15, "use_bias": False, "tie_word_embeddings": False}),
    "phi, groups": Case("phi", {"num_key_value_heads": 3}),
    "gpt_neox, one after the other": Case("gpt_neox", {
        "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
    "gpt2, another width": Case("gpt2", {"n_inner": 90}),
    "stablelm, side by side": Case("stablelm", {
        "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": False}),
    "falcon, groups": Case("falcon", {
        "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 90}),
    "falcon, one norm": Case("falcon", {
        "new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1}),
    "falcon, all heads": Case("falcon", {"multi_query": False, "tie_word_embeddings": False}),
    "bloom, more heads": Case("bloom", {"n_head": 10}),
    "cohere2, other layers": Case("cohere2", {"layer_types": [_FULL, _SLIDING] * 4}),
}  # fmt: skip


#: Those whose layers differ most from what others have tests for.
CUT = ("smollm3", "phi3, long", "granitemoeshared", "olmo3", "hunyuan_v1_moe", "cohere2")
#: Metadata that no model can have.
ABSURD: list[Refusal] = [
    ("smollm3", {"attention.rope_pattern": np.array([True])}, "says of 1 layers whether they have rope"),
    ("granite", {"logit_scale": -1.0}, "'granite.logit_scale' as -1.0"),
    ("ministral3", {"rope.scaling.yarn_log_multiplier": -1.0}, "a yarn_log_multiplier of -1.0"),
    ("ministral3", {"attention.temperature_scale": -1.0}, "queries grow by -1.0"),
    ("phi3", {"rope.scaling.type": "longrope"}, "has no tensors 'rope_factors_short.weight'"),
    ("phi3, long", {"rope.dimension_count": 6}, "'rope_factors_short.weight' has 4 entries"),
    ("glm4_moe", {"nextn_predict_layers": 4}, "4 of 4 blocks"),
]
#: Settings of a config.json that are not followed.
REFUSED: list[Refusal] = [
    ("smollm3", {"no_rope_layers": [1]}, "'no_rope_layers' as"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'short_factor' as"),
    ("glm4_moe", {"topk_group": 2}, "'topk_group' as 2"),
    ("glm4_moe", {"n_group": 3}, "8 experts in 3 groups"),
    ("olmoe", {"clip_qkv": 8.0}, "gives 'clip_qkv' as 8.0"),
    ("olmo3", {"rope_parameters": {"rope_theta": 5.0}}, "rope's settings by kind of layer"),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "scales rope of sliding layers"),
    ("hunyuan_v1_moe", {"moe_topk": [1, 2, 1, 1]}, "'moe_topk' as"),
    ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": 1e300}}, "'alpha' as"),
    ("cohere2", {"use_parallel_block": False}, "gives 'use_parallel_block' as False"),
]


def logits(name: str) -> np.ndarray:
    return recorded.recorded(DATA)[name][0]


def values(rng: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep logits lively."""
    drawn = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("e_score_correction_bias"):
        return np.float32(0.2) * drawn
    if name.endswith("bias"):
        return np.float32(0.3) * drawn
    if len(shape) == 1 or "norm" in name or name.endswith(("ln_1.weight", "ln_2.weight")):
        return np.float32(0.1) * drawn + np.float32(1)
    if "embed" in name or "wte" in name or "wpe" in name:
        return np.float32(0.3) * drawn
    return drawn * np.float32(1.5 / np.sqrt(shape[-1]))


def tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    """Random tensors of these shapes, the same everywhere."""
    rng = np.random.RandomState(1)
    return {name: values(rng, name, shape) for name, shape in sorted(shapes.items())}


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json that is one of CONFIGS, but for keys that leave the shapes alone."""
    write_folder(folder, config, tensors(unpack(recorded.recorded(DATA)[config["model_type"]][1])))


def reference(config: dict[str, Any]) -> dict[str, Any]:
    """The config that transformers is given."""
    if config["model_type"] != "minicpm":
        return config
    n_layer, n_embd, heads = (config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    return {
        **config, "architectures": ["GraniteForCausalLM"], "model_type": "granite",
        "embedding_multiplier": float(config["scale_emb"]), "residual_multiplier": config["scale_depth"] / n_layer**0.5,
        "logits_scaling": n_embd / config["dim_model_base"], "attention_multiplier": (n_embd // heads) ** -0.5,
    }  # fmt: skip
