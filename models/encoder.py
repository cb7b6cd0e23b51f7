"""The encoder that BERT's family varies: rows see the whole text, and a LayerNorm stands behind each branch.

What differs is in class variables and methods; a weight's optional parts are there if the file has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.layers import self_attention
from ggpy.models.pooled import pooled

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope


class Encoder(Architecture):
    """Embeddings of tokens and types under a LayerNorm, layers of attention and feed-forward, pooled rows."""

    norm_eps_key = "layer_norm_epsilon"
    pools = True
    default_pooling = "mean"
    learned_positions: ClassVar[bool] = False  # a table of them is added to the embeddings
    turns: ClassVar[bool] = False  # by rope
    alibi: ClassVar[float] = 0.0  # the largest slope by which scores fall with the distance

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        if self.turns:
            self.rope()
        if self.metadata.find("{arch}.attention.causal", bool):
            raise GGPYError(f"{self.metadata.where} wants causal attention of a {self.name} model; ggpy runs none.")

    def norm(self, g: Graph, x: Value, name: str) -> Value:
        return g.norm(x, name, self.hparams.norm_eps, kind="layer")

    def build(self, g: Graph) -> Value:
        hp = self.hparams
        self.check()
        rope = self.rope() if self.turns else None
        x = g.embed(hp.n_embd)
        if g.has("token_types.weight"):
            x = g.add(x, g.embed_types("token_types", hp.n_embd))
        if self.learned_positions:
            x = g.add(x, g.embed_positions("position_embd", hp.n_embd))
        x = self.norm(g, x, "token_embd_norm")
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            attended = self.norm(g, g.add(x, self.attention(g, x, layer, rope)), at + "attn_output_norm")
            if g.has(at + "attn_norm_2.weight"):
                attended = self.norm(g, g.add(x, attended), at + "attn_norm_2")
            x = self.norm(g, g.add(attended, self.feed_forward(g, attended, layer)), at + "layer_output_norm")
        return pooled(g, x, hp)

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        """Query and key under a LayerNorm over all heads, where the file has one."""
        return self_attention(g, x, layer, self.hparams, rope, causal=False, head_norms="wide layer", alibi=self.alibi)

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        raise NotImplementedError
