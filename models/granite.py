"""IBM's Granite 3 and 4 without Mamba layers: Llama with factors at the embeddings, the residuals, the scores and the
logits; and its mixtures of experts, with or without an expert that every token takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder
from ggpy.models.experts import add_expert_keys, expert_count

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

#: The factors' names in a config and in GGUF.
FACTORS = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
}  # fmt: skip


class Granite(Decoder):
    name = "granite"
    hf_names: ClassVar[tuple[str, ...]] = ("GraniteForCausalLM",)
    rope_style = "interleaved"

    def factor(self, key: str) -> float:
        """A factor of the metadata; 0 stands for none."""
        factor = self.metadata.number("{arch}." + key, 0.0)
        if not 0 <= factor < 1e6:
            raise GGPYError(f"The metadata gives '{self.name}.{key}' as {factor}, which no model can have.")
        return factor

    def ropes(self, g: Graph) -> list[Rope | None]:
        without = self.metadata.find("{arch}.rope.scaling.finetuned", bool) is False
        return [None if without else self.file_rope(g)] * self.hparams.n_layer

    def embed(self, g: Graph) -> Value:
        return g.scale(super().embed(g), self.factor("embedding_scale") or 1.0)

    def residual_factor(self) -> float:
        return self.factor("residual_scale") or 1.0

    def score_factor(self) -> float | None:
        return self.factor("attention.scale") or None

    def logit_factor(self) -> float:
        return 1 / (self.factor("logit_scale") or 1.0)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout

        layout = decoder_layout(config, cls.name, interleaved=True)
        layout.metadata |= {f"{cls.name}.{key}": config.number(name) for name, key in FACTORS.items()}
        return layout


class GraniteMoe(Granite):
    name = "granitemoe"
    hf_names = ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = super().hf_layout(config)
        n_layer, n_embd = config.integer("num_hidden_layers"), config.integer("hidden_size")
        n_ff, n_expert = config.integer("intermediate_size"), expert_count(config, n_layer)
        n_shared = config.integer("shared_intermediate_size", default=0, least=0)
        add_expert_keys(layout, config)
        if n_shared:
            layout.metadata[f"{cls.name}.expert_shared_feed_forward_length"] = n_shared
        rules: list[TensorRule] = [
            rule for rule in layout.tensors if ".ffn_" not in rule.target or "norm" in rule.target
        ]
        for layer in range(n_layer):
            rules += mixture_rules(f"blk.{layer}.", f"model.layers.{layer}.", n_ff, n_expert, n_shared, n_embd)
        layout.tensors = rules
        return layout


def mixture_rules(to: str, of: str, n_ff: int, n_expert: int, n_shared: int, n_embd: int) -> list[TensorRule]:
    """A layer's router and experts, and the expert that every token takes where `n_shared`, its width, is not 0. Gate
    and up stand in one matrix in checkpoints."""
    from ggpy.models.hf import TensorRule
    from ggpy.models.hf_parts import fused_glu_rules
    from ggpy.models.hf_sources import Stored

    at = of + "block_sparse_moe."
    both = Stored(at + "input_linear.weight", (n_expert, 2 * n_ff, n_embd))
    rules = [
        TensorRule(to + "ffn_gate_inp.weight", at + "router.layer.weight", (n_expert, n_embd)),
        TensorRule(to + "ffn_gate_exps.weight", both.slice(0, n_ff, axis=1)),
        TensorRule(to + "ffn_up_exps.weight", both.slice(n_ff, n_ff, axis=1)),
        TensorRule(to + "ffn_down_exps.weight", at + "output_linear.weight", (n_expert, n_embd, n_ff)),
    ]
    if n_shared:
        both = Stored(of + "shared_mlp.input_linear.weight", (2 * n_shared, n_embd))
        down = of + "shared_mlp.output_linear.weight"
        rules += fused_glu_rules(to, both, down, n_shared, n_embd, suffix="_shexp")
    return rules
