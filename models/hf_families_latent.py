"""More families of checkpoints, as in `ggpy.models.hf_families`: models of latent attention.

Sources: the configuration classes of transformers 5.24 and the code that reads them; keys that only the code that comes
with published models reads must have the one value which that code shares with transformers.
"""

from __future__ import annotations

from typing import Any

from ggpy.models.hf_family import UNREAD, Family, without

_LATENT: dict[str, Any] = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False, "rope_parameters": None,
    "rope_scaling": None, "rope_theta": 10000.0, "original_max_position_embeddings": None,
}  # fmt: skip
_V3 = {
    **_LATENT, "moe_intermediate_size": 2048, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "norm_topk_prob": True,
}  # fmt: skip
_V2 = {
    **without(_V3, "norm_topk_prob"), "n_group": None, "topk_group": None, "topk_method": "greedy",
    "vocab_size": 102400, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
    "max_position_embeddings": 2048, "mlp_bias": False, "first_k_dense_replace": 0, "n_routed_experts": 64,
    "n_shared_experts": 2, "routed_scaling_factor": 1.0, "num_experts_per_tok": None, "moe_intermediate_size": 1407,
}  # fmt: skip
_GLM_LITE = {
    **without(_V3, "first_k_dense_replace"), "vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240,
    "moe_intermediate_size": 1536, "num_hidden_layers": 47, "num_attention_heads": 20, "num_key_value_heads": 20,
    "n_routed_experts": 64, "routed_scaling_factor": 1.8, "q_lora_rank": 768, "v_head_dim": 256,
    "qk_nope_head_dim": 192, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4,
    "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "mlp_layer_types": None,
}  # fmt: skip
_MINICPM3 = {
    **_LATENT, "vocab_size": 73448, "hidden_size": 2560, "intermediate_size": 6400, "num_hidden_layers": 62,
    "num_attention_heads": 40, "num_key_value_heads": 40, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "mlp_bias": False, "kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": None, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256,
}  # fmt: skip

_FURTHER = dict.fromkeys(
    ("num_nextn_predict_layers", "num_mtp_layers"), "layers that predict further tokens: they are left out"
)
_BESIDE = {
    **_FURTHER,
    **dict.fromkeys(("aux_loss_alpha", "seq_aux"), "training alone"),
    **dict.fromkeys(("ep_size",), "how the original is run, not what it computes"),
    **dict.fromkeys(("head_dim", "qk_head_dim", "partial_rotary_factor"), UNREAD),
}
_BY_SIGMOID = {
    "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None), "moe_layer_freq": (1, None),
    "rope_interleave": (True, None), "num_experts": (None,),
}  # fmt: skip

#: By the config's "model_type".
LATENT: dict[str, Family] = {
    "deepseek_v3": Family(("DeepseekV3ForCausalLM", "DeepseekV3Model"), _V3, _BY_SIGMOID, _BESIDE),
    "deepseek_v2": Family(
        ("DeepseekV2ForCausalLM", "DeepseekV2Model"),
        _V2,
        {
            "scoring_func": ("softmax", None),
            "moe_layer_freq": (1, None),
            "norm_topk_prob": (False, None),
        },
        _BESIDE,
    ),
    "glm4_moe_lite": Family(
        ("Glm4MoeLiteForCausalLM", "Glm4MoeLiteModel"),
        _GLM_LITE,
        _BY_SIGMOID,
        {**_BESIDE, "first_k_dense_replace": UNREAD},
    ),
    "minicpm3": Family(
        ("MiniCPM3ForCausalLM", "MiniCPM3Model"),
        _MINICPM3,
        {"num_experts": (0, None)},
        dict.fromkeys(("head_dim", "qk_head_dim", "partial_rotary_factor"), UNREAD),
    ),
}
