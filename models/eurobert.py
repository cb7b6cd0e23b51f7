"""EuroBERT (arXiv 2503.05500): Llama's layers without causality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.layers import glu_ffn, self_attention
from ggpy.models.pooled import pooled

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class EuroBert(Architecture):
    name = "eurobert"
    hf_names = ("EuroBertModel",)
    pools = True
    default_pooling = "mean"

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        super().check(freq_factors, long_factors)
        if self.metadata.find("{arch}.attention.causal", bool):
            raise GGPYError(f"{self.metadata.where} wants causal attention of a {self.name} model; ggpy runs none.")

    def build(self, g: Graph) -> Value:
        hp, rope, eps = self.hparams, self.file_rope(g), self.hparams.norm_eps
        self.check()
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            x = g.add(x, self_attention(g, g.norm(x, at + "attn_norm", eps), layer, hp, rope, causal=False))
            x = g.add(x, glu_ffn(g, g.norm(x, at + "ffn_norm", eps), layer, hp))
        return pooled(g, g.norm(x, "output_norm", eps), hp)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout
        from ggpy.models.hf_encoder import HEADS_LEFT_OUT

        layout = decoder_layout(config, cls.name)
        layout.metadata[f"{cls.name}.attention.causal"] = False
        layout.tensors = [rule for rule in layout.tensors if rule.target != "output.weight"]
        layout.tied, layout.left_out = True, HEADS_LEFT_OUT
        return layout
