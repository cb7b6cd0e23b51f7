"""More families of checkpoints, as in `ggpy.models.hf_families`: encoders that embed texts or rank them.

Sources: the configuration classes of transformers 5.24 and the code that reads them; for Nomic's and Jina's, the code
that comes with the models.
"""

from __future__ import annotations

from typing import Any

from ggpy.models.hf_family import UNREAD, Family, without

_POOLER = dict.fromkeys(
    (
        "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
        "pooler_size_per_head", "pooler_type", "classifier_dropout", "tie_word_embeddings",
    ),
    "a part that is left out: the pooler, classifiers, the head that predicts words",
) | {"sentence_transformers": "what is done with a classifier's scores, which callers choose"}  # fmt: skip
_BERT: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute", "feed_forward_type": "original",
}  # fmt: skip
_ROBERTA = {
    **without(_BERT, "position_embedding_type", "feed_forward_type"), "vocab_size": 50265,
}  # fmt: skip
_GELU: dict[str, tuple[Any, ...]] = {"hidden_act": ("gelu", "gelu_python")}
_ABSOLUTE: dict[str, tuple[Any, ...]] = {
    **_GELU, "position_embedding_type": ("absolute", None), "is_decoder": (False,)
}  # fmt: skip
_ROPED = {
    **_BERT, "rope_parameters": None, "rope_scaling": None, "rope_theta": 1000.0, "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}  # fmt: skip
_NOMIC: dict[str, Any] = {
    **without(_ROPED, "position_embedding_type", "feed_forward_type"), "vocab_size": 30528,
    "max_position_embeddings": 2048,
    # as the models' own code names them
    "n_embd": None, "n_layer": None, "n_head": None, "n_inner": None, "n_positions": None, "layer_norm_epsilon": None,
    "rotary_emb_base": None, "max_trained_positions": 2048, "activation_function": None, "qkv_proj_bias": None,
    "mlp_fc1_bias": None, "mlp_fc2_bias": None, "moe_every_n_layers": 0, "num_experts": None, "moe_top_k": 1,
}  # fmt: skip
_NOMIC_PERMITTED: dict[str, tuple[Any, ...]] = {
    "causal": (False,), "prenorm": (False,), "parallel_block": (False,), "parallel_block_tied_norm": (False,),
    "rotary_emb_fraction": (1.0,), "rotary_emb_interleaved": (False,), "rotary_emb_scale_base": (None,),
    "use_rms_norm": (False, None), "expert_choice_router": (False,), "moe_normalize_expert_weights": (False,),
    "num_shared_experts": (0, None), "ffn_div": (1,), "scale_attn_by_inverse_layer_idx": (False, None),
}  # fmt: skip
_NOMIC_BESIDE = {
    **dict.fromkeys(
        (
            "dense_seq_output", "fused_bias_fc", "fused_dropout_add_ln", "pad_vocab_size_multiple",
            "reorder_and_upcast_attn", "use_xentropy", "moe_impl", "moe_resid_pdrop", "classifier_dropout", "head_dim",
            "tie_word_embeddings", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
            "summary_type", "summary_use_proj", "hidden_act",
        ),
        "how the original is run or trained",
    ),
    "rotary_scaling_factor": "texts longer than the model was trained with, which the file does not take",
}  # fmt: skip
_JINA_V3 = {
    **without(_ROPED, "position_embedding_type", "feed_forward_type"), "vocab_size": 250002,
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "max_position_embeddings": 8194, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "rope_theta": 20000.0,
}  # fmt: skip
_MODERN = {
    "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "norm_eps": 1e-5, "norm_bias": False,
    "attention_bias": False, "mlp_bias": False, "layer_types": None, "rope_parameters": None, "rope_scaling": None,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "local_attention": 128,
    "global_attn_every_n_layers": 3, "classifier_pooling": "cls", "classifier_bias": False,
}  # fmt: skip
_MODERN_BESIDE = dict.fromkeys(
    (
        "initializer_cutoff_factor", "embedding_dropout", "mlp_dropout", "decoder_bias", "classifier_dropout",
        "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "reference_compile",
        "repad_logits_with_grad", "compile_mode", "cls_token_id", "tie_word_embeddings", "max_position_embeddings_old",
        "sentence_transformers", "layer_norm_eps", "rope_theta", "position_embedding_type", "sliding_window",
    ),
    "ModernBERT's code does not read it where it embeds a text",
)  # fmt: skip
_EURO = {
    "vocab_size": 128256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False, "rope_parameters": None, "rope_scaling": None,
    "rope_theta": 10000.0, "partial_rotary_factor": None, "original_max_position_embeddings": None,
}  # fmt: skip
_BERT_CLASSES = (
    "BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "JinaBertModel",
    "JinaBertForMaskedLM",
)  # fmt: skip


def _like(name: str) -> tuple[str, ...]:
    return f"{name}Model", f"{name}ForMaskedLM", f"{name}ForSequenceClassification"


#: By the config's "model_type".
ENCODERS: dict[str, Family] = {
    "bert": Family(
        _BERT_CLASSES,
        _BERT,
        {**_GELU, "is_decoder": (False,)},
        {**_POOLER, "emb_pooler": "how rows are pooled: read with sentence-transformers' files"},
    ),
    "roberta": Family(_like("Roberta"), _ROBERTA, _ABSOLUTE, _POOLER),
    "xlm-roberta": Family(
        _like("XLMRoberta"), {**_ROBERTA, "vocab_size": 30522}, _ABSOLUTE, {**_POOLER, "output_past": UNREAD}
    ),
    "camembert": Family(
        _like("Camembert"), {**_ROBERTA, "vocab_size": 30522}, _ABSOLUTE, {**_POOLER, "output_past": UNREAD}
    ),
    "nomic_bert": Family(("NomicBertModel", "NomicBertForMaskedLM"), _NOMIC, _NOMIC_PERMITTED, _NOMIC_BESIDE),
    "jina_embeddings_v3": Family(("JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForMaskedLM"), _JINA_V3, _GELU, _POOLER),
    "modernbert": Family(
        _like("ModernBert"),
        _MODERN,
        {"hidden_activation": ("gelu",), "classifier_activation": ("gelu",)},
        _MODERN_BESIDE,
    ),
    "eurobert": Family(
        ("EuroBertModel", "EuroBertForMaskedLM"),
        _EURO,
        ignored=dict.fromkeys(("mask_token_id", "classifier_pooling", "clf_pooling", "tie_word_embeddings"), UNREAD),
    ),
}
