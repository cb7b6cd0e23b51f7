"""The decoder that most families vary: one stream of residuals, to which the layers add attention and a feed-forward.

A family says in class variables what differs (norms before, after or around the branches, branches in parallel, norms
of query and key), and in methods what needs more than that. A weight's optional parts are there if the file has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, expert_ffn, plain_shared_expert
from ggpy.models.layers import glu_ffn, plain_ffn, self_attention
from ggpy.models.next_token import predictor
from ggpy.models.pooled import decoded

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.operations import Temperature
    from ggpy.graph.rope import Rope


def all_but_every(period: int, n_layer: int) -> list[bool]:
    """True for all layers but every `period`-th; 0: for all."""
    return [not period or (layer + 1) % period != 0 for layer in range(n_layer)]


class Decoder(Architecture):
    """RMS norm before each of attention and feed-forward, as Llama has it, where a family does not say otherwise."""

    norm_kind: ClassVar[str] = "rms"  # or "layer"
    norms_before: ClassVar[bool] = True  # of each branch
    norms_after: ClassVar[bool] = False
    ffn_norm: ClassVar[str] = "ffn_norm"  # the norm before the feed-forward
    parallel: ClassVar[bool] = False  # both branches read the same rows
    head_norms: ClassVar[str] = (
        "head"  # "head", "head after rope", "layer" (of each head) or "wide" (all heads' columns)
    )
    activation: ClassVar[str] = "silu"
    gated: ClassVar[bool] = True  # the feed-forward's activation is a gate
    gating: ClassVar[str] = "softmax"  # where the file does not say how a router's logits become weights
    normalizes: ClassVar[bool] = True  # where the file does not say whether the weights of experts sum up to 1

    def build(self, g: Graph) -> Value:
        hp, ropes = self.hparams, self.ropes(g)
        x = self.embed(g)
        for layer in g.layers(hp.n_layer):
            x = self.layer(g, x, layer, ropes[layer])
        if hp.pooling is not None:
            return decoded(g, x, hp)
        x = self.norm(g, g.select_outputs(x), "output_norm")
        return g.scale(g.output(x, hp.n_vocab), self.logit_factor())

    def build_predictor(self, g: Graph) -> Value | None:
        hp, layer = self.hparams, self.hparams.n_layer
        if not hp.predictors:
            return None
        whole, rope = self.with_predictors(), self.file_rope(g)
        return predictor(g, whole.hparams, layer, lambda x: whole.layer(g, x, layer, rope))

    # ---- what families replace

    def ropes(self, g: Graph) -> Sequence[Rope | None]:
        """The rotary embedding of each layer."""
        return [self.file_rope(g)] * self.hparams.n_layer

    def ropes_by_pattern(self, g: Graph, usual: list[bool]) -> list[Rope | None]:
        """The rotary embedding of the layers that the file says have one; `usual`: those where it does not say."""
        rope, n_layer = self.file_rope(g), self.hparams.n_layer
        turns = self.metadata.flags("{arch}.attention.rope_pattern") or usual
        if len(turns) != n_layer:
            raise GGPYError(
                f"The metadata says of {len(turns)} layers whether they have rope; the model has {n_layer}."
            )
        return [rope if turn else None for turn in turns]

    def embed(self, g: Graph) -> Value:
        """The rows that the first layer reads."""
        return g.embed(self.hparams.n_embd)

    def residual_factor(self) -> float:
        """The factor of a branch before it is added."""
        return 1.0

    def logit_factor(self) -> float:
        return 1.0

    def score_factor(self) -> float | None:
        """The factor of scores; None: 1 / sqrt(head_dim)."""
        return None

    def alibi(self) -> float:
        """The largest slope by which scores fall with the distance; 0: none."""
        return 0.0

    def temperature(self) -> Temperature | None:
        """The factor of queries that grows with the position."""
        return None

    # ---- a layer

    def norm(self, g: Graph, x: Value, name: str) -> Value:
        return g.norm(x, name, self.hparams.norm_eps, self.norm_kind)

    def layer(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        at, factor = f"blk.{layer}.", self.residual_factor()
        normed = self.norm(g, x, at + "attn_norm") if self.norms_before else x
        y = self.attention(g, normed, layer, rope)
        if self.parallel:
            return g.add(
                g.add(x, g.scale(y, factor)),
                g.scale(self.feed_forward(g, self.beside(g, x, normed, layer), layer), factor),
            )
        if self.norms_after:
            y = self.norm(g, y, at + "post_attention_norm")
        x = g.add(x, g.scale(y, factor))
        y = self.feed_forward(g, self.norm(g, x, at + self.ffn_norm) if self.norms_before else x, layer)
        if self.norms_after:
            y = self.norm(g, y, at + "post_ffw_norm")
        return g.add(x, g.scale(y, factor))

    def beside(self, g: Graph, x: Value, normed: Value, layer: int) -> Value:
        """The input of a feed-forward beside attention: the residuals under a norm of its own, or attention's input."""
        name = f"blk.{layer}.{self.ffn_norm}"
        return self.norm(g, x, name) if g.has(name + ".weight") else normed

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        return self_attention(
            g,
            x,
            layer,
            self.hparams,
            rope,
            scale=self.score_factor(),
            head_norms=self.head_norms,
            alibi=self.alibi(),
            temperature=self.temperature(),
        )

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        """A gated unit or, where the layer has a router, experts, with one beside them that every token takes."""
        at, hp = f"blk.{layer}.", self.hparams
        if not self.gated:
            return plain_ffn(g, x, layer, hp, self.activation)
        if not g.has(at + "ffn_gate_inp.weight"):
            return glu_ffn(g, x, layer, hp, self.activation)
        y = expert_ffn(g, x, layer, hp.n_embd, self.experts())
        return g.add(y, plain_shared_expert(g, x, layer, hp.n_embd)) if g.has(at + "ffn_up_shexp.weight") else y

    def experts(self) -> Experts:
        return Experts.read(self.metadata, gating=self.gating, normalize=self.normalizes, whole=True)
