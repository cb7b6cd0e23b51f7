"""Settings of config.json for the tests of its tables of keys: the class of every family in transformers, keys that
published files carry, and for each key that is followed a value that changes the file.

`data/hf_config_keys.json` lists the fields and defaults of the configuration classes of transformers 5.24
(`dataclasses.fields` of each, without those of the base class).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "hf_config_keys.json").read_text()
)
CLASSES = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
    "gemma2": "Gemma2Config", "gemma3_text": "Gemma3TextConfig", "gemma3": "Gemma3Config", "bert": "BertConfig",
    "qwen3_moe": "Qwen3MoeConfig", "gpt_oss": "GptOssConfig", "qwen3_5_text": "Qwen3_5TextConfig",
    "qwen3_5": "Qwen3_5Config", "qwen3_5_moe_text": "Qwen3_5MoeTextConfig", "qwen3_5_moe": "Qwen3_5MoeConfig",
    "qwen3_next": "Qwen3NextConfig", "lfm2": "Lfm2Config", "lfm2_moe": "Lfm2MoeConfig",
    "mixtral": "MixtralConfig", "smollm3": "SmolLM3Config", "phi3": "Phi3Config", "ministral3": "Ministral3Config",
    "granite": "GraniteConfig", "granitemoe": "GraniteMoeConfig", "granitemoeshared": "GraniteMoeSharedConfig",
    "glm4": "Glm4Config", "glm4_moe": "Glm4MoeConfig", "olmo2": "Olmo2Config", "olmo3": "Olmo3Config",
    "olmoe": "OlmoeConfig", "hunyuan_v1_dense": "HunYuanDenseV1Config", "hunyuan_v1_moe": "HunYuanMoEV1Config",
    "ernie4_5": "Ernie4_5Config", "ernie4_5_moe": "Ernie4_5_MoeConfig", "exaone4": "Exaone4Config",
    "cohere": "CohereConfig", "cohere2": "Cohere2Config",
    "starcoder2": "Starcoder2Config", "phi": "PhiConfig", "gpt_neox": "GPTNeoXConfig", "gpt2": "GPT2Config",
    "stablelm": "StableLmConfig", "falcon": "FalconConfig", "bloom": "BloomConfig",
    "mamba": "MambaConfig", "falcon_mamba": "FalconMambaConfig", "mamba2": "Mamba2Config",
    "nemotron_h": "NemotronHConfig", "granitemoehybrid": "GraniteMoeHybridConfig",
    "gemma4_text": "Gemma4TextConfig", "gemma4": "Gemma4Config",
    "falcon_h1": "FalconH1Config", "deepseek_v3": "DeepseekV3Config", "deepseek_v2": "DeepseekV2Config",
    "glm4_moe_lite": "Glm4MoeLiteConfig", "minicpm3": "MiniCPM3Config",
    "roberta": "RobertaConfig", "xlm-roberta": "XLMRobertaConfig", "camembert": "CamembertConfig",
    "nomic_bert": "NomicBertConfig", "jina_embeddings_v3": "JinaEmbeddingsV3Config", "modernbert": "ModernBertConfig",
    "eurobert": "EuroBertConfig", "llama4_text": "Llama4TextConfig", "llama4": "Llama4Config",
    "gemma3n_text": "Gemma3nTextConfig", "gemma3n": "Gemma3nConfig", "qwen2_vl_text": "Qwen2VLTextConfig",
    "qwen2_vl": "Qwen2VLConfig", "qwen2_5_vl_text": "Qwen2_5_VLTextConfig", "qwen2_5_vl": "Qwen2_5_VLConfig",
    "qwen3_vl_text": "Qwen3VLTextConfig", "qwen3_vl": "Qwen3VLConfig", "qwen3_vl_moe_text": "Qwen3VLMoeTextConfig",
    "qwen3_vl_moe": "Qwen3VLMoeConfig",
}  # fmt: skip

#: Keys of published config.json files of these families, beside those that transformers' classes define today.
PUBLISHED = """_name_or_path architectures attention_bias auto_map attn_dropout_prob bf16 bos_token_id emb_dropout_prob
    eos_token_id fp16 fp32 head_dim hidden_act initializer_range is_llama_config kv_channels layer_norm_epsilon
    max_sequence_length mlp_bias model_type no_bias onnx_safe original_max_position_embeddings pad_token_id
    partial_rotary_factor quantization_config rope_interleaved rope_scaling rope_theta rotary_emb_base rotary_pct
    scale_attn_weights seq_length softmax_in_fp32 tokenizer_class torch_dtype transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_cache_kernel use_cache_quantization use_dynamic_ntk
    use_flash_attn use_logn_attn use_mrope""".split()  # noqa: SIM905

YARN = {"rope_type": "yarn", "factor": 4.0}
_EXPERTS = {"moe_every_n_layers": 2, "moe_top_k": 1, "num_experts": 5}
WINDOW = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16}

#: For each followed key, settings to stand beside it and a value that must change the layout or be refused.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "vocab_size": ({}, 1000),
    "hidden_size": ({}, 512),
    "intermediate_size": ({}, 1024),
    "num_hidden_layers": ({}, 5),
    "num_attention_heads": ({}, 8),
    "num_key_value_heads": ({}, 1),
    "head_dim": ({}, 16),
    "max_position_embeddings": ({}, 64),
    "rms_norm_eps": ({}, 0.5),
    "tie_word_embeddings": ({"tie_word_embeddings": False}, True),
    "attention_bias": ({}, True),
    "mlp_bias": ({}, True),
    "rope_parameters": ({}, YARN),
    "rope_scaling": ({}, YARN),
    "rope_theta": ({}, 77.0),
    "partial_rotary_factor": ({"rope_scaling": {"rope_type": "proportional"}}, 0.5),
    "original_max_position_embeddings": ({"rope_scaling": YARN}, 32),
    "use_sliding_window": (WINDOW, False),
    "sliding_window": (WINDOW, 8),
    "max_window_layers": (WINDOW, 0),
    "layer_types": (WINDOW, ["sliding_attention", "full_attention"]),
    "kv_channels": ({}, 32),
    "layer_norm_epsilon": ({}, 0.5),
    "seq_length": ({}, 64),
    "rotary_emb_base": ({}, 77.0),
    "use_dynamic_ntk": ({}, False),
    "use_logn_attn": ({}, False),
    "query_pre_attn_scalar": ({}, 15),
    "final_logit_softcapping": ({}, 7.0),
    "attn_logit_softcapping": ({}, 7.0),
    "rope_local_base_freq": ({}, 77.0),
    "sliding_window_pattern": ({}, 2),
    "type_vocab_size": ({}, 3),
    "layer_norm_eps": ({}, 0.5),
    "num_experts": ({}, 4),
    "num_local_experts": ({}, 4),
    "num_experts_per_tok": ({}, 3),
    "moe_intermediate_size": ({}, 30),
    "shared_expert_intermediate_size": ({}, 30),
    "norm_topk_prob": ({"norm_topk_prob": True}, False),
    "routed_scaling_factor": ({}, 2.5),
    "use_expert_bias": ({}, False),
    "num_dense_layers": ({}, 2),
    "mlp_only_layers": ({}, [1]),
    "decoder_sparse_step": ({}, 2),
    "quantization_config": ({}, {"quant_method": "gptq"}),
    "linear_conv_kernel_dim": ({}, 3),
    "linear_key_head_dim": ({}, 12),
    "linear_value_head_dim": ({}, 12),
    "linear_num_key_heads": ({}, 3),
    "linear_num_value_heads": ({}, 4),
    "full_attention_interval": ({"layer_types": None}, 3),
    "norm_eps": ({}, 0.5),
    "tie_embedding": ({}, False),
    "conv_L_cache": ({}, 5),
    "block_ff_dim": ({}, 200),
    "block_multiple_of": ({}, 64),
    "block_ffn_dim_multiplier": ({}, 3.0),
    "block_auto_adjust_ff_dim": ({}, False),
    "full_attn_idxs": ({"layer_types": None}, [1]),
    "no_rope_layers": ({}, [0] * 8),
    "no_rope_layer_interval": ({}, 3),
    "embedding_multiplier": ({}, 2.5),
    "logits_scaling": ({}, 2.5),
    "residual_multiplier": ({}, 2.5),
    "attention_multiplier": ({}, 2.5),
    "logit_scale": ({}, 2.5),
    "scale_emb": ({}, 5),
    "scale_depth": ({}, 2.5),
    "dim_model_base": ({}, 5),
    "shared_intermediate_size": ({}, 30),
    "n_shared_experts": ({}, 2),
    "n_routed_experts": ({}, 6),
    "first_k_dense_replace": ({}, 1),
    "use_qk_norm": ({"use_qk_norm": True}, False),
    "moe_topk": ({}, 3),
    "norm_epsilon": ({}, 0.5),
    "use_parallel_residual": ({"use_parallel_residual": True}, False),
    "rotary_pct": ({}, 0.2),
    "n_positions": ({}, 64),
    "n_embd": ({}, 72),
    "n_layer": ({}, 5),
    "n_head": ({}, 3),
    "n_inner": ({}, 50),
    "n_embed": ({}, 72),
    "use_qkv_bias": ({"use_qkv_bias": True}, False),
    "qk_layernorm": ({}, True),
    "num_ln_in_parallel_attn": ({"new_decoder_architecture": True, "num_kv_heads": 2}, 1),
    "num_kv_heads": ({"new_decoder_architecture": True}, 3),
    "new_decoder_architecture": ({}, True),
    "multi_query": ({}, False),
    "bias": ({}, True),
    "ffn_hidden_size": ({}, 50),
    "use_bias": ({}, True),
    "moe_k": ({}, 3),
    "moe_num_experts": ({}, 4),
    "moe_num_shared_experts": ({}, 1),
    "moe_layer_start_index": ({}, 3),
    "moe_layer_end_index": ({}, 3),
    "moe_layer_interval": ({}, 3),
    "state_size": ({}, 7),
    "expand": ({}, 3),
    "conv_kernel": ({}, 5),
    "use_conv_bias": ({"use_conv_bias": True}, False),
    "time_step_rank": ({}, 7),
    "mixer_rms_eps": ({}, 0.5),
    "num_heads": ({}, 8),
    "n_groups": ({}, 1),
    "layers_block_type": ({}, ["mamba", "attention"]),
    "hybrid_override_pattern": ({}, "M*"),
    "ssm_state_size": ({}, 7),
    "mamba_num_heads": ({}, 9),
    "mamba_head_dim": ({}, 9),
    "mamba_n_groups": ({}, 1),
    "mamba_d_conv": ({}, 5),
    "mamba_conv_bias": ({}, False),
    "moe_shared_expert_intermediate_size": ({}, 30),
    "moe_latent_size": ({}, 30),
    "position_embedding_type": ({}, "rope"),
    "mamba_n_heads": ({"mamba_d_head": "auto"}, 4),
    "mamba_d_state": ({}, 7),
    "mamba_d_head": ({}, 8),
    "mamba_expand": ({"mamba_d_head": "auto"}, 3),
    "mamba_proj_bias": ({}, True),
    "kv_lora_rank": ({}, 64),
    "q_lora_rank": ({}, 50),
    "qk_rope_head_dim": ({}, 8),
    "qk_nope_head_dim": ({}, 64),
    "v_head_dim": ({}, 96),
    "mlp_layer_types": ({}, ["dense"] * 3),
    "vocab_size_per_layer_input": ({}, 1000),
    "hidden_size_per_layer_input": ({"num_kv_shared_layers": 0}, 12),
    "attention_k_eq_v": ({}, True),
    "num_kv_shared_layers": ({}, 2),
    "enable_moe_block": ({}, True),
    "use_double_wide_mlp": ({"use_double_wide_mlp": True}, False),
    "top_k_experts": ({}, 3),
    "global_head_dim": ({}, 32),
    "num_global_key_value_heads": ({"attention_k_eq_v": True}, 3),
    "per_layer_config": ({}, {"2": {"head_dim": 16}, "5": {"head_dim": 16}}),
    "num_layers": ({}, 3),
    "padded_vocab_size": ({}, 1000),
    "layernorm_epsilon": ({}, 0.5),
    "add_bias_linear": ({}, True),
    "add_qkv_bias": ({"add_bias_linear": False, "add_qkv_bias": True}, False),
    "multi_query_attention": ({"multi_query_attention": True}, False),
    "multi_query_group_num": ({}, 3),
    "rope_ratio": ({}, 2.5),
    "projectors_bias": ({}, True),
    "mamba_d_ssm": ({"mamba_d_head": "auto"}, 36),
    "mamba_rms_norm": ({"mamba_rms_norm": True}, False),
    "mamba_norm_before_gate": ({}, True),
    **dict.fromkeys(
        (
            "lm_head_multiplier",
            "embedding_multiplier",
            "key_multiplier",
            "attention_out_multiplier",
            "attention_in_multiplier",
            "ssm_in_multiplier",
            "ssm_out_multiplier",
        ),
        ({}, 2.5),
    ),
    "mlp_multipliers": ({}, [0.5, 0.6]),
    "ssm_multipliers": ({}, [0.5] * 5),
    "n_group": ({}, 2),
    "topk_group": ({"n_group": 2}, 2),
    "topk_method": ({}, "group_limited_greedy"),
    "feed_forward_type": ({}, "geglu"),
    "use_bidirectional_attention": ({}, True),
    "max_trained_positions": ({"n_positions": 100}, 50),
    "activation_function": ({}, "relu"),
    "qkv_proj_bias": ({}, True),
    "mlp_fc1_bias": ({}, True),
    "mlp_fc2_bias": ({}, True),
    "moe_every_n_layers": ({}, 2),
    "moe_top_k": ({}, 2),
    "norm_bias": ({}, True),
    "global_rope_theta": ({}, 77.0),
    "local_rope_theta": ({}, 77.0),
    "local_attention": ({}, 8),
    "global_attn_every_n_layers": ({}, 3),
    "classifier_pooling": ({}, "cls"),
    "vision_config": ({}, {"deepstack_visual_indexes": [0, 1]}),
    "intermediate_size_mlp": ({}, 30),
    "moe_layers": ({}, [1]),
    "interleave_moe_layer_step": ({}, 1),
    "attention_chunk_size": ({}, 24),
    "attn_temperature_tuning": ({}, False),
    "floor_scale": ({}, 30),
    "attn_scale": ({}, 0.25),
    "altup_active_idx": ({}, 1),
    "altup_correct_scale": ({}, False),
    "altup_num_inputs": ({}, 3),
    "laurel_rank": ({}, 12),
    "activation_sparsity_pattern": ({}, [0.5] * 6),
    "classifier_bias": ({}, True),
}

#: Layers of Nemotron-H some of which have experts.
_MIXED = {"layers_block_type": ["mamba", "moe", "attention"]}
_TURNING = {"position_embedding_type": "rope"}

#: Such settings where a family has others.
OWN_CHANGES: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("qwen", "max_position_embeddings"): ({"seq_length": None}, 64),
    ("gpt_oss", "attention_bias"): ({}, False),
    **{
        ("granitemoehybrid", key): (_TURNING | CHANGES[key][0], CHANGES[key][1])
        for key in (
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        )
    },
    **{
        (family, key): ({"rope_scaling": None, "rope_theta": 500.0}, value)
        for family in ("deepseek_v2", "deepseek_v3")
        for key, value in (("rope_theta", 77.0), ("rope_parameters", YARN))
    },
    **{(family, "num_experts_per_tok"): ({}, 2) for family in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")},
    **{
        (family, key): ({}, value)
        for family in ("deepseek_v2", "deepseek_v3")
        for key, value in (("n_shared_experts", 1), ("first_k_dense_replace", 2))
    },
    ("glm4_moe_lite", "n_shared_experts"): ({}, 1),
    ("deepseek_v3", "topk_group"): ({}, 1),
    **{
        ("deepseek_v2", key): ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}, value)
        for key, value in (("topk_method", "greedy"), ("n_group", 2), ("topk_group", 1))
    },
    **{
        ("gemma4_text", key): (
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20},
            value,
        )
        for key, value in (("num_experts", 8), ("top_k_experts", 3), ("moe_intermediate_size", 30))
    },
    **{
        (family, key): ({}, CHANGES[key][1])
        for family in ("gemma4_text", "gemma3n_text")
        for key in ("full_attention_interval", "full_attn_idxs")
    },
    ("gemma3n_text", "hidden_size_per_layer_input"): ({}, 16),
    ("internlm2", "num_hidden_layers"): ({}, 5),
    ("chatglm", "tie_word_embeddings"): ({}, True),
    ("chatglm", "kv_channels"): ({}, 16),
    ("gemma4_text", "enable_moe_block"): ({"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20}, True),
    ("gemma4_text", "num_hidden_layers"): ({"layer_types": None, "num_kv_shared_layers": 0}, 7),
    ("gemma4_text", "rope_parameters"): ({}, {"full_attention": {"rope_theta": 77.0}}),
    ("gemma4_text", "layer_types"): ({}, ["full_attention"] * 6),
    ("gemma4_text", "tie_word_embeddings"): ({}, False),
    ("gemma4", "tie_word_embeddings"): ({}, False),
    ("falcon_h1", "mamba_expand"): ({"mamba_d_ssm": None, "mamba_d_head": "auto"}, 3),
    ("granitemoehybrid", "num_hidden_layers"): ({}, 6),
    ("granitemoehybrid", "intermediate_size"): ({"num_local_experts": 4}, 30),
    ("granitemoehybrid", "num_experts_per_tok"): ({"num_local_experts": 4}, 3),
    ("granitemoehybrid", "layer_types"): ({}, ["mamba"] * 5),
    ("granitemoehybrid", "layers_block_type"): ({"layer_types": None}, ["mamba", "attention"] * 2 + ["mamba"]),
    ("bert", "position_embedding_type"): ({}, "alibi"),
    ("nomic_bert", "num_experts"): (_EXPERTS, 4),
    ("nomic_bert", "moe_top_k"): (_EXPERTS, 2),
    ("nomic_bert", "rotary_emb_base"): ({"rope_parameters": {}}, 77.0),
    **{
        (family, "rope_theta"): ({"rope_parameters": {}}, 77.0)
        for family in ("nomic_bert", "jina_embeddings_v3", "eurobert")
    },
    **{
        ("nemotron_h", key): (_MIXED | CHANGES[key][0], CHANGES[key][1])
        for key in (
            "n_routed_experts",
            "n_shared_experts",
            "moe_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "moe_latent_size",
            "num_experts_per_tok",
            "routed_scaling_factor",
            "n_group",
            "topk_group",
            "norm_topk_prob",
        )
    },
    ("lfm2", "num_hidden_layers"): ({}, 6),
    ("llama4_text", "num_hidden_layers"): ({}, 6),
    ("llama4_text", "rope_parameters"): ({}, {"rope_type": "linear", "factor": 4.0}),
    ("llama4_text", "layer_types"): ({}, ["full_attention"] * 5),
    ("llama4_text", "no_rope_layers"): ({}, [1] * 5),
    ("gemma3n_text", "num_hidden_layers"): (
        {"layer_types": None, "num_kv_shared_layers": 0, "activation_sparsity_pattern": None, "intermediate_size": 90},
        7,
    ),
    ("gemma3n_text", "rope_parameters"): ({}, {"full_attention": {"rope_theta": 77.0}}),
    ("gemma3n_text", "layer_types"): ({"num_kv_shared_layers": 0}, ["full_attention"] * 6),
    ("gemma3n_text", "tie_word_embeddings"): ({}, False),
    ("gemma3n", "tie_word_embeddings"): ({}, False),
    ("gemma3n_text", "hidden_size"): ({}, 96),
    ("gemma3n_text", "vocab_size_per_layer_input"): ({}, 200),
    **{
        (f"{kind}_text", "rope_theta"): ({"rope_parameters": {}}, 77.0)
        for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    },
    **{("gemma3n_text", key): ({"rope_parameters": None}, 77.0) for key in ("rope_theta", "rope_local_base_freq")},
    ("mixtral", "num_local_experts"): ({}, 3),
    ("olmoe", "num_experts_per_tok"): ({}, 2),
    ("starcoder2", "use_bias"): ({}, False),
    ("gpt_neox", "attention_bias"): ({}, False),
    **{(family, "partial_rotary_factor"): ({}, 1.0) for family in ("phi", "stablelm")},
    ("ministral3", "rope_theta"): ({"rope_parameters": {}}, 77.0),
    **{
        (family, key): ({}, value)
        for family in ("glm4", "glm4_moe")
        for key, value in (
            ("partial_rotary_factor", 1.0),
            ("head_dim", 12),
            ("attention_bias", False),
            ("num_experts_per_tok", 2),
        )
    },
    **{(family, "sliding_window_pattern"): ({"layer_types": None}, 2) for family in ("exaone4", "cohere2")},
    **{
        (family, key): ({"rope_parameters": {}}, value)
        for family in ("qwen3_5_text", "qwen3_5_moe_text")
        for key, value in (("rope_theta", 77.0), ("partial_rotary_factor", 0.5))
    },
    ("gemma2", "layer_types"): ({}, ["full_attention"] * 4),
    ("gemma3_text", "layer_types"): ({}, ["full_attention"] * 12),
    ("gemma3_text", "rope_parameters"): ({}, {"full_attention": {"rope_theta": 77.0}}),
    **{
        (family, key): ({}, value)
        for family in ("gemma2", "gemma3_text", "gemma3", "bert")
        for key, value in (("hidden_size", 66), ("num_attention_heads", 2), ("tie_word_embeddings", False))
    },
    **{
        (family, "tie_word_embeddings"): ({}, value)
        for family, value in (("qwen3_5", True), ("qwen3_5_moe", True), ("lfm2", False), ("lfm2_moe", False))
    },
}
