"""Every key of config.json that the supported families define, and what becomes of it: followed, of no effect, refused.

Sources: the configuration classes of transformers 5.24 and the code that reads them, its 4th version's where published
files still carry the keys, and for the first Qwen the code that comes with the models. A key that stands nowhere here
is named to the user, as it may be the setting that makes a model another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggpy.errors import GGPYError
from ggpy.models.hf_config import Config, listed
from ggpy.models.hf_families import FAMILIES

#: Keys that change nothing in the file, by the reason.
IGNORED: dict[str, str] = {
    key: reason
    for reason, keys in {
        "which family and which files: read before the layout is made": "model_type architectures transformers_weights",
        "special tokens: read with the tokenizer": """bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
            decoder_start_token_id tokenizer_class prefix""",
        "training alone": """attention_dropout hidden_dropout hidden_dropout_prob
            attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop attn_dropout_prob
            emb_dropout_prob initializer_range gradient_checkpointing _gradient_checkpointing unsloth_fixed
            unsloth_version problem_type finetuning_task router_aux_loss_coef""",
        "how the original is run, not what it computes": """use_cache pretraining_tp chunk_size_feed_forward torchscript
            attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal
            experts_implementation _experts_implementation _experts_implementation_internal _flash_attn_2_enabled
            use_flash_attn use_flash_attention use_flash_attention_2 flash_attn use_kernels use_bfloat16
            use_cache_quantization use_cache_kernel softmax_in_fp32 tf_legacy_loss onnx_safe cache_implementation
            transformers.js_config bf16 fp16 fp32""",
        "the type of the weights: the checkpoint's tensors say it themselves": "dtype torch_dtype",
        "what the original returns beside logits": """output_hidden_states output_attentions output_scores return_dict
            use_return_dict return_dict_in_generate output_router_logits id2label label2id num_labels
            tie_last_hidden_states""",
        "where the file comes from": "transformers_version _name_or_path name_or_path _commit_hash is_llama_config",
        "code in the folder, which is not executed": "auto_map custom_pipelines",
        "a limit of the original's tokenizer": "max_sequence_length model_max_length",
        "generation: transformers takes it from generation_config.json alone": """max_length max_new_tokens min_length
            do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
            epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty
            no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
            forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
            suppress_tokens begin_suppress_tokens task_specific_params num_assistant_tokens
            num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind""",
        "no decoder reads it: a rest of the base class": "is_decoder tie_encoder_decoder cross_attention_hidden_size",
    }.items()
    for key in keys.split()
}

#: Keys that must have one of these values, or be absent: with another the model computes what ggpy does not.
REFUSED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "hidden_activation": ("silu", "swish", None),
    # Of attention. transformers takes null for "not causal".
    "is_causal": (True,),
    "use_bidirectional_attention": (False, None),
    "attention_chunk_size": (None,),
    "alibi": (False, None),
    "use_alibi": (False, None),
    "position_embedding_type": ("rope", None),
    "rope_interleaved": (False, None),
    "rotary_pct": (1.0, None),
    "use_mrope": (False, None),
    "no_rope_layers": (None, []),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "v_head_dim": (None,),
    "attention_value_scale": (1.0, None),
    "attention_sink_bias": (False, None),
    "add_swa_attention_sink_bias": (False, None),
    "add_full_attention_sink_bias": (False, None),
    "attention_multiplier": (None,),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "logits_scaling": (1.0, None),
    "logit_scale": (1.0, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "attn_temperature_tuning": (False, None),
    "clip_qkv": (None,),
    "use_parallel_residual": (False, None),
    "parallel_attn": (False, None),
    # The first Qwen's: biases everywhere.
    "no_bias": (True, None),
    # Other kinds of models under these names.
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
    "configuration_files": (None, []),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "n_routed_experts": (None, 0),
    "text_config": (None, {}),
    "vision_config": (None, {}),
    "audio_config": (None, {}),
    "quantization": (None, {}),  # MLX
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "lora_adaptations": (None, []),
    # gpt-oss's and LFM2's.
    "swiglu_limit": (7.0,),
    "swiglu_alpha": (1.702,),
    "conv_bias": (False, None),
    "attn_output_gate": (False, None),
}

_ADVICE = {
    key: advice
    for advice, keys in {
        "the weights are already quantized; convert the original checkpoint": """quantization quantization_config
            compression_config""",
        "this is a model of more than text; ggpy converts text models": "text_config vision_config audio_config",
        "the original applies one of these adapters to every text; convert a checkpoint without them, such as"
        " jinaai/jina-embeddings-v3-hf": "lora_adaptations",
        "ggpy converts no mixtures of experts": "num_experts num_local_experts n_routed_experts",
    }.items()
    for key in keys.split()
}

#: What any family of transformers follows: to one that does not, it is without effect.
_DECODERS = frozenset(key for name, family in FAMILIES.items() if name != "qwen" for key in family.followed)


def known_config(config: Config) -> tuple[str, Config, list[str]]:
    """The family's model class that writes text, the settings it follows with its defaults, and notes for the user.

    GGPYError for a model that ggpy does not convert and for a setting that it does not follow.
    """
    notes: list[str] = []
    name = _family_name(config, notes)
    family = FAMILIES[name]
    outer, inner = config, config.section("text_config") if family.text else Config({})
    if family.text and not inner.values:  # older files have the text model's settings beside the others
        beside = {"model_type", *family.followed, *family.ignored}
        outer, inner = (
            Config({key: value for key, value in config.values.items() if (key in beside) == out}, config.where)
            for out in (True, False)
        )
    unknown = _unknown_keys(outer, name)
    values = {key: value for key, value in config.values.items() if key in family.followed}
    defaults, where = {**family.followed}, config.where
    if family.text:
        if inner.get("model_type") not in (family.text, None):
            raise GGPYError(
                f"{inner.where} gives 'model_type' as {inner.values['model_type']!r:.60}; ggpy converts a"
                f" {family.classes[0]!r} whose text model is a {family.text!r}."
            )
        unknown += _unknown_keys(inner, family.text)
        followed = FAMILIES[family.text].followed
        of_text = {key: value for key, value in inner.values.items() if key in followed.keys() - family.followed.keys()}
        values = {**of_text, **values}
        values |= {key: True for key in family.either if inner.flag(key, default=False)}
        defaults, where = {**followed, **defaults}, inner.where
    if name != "qwen" and "AutoModelForCausalLM" in config.section("auto_map").values:
        notes.append(
            f"{config.where} names code of the folder as the model ('auto_map'), which is not executed: the model is"
            f" taken for transformers' own {family.classes[0]!r}."
        )
    if unknown:
        notes.append(f"{config.where} has keys that ggpy does not know; they play no part: {listed(unknown)}.")
    known = Config(values, where, {**defaults, "model_type": name})
    known.classes, known.labels = tuple(config.get("architectures") or ()), _labels(config)
    known.padding = None if config.get("pad_token_id") is None else config.integer("pad_token_id", least=0)
    return family.classes[0], known, notes


def _labels(config: Config) -> tuple[str, ...]:
    """The labels of a classifier, by number; transformers counts two where the config names none."""
    named = config.get("id2label")
    if isinstance(named, Mapping) and named:
        return tuple(str(named[key]) for key in sorted(named, key=lambda key: (len(str(key)), str(key))))
    return tuple(f"LABEL_{i}" for i in range(config.integer("num_labels", default=2, most=1 << 16)))


def _unknown_keys(config: Config, name: str) -> list[str]:
    """The keys that nobody knows. GGPYError for a value that this family's models do not have."""
    family, unknown = FAMILIES[name], []
    for key, value in config.values.items():
        if key in family.followed or key in family.ignored or (family.text and key == "text_config"):
            continue
        neutral = family.permitted.get(key, REFUSED.get(key))
        if neutral is not None:
            if not any(_same(value, one) for one in neutral):
                advice = _ADVICE.get(key, "ggpy does not follow that, and the model would compute something else")
                raise GGPYError(f"{config.where} gives {key!r} as {value!r:.60}: {advice}.")
        elif key not in IGNORED and (name == "qwen" or key not in _DECODERS):
            unknown.append(key)
    return unknown


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _family_name(config: Config, notes: list[str]) -> str:
    """The family that transformers would load: "model_type" rules, the classes in "architectures" say the rest."""
    families = {cls: name for name, family in FAMILIES.items() for cls in family.classes}
    classes, model_type = config.get("architectures"), config.get("model_type")
    if not isinstance(classes or [], list) or not all(isinstance(name, str) for name in classes or []):
        raise GGPYError(f"{config.where} gives 'architectures' as {classes!r:.60}; it must list the names of classes.")
    for name in classes or []:
        if name not in families:
            from difflib import get_close_matches

            alike = get_close_matches(name, families, 3, 0.5)
            known = f"; the nearest that it converts are {', '.join(alike)}" if alike else ""
            raise GGPYError(
                f"The checkpoint's architecture is {name!r:.60}, which ggpy does not convert{known}. `ggpy models`"
                " lists those that it does."
            )
    if isinstance(model_type, str) and model_type in FAMILIES:
        if classes and families[classes[0]] != model_type:
            notes.append(
                f"{config.where} gives {classes[0]!r} as the class, but {model_type!r} as 'model_type'; the latter"
                " is followed, as transformers does."
            )
        return model_type
    if not classes:
        raise GGPYError(f"{config.where} names no model that ggpy converts, in 'architectures' or 'model_type'.")
    if model_type is not None:
        notes.append(
            f"{config.where} gives 'model_type' as {model_type!r:.60}, which ggpy does not know; the model is taken for"
            f" a plain {classes[0]!r}."
        )
    return families[classes[0]]
