"""Tiny checkpoints whose logits transformers has computed: settings of config.json, each at its several places.

`tests/data/hf_logits.npz` holds the logits of TOKENS at POSITIONS and COLUMNS, `logits[i]` of the case `names[i]`, from
`AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)` of transformers 5.24 on
the folder that `write` makes. Weights come from numpy's frozen generator, so both sides make the same ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import CONFIGS, tensor_shapes, write_safetensors, write_tokenizer

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(96)]
POSITIONS = [20, 60, 95]
COLUMNS = range(0, 512, 32)

ABSENT = object()

#: Sizes of all cases, small enough that a checkpoint is written in milliseconds.
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Case:
    """A `kind` of tiny.CONFIGS with `changes` of its config (ABSENT: the key is not there). `sizes` are those that the
    weights have where the config does not say. `head`: "" as the config says, "same" as the embeddings, "other" beside
    them, "alone" instead of them. `bare`: the tensors lack the prefix."""

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    bare: bool = False


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, **settings}


_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_PLAIN = {"rope_theta": 500.0}  # turns fast enough for 96 tokens to tell settings apart
_MIXED = ["full_attention", "sliding_attention"]

CASES: dict[str, Case] = {
    # Where rope's settings stand.
    "rope theta beside": Case("llama", _PLAIN),
    "rope theta absent": Case("llama", {"rope_theta": ABSENT}),
    "rope theta inside": Case("llama", {**_PLAIN, "rope_parameters": _rope("default", rope_theta=90.0)}),
    "rope scaling inside, theta beside": Case("llama", {**_PLAIN, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    "rope scaling before parameters": Case(
        "llama",
        {"rope_theta": ABSENT, "rope_scaling": {"type": "linear", "factor": 3.0},
         "rope_parameters": _rope("linear", factor=8.0, rope_theta=90.0)},
    ),
    "rope scaling empty": Case(
        "llama", {**_PLAIN, "rope_scaling": {}, "rope_parameters": _rope("linear", factor=8.0, rope_theta=90.0)}
    ),
    "original context beside": Case("llama", {**_PLAIN, "rope_scaling": _YARN, "original_max_position_embeddings": 16}),
    "original context beside, llama3": Case(
        "llama", {**_PLAIN, "rope_scaling": _LLAMA3, "original_max_position_embeddings": 90}
    ),
    "original context absent": Case(
        "llama",
        {**_PLAIN, "rope_scaling": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)},
    ),
    "rope type before type": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "type": "linear"}}),
    # Every type of rope.
    "rope dynamic": Case("llama", {**_PLAIN, "rope_scaling": _rope("dynamic", factor=4.0)}),
    "rope llama3": Case("llama", {**_PLAIN, "rope_scaling": _LLAMA3}),
    "rope llama3, qwen3": Case("qwen3", {**_PLAIN, "rope_scaling": _LLAMA3}),
    "rope yarn": Case("llama", {**_PLAIN, "rope_scaling": _YARN}),
    "rope yarn, qwen2": Case("qwen2", {**_PLAIN, "rope_scaling": _YARN}),
    "rope yarn, factor null": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "factor": None}}),
    "rope yarn, attention_factor": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "attention_factor": 0.7}}),
    "rope yarn, betas": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "beta_fast": 8.0, "beta_slow": 0.5}}),
    "rope yarn, betas reversed": Case(
        "llama", {**_PLAIN, "rope_scaling": {**_YARN, "beta_fast": 0.5, "beta_slow": 4.0}}
    ),
    "rope yarn, mscale": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "mscale": 3.0, "mscale_all_dim": 0.5}}),
    "rope yarn, mscale alone": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "mscale": 3.0}}),
    "rope yarn, not truncated": Case("llama", {**_PLAIN, "rope_scaling": {**_YARN, "truncate": False}}),
    "rope yarn, not truncated, qwen2": Case("qwen2", {**_PLAIN, "rope_scaling": {**_YARN, "truncate": None}}),
    "rope proportional": Case(
        "llama", {**_PLAIN, "rope_scaling": _rope("proportional", partial_rotary_factor=0.5, factor=2.0)}
    ),
    "rope proportional, share beside": Case(
        "qwen3", {**_PLAIN, "partial_rotary_factor": 0.5, "rope_scaling": _rope("proportional", rope_theta=90.0)}
    ),
    "rope default, share not read": Case("llama", {**_PLAIN, "partial_rotary_factor": 0.5}),
    # Sliding windows.
    "mistral window": Case("mistral", {"sliding_window": 16}),
    "mistral window null": Case("mistral", {"sliding_window": None}),
    "mistral window absent": Case("mistral", {"sliding_window": ABSENT}),
    "llama window": Case("llama", {"sliding_window": 16}),
    "llama layer types": Case("llama", {"sliding_window": 16, "layer_types": _MIXED, "use_sliding_window": True}),
    "qwen2 window not asked for": Case("qwen2", {"sliding_window": 16, "use_sliding_window": ABSENT}),
    "qwen3 window not asked for": Case("qwen3", {"sliding_window": 16, "use_sliding_window": ABSENT}),
    "qwen2 max_window_layers absent": Case(
        "qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": ABSENT}
    ),
    "qwen2 all layers": Case("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
    "qwen2 upper layer": Case("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3 layer types": Case(
        "qwen3", {"sliding_window": 16, "use_sliding_window": True, "layer_types": _MIXED[::-1]}
    ),
    # Heads, prefixes, biases, what absent keys mean.
    "tied": Case("llama", {"tie_word_embeddings": True}),
    "tied, same head": Case("qwen2", {"tie_word_embeddings": True}, head="same"),
    "tied, other head": Case("llama", {"tie_word_embeddings": True}, head="other"),
    "tied, head alone": Case("qwen3", {"tie_word_embeddings": True}, head="alone"),
    "tie absent": Case("llama", {"tie_word_embeddings": ABSENT}, {"tie_word_embeddings": False}),
    "base model": Case("qwen3", {"architectures": ["Qwen3Model"], "tie_word_embeddings": True}, bare=True),
    "base model's names": Case("llama", {}, bare=True),
    "architectures absent": Case("qwen2", {"architectures": ABSENT}),
    "biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "biases, qwen3": Case("qwen3", {"attention_bias": True}),
    "head width": Case("llama", {"head_dim": 16}),
    "qwen3 head width absent": Case("qwen3", {"head_dim": ABSENT}, {"head_dim": 128}),
    "kv heads absent": Case("llama", {"num_key_value_heads": ABSENT}, {"num_key_value_heads": 2}),
    "kv heads absent, mistral": Case(
        "mistral", {"num_key_value_heads": ABSENT, "num_attention_heads": 16, "head_dim": 8}, {"num_key_value_heads": 8}
    ),
    "kv heads null": Case("qwen2", {"num_key_value_heads": None}, {"num_key_value_heads": 2}),
    "epsilon": Case("llama", {"rms_norm_eps": 0.3}),
    "epsilon absent": Case("llama", {"rms_norm_eps": ABSENT}),
    "swish": Case("llama", {"hidden_act": "swish"}),
}  # fmt: skip


def write(folder: Path, case: Case) -> None:
    """The checkpoint of a case: config.json, model.safetensors, and a tokenizer."""
    config = {**CONFIGS[case.kind], **_SIZES, **case.changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ABSENT}), encoding="utf-8"
    )
    write_tokenizer(folder, case.kind)
    sizes = {key: value for key, value in {**config, **case.sizes}.items() if value is not ABSENT}
    rng = np.random.RandomState(1)
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.3 * values
        elif "embed" not in name:
            values *= 1.5 / np.sqrt(np.float32(shape[-1]))
        tensors[name] = values
    embeddings = tensors["model.embed_tokens.weight"]
    if case.head == "same":
        tensors["lm_head.weight"] = embeddings
    elif case.head == "other":
        tensors["lm_head.weight"] = rng.standard_normal(embeddings.shape).astype(np.float32) / 8
    elif case.head == "alone":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    if case.bare:
        tensors = {name.removeprefix("model."): values for name, values in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors)
