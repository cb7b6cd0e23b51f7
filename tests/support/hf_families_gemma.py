"""Tiny checkpoints of Gemma 2 and 3, whose logits transformers has computed.

`tests/data/hf_families_gemma.npz` holds float32 logits [case, POSITIONS, COLUMNS] of TOKENS, `logits[i]` of the case
`names[i]`, from transformers 5.24 on the folder that `write` makes: `AutoModelForCausalLM.from_pretrained(folder,
attn_implementation="eager", dtype=torch.float32)`, which for the model with images is its text and its vision alike.
Weights come from numpy's frozen generator, so both sides make the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import write_safetensors, write_tokenizer

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(96)]  # longer than every window
POSITIONS = [1, 14, 15, 16, 40, 60, 95]
COLUMNS = range(0, 461, 20)

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14,
    "intermediate_size": 90, "max_position_embeddings": 256, "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 15, "query_pre_attn_scalar": 14, "rms_norm_eps": 1e-6, "attention_bias": False,
    "torch_dtype": "float32", "bos_token_id": 456, "eos_token_id": 458,
}  # fmt: skip

#: Each family's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {
        **_SHARED, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 4,
        "hidden_act": "gelu_pytorch_tanh", "rope_theta": 500.0, "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0, "cache_implementation": "hybrid",
    },
    "gemma3_text": {
        **_SHARED, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 12,
        "rope_theta": 500.0, "rope_local_base_freq": 90.0, "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}  # fmt: skip
_TEXT = {key: value for key, value in CONFIGS["gemma3_text"].items() if key != "architectures"}
CONFIGS["gemma3"] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "float32",
    "mm_tokens_per_image": 4, "boi_token_index": 457, "eoi_token_index": 458, "image_token_index": 460,
    "bos_token_id": 456, "eos_token_id": [458], "text_config": {**_TEXT, "num_hidden_layers": 6},
    "vision_config": {
        "hidden_size": 8, "image_size": 8, "intermediate_size": 8, "model_type": "siglip_vision_model",
        "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 4, "vision_use_head": False,
    },
}  # fmt: skip

_FULL, _SLIDING = "full_attention", "sliding_attention"
_LINEAR = {"rope_type": "linear", "factor": 8.0}

#: Each case: a family and what is changed of its config.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {}),
    "gemma2, query scalar": ("gemma2", {"query_pre_attn_scalar": 30}),
    "gemma2, usual caps": ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2, layer types": ("gemma2", {"layer_types": [_FULL, _SLIDING, _SLIDING, _FULL]}),
    "gemma2, no windows": ("gemma2", {"layer_types": [_FULL] * 4}),
    "gemma2, biases": ("gemma2", {"attention_bias": True}),
    "gemma3": ("gemma3_text", {}),
    "gemma3, linear": ("gemma3_text", {"rope_scaling": _LINEAR}),
    "gemma3, rope by kind": (
        "gemma3_text",
        {"rope_parameters": {_FULL: {**_LINEAR, "rope_theta": 300.0},
                             _SLIDING: {"rope_type": "default", "rope_theta": 70.0}}},
    ),
    "gemma3, rope's defaults": ("gemma3_text", {"rope_theta": None, "rope_local_base_freq": None}),
    "gemma3, yarn": (
        "gemma3_text", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}
    ),
    "gemma3, period": ("gemma3_text", {"sliding_window_pattern": 3}),
    "gemma3, layer types": ("gemma3_text", {"layer_types": [_FULL, _SLIDING, _SLIDING] * 4}),
    "gemma3, no windows": ("gemma3_text", {"layer_types": [_FULL] * 12}),
    "gemma3, windows alone": ("gemma3_text", {"layer_types": [_SLIDING] * 12}),
    "gemma3, query scalar": ("gemma3_text", {"query_pre_attn_scalar": 30}),
    "gemma3, cap": ("gemma3_text", {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}),
    "gemma3, images": ("gemma3", {}),
}  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    """The config.json of a case; keys that are None are left away where the family does not write them so."""
    family, changes = CASES[name]
    config = {**CONFIGS[family], **changes}
    return {key: value for key, value in config.items() if value is not None or "softcapping" in key or "window" in key}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that transformers saves of a text model."""
    n_embd, n_ff, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    n_q, n_kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], n_embd)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{at}{name}_layernorm.weight"] = (n_embd,)
        for name, rows, columns in (("q", n_q, n_embd), ("k", n_kv, n_embd), ("v", n_kv, n_embd), ("o", n_embd, n_q)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, columns)
            if config["attention_bias"]:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        if config["model_type"] == "gemma3_text":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
        for name, rows, columns in (("gate", n_ff, n_embd), ("up", n_ff, n_embd), ("down", n_embd, n_ff)):
            shapes[f"{at}mlp.{name}_proj.weight"] = (rows, columns)
    return shapes | {"model.norm.weight": (n_embd,)}


def random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights of a text model, the same everywhere."""
    rng = np.random.RandomState(2)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values *= 0.3
        else:
            values *= (2.0 if "embed" in name else 1.5) / np.sqrt(np.float32(shape[-1]))
        tensors[name] = values
    return tensors


def write(folder: Path, name: str) -> None:
    """The checkpoint of a case: config.json, model.safetensors, and a tokenizer."""
    write_checkpoint(folder, settings(name))


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, "qwen2")
    tensors = random_tensors(config.get("text_config", config))
    if "text_config" in config:  # as published checkpoints name them
        tensors = {f"language_model.{key}": values for key, values in tensors.items()}
        tensors["vision_tower.vision_model.post_layernorm.weight"] = np.ones(8, np.float32)
        tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(8, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
