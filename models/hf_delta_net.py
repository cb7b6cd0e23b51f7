"""Checkpoints of gated delta nets: Qwen3.5, dense or of experts, and Qwen3-Next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ggpy.errors import GGPYError
from ggpy.models.delta_net import DeltaNet
from ggpy.models.experts import add_expert_keys, expert_count, expert_rules, sparse_layers
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_parts import Sizes, glu_rules, head_rule
from ggpy.models.hf_pictures import picture_sections
from ggpy.models.hf_rope import add_rope
from ggpy.models.hf_sources import Source, Stored, concat
from ggpy.models.next_token import predictor_rules

if TYPE_CHECKING:
    from ggpy.models.hf_config import Config

#: What stands for the parts of a picture's positions where a config does not say it.
_SECTIONS = [11, 11, 10]


def delta_net_layout(config: Config, arch: str, *, tiled: bool) -> Layout:
    """`tiled`: the file has value heads in tiled order, and what gives their rates and decays in two matrices."""
    sizes, delta = Sizes.read(config), _delta_sizes(config)
    n_embd, n_layer = sizes.n_embd, sizes.n_layer
    full, mixed = _attention_layers(config, n_layer), "num_experts" in config.defaults
    sparse = sparse_layers(config, n_layer) if mixed else [False] * n_layer
    n_expert = expert_count(config, n_layer) if mixed else 0
    attention = partial(_attention, sizes=sizes, bias=config.flag("attention_bias", default=False))
    parts = _DeltaParts(delta, n_embd, tiled)
    tensors = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (sizes.n_vocab, n_embd))]
    for layer in range(n_layer):
        to, of = f"blk.{layer}.", f"model.layers.{layer}."
        tensors.append(_norm(to + "attn_norm", of + "input_layernorm", n_embd))
        tensors += attention(to, of + "self_attn.") if full[layer] else parts.rules(to, of + "linear_attn.")
        tensors.append(_norm(to + "post_attention_norm", of + "post_attention_layernorm", n_embd))
        if sparse[layer]:
            tensors += _experts(config, to, of + "mlp.", n_expert, n_embd)
        else:
            tensors += glu_rules(to, of + "mlp.", config.integer("intermediate_size"), n_embd)
    tensors.append(_norm("output_norm", "model.norm", n_embd))
    tied = config.flag("tie_word_embeddings", default=False)
    tensors.append(head_rule(sizes, tied=tied))
    layout = Layout(
        arch,
        sizes.keys(arch, config) | _delta_keys(arch, delta, full),
        tensors,
        sizes.n_vocab,
        "model.",
        tied,
        renames=((r"^model\.language_model\.", "model."), (r"^model\.(mtp|visual)\.", r"\1.")),
        left_out=(
            (r"visual\.", "what the model sees with is left out: the file holds its text model."),
            (
                r"mtp\.",
                "the layers that predict further tokens ('mtp') are left out, all but a whole first one.",
            ),
        ),
    )
    to, of = f"blk.{n_layer}.", "mtp.layers.0."
    layout.predictor = [
        _norm(to + "attn_norm", of + "input_layernorm", n_embd),
        *attention(to, of + "self_attn."),
        _norm(to + "post_attention_norm", of + "post_attention_layernorm", n_embd),
        *(
            _experts(config, to, of + "mlp.", n_expert, n_embd)
            if mixed
            else glu_rules(to, of + "mlp.", config.integer("intermediate_size"), n_embd)
        ),
        *predictor_rules(
            n_layer, n_embd, _norm, ("mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm")
        ),
    ]
    if config.get("intermediate_size") is not None:
        layout.metadata[f"{arch}.feed_forward_length"] = config.integer("intermediate_size")
    if mixed:
        normalize = config.flag("norm_topk_prob", default=True)
        add_expert_keys(layout, config, config.integer("moe_intermediate_size"), normalize=normalize, sparse=sparse)
        layout.metadata[f"{arch}.expert_shared_feed_forward_length"] = config.integer("shared_expert_intermediate_size")
    add_rope(layout, config, sizes.head_dim, partial=True)
    if tiled:  # readers of Qwen3.5 want them, Qwen3-Next has none
        layout.metadata[f"{arch}.rope.dimension_sections"] = picture_sections(config, _SECTIONS)
    return layout


def _delta_sizes(config: Config) -> DeltaNet:
    sizes = DeltaNet(
        n_k_head=config.integer("linear_num_key_heads"),
        n_v_head=config.integer("linear_num_value_heads"),
        k_dim=config.integer("linear_key_head_dim"),
        v_dim=config.integer("linear_value_head_dim"),
        width=config.integer("linear_conv_kernel_dim", least=2, most=1023),
    )
    if sizes.n_v_head % sizes.n_k_head:
        raise GGPYError(
            f"{config.where} gives {sizes.n_v_head} 'linear_num_value_heads' for {sizes.n_k_head}"
            " 'linear_num_key_heads'; the second must divide the first."
        )
    return sizes


def _delta_keys(arch: str, delta: DeltaNet, full: list[bool]) -> dict[str, object]:
    """The delta nets' sizes, and which layers are `full` attention: by an interval, or by layer where none fits."""
    keys: dict[str, object] = {
        f"{arch}.ssm.conv_kernel": delta.width,
        f"{arch}.ssm.state_size": delta.k_dim,
        f"{arch}.ssm.group_count": delta.n_k_head,
        f"{arch}.ssm.time_step_rank": delta.n_v_head,
        f"{arch}.ssm.inner_size": delta.n_v,
    }
    interval = full.index(True) + 1 if True in full else len(full) + 1
    keys[f"{arch}.full_attention_interval"] = interval
    if full != [(layer + 1) % interval == 0 for layer in range(len(full))]:
        keys[f"{arch}.attention.recurrent_layers"] = ~np.array(full)
    return keys


def _attention_layers(config: Config, n_layer: int) -> list[bool]:
    """Which layers are attention: by 'layer_types', else every 'full_attention_interval'th."""
    full = config.layer_kinds(n_layer, {"linear_attention": False, "full_attention": True})
    if full is None:
        interval = config.integer("full_attention_interval")
        full = [(layer + 1) % interval == 0 for layer in range(n_layer)]
    return full


def _norm(target: str, source: str, n: int) -> TensorRule:
    """A norm, whose weight checkpoints have less 1."""
    return TensorRule(f"{target}.weight", Stored(f"{source}.weight", (n,)).plus(1))


def _attention(to: str, of: str, sizes: Sizes, bias: bool) -> list[TensorRule]:
    """Attention; the query matrix has a gate's rows beside those of each head."""
    rules = [_norm(to + f"attn_{part}_norm", of + f"{part}_norm", sizes.head_dim) for part in ("q", "k")]
    for target, source, rows, columns in (
        ("attn_q", "q_proj", 2 * sizes.n_q, sizes.n_embd),
        ("attn_k", "k_proj", sizes.n_kv, sizes.n_embd),
        ("attn_v", "v_proj", sizes.n_kv, sizes.n_embd),
        ("attn_output", "o_proj", sizes.n_embd, sizes.n_q),
    ):
        rules.append(TensorRule(f"{to}{target}.weight", f"{of}{source}.weight", (rows, columns)))
        if bias:
            rules.append(TensorRule(f"{to}{target}.bias", f"{of}{source}.bias", (rows,)))
    return rules


def _experts(config: Config, to: str, of: str, n_expert: int, n_embd: int) -> list[TensorRule]:
    """The router, the experts it chooses from, and the one that every token takes."""
    n_shared = config.integer("shared_expert_intermediate_size")
    gate = Stored(of + "shared_expert_gate.weight", (1, n_embd)).reshape(n_embd)
    return [
        TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)),
        *expert_rules(to, of, n_expert, config.integer("moe_intermediate_size"), n_embd),
        TensorRule(to + "ffn_gate_inp_shexp.weight", gate),
        *glu_rules(to, of + "shared_expert.", n_shared, n_embd, suffix="_shexp"),
    ]


@dataclass(frozen=True)
class _DeltaParts:
    """The tensors of a delta net. Checkpoints have value heads in groups by key head."""

    s: DeltaNet
    n_embd: int
    tiled: bool

    def rules(self, to: str, of: str) -> list[TensorRule]:
        s, n_mixed = self.s, 2 * self.s.n_k + self.s.n_v
        conv = Stored(of + "conv1d.weight", (n_mixed, 1, s.width)).reshape(n_mixed, s.width)
        return [
            *(self._two_inputs(to, of) if self.tiled else self._joined_inputs(to, of)),
            TensorRule(to + "ssm_conv1d.weight", self._mixed(conv)),
            TensorRule(to + "ssm_dt.bias", self._heads(Stored(of + "dt_bias", (s.n_v_head,)))),
            TensorRule(to + "ssm_a", self._heads(Stored(of + "A_log", (s.n_v_head,))).neg_exp()),
            TensorRule(to + "ssm_norm.weight", of + "norm.weight", (s.v_dim,)),
            TensorRule(to + "ssm_out.weight", self._heads(Stored(of + "out_proj.weight", (self.n_embd, s.n_v)), 1)),
        ]

    def _heads(self, source: Source, axis: int = 0) -> Source:
        """An axis of value heads in the file's order."""
        grouped = not self.tiled or self.s.n_v_head == self.s.n_k_head
        return source if grouped else source.reorder_heads(self.s.tiled_order, axis)

    def _mixed(self, source: Source) -> Source:
        """Rows of queries, keys and values."""
        n_k = 2 * self.s.n_k
        return concat([source.slice(0, n_k), self._heads(source.slice(n_k, self.s.n_v))])

    def _two_inputs(self, to: str, of: str) -> list[TensorRule]:
        s, n_embd = self.s, self.n_embd
        mixed = Stored(of + "in_proj_qkv.weight", (2 * s.n_k + s.n_v, n_embd))
        return [
            TensorRule(to + "attn_qkv.weight", self._mixed(mixed)),
            TensorRule(to + "attn_gate.weight", self._heads(Stored(of + "in_proj_z.weight", (s.n_v, n_embd)))),
            TensorRule(to + "ssm_alpha.weight", self._heads(Stored(of + "in_proj_a.weight", (s.n_v_head, n_embd)))),
            TensorRule(to + "ssm_beta.weight", self._heads(Stored(of + "in_proj_b.weight", (s.n_v_head, n_embd)))),
        ]

    def _joined_inputs(self, to: str, of: str) -> list[TensorRule]:
        """Qwen3-Next has the rows of queries, keys, values and gates of one key head side by side."""
        s, n_embd = self.s, self.n_embd
        n_value = s.n_v // s.n_k_head
        n_rows = 2 * s.k_dim + 2 * n_value
        joined = Stored(of + "in_proj_qkvz.weight", (s.n_k_head * n_rows, n_embd)).reshape(s.n_k_head, n_rows, n_embd)
        q, k, v, z = (
            joined.slice(first, n, axis=1).reshape(s.n_k_head * n, n_embd)
            for first, n in (
                (0, s.k_dim), (s.k_dim, s.k_dim), (2 * s.k_dim, n_value), (2 * s.k_dim + n_value, n_value),
            )
        )  # fmt: skip
        return [
            TensorRule(to + "attn_qkv.weight", concat([q, k, v])),
            TensorRule(to + "attn_gate.weight", z),
            TensorRule(to + "ssm_ba.weight", of + "in_proj_ba.weight", (2 * s.n_v_head, n_embd)),
        ]
