"""What the architectures share when they read a Hugging Face checkpoint: its config.json and the layout it means.

A layout lists every tensor the GGUF file holds, where each comes from and the shape it must have, so a checkpoint is
checked whole before a byte is written. Knows nothing of files: a config is a mapping here, a tensor a name and shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    import numpy as np

#: A GGUF metadata value: int is written as uint32, float as float32; numpy scalars and arrays keep their own type.
MetadataValue = Any


#: Layers believed; the layout lists every tensor of each.
MAX_LAYERS = 4096


class Config:
    """Typed look-ups in a config.json. Each takes alternative key names; a missing key with no default is an error."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def get(self, *keys: str) -> Any:
        """The first of these keys that is there and not null, else None."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def _required(self, keys: tuple[str, ...], default: Any) -> Any:
        value = self.get(*keys)
        if value is None:
            if default is None:
                raise GGPYError(f"{self.where} lacks {' or '.join(map(repr, keys))}, which this architecture needs.")
            return default
        return value

    def integer(self, *keys: str, default: int | None = None, least: int = 1, most: int = (1 << 31) - 1) -> int:
        value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise GGPYError(
                f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be a whole number from {least} to {most}."
            )
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3e38:
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be a finite number above 0.")
        return float(value)

    def flag(self, *keys: str, default: bool) -> bool:
        value = self._required(keys, default)
        if not isinstance(value, bool):
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be true or false.")
        return value

    def section(self, *keys: str) -> Config:
        """A nested object as a config of its own, empty where there is none."""
        value = self.get(*keys)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be an object.")
        return Config(value, f"{self.where}'s {keys[0]!r}")


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the GGUF file: `target` there, `source` in the checkpoint, `shape` (rows, columns) in both.

    `rotary_heads` > 0 says that the rows are that many heads whose two halves rope pairs up, and that the file wants
    the pairs side by side: in each head of d rows, the file's row 2i is the checkpoint's row i, and 2i + 1 is i + d/2.
    """

    target: str
    source: str
    shape: tuple[int, ...]
    rotary_heads: int = 0
    required: bool = True


@dataclass
class Layout:
    """What a config stands for: metadata, tensors taken from the checkpoint, tensors made from the config."""

    arch: str
    metadata: dict[str, MetadataValue]
    tensors: list[TensorRule]
    n_vocab: int
    generated: dict[str, np.ndarray] = field(default_factory=dict)  # float32
    notes: list[str] = field(default_factory=list)  # what the file cannot say, for the user to know

    def __post_init__(self) -> None:
        targets = [rule.target for rule in self.tensors]
        if len(set(targets)) != len(targets):
            raise ValueError("a layout names a tensor twice")


def check_activation(config: Config) -> None:
    act = config.get("hidden_act", "hidden_activation")
    if act not in (None, "silu", "swish"):
        raise GGPYError(f"{config.where} names the activation {act!r}; this architecture is known with 'silu' alone.")


def decoder_layout(
    config: Config, arch: str, *, interleaved: bool = False, qkv_bias: bool = False, head_norms: bool = False
) -> Layout:
    """The layout that Llama, Qwen2 and Qwen3 share.

    `interleaved`: the file's rope pairs neighbouring rows, so query and key rows are reordered. `qkv_bias`: query, key
    and value must have a bias. `head_norms`: query and key heads have a norm. Other biases come where there are any.
    """
    check_activation(config)
    n_layer = config.integer("num_hidden_layers", most=MAX_LAYERS)
    n_embd = config.integer("hidden_size")
    n_head = config.integer("num_attention_heads")
    n_head_kv = config.integer("num_key_value_heads", default=n_head)
    n_ff = config.integer("intermediate_size")
    n_vocab = config.integer("vocab_size")
    head_dim = config.integer("head_dim", default=max(1, n_embd // n_head))
    if config.get("head_dim") is None and n_embd % n_head:
        raise GGPYError(
            f"{config.where} gives a 'hidden_size' of {n_embd} for {n_head} 'num_attention_heads'"
            "; the one must be a multiple of the other."
        )
    if n_head % n_head_kv:
        raise GGPYError(
            f"{config.where} gives {n_head} 'num_attention_heads' for {n_head_kv} 'num_key_value_heads'"
            "; the second must divide the first."
        )
    if head_dim % 2:
        raise GGPYError(f"{config.where} makes heads of {head_dim} dimensions; rope needs an even number.")

    metadata: dict[str, MetadataValue] = {
        f"{arch}.block_count": n_layer,
        f"{arch}.context_length": config.integer("max_position_embeddings"),
        f"{arch}.embedding_length": n_embd,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps"),
        f"{arch}.vocab_size": n_vocab,
        f"{arch}.rope.dimension_count": head_dim,
    }
    if head_dim != n_embd // n_head or config.get("head_dim") is not None:
        metadata[f"{arch}.attention.key_length"] = head_dim
        metadata[f"{arch}.attention.value_length"] = head_dim

    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim
    turn = (lambda heads: heads) if interleaved else (lambda heads: 0)
    tensors = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (n_vocab, n_embd))]
    for layer in range(n_layer):
        to, of = f"blk.{layer}.", f"model.layers.{layer}."
        tensors.append(TensorRule(to + "attn_norm.weight", of + "input_layernorm.weight", (n_embd,)))
        for name, source, rows, heads in (
            ("attn_q", "self_attn.q_proj", n_q, turn(n_head)),
            ("attn_k", "self_attn.k_proj", n_kv, turn(n_head_kv)),
            ("attn_v", "self_attn.v_proj", n_kv, 0),
        ):
            tensors.append(TensorRule(f"{to}{name}.weight", f"{of}{source}.weight", (rows, n_embd), heads))
            tensors.append(TensorRule(f"{to}{name}.bias", f"{of}{source}.bias", (rows,), heads, required=qkv_bias))
        if head_norms:
            tensors.append(TensorRule(to + "attn_q_norm.weight", of + "self_attn.q_norm.weight", (head_dim,)))
            tensors.append(TensorRule(to + "attn_k_norm.weight", of + "self_attn.k_norm.weight", (head_dim,)))
        tensors.append(TensorRule(to + "attn_output.weight", of + "self_attn.o_proj.weight", (n_embd, n_q)))
        tensors.append(TensorRule(to + "attn_output.bias", of + "self_attn.o_proj.bias", (n_embd,), required=False))
        tensors.append(TensorRule(to + "ffn_norm.weight", of + "post_attention_layernorm.weight", (n_embd,)))
        for name, source, rows, columns in (
            ("ffn_gate", "mlp.gate_proj", n_ff, n_embd),
            ("ffn_up", "mlp.up_proj", n_ff, n_embd),
            ("ffn_down", "mlp.down_proj", n_embd, n_ff),
        ):
            tensors.append(TensorRule(f"{to}{name}.weight", f"{of}{source}.weight", (rows, columns)))
            tensors.append(TensorRule(f"{to}{name}.bias", f"{of}{source}.bias", (rows,), required=False))
    tensors.append(TensorRule("output_norm.weight", "model.norm.weight", (n_embd,)))
    tensors += output_rule(config, "lm_head.weight", (n_vocab, n_embd))

    layout = Layout(arch, metadata, tensors, n_vocab)
    add_rope(layout, config, head_dim)
    add_sliding_window(layout, config, n_layer)
    return layout


def output_rule(config: Config, source: str, shape: tuple[int, int]) -> list[TensorRule]:
    """The output matrix: none where the config ties it to the embeddings, optional where the config does not say."""
    tied = config.get("tie_word_embeddings")
    if tied is True:
        return []
    return [TensorRule("output.weight", source, shape, required=tied is False)]


def add_rope(layout: Layout, config: Config, head_dim: int) -> None:
    """Rope's base and scaling: linear and YaRN as metadata, Llama 3's as tensor `rope_freqs.weight` [head_dim/2]."""
    arch = layout.arch
    rope = config.section("rope_parameters", "rope_scaling")
    theta = rope.get("rope_theta")
    base = config.number("rope_theta", default=10000.0) if theta is None else rope.number("rope_theta")
    layout.metadata[f"{arch}.rope.freq_base"] = base
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise GGPYError(
            f"{config.where} turns only {partial!r} of each head; this architecture is known with whole heads alone."
        )

    kind = rope.get("rope_type", "type")
    key = f"{arch}.rope.scaling."
    if kind in (None, "default", "none"):
        return
    if kind == "dynamic":
        layout.notes.append(
            "rope scaling 'dynamic' has no place in GGUF: the file is exact up to its trained context, not beyond."
        )
    elif kind == "linear":
        layout.metadata[key + "type"] = "linear"
        layout.metadata[key + "factor"] = rope.number("factor")
    elif kind == "yarn":
        n_ctx = config.integer("max_position_embeddings")
        n_ctx_orig = rope.integer("original_max_position_embeddings", default=n_ctx)
        factor = rope.number("factor", default=n_ctx / n_ctx_orig)
        layout.metadata[key + "type"] = "yarn"
        layout.metadata[key + "factor"] = factor
        layout.metadata[key + "original_context_length"] = n_ctx_orig
        if rope.get("attention_factor") is not None:
            # Readers multiply this key with YaRN's own 0.1 ln(factor) + 1, and the config states the product.
            usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
            layout.metadata[key + "attn_factor"] = rope.number("attention_factor") / usual
        elif rope.get("mscale", "mscale_all_dim") is not None:
            raise GGPYError(f"{rope.where} sets 'mscale', which GGUF has no place for in this architecture.")
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                layout.metadata[f"{key}yarn_{name}"] = rope.number(name)
    elif kind == "llama3":
        layout.generated["rope_freqs.weight"] = llama3_rope_divisors(config, rope, base, head_dim)
    else:
        raise GGPYError(
            f"{config.where} asks for rope scaling {kind!r:.40}; linear, dynamic, yarn and llama3 are supported."
        )


def llama3_rope_divisors(config: Config, rope: Config, base: float, head_dim: int) -> np.ndarray:
    """Llama 3.1's scaling as one divisor per rope frequency, float32 [head_dim/2].

    Frequencies that turn less than `low_freq_factor` times in the original context are slowed by `factor`, those that
    turn more than `high_freq_factor` times stay, and between the two they are blended linearly in the number of turns.
    """
    import numpy as np

    factor = rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    n_ctx_orig = rope.integer("original_max_position_embeddings", default=config.integer("max_position_embeddings"))
    if high <= low:
        raise GGPYError(
            f"{rope.where} gives 'high_freq_factor' {high} and 'low_freq_factor' {low}; the first must be the greater."
        )
    # float32 throughout, as checkpoints were trained and other converters compute
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = (1.0 / np.float32(base) ** exponent).astype(np.float64)  # [head_dim/2], radians a position
    turns = n_ctx_orig * frequency / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)


def add_sliding_window(layout: Layout, config: Config, n_layer: int) -> None:
    """`sliding_window` where every layer uses it. A window on some layers only has no key in these architectures."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == n_layer:
        n_sliding = sum(kind == "sliding_attention" for kind in kinds)
    else:  # without a list, Qwen's configs count the full layers at the bottom
        n_sliding = n_layer - min(n_layer, config.integer("max_window_layers", default=0, least=0))
    if n_sliding == n_layer:
        layout.metadata[f"{layout.arch}.attention.sliding_window"] = config.integer("sliding_window")
    elif n_sliding:
        layout.notes.append(
            f"{n_sliding} of {n_layer} layers use a sliding window of {window}, which GGUF cannot say for {layout.arch}"
            ": all will attend in full."
        )
