"""The families of checkpoints that are converted: their model classes in transformers, and the keys of config.json that
their layouts are made from, each with what an absent key means.

Sources: the configuration classes of transformers 5.24 and the code that reads them, its 4th version's where published
files still carry the keys, and for the first Qwen the code that comes with the models.
"""

from __future__ import annotations

from typing import Any

from ggpy.models.hf_families_dense import DENSE
from ggpy.models.hf_families_encoders import ENCODERS
from ggpy.models.hf_families_hybrid import HYBRID
from ggpy.models.hf_families_latent import LATENT
from ggpy.models.hf_families_multimodal import MULTIMODAL
from ggpy.models.hf_family import UNREAD, Family

# Sizes have defaults as well: transformers writes them out, but files that people edit leave some away.
_LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "rope_parameters": None, "rope_scaling": None, "rope_theta": 10000.0, "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}  # fmt: skip
_WITHOUT_BIAS = {key: value for key, value in _LLAMA.items() if not key.endswith("_bias")}
_MISTRAL = {
    **_WITHOUT_BIAS, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "sliding_window": 4096, "layer_types": None,
}  # fmt: skip
_QWEN2 = {
    **_WITHOUT_BIAS, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": None,
}  # fmt: skip
_QWEN = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "kv_channels": 128, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 8192,
    "seq_length": None, "rotary_emb_base": 10000.0, "use_dynamic_ntk": True, "use_logn_attn": True,
    "tie_word_embeddings": False,
}  # fmt: skip

_GEMMA2 = {
    **{key: value for key, value in _LLAMA.items() if key != "mlp_bias"},
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
_GEMMA3 = {
    **{key: value for key, value in _GEMMA2.items() if key not in ("attn_logit_softcapping", "rope_theta")},
    "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None, "rope_theta": None,
    "rope_local_base_freq": None, "sliding_window_pattern": 6, "use_bidirectional_attention": False,
}  # fmt: skip
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new")
_GEMMA4 = {
    **{key: value for key, value in _GEMMA2.items() if key not in (
        "attn_logit_softcapping", "query_pre_attn_scalar", "rope_theta", "rope_scaling", "partial_rotary_factor",
        "original_max_position_embeddings",
    )},
    "vocab_size": 262144, "num_hidden_layers": 30, "max_position_embeddings": 131072, "sliding_window": 512,
    "final_logit_softcapping": None, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False, "num_kv_shared_layers": 0, "enable_moe_block": False, "use_double_wide_mlp": False,
    "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None, "global_head_dim": 512,
    "per_layer_config": None, "num_global_key_value_heads": None,
}  # fmt: skip
_NOT_READ = dict.fromkeys(
    ("hidden_act", "sliding_window_size", "_sliding_window_pattern"),
    "Gemma's code reads 'hidden_activation', 'sliding_window' and 'layer_types'",
)
# What all with experts or hybrid layers define in their own way.
_QWEN3_MOE = {
    **{key: value for key, value in _QWEN2.items() if key not in ("max_window_layers", "layer_types")},
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
    "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": None, "moe_intermediate_size": 768,
    "num_experts_per_tok": 8, "num_experts": 128, "num_local_experts": None, "norm_topk_prob": False,
}  # fmt: skip
_GPT_OSS = {
    **_WITHOUT_BIAS, "num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "sliding_window": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_experts_per_tok": 4,
    "layer_types": None, "attention_bias": True, "rope_theta": 150000.0, "quantization_config": None,
}  # fmt: skip
_DELTA_NET = {
    **_WITHOUT_BIAS, "max_position_embeddings": 32768, "partial_rotary_factor": 0.25, "head_dim": 256,
    "num_attention_heads": 16, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "layer_types": None, "full_attention_interval": 4,
    "attention_bias": False,
}  # fmt: skip
_QWEN35 = {
    **_DELTA_NET, "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}  # fmt: skip
_QWEN35_MOE = {
    **{key: value for key, value in _DELTA_NET.items() if key != "intermediate_size"}, "vocab_size": 248320,
    "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip
_QWEN3_NEXT = {
    **_DELTA_NET, "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
    "num_key_value_heads": 2, "decoder_sparse_step": 1, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512, "norm_topk_prob": True,
    "mlp_only_layers": None,
}  # fmt: skip
_LIQUID = {
    **{key: value for key, value in _WITHOUT_BIAS.items() if key != "rms_norm_eps"}, "vocab_size": 65536,
    "num_key_value_heads": 8, "max_position_embeddings": 128000, "norm_eps": 1e-5, "tie_word_embeddings": True,
    "tie_embedding": None, "conv_L_cache": 3, "layer_types": None, "rope_theta": 1e6,
}  # fmt: skip
_LFM2 = {
    **_LIQUID, "hidden_size": 2560, "intermediate_size": 12288, "block_ff_dim": None, "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "full_attn_idxs": None,
}  # fmt: skip
_LFM2_MOE = {
    **_LIQUID, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_dense_layers": 2,
    "num_experts_per_tok": 4, "num_experts": 32, "use_expert_bias": True, "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}  # fmt: skip
_LIQUID_BESIDE = (
    "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
    "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "use_pos_enc",
)  # fmt: skip
_GATED = {"attn_output_gate": (True, None)}
_PICTURES = dict.fromkeys(
    ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    "pictures, which are not read",
)
_FURTHER_TOKENS = dict.fromkeys(
    ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
    "layers that predict further tokens: the tensors say which there are",
) | {"mamba_ssm_dtype": "how the original is run"}

#: By the config's "model_type".
FAMILIES: dict[str, Family] = {
    "llama": Family(("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"), _LLAMA),
    "mistral": Family(("MistralForCausalLM", "MistralModel"), _MISTRAL),
    "qwen": Family(("QWenLMHeadModel", "QWenModel"), _QWEN),
    "qwen2": Family(("Qwen2ForCausalLM", "Qwen2Model"), _QWEN2),
    "qwen3": Family(
        ("Qwen3ForCausalLM", "Qwen3Model", "Qwen3ForSequenceClassification"),
        {**_QWEN2, "head_dim": 128, "attention_bias": False},
    ),
    "gemma2": Family(("Gemma2ForCausalLM", "Gemma2Model"), _GEMMA2, {"hidden_activation": _GELU_TANH}, _NOT_READ),
    "gemma3_text": Family(
        ("Gemma3ForCausalLM", "Gemma3TextModel"),
        _GEMMA3,
        {"hidden_activation": _GELU_TANH},
        {**_NOT_READ, "attn_logit_softcapping": "Gemma 3's code does not read it"},
    ),
    "gemma3": Family(
        ("Gemma3ForConditionalGeneration", "Gemma3Model"),
        {"tie_word_embeddings": True},
        ignored=dict.fromkeys(
            ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
            "images, which are not read",
        ),
        text="gemma3_text",
    ),
    "gemma4_text": Family(
        ("Gemma4ForCausalLM", "Gemma4TextModel"),
        _GEMMA4,
        {"hidden_activation": _GELU_TANH, "use_bidirectional_attention": (None, False, "vision")},
        dict.fromkeys(
            ("hidden_act", "rope_theta", "rope_scaling", "partial_rotary_factor", "sliding_window_pattern"),
            "Gemma's code reads 'hidden_activation', 'rope_parameters' and 'layer_types'",
        ),
    ),
    "gemma4": Family(
        ("Gemma4ForConditionalGeneration", "Gemma4Model"),
        {"tie_word_embeddings": True},
        ignored=dict.fromkeys(
            (
                "vision_config",
                "audio_config",
                "vision_soft_tokens_per_image",
                "boi_token_id",
                "eoi_token_id",
                "image_token_id",
                "video_token_id",
                "boa_token_id",
                "eoa_token_id",
                "eoa_token_index",
                "audio_token_id",
            ),
            "images and sound, which are not read",
        ),
        text="gemma4_text",
    ),
    "qwen3_moe": Family(("Qwen3MoeForCausalLM", "Qwen3MoeModel"), _QWEN3_MOE),
    "gpt_oss": Family(
        ("GptOssForCausalLM", "GptOssModel"),
        _GPT_OSS,
        ignored={"experts_per_token": UNREAD, "initial_context_length": UNREAD},
    ),
    "qwen3_5_text": Family(
        ("Qwen3_5ForCausalLM", "Qwen3_5TextModel"), _QWEN35, _GATED, {**_FURTHER_TOKENS, "mlp_only_layers": UNREAD}
    ),
    "qwen3_5": Family(
        ("Qwen3_5ForConditionalGeneration", "Qwen3_5Model"),
        {"tie_word_embeddings": False},
        ignored=_PICTURES,
        text="qwen3_5_text",
    ),
    "qwen3_5_moe_text": Family(
        ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextModel"),
        _QWEN35_MOE,
        _GATED,
        {**_FURTHER_TOKENS, **dict.fromkeys(("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob"), UNREAD)},
    ),
    "qwen3_5_moe": Family(
        ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeModel"),
        {"tie_word_embeddings": False},
        ignored=_PICTURES,
        text="qwen3_5_moe_text",
    ),
    "qwen3_next": Family(("Qwen3NextForCausalLM", "Qwen3NextModel"), _QWEN3_NEXT),
    "lfm2": Family(
        ("Lfm2ForCausalLM", "Lfm2Model"),
        _LFM2,
        ignored=dict.fromkeys(_LIQUID_BESIDE, UNREAD),
    ),
    "lfm2_moe": Family(("Lfm2MoeForCausalLM", "Lfm2MoeModel"), _LFM2_MOE),
    **DENSE,
    **HYBRID,
    **LATENT,
    **MULTIMODAL,
    **ENCODERS,
}
