"""More families of checkpoints, as in `ggpy.models.hf_families`: state-space models and their hybrids with attention.

Sources: the configuration classes of transformers 5.24 and the code that reads them.
"""

from __future__ import annotations

import math
from typing import Any

from ggpy.models.hf_family import UNREAD, Family, without

_MAMBA: dict[str, Any] = {
    "vocab_size": 50280, "hidden_size": 768, "intermediate_size": None, "state_size": 16, "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5, "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
    "time_step_rank": "auto", "tie_word_embeddings": True,
}  # fmt: skip
_FALCON_MAMBA = {**_MAMBA, "mixer_rms_eps": 1e-6}
_MAMBA2 = {
    **without(_MAMBA, "intermediate_size", "time_step_rank"), "num_heads": 128, "head_dim": 64, "vocab_size": 32768,
    "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64, "n_groups": 8, "tie_word_embeddings": False,
}  # fmt: skip
_NEMOTRON_H: dict[str, Any] = {
    "vocab_size": 131072, "hidden_size": 4096, "layers_block_type": None, "layer_types": None,
    "hybrid_override_pattern": None, "tie_word_embeddings": False, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 4096, "intermediate_size": 21504, "mlp_bias": False,
    "ssm_state_size": 128, "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "mamba_n_groups": None,
    "conv_kernel": 4, "mamba_d_conv": None, "use_conv_bias": True, "mamba_conv_bias": None, "use_bias": False,
    "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688, "moe_latent_size": None, "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
_GRANITE_HYBRID: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_parameters": None, "rope_scaling": None,
    "rope_theta": 10000.0, "partial_rotary_factor": None, "original_max_position_embeddings": None,
    "attention_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024,
    "position_embedding_type": None, "layer_types": None, "layers_block_type": None, "mamba_n_heads": 128,
    "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip
_FALCON_H1: dict[str, Any] = {
    "vocab_size": 128000, "tie_word_embeddings": False, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_parameters": None, "rope_scaling": None,
    "rope_theta": 10000.0, "partial_rotary_factor": None, "original_max_position_embeddings": None,
    "attention_bias": False, "mlp_bias": False, "projectors_bias": False, "mamba_d_ssm": 1024, "mamba_n_heads": 128,
    "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_norm_before_gate": True,
    "lm_head_multiplier": 1.0, "embedding_multiplier": 1.0, "mlp_multipliers": None, "key_multiplier": 1.0,
    "attention_out_multiplier": 1.0, "attention_in_multiplier": 1.0, "ssm_multipliers": None, "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
}  # fmt: skip

#: Keys beside a state-space layer's sizes.
_BESIDE = {
    **dict.fromkeys(
        (
            "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor",
            "rescale_prenorm_residual",
        ),
        "training alone",
    ),
    **dict.fromkeys(
        ("residual_in_fp32", "use_mambapy", "use_falcon_mambapy", "use_associative_scan", "chunk_size"),
        "how the original is run, not what it computes",
    ),
    **dict.fromkeys(
        ("d_model", "d_inner", "fused_add_norm", "pad_vocab_size_multiple", "rms_norm", "ssm_cfg"), UNREAD
    ),
}  # fmt: skip
#: No limit of the time step, as JSON and as transformers writes it.
UNLIMITED: tuple[Any, ...] = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}], None)

#: By the config's "model_type".
HYBRID: dict[str, Family] = {
    "mamba": Family(("MambaForCausalLM", "MambaModel"), _MAMBA, ignored=_BESIDE),
    "falcon_mamba": Family(("FalconMambaForCausalLM", "FalconMambaModel"), _FALCON_MAMBA, ignored=_BESIDE),
    "mamba2": Family(
        ("Mamba2ForCausalLM", "Mamba2Model"),
        _MAMBA2,
        {"time_step_limit": UNLIMITED},
        {**_BESIDE, "time_step_rank": UNREAD},
    ),
    "granitemoehybrid": Family(
        ("GraniteMoeHybridForCausalLM", "GraniteMoeHybridModel"),
        _GRANITE_HYBRID,
        {"time_step_limit": UNLIMITED},
        {
            "mamba_chunk_size": "how the original is run, not what it computes",
            **dict.fromkeys(("init_method", "normalization_function"), UNREAD),
        },
    ),
    "falcon_h1": Family(
        ("FalconH1ForCausalLM", "FalconH1Model"),
        _FALCON_H1,
        {"time_step_limit": UNLIMITED},
        {
            **dict.fromkeys(
                ("mamba_chunk_size", "num_logits_to_keep"), "how the original is run, not what it computes"
            ),
            **dict.fromkeys(
                (
                    "mamba_use_mlp",
                    "mlp_expansion_factor",
                    "attn_layer_indices",
                    "time_step_min",
                    "time_step_max",
                    "time_step_floor",
                    "time_step_rank",
                ),
                UNREAD,
            ),
        },
    ),
    "nemotron_h": Family(
        ("NemotronHForCausalLM", "NemotronHModel"),
        _NEMOTRON_H,
        {
            "time_step_limit": UNLIMITED,
            "mamba_dt_limit": UNLIMITED,
            "mlp_hidden_act": ("relu2",),
            "mamba_hidden_act": ("silu", "swish", None),
        },
        {
            **_BESIDE,
            **dict.fromkeys(("mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor"), "training alone"),
            **dict.fromkeys(
                (
                    "mamba_chunk_size",
                    "use_mamba_kernels",
                    "mamba_ssm_cache_dtype",
                    "num_logits_to_keep",
                    "moe_shared_expert_overlap",
                ),
                "how the original is run, not what it computes",
            ),
            **dict.fromkeys(
                ("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"),
                "layers that predict further tokens: they are left out",
            ),
            **dict.fromkeys(
                (
                    "num_hidden_layers",
                    "attention_bias",
                    "sliding_window",
                    "attention_head_dim",
                    "expand",
                    "mamba_expand",
                    "mamba_proj_bias",
                    "moe_shared_expert_overlap",
                ),
                UNREAD,
            ),
        },
    ),
}
