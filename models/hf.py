"""The reading of Hugging Face checkpoints that architectures share: the layout that a config.json describes.

A layout lists every tensor the GGUF file holds, where each comes from and the shape it must have, so a checkpoint is
checked whole before a byte is written. Knows nothing of files: a config is a mapping here, a tensor a name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS
from ggpy.models.hf_config import Config
from ggpy.models.hf_rope import add_rope
from ggpy.models.hf_sources import Source, Stored

if TYPE_CHECKING:
    import numpy as np

#: A GGUF metadata value: int is written as uint32, float as float32; numpy scalars and arrays keep their own type.
MetadataValue = Any


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the GGUF file: `target` there, `shape` (rows before columns), and where its values come from: the
    checkpoint's tensor of that name and shape, or several and transforms of them (`hf_sources`), whose shape need not
    be said again. One that is not `required` may lack in the checkpoint, with all of its sources. `alternative`: the
    source where the checkpoint has that one's tensors, in their shapes."""

    target: str
    source: str | Source
    shape: tuple[int, ...] = ()
    required: bool = True
    alternative: Source | None = None
    values: Source = field(init=False)

    def __post_init__(self) -> None:
        values = Stored(self.source, self.shape) if isinstance(self.source, str) else self.source
        if self.shape and values.shape != self.shape:
            raise ValueError(f"{self.target}: a source of {list(values.shape)} for {list(self.shape)}")
        if self.alternative is not None and values.shape != self.alternative.shape:
            raise ValueError(f"{self.target}: sources of {list(values.shape)} and {list(self.alternative.shape)}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "shape", values.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoint's tensors that the values come from, here or there."""
        sources = (self.values, self.alternative) if self.alternative is not None else (self.values,)
        return tuple(stored.name for source in sources for stored in source.stored())

    def chosen(self, shapes: Mapping[str, tuple[int, ...] | None]) -> TensorRule:
        """The rule without an alternative, for a checkpoint that has tensors of these names and, where they are known,
        shapes. An alternative may be another shape of the same tensors."""
        if self.alternative is None:
            return self
        plain = {stored.name for stored in self.values.stored()}
        there = all(
            stored.name in shapes and (stored.name not in plain or shapes[stored.name] in (stored.shape, None))
            for stored in self.alternative.stored()
        )
        return replace(self, source=self.alternative if there else self.source, alternative=None)


@dataclass
class Layout:
    """The GGUF file of a config: metadata, tensors taken from the checkpoint, tensors made from the config."""

    arch: str
    metadata: dict[str, MetadataValue]
    tensors: list[TensorRule]
    n_vocab: int
    prefix: str  # of the model's parts in the checkpoint's names; one saved without its head lacks it
    tied: bool  # whether the output matrix is the embeddings', unless the checkpoint has another one
    generated: dict[str, np.ndarray] = field(default_factory=dict)  # float32
    notes: list[str] = field(default_factory=list)  # what the file cannot say, for the user to know
    #: Regular expressions and what stands in their place, for names that other classes and versions gave to tensors.
    renames: tuple[tuple[str, str], ...] = ()
    #: Regular expressions of (renamed) tensors that are no part of the file, each with the reason, for the user.
    left_out: tuple[tuple[str, str], ...] = ()
    #: The tensors of a block behind the others that predicts further tokens, for checkpoints that have it.
    predictor: list[TensorRule] = field(default_factory=list)

    def take_predictor(self, stored: Iterable[str]) -> None:
        """Make the block that predicts further tokens part of the file, where all of it is among the checkpoint's
        tensors of these names."""
        names = set()
        for name in stored:
            for pattern, other in self.renames:
                name = re.sub(pattern, other, name)
            names.add(name)
        rules = [rule.chosen(dict.fromkeys(names)) for rule in self.predictor]
        if rules and all(name in names for rule in rules if rule.required for name in rule.names):
            self.tensors = self.tensors + self.predictor
            self.metadata[f"{self.arch}.block_count"] += 1
            self.metadata[f"{self.arch}.nextn_predict_layers"] = 1

    @property
    def rope_factors(self) -> tuple[np.ndarray | None, ...]:
        """The divisors of rope's frequencies, if any; of LongRoPE those for short contexts, and those for long ones."""
        if "rope_factors_long.weight" in self.generated:
            return self.generated["rope_factors_short.weight"], self.generated["rope_factors_long.weight"]
        return (self.generated.get("rope_freqs.weight"),)

    def __post_init__(self) -> None:
        targets = [rule.target for rule in self.tensors]
        if len(set(targets)) != len(targets):
            raise ValueError("a layout names a tensor twice")


def decoder_layout(
    config: Config,
    arch: str,
    *,
    interleaved: bool = False,
    qkv_bias: bool = False,
    head_norms: bool = False,
    norms_less_one: bool = False,
    post_norms: bool = False,
    rope: Config | None = None,
    window_period: int = 0,
    fixed_period: int = 0,
    longrope: bool = False,
) -> Layout:
    """The layout that Llama, Mistral, Qwen2, Qwen3 and Gemma share.

    `interleaved`: the file's rope pairs neighbouring rows, so query and key rows are reordered. `qkv_bias`: query, key
    and value have a bias whatever the config says. `head_norms`: query and key heads have a norm. `norms_less_one`: the
    checkpoint's norms are less 1. `post_norms`: each branch has a norm at its end as well. `rope` and `longrope` as in
    `add_rope`, `window_period` and `fixed_period` as in `add_sliding_windows`.
    """
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

    attention_bias, mlp_bias = config.flag("attention_bias", default=False), config.flag("mlp_bias", default=False)
    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim

    def turned(name: str, shape: tuple[int, ...], heads: int) -> Source:
        values = Stored(name, shape)
        return values.rope_pairs(heads) if interleaved and heads else values

    def norm(target: str, name: str, n: int = n_embd) -> TensorRule:
        values = Stored(name + ".weight", (n,))
        return TensorRule(target + ".weight", values.plus(1) if norms_less_one else values)

    tensors = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (n_vocab, n_embd))]
    for layer in range(n_layer):
        to, of = f"blk.{layer}.", f"model.layers.{layer}."
        tensors.append(norm(to + "attn_norm", of + "input_layernorm"))
        for name, source, rows, heads in (
            ("attn_q", "self_attn.q_proj", n_q, n_head),
            ("attn_k", "self_attn.k_proj", n_kv, n_head_kv),
            ("attn_v", "self_attn.v_proj", n_kv, 0),
        ):
            tensors.append(TensorRule(f"{to}{name}.weight", turned(f"{of}{source}.weight", (rows, n_embd), heads)))
            if qkv_bias or attention_bias:
                tensors.append(TensorRule(f"{to}{name}.bias", turned(f"{of}{source}.bias", (rows,), heads)))
        if head_norms:
            tensors.append(norm(to + "attn_q_norm", of + "self_attn.q_norm", head_dim))
            tensors.append(norm(to + "attn_k_norm", of + "self_attn.k_norm", head_dim))
        tensors.append(TensorRule(to + "attn_output.weight", of + "self_attn.o_proj.weight", (n_embd, n_q)))
        if attention_bias:
            tensors.append(TensorRule(to + "attn_output.bias", of + "self_attn.o_proj.bias", (n_embd,)))
        if post_norms:
            tensors.append(norm(to + "post_attention_norm", of + "post_attention_layernorm"))
            tensors.append(norm(to + "ffn_norm", of + "pre_feedforward_layernorm"))
            tensors.append(norm(to + "post_ffw_norm", of + "post_feedforward_layernorm"))
        else:
            tensors.append(norm(to + "ffn_norm", of + "post_attention_layernorm"))
        for name, source, rows, columns in (
            ("ffn_gate", "mlp.gate_proj", n_ff, n_embd),
            ("ffn_up", "mlp.up_proj", n_ff, n_embd),
            ("ffn_down", "mlp.down_proj", n_embd, n_ff),
        ):
            tensors.append(TensorRule(f"{to}{name}.weight", f"{of}{source}.weight", (rows, columns)))
            if mlp_bias:
                tensors.append(TensorRule(f"{to}{name}.bias", f"{of}{source}.bias", (rows,)))
    tensors.append(norm("output_norm", "model.norm"))
    tied = config.flag("tie_word_embeddings", default=False)
    tensors.append(TensorRule("output.weight", "lm_head.weight", (n_vocab, n_embd), required=not tied))

    layout = Layout(arch, metadata, tensors, n_vocab, "model.", tied)
    add_rope(layout, config, head_dim, rope, longrope=longrope)
    add_sliding_windows(layout, config, n_layer, period=window_period, fixed=fixed_period)
    return layout


def add_sliding_windows(layout: Layout, config: Config, n_layer: int, *, period: int = 0, fixed: int = 0) -> None:
    """`sliding_window` and, where not every layer has it, which ones do, as transformers' classes decide it.

    Without 'layer_types', every `period`-th layer has none; 0: all have it. GGUF's readers of an architecture may know
    a period, `fixed`; the file then gives another one, or a list, only where that is not it.
    """
    import numpy as np

    window = config.get("sliding_window")
    if "use_sliding_window" in config.defaults and not config.flag("use_sliding_window", default=False):
        window = None
    kinds = {"sliding_attention": True, "full_attention": False, "attention": False}
    said = config.layer_kinds(n_layer, kinds)
    usual, known = ([bool(not every or (layer + 1) % every) for layer in range(n_layer)] for every in (period, fixed))
    if said is not None:
        sliding = said
    elif period:
        sliding = usual
    else:  # Qwen's configs count the full layers at the bottom, Mistral's have none
        n_full = config.integer("max_window_layers", default=0, least=0)
        sliding = [window is not None and layer >= n_full for layer in range(n_layer)]
    if any(sliding) and window is None:
        raise GGPYError(
            f"{config.where} has layers of 'sliding_attention', but no window for them: see 'layer_types',"
            " 'sliding_window' and 'use_sliding_window'."
        )
    key = f"{layout.arch}.attention.sliding_window"
    if any(sliding):
        layout.metadata[key] = config.integer("sliding_window")
    if fixed and sliding != known:
        period = sliding.index(False) + 1 if False in sliding else 0
        regular = sliding == [bool(not period or (layer + 1) % period) for layer in range(n_layer)]
        layout.metadata[key + "_pattern"] = period if regular else np.array(sliding)
    elif not fixed and len(set(sliding)) == 2:
        layout.metadata[key + "_pattern"] = np.array(sliding)
