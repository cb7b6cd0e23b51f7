"""More families of checkpoints, as in `ggpy.models.hf_families`: the text models of Llama 4, Gemma 3n and
Qwen-VL, which see and hear.

Sources: the configuration classes of transformers 5.24 and the code that reads them.
"""

from __future__ import annotations

from typing import Any

from ggpy.models.hf_family import UNREAD, Family

_LLAMA4: dict[str, Any] = {
    "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False,
    "num_experts_per_tok": 1, "num_local_experts": 16, "moe_layers": None, "interleave_moe_layer_step": 1,
    "use_qk_norm": True, "no_rope_layers": None, "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
    "layer_types": None, "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1,
    "rope_parameters": None, "rope_scaling": None, "rope_theta": 500000.0, "original_max_position_embeddings": None,
}  # fmt: skip

_GEMMA3N: dict[str, Any] = {
    "vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False, "sliding_window": 512,
    "layer_types": None, "final_logit_softcapping": 30.0, "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256, "altup_active_idx": 0, "altup_correct_scale": True, "altup_num_inputs": 4,
    "num_kv_shared_layers": 15, "laurel_rank": 64, "activation_sparsity_pattern": None, "rope_parameters": None,
    "rope_scaling": None, "rope_theta": None, "rope_local_base_freq": None, "original_max_position_embeddings": None,
}  # fmt: skip

_QWEN2_VL: dict[str, Any] = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "tie_word_embeddings": False, "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 80,
    "layer_types": None, "rope_parameters": None, "rope_scaling": None, "rope_theta": 1000000.0,
    "original_max_position_embeddings": None,
}  # fmt: skip
_QWEN3_VL: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "tie_word_embeddings": False, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
    "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "attention_bias": False, "rope_parameters": None,
    "rope_scaling": None, "rope_theta": 500000.0, "original_max_position_embeddings": None,
}  # fmt: skip
_QWEN3_VL_MOE: dict[str, Any] = {
    **_QWEN3_VL, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": None, "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
    "tie_word_embeddings": True, "num_experts_per_tok": 4, "num_experts": 60, "num_local_experts": None,
    "mlp_only_layers": None,
}  # fmt: skip
_QWEN_PICTURES = dict.fromkeys(
    ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    "pictures, which are not read",
)

#: By the config's "model_type".
MULTIMODAL: dict[str, Family] = {
    "llama4_text": Family(
        ("Llama4ForCausalLM", "Llama4TextModel"),
        _LLAMA4,
        ignored={"router_jitter_noise": "training alone", "for_llm_compressor": UNREAD},
    ),
    "llama4": Family(
        ("Llama4ForConditionalGeneration", "Llama4Model"),
        {"tie_word_embeddings": False},
        ignored=dict.fromkeys(
            ("vision_config", "boi_token_index", "eoi_token_index", "image_token_index"), "images, which are not read"
        ),
        text="llama4_text",
    ),
    "gemma3n_text": Family(
        ("Gemma3nForCausalLM", "Gemma3nTextModel"),
        _GEMMA3N,
        {"hidden_activation": ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new")},
        {"altup_coef_clip": "training alone", "hidden_act": "Gemma's code reads 'hidden_activation'"},
    ),
    "gemma3n": Family(
        ("Gemma3nForConditionalGeneration", "Gemma3nModel"),
        {"tie_word_embeddings": True},
        ignored=dict.fromkeys(
            (
                "vision_config",
                "audio_config",
                "audio_soft_tokens_per_image",
                "vision_soft_tokens_per_image",
                "boi_token_id",
                "eoi_token_id",
                "image_token_id",
                "boa_token_id",
                "eoa_token_id",
                "audio_token_id",
            ),
            "images and sound, which are not read",
        ),
        text="gemma3n_text",
    ),
    **{
        f"{kind}_text": Family((f"{name}TextModel",), followed, {"norm_topk_prob": (True, None)})
        for kind, name, followed in (
            ("qwen2_vl", "Qwen2VL", _QWEN2_VL),
            ("qwen2_5_vl", "Qwen2_5_VL", _QWEN2_VL),
            ("qwen3_vl", "Qwen3VL", _QWEN3_VL),
            ("qwen3_vl_moe", "Qwen3VLMoe", _QWEN3_VL_MOE),
        )
    },
    **{
        kind: Family(
            (f"{name}ForConditionalGeneration", f"{name}Model"),
            {"tie_word_embeddings": False, **({"vision_config": None} if deep else {})},
            ignored=_QWEN_PICTURES | ({} if deep else {"vision_config": "pictures, which are not read"}),
            text=f"{kind}_text",
            either=() if deep else ("tie_word_embeddings",),
        )
        for kind, name, deep in (
            ("qwen2_vl", "Qwen2VL", False),
            ("qwen2_5_vl", "Qwen2_5_VL", False),
            ("qwen3_vl", "Qwen3VL", True),
            ("qwen3_vl_moe", "Qwen3VLMoe", True),
        )
    },
}
