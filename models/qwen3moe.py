"""Qwen3's mixtures of experts: Qwen3's attention, and experts where the feed-forward was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, add_expert_keys, expert_ffn, expert_rules, sparse_layers
from ggpy.models.layers import glu_ffn, self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Qwen3Moe(Architecture):
    name = "qwen3moe"
    hf_names = ("Qwen3MoeForCausalLM",)
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        hp, rope = self.hparams, self.rope(g.vector("rope_freqs.weight"))
        experts = Experts.read(self.metadata)
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            x = g.add(x, self_attention(g, g.norm(x, at + "attn_norm", hp.norm_eps), layer, hp, rope))
            normed = g.norm(x, at + "ffn_norm", hp.norm_eps)
            if g.has(at + "ffn_gate_inp.weight"):
                x = g.add(x, expert_ffn(g, normed, layer, hp.n_embd, experts))
            else:  # some layers may be dense
                x = g.add(x, glu_ffn(g, normed, layer, hp))
        return g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule, decoder_layout

        layout = decoder_layout(config, cls.name, head_norms=True)
        n_layer, n_embd = config.integer("num_hidden_layers"), config.integer("hidden_size")
        n_ff = config.integer("moe_intermediate_size")
        sparse = sparse_layers(config, n_layer)
        normalize = config.flag("norm_topk_prob", default=False)
        add_expert_keys(layout, config, n_ff, normalize=normalize, sparse=sparse)
        n_expert = layout.metadata[f"{cls.name}.expert_count"]
        chosen = [layer for layer in range(n_layer) if sparse[layer]]
        dense = {f"blk.{layer}.ffn_{part}.weight" for layer in chosen for part in ("gate", "up", "down")}
        layout.tensors = [rule for rule in layout.tensors if rule.target not in dense]
        for layer in chosen:
            to, of = f"blk.{layer}.", f"model.layers.{layer}.mlp."
            layout.tensors.append(TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)))
            layout.tensors += expert_rules(to, of, n_expert, n_ff, n_embd)
        return layout
