"""The tables of keys of config.json and generation_config.json are whole, true to transformers, and say what happens.

`data/hf_config_keys.json` lists the fields and defaults of the configuration classes of transformers 5.24
(`dataclasses.fields` of each, without those of the base class).
"""

from __future__ import annotations

import json
import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import FOLLOWED, NOTED, SAMPLING, sampling_metadata
from ggpy.convert.generation_defaults import IGNORED as IGNORED_GENERATION
from ggpy.convert.writer import encode_header
from ggpy.errors import GGPYError
from ggpy.models import by_gguf_name, by_hf_name
from ggpy.models.hf_config import Config
from ggpy.models.hf_families import FAMILIES, Family
from ggpy.models.hf_families_encoders import ENCODERS
from ggpy.models.hf_keys import IGNORED, REFUSED, known_config
from tests.support.families import CONFIGS
from tests.support.tiny import tiny_checkpoint

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "hf_config_keys.json").read_text()
)
SAMPLED = {name for name, *_ in SAMPLING}
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

_YARN = {"rope_type": "yarn", "factor": 4.0}
_EXPERTS = {"moe_every_n_layers": 2, "moe_top_k": 1, "num_experts": 5}
_WINDOW = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16}

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
    "rope_parameters": ({}, _YARN),
    "rope_scaling": ({}, _YARN),
    "rope_theta": ({}, 77.0),
    "partial_rotary_factor": ({"rope_scaling": {"rope_type": "proportional"}}, 0.5),
    "original_max_position_embeddings": ({"rope_scaling": _YARN}, 32),
    "use_sliding_window": (_WINDOW, False),
    "sliding_window": (_WINDOW, 8),
    "max_window_layers": (_WINDOW, 0),
    "layer_types": (_WINDOW, ["sliding_attention", "full_attention"]),
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
        for key, value in (("rope_theta", 77.0), ("rope_parameters", _YARN))
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


#: Names of settings in the code that comes with Nomic's models.
_NOMICS_OWN = (
    "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "layer_norm_epsilon", "rotary_emb_base",
    "max_trained_positions", "activation_function", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias",
    "moe_every_n_layers", "num_experts", "moe_top_k",
)  # fmt: skip


def outcome(kind: str, settings: dict[str, Any]) -> tuple[str, list[str]]:
    """All of the layout that a config leads to, as a text, and the notes on its keys."""
    model_class, config, notes = known_config(Config(settings))
    layout = by_hf_name(model_class, config).hf_layout(config)
    generated = {name: values.tolist() for name, values in layout.generated.items()}
    return repr((layout.metadata, layout.tensors, layout.tied, layout.notes, generated)), notes


@pytest.mark.parametrize("family", CLASSES)
def test_the_table_holds_every_key_of_transformers(family: str) -> None:
    followed, own = FAMILIES[family].followed, FAMILIES[family].ignored.keys() | FAMILIES[family].permitted.keys()
    fields = RECORDED[CLASSES[family]]
    for key, default in fields.items():
        inside = FAMILIES[family].text and key == "text_config"
        assert key in followed or key in own or key in IGNORED or key in REFUSED or inside, key
        if key in followed:
            assert followed[key] == default, key
    # What is followed and no field: read by the base class, or by the model's code where the config has it.
    assert set(followed) - set(fields) <= {
        "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", "head_dim", "layer_types",
        *(("rope_theta", "rope_local_base_freq", "sliding_window_pattern") if family == "gemma3_text" else ()),
        *(("rope_theta", "rope_local_base_freq") if family == "gemma3n_text" else ()),
        *(("full_attention_interval",) if family.startswith(("qwen3_5", "qwen3_next")) else ()),
        *(("tie_embedding", "block_ff_dim") if family.startswith("lfm2") else ()),
        *(("num_local_experts",) if family in ("qwen3_moe", "qwen3_vl_moe_text") else ()),
        *(("quantization_config",) if family == "gpt_oss" else ()),
        *(("sliding_window_pattern",) if family == "cohere2" else ()),
        *(("rotary_emb_base", "rotary_pct") if family == "gpt_neox" else ()),
        *(("n_embed", "seq_length") if family == "bloom" else ()),
        *(("intermediate_size",) if family in ("mamba", "falcon_mamba") else ()),
        *(("hybrid_override_pattern", "mamba_n_groups", "mamba_d_conv", "mamba_conv_bias")
          if family == "nemotron_h" else ()),
        *(("layers_block_type",) if family == "granitemoehybrid" else ()),
        *(("position_embedding_type", "feed_forward_type") if family == "bert" else ()),
        *(_NOMICS_OWN if family == "nomic_bert" else ()),
        *(("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers") if family == "modernbert" else ()),
        *(("global_head_dim", "num_global_key_value_heads", "per_layer_config") if family == "gemma4_text" else ()),
    }  # fmt: skip
    assert set(RECORDED["PreTrainedConfig"]) <= IGNORED.keys() | REFUSED.keys()


def test_the_table_holds_what_published_files_carry() -> None:
    followed = {key for family in FAMILIES.values() for key in family.followed}
    assert [key for key in PUBLISHED if key not in followed | IGNORED.keys() | REFUSED.keys()] == []
    for kind, config in CONFIGS.items():
        assert outcome(kind, config)[1] == [], kind


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"sliding_window_size": 4096, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
        ("gemma3_text", {"_sliding_window_pattern": 6, "use_bidirectional_attention": False, "dtype": "bfloat16"}),
        ("gemma3", {"transformers_version": "4.50.0.dev0", "initializer_range": 0.02}),
        ("bert", {"id2label": {"0": "LABEL_0"}, "gradient_checkpointing": False, "classifier_dropout": None,
                  "directionality": "bidi", "pooler_type": "first_token_transform", "_name_or_path": "x"}),
    ],
)  # fmt: skip
def test_published_keys_of_a_family_change_nothing(family: str, settings: dict[str, Any]) -> None:
    assert outcome(family, {**CONFIGS[family], **settings}) == outcome(family, CONFIGS[family])
    assert outcome(family, {**CONFIGS[family], **settings})[1] == []


def test_no_key_stands_twice() -> None:
    """A family may follow what others refuse, and permit values of its own; what it follows is not ignored."""
    assert not IGNORED.keys() & REFUSED.keys()
    for family in FAMILIES.values():
        assert not family.followed.keys() & (IGNORED.keys() | family.permitted.keys() | family.ignored.keys())
        assert not family.permitted.keys() & family.ignored.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_followed_keys_change_the_file(family: str) -> None:
    for key in FAMILIES[family].followed:
        beside, value = OWN_CHANGES.get((family, key), CHANGES[key])
        base = {**CONFIGS[family], **{k: v for k, v in beside.items() if k in FAMILIES[family].followed}}
        before, _ = outcome(family, base)
        try:
            after, _ = outcome(family, {**base, key: value})
        except GGPYError:
            continue
        assert before != after, key


@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_keys_change_nothing(family: str) -> None:
    before = outcome(family, CONFIGS[family])
    elsewhere = {"architectures", "model_type", "auto_map", *FAMILIES[family].permitted}
    if family in ENCODERS:  # read beside the tables: where RoBERTa's positions begin, a classifier's labels
        elsewhere |= {"pad_token_id", "num_labels", "id2label"}
    ignored = (IGNORED.keys() | FAMILIES[family].ignored.keys()) - elsewhere
    assert outcome(family, {**CONFIGS[family], **dict.fromkeys(ignored, 7)}) == before
    others = {key for other in FAMILIES if other != "qwen" for key in FAMILIES[other].followed} - REFUSED.keys()
    own = FAMILIES[family].followed.keys() | FAMILIES[family].permitted.keys()
    for key in others - own - elsewhere if family != "qwen" else ():
        beside, value = OWN_CHANGES.get((family, key), CHANGES[key])
        beside = {k: v for k, v in beside.items() if (family, k) != ("modernbert", "rope_scaling")}  # which it refuses
        assert outcome(family, {**CONFIGS[family], **beside, key: value}) == outcome(
            family, {**CONFIGS[family], **beside}
        )


@pytest.mark.parametrize("key", REFUSED)
def test_refused_keys_are_named(key: str) -> None:
    before = outcome("llama", CONFIGS["llama"])
    for neutral in REFUSED[key]:
        assert outcome("llama", {**CONFIGS["llama"], key: neutral}) == before
    for value in ("other", 0.123, not REFUSED[key][0], 0 if key == "is_causal" else 2):
        with pytest.raises(GGPYError, match=f"gives '{key}' as "):
            outcome("llama", {**CONFIGS["llama"], key: value})


def test_unknown_keys_are_named() -> None:
    config = {**CONFIGS["llama"], "attention_magic": 1, **{f"key{i}": i for i in range(20)}}
    (note,) = outcome("llama", config)[1]
    assert "keys that ggpy does not know" in note
    assert "'attention_magic', 'key0'" in note
    assert note.endswith(" and 13 more.")
    assert "rope_theta" in outcome("qwen", {**CONFIGS["qwen"], "rope_theta": 5.0})[1][0]  # its code reads another


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "'longrope'"),
        ({"rope_scaling": {"type": "mrope"}}, "'mrope'"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
        ({"partial_rotary_factor": 1.5}, "'partial_rotary_factor' as 1.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope for 'full_attention' alone"),
        ({"rope_scaling": {**_YARN, "truncate": "no"}}, "'truncate' as 'no'"),
        ({"rope_scaling": _YARN, "rope_theta": 1.0}, "'rope_theta' as 1.0"),
        ({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}}, "the greater"),
        ({"layer_types": ["full_attention"]}, "must list 2 layers"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' in 'layer_types'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no window for them"),
        ({"use_sliding_window": 1}, "must be true or false"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0}, "'sliding_window' as 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        outcome("qwen2", {**CONFIGS["qwen2"], **settings})


def test_what_is_not_followed_is_noted() -> None:
    def notes(kind: str, **settings: Any) -> str:
        return outcome(kind, {**CONFIGS[kind], **settings})[0]

    assert "does not read: rope turns whole heads" in notes("llama", partial_rotary_factor=0.5)
    assert "'dynamic' has no place in GGUF" in notes("llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "the first is followed" in notes("llama", rope_scaling=_YARN, rope_parameters={"rope_theta": 5.0})
    assert "they play no part: 'swing'" in notes("llama", rope_scaling={**_YARN, "swing": 1})
    assert "beyond 512 tokens" in notes("qwen")
    assert "beyond" not in notes("qwen", use_logn_attn=False, use_dynamic_ntk=False)


def test_settings_of_a_model_of_more_than_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text model's settings stand inside; what is followed beside them is not read there."""
    seeing = Family(
        ("LlamaForConditionalGeneration",), {"tie_word_embeddings": True}, ignored={"vision_config": ""}, text="llama",
        permitted={"hidden_act": ("gelu",)},
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "seeing", seeing)
    inside = {key: value for key, value in CONFIGS["llama"].items() if key not in ("architectures", "rope_theta")}
    config = {"model_type": "seeing", "vision_config": {"x": 1}, "text_config": inside, "hidden_act": "gelu"}
    name, settings, notes = known_config(Config(config))
    assert (name, notes) == ("LlamaForConditionalGeneration", [])
    assert settings.flag("tie_word_embeddings", default=False)  # beside the text model's own false
    assert settings.integer("hidden_size") == 256
    assert settings.number("rope_theta") == 10000.0
    with pytest.raises(GGPYError, match="'text_config' gives 'hidden_act' as 'gelu'"):
        known_config(Config({**config, "text_config": {**inside, "hidden_act": "gelu"}}))
    with pytest.raises(GGPYError, match="gives 'hidden_act' as 'silu'"):
        known_config(Config({**config, "hidden_act": "silu"}))
    with pytest.raises(GGPYError, match=r"'model_type' as 'mistral'; ggpy converts a .* text model is a 'llama'"):
        known_config(Config({**config, "text_config": {**inside, "model_type": "mistral"}}))
    assert "'odd'" in known_config(Config({**config, "text_config": {**inside, "odd": 1}}))[2][0]


def test_what_may_be_another_model_is_noted() -> None:
    assert (
        "'smollama', which ggpy does not know" in outcome("llama", {**CONFIGS["llama"], "model_type": "smollama"})[1][0]
    )
    own = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    assert "code of the folder" in outcome("qwen2", {**CONFIGS["qwen2"], "auto_map": own})[1][0]
    assert outcome("qwen", {**CONFIGS["qwen"], "auto_map": own})[1] == []  # transformers has no code for it


def test_the_model_type_goes_before_the_class() -> None:
    """The order of transformers' AutoModel: a Mistral whose config names Llama's class has Mistral's window."""
    config = {**CONFIGS["llama"], "model_type": "mistral"}
    layout, notes = outcome("mistral", config)
    assert "'llama.attention.sliding_window': 4096" in layout
    assert "'LlamaForCausalLM' as the class, but 'mistral' as 'model_type'" in notes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_absurd_values_end_in_a_sentence(family: str) -> None:
    """Absurd values of every followed setting, rope's inner ones included: a layout that a reader takes, or a
    GGPYError."""
    absurd: list[Any] = [
        True, False, -1, 0, 3, 10**400, -(10**400), 1e300, 1e-300, math.inf, math.nan, "x", "", [], {}, [1], [[]],
        {"a": {}}, {"rope_type": []}, ["sliding_attention"] * 2,
    ]  # fmt: skip
    inner = (
        "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "low_freq_factor", "high_freq_factor", "mscale", "truncate", "partial_rotary_factor", "rope_type",
    )  # fmt: skip
    settings = [{key: value} for key in FAMILIES[family].followed for value in absurd]
    for kind in ("yarn", "llama3", "linear", "proportional"):
        rope = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1, "high_freq_factor": 4, "mscale_all_dim": 1}
        settings += [{"rope_scaling": {**rope, key: value}} for key in inner for value in absurd]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for changes in settings:
            with suppress(GGPYError):
                model_class, config, _ = known_config(Config({**CONFIGS[family], **_WINDOW, **changes}))
                layout = by_hf_name(model_class, config).hf_layout(config)
                by_gguf_name(layout.arch)(layout.metadata, layout.n_vocab).check(*layout.rope_factors)
                encode_header(layout.metadata, [])


# generation_config.json


def generation(tmp_path: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with Checkpoint(tmp_path) as checkpoint:
        return sampling_metadata(checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, "smollm2")


def test_the_table_holds_every_key_of_generation(folder: Path) -> None:
    """Every field of transformers' GenerationConfig; at its default none changes the file or is noted."""
    defaults = RECORDED["GenerationConfig"]
    for key in defaults:
        assert key in SAMPLED or key in FOLLOWED or key in IGNORED_GENERATION or key in NOTED, key
    assert not (SAMPLED & NOTED.keys()) | (FOLLOWED & NOTED.keys()) | (IGNORED_GENERATION & NOTED.keys())
    unsampled = {key: value for key, value in defaults.items() if key not in SAMPLED | {"do_sample"}}
    assert generation(folder, unsampled) == ({}, [])
    published = {"_from_model_config": True, "transformers_version": "4.38", "chat_format": "chatml"}
    assert generation(folder, {**published, "max_window_size": 6144}) == ({}, [])


@pytest.mark.parametrize("key", NOTED)
def test_generation_that_gguf_cannot_say_is_noted(folder: Path, key: str) -> None:
    for value in NOTED[key]:
        assert generation(folder, {key: value}) == ({}, [])
    result, (note,) = generation(folder, {key: 3})
    assert result == {}
    assert f"no keys for, so readers will not do it: {key} 3." in note


def test_sampling_defaults(folder: Path) -> None:
    prefix = "general.sampling."
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25}
    expected = {"temp": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25}
    assert generation(folder, settings) == ({prefix + key: value for key, value in expected.items()}, [])
    # transformers penalizes the whole text, prompt included
    result, _ = generation(folder, {"do_sample": True, "repetition_penalty": 1.5})
    assert result == {prefix + "penalty_repeat": 1.5, prefix + "penalty_last_n": -1}
    assert generation(folder, {"do_sample": True, "repetition_penalty": 1.0})[0] == {prefix + "penalty_repeat": 1.0}
    # without sampling a temperature plays no part
    assert generation(folder, {"do_sample": False, "temperature": 0.5})[0] == {prefix + "temp": 0.0}
    result, (note,) = generation(folder, {"temperature": 0.5})
    assert result == {prefix + "temp": 0.5}
    assert "not 'do_sample'" in note
    result, notes = generation(folder, {"do_sample": True, "top_p": 7, "spin": 1})
    assert result == {}
    assert "'top_p' as 7, which makes no sense" in notes[0]
    assert "does not know; they play no part: 'spin'" in notes[1]
