"""Qwen3's mixtures of experts: Qwen3's attention, and experts where the feed-forward was."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, add_expert_keys, expert_ffn, expert_rules, sparse_layers
from ggpy.models.layers import glu_ffn, self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Qwen3Moe(Architecture):
    name = "qwen3moe"
    hf_names: ClassVar[tuple[str, ...]] = ("Qwen3MoeForCausalLM",)
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


class Qwen3VLMoe(Qwen3Moe):
    """The text model of Qwen3-VL's mixtures, whose experts stand in published checkpoints on their side."""

    name = "qwen3vlmoe"
    hf_names = ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeTextModel")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_pictures import leave_pictures_out
        from ggpy.models.hf_sources import Stored

        # Their code always makes the weights of a token's experts sum up to 1.
        config = Config({**config.values, "norm_topk_prob": True}, config.where, config.defaults)
        layout, n_embd = super().hf_layout(config), config.integer("hidden_size")
        n, n_ff = layout.metadata[f"{cls.name}.expert_count"], config.integer("moe_intermediate_size")

        def whole(rule: TensorRule) -> TensorRule:
            """An expert tensor from one that holds all of a layer's, in either order of its axes."""
            if not rule.target.endswith("_exps.weight"):
                return rule
            layer, part = rule.target.split(".")[1:3]
            at = f"model.layers.{layer}.mlp.experts."
            if part == "ffn_down_exps":
                upright = Stored(at + "down_proj", (n, n_embd, n_ff))
                return TensorRule(
                    rule.target, upright, alternative=Stored(at + "down_proj", (n, n_ff, n_embd)).transpose()
                )
            first = 0 if part == "ffn_gate_exps" else n_ff
            both, turned = (
                Stored(at + "gate_up_proj", (n, 2 * n_ff, n_embd)),
                Stored(at + "gate_up_proj", (n, n_embd, 2 * n_ff)).transpose(),
            )
            return TensorRule(
                rule.target, both.slice(first, n_ff, axis=1), alternative=turned.slice(first, n_ff, axis=1)
            )

        layout.tensors = [whole(rule) for rule in layout.tensors]
        leave_pictures_out(layout, config, deep=True)
        return layout
