"""More families of checkpoints, as in `ggpy.models.hf_families`: the decoders that vary Llama's, their mixtures, and
older ones with LayerNorm and biases.

Sources: the configuration classes of transformers 5.24 and the code that reads them; for MiniCPM, which it lacks, the
code that comes with the models.
"""

from __future__ import annotations

from typing import Any

from ggpy.models.hf_family import UNREAD, Family, without

# Sizes have defaults as well: transformers writes them out, but files that people edit leave some away.
_BASE: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_parameters": None, "rope_scaling": None,
    "rope_theta": 10000.0, "partial_rotary_factor": None, "original_max_position_embeddings": None,
}  # fmt: skip
_SMOLLM3 = {
    **_BASE, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": None,
    "no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None, "attention_bias": False,
    "mlp_bias": False, "tie_word_embeddings": True, "rope_theta": 2000000.0,
}  # fmt: skip
_PHI3 = {
    **_BASE, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None,
}  # fmt: skip
_MINISTRAL3 = {
    **_BASE, "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "sliding_window": None,
}  # fmt: skip
_GRANITE = {
    **_BASE, "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
    "residual_multiplier": 1.0, "attention_multiplier": 1.0,
}  # fmt: skip
_GRANITEMOE = {**without(_GRANITE, "mlp_bias"), "num_local_experts": 8, "num_experts_per_tok": 2}
_MINICPM = {
    **_BASE, "attention_bias": False, "scale_emb": 1, "dim_model_base": 1, "scale_depth": 1,
    "tie_word_embeddings": True,
}  # fmt: skip
_GLM4 = {
    **_BASE, "vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2,
    "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 0.00000015625, "attention_bias": True,
    "partial_rotary_factor": 0.5,
}  # fmt: skip
_GLM4_MOE = {
    **_BASE, "vocab_size": 151552, "intermediate_size": 10944, "num_hidden_layers": 46, "num_attention_heads": 96,
    "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "attention_bias": False, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "n_routed_experts": 128, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "use_qk_norm": False, "partial_rotary_factor": 0.5, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_OLMO2 = {**_BASE, "vocab_size": 50304, "rms_norm_eps": 1e-5, "attention_bias": False}
_OLMO3 = {**_OLMO2, "sliding_window": 4096, "layer_types": None, "rope_theta": 500000.0}
_OLMOE = {
    **_OLMO2, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
    "max_position_embeddings": 4096, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False,
}  # fmt: skip
_HUNYUAN = {**_BASE, "vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False, "head_dim": None}
_ERNIE = {
    **_BASE, "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
    "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "use_bias": False, "rope_theta": 500000.0, "head_dim": 128,
}  # fmt: skip
_ERNIE_MOE = {
    **_ERNIE, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28, "num_attention_heads": 20,
    "num_key_value_heads": 4, "head_dim": None, "moe_intermediate_size": 1536, "moe_k": 6, "moe_num_experts": 64,
    "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1,
}  # fmt: skip
_EXAONE4 = {
    **_BASE, "vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
    "head_dim": None, "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None,
}  # fmt: skip
_COHERE = {
    **without(_BASE, "rms_norm_eps"), "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528,
    "num_hidden_layers": 40, "num_attention_heads": 64, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True, "attention_bias": False, "use_qk_norm": False, "logit_scale": 0.0625,
    "rope_theta": 500000.0,
}  # fmt: skip
_COHERE2 = {
    **without(_COHERE, "use_qk_norm"), "sliding_window": 4096, "sliding_window_pattern": None, "layer_types": None,
    "rope_theta": 10000.0,
}  # fmt: skip
_MIXTRAL = {
    **_BASE, "intermediate_size": 14336, "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "sliding_window": None, "num_experts_per_tok": 2, "num_local_experts": 8,
    "rope_theta": 1000000.0,
}  # fmt: skip

_STARCODER2 = {
    **without(_BASE, "rms_norm_eps"), "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288,
    "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5, "sliding_window": None, "use_bias": True, "tie_word_embeddings": True,
}  # fmt: skip
_PHI = {
    **without(_BASE, "rms_norm_eps"), "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
}  # fmt: skip
_GPT_NEOX = {
    **without(_BASE, "rms_norm_eps", "num_key_value_heads", "rope_theta", "partial_rotary_factor"),
    "vocab_size": 50432, "hidden_size": 6144,
    "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576, "layer_norm_eps": 1e-5,
    "use_parallel_residual": True, "attention_bias": True, "rotary_emb_base": 10000.0,
    "rotary_pct": 0.25,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
_STABLELM = {
    **without(_BASE, "rms_norm_eps"), "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "use_qkv_bias": False,
    "qk_layernorm": False, "use_parallel_residual": False, "partial_rotary_factor": 0.25,
}  # fmt: skip
_FALCON = {
    **without(_BASE, "rms_norm_eps", "num_key_value_heads", "intermediate_size"), "vocab_size": 65024,
    "hidden_size": 4544, "num_attention_heads": 71, "num_ln_in_parallel_attn": None, "layer_norm_epsilon": 1e-5,
    "num_kv_heads": None, "new_decoder_architecture": False, "multi_query": True, "bias": False,
    "ffn_hidden_size": None, "tie_word_embeddings": True,
}  # fmt: skip
_BLOOM = {
    "vocab_size": 250880, "hidden_size": 64, "n_embed": None, "n_layer": 2, "n_head": 8, "layer_norm_epsilon": 1e-5,
    "seq_length": 2048, "tie_word_embeddings": True,
}  # fmt: skip

_INTERNLM2 = {**_BASE, "vocab_size": 103168, "bias": True}
_BAICHUAN = {
    **without(_BASE, "num_key_value_heads", "partial_rotary_factor"), "vocab_size": 125696,
    "max_position_embeddings": None,
}  # fmt: skip
_CHATGLM = {
    "num_layers": 28, "padded_vocab_size": 65024, "hidden_size": 4096, "ffn_hidden_size": 13696, "kv_channels": 128,
    "num_attention_heads": 32, "seq_length": 2048, "layernorm_epsilon": 1e-5, "add_bias_linear": False,
    "add_qkv_bias": False, "multi_query_attention": False, "multi_query_group_num": 1, "rope_ratio": 1.0,
    "tie_word_embeddings": False,
}  # fmt: skip

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh")
_DROPOUT = dict.fromkeys(("residual_dropout", "embedding_dropout"), "training alone")
_SUMMARY = dict.fromkeys(
    ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    "a head that is left out",
)
_SHARED_UNREAD = ("num_shared_expert", "moe_intermediate_size", "use_mixed_mlp_moe", "moe_layer_num_skipped")
_BLOCK = {
    "position_embedding_type": ("rope", "rope_gptj", None), "use_parallel_block": (True, None),
    "use_gated_activation": (True, None), "use_parallel_embedding": (False, None), "rotary_pct": (1.0, 1, None),
}  # fmt: skip
_BESIDE_BLOCK = dict.fromkeys(("use_embedding_sharing", "layer_switch", "order_of_interleaved_layers"), UNREAD)
_FURTHER = dict.fromkeys(
    ("num_nextn_predict_layers", "num_mtp_layers"),
    "layers that predict further tokens: the tensors say which there are",
)

#: By the config's "model_type".
DENSE: dict[str, Family] = {
    "mixtral": Family(
        ("MixtralForCausalLM", "MixtralModel"), _MIXTRAL, ignored={"router_jitter_noise": "training alone"}
    ),
    "smollm3": Family(("SmolLM3ForCausalLM", "SmolLM3Model"), _SMOLLM3, ignored={"max_window_layers": UNREAD}),
    "phi3": Family(("Phi3ForCausalLM", "Phi3Model"), _PHI3),
    "ministral3": Family(("Ministral3ForCausalLM", "Ministral3Model"), _MINISTRAL3),
    "granite": Family(("GraniteForCausalLM", "GraniteModel"), _GRANITE),
    "granitemoe": Family(("GraniteMoeForCausalLM", "GraniteMoeModel"), _GRANITEMOE),
    "granitemoeshared": Family(
        ("GraniteMoeSharedForCausalLM", "GraniteMoeSharedModel"), {**_GRANITEMOE, "shared_intermediate_size": 0}
    ),
    "minicpm": Family(("MiniCPMForCausalLM", "MiniCPMModel"), _MINICPM, {"num_experts": (0, None)}),
    "glm4": Family(("Glm4ForCausalLM", "Glm4Model"), _GLM4),
    "glm4_moe": Family(("Glm4MoeForCausalLM", "Glm4MoeModel"), _GLM4_MOE, ignored=_FURTHER),
    "olmo2": Family(("Olmo2ForCausalLM", "Olmo2Model"), _OLMO2),
    "olmo3": Family(("Olmo3ForCausalLM", "Olmo3Model"), _OLMO3),
    "olmoe": Family(("OlmoeForCausalLM", "OlmoeModel"), _OLMOE),
    "hunyuan_v1_dense": Family(
        ("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Model"),
        _HUNYUAN,
        {"use_qk_norm": (True, None), "use_cla": (False, None)},
        {"eod_token_id": "special tokens: read with the tokenizer"},
    ),
    "hunyuan_v1_moe": Family(
        ("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Model"),
        {**_HUNYUAN, "num_experts": 1, "moe_topk": 1},
        {"use_qk_norm": (True, None), "use_cla": (False, None)},
        {"eod_token_id": "special tokens: read with the tokenizer", **dict.fromkeys(_SHARED_UNREAD, UNREAD)},
    ),
    "ernie4_5": Family(("Ernie4_5ForCausalLM", "Ernie4_5Model"), _ERNIE),
    "ernie4_5_moe": Family(
        ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeModel"),
        _ERNIE_MOE,
        {"moe_norm_min": (1e-12, None)},
        dict.fromkeys(("moe_use_aux_free", "moe_capacity", "moe_gate", "num_nextn_predict_layers"), UNREAD),
    ),
    "exaone4": Family(("Exaone4ForCausalLM", "Exaone4Model"), _EXAONE4),
    "cohere": Family(("CohereForCausalLM", "CohereModel"), _COHERE, _BLOCK, _BESIDE_BLOCK),
    "cohere2": Family(("Cohere2ForCausalLM", "Cohere2Model"), _COHERE2, _BLOCK, _BESIDE_BLOCK),
    "starcoder2": Family(
        ("Starcoder2ForCausalLM", "Starcoder2Model"),
        _STARCODER2,
        {"hidden_act": _TANH},
        {**_DROPOUT, **dict.fromkeys(("activation_function", "mlp_type", "norm_type"), UNREAD)},
    ),
    "phi": Family(("PhiForCausalLM", "PhiModel"), _PHI, {"hidden_act": _TANH}),
    "gpt_neox": Family(
        ("GPTNeoXForCausalLM", "GPTNeoXModel"),
        _GPT_NEOX,
        {"hidden_act": ("gelu", "gelu_python")},
        {"classifier_dropout": "a head that is left out", "rope_theta": UNREAD, "partial_rotary_factor": UNREAD},
    ),
    "gpt2": Family(
        ("GPT2LMHeadModel", "GPT2Model"),
        _GPT2,
        {"activation_function": _TANH, "reorder_and_upcast_attn": (False, True, None)},
        {**_SUMMARY, "n_ctx": UNREAD},
    ),
    "stablelm": Family(
        ("StableLmForCausalLM", "StableLMEpochForCausalLM", "StableLmModel"),
        _STABLELM,
        ignored=dict.fromkeys(("norm_eps", "rope_pct"), UNREAD),
    ),
    "internlm2": Family(("InternLM2ForCausalLM", "InternLM2Model"), _INTERNLM2),
    "baichuan": Family(
        ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
        _BAICHUAN,
        ignored=dict.fromkeys(("z_loss_weight", "_from_model_config"), "training alone"),
    ),
    "chatglm": Family(
        ("ChatGLMForConditionalGeneration", "ChatGLMModel"),
        _CHATGLM,
        {
            "rmsnorm": (True, None),
            "post_layer_norm": (True, None),
            "apply_residual_connection_post_layernorm": (False, None),
            "original_rope": (True, None),
            "pre_seq_len": (None,),
            "quantization_bit": (0, None),
        },
        dict.fromkeys(
            (
                "apply_query_key_layer_scaling",
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "fp32_residual_connection",
                "prefix_projection",
                "interleaved_qkv",
            ),
            "how the original is run, not what it computes",
        )
        | dict.fromkeys(("classifier_dropout", "num_hidden_layers", "vocab_size"), UNREAD),
    ),
    "falcon": Family(
        ("FalconForCausalLM", "FalconModel"),
        _FALCON,
        {"activation": ("gelu", None), "parallel_attn": (True,)},
        {"apply_residual_connection_post_layernorm": UNREAD},
    ),
    "bloom": Family(
        ("BloomForCausalLM", "BloomModel"),
        _BLOOM,
        {"apply_residual_connection_post_layernorm": (False, None)},
        dict.fromkeys(
            (
                "slow_but_exact",
                "skip_bias_add",
                "skip_bias_add_qkv",
                "masked_softmax_fusion",
                "bias_dropout_fusion",
                "attention_softmax_in_fp32",
                "offset_alibi",
            ),
            "how the original is run, not what it computes",
        ),
    ),
}
