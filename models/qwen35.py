"""Qwen3.5, its mixtures of experts, and Qwen3-Next: gated delta nets in most layers, gated attention in the others.

A delta net (arXiv 2412.06464) is a convolution over queries, keys and values, the delta rule with a decay and a rate
for each value head, and a norm under a gate. Attention's query matrix gives a gate on its result as well.

Where key heads serve several value heads, Qwen3.5's files have the value heads tiled (those of the first place of each
key head, then of the second, …), Qwen3-Next's and all checkpoints have them grouped by key head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture, HyperParameters
from ggpy.models.delta_net import DeltaNet
from ggpy.models.experts import Experts, expert_ffn, shared_expert
from ggpy.models.layers import glu_ffn
from ggpy.models.next_token import predictor

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: What the l2 norm of queries and keys adds to the sum of squares.
_L2_EPS = 1e-6


class Qwen35(Architecture):
    name = "qwen35"
    hf_names: ClassVar[tuple[str, ...]] = ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration")
    rope_style = "neox"
    tiled: ClassVar[bool] = True
    predictor_goes_on_normed = True

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        return self.without_predictors(super().read_hparams(n_vocab))

    def recurrent_layers(self) -> list[bool]:
        """Which layers are delta nets."""
        m, n_layer = self.metadata, self.hparams.n_layer
        flags = m.flags("{arch}.attention.recurrent_layers")
        if flags:
            if len(flags) < n_layer:
                raise GGPYError(f"The metadata says of {len(flags)} layers what they are; the model has {n_layer}.")
            return list(flags[:n_layer])
        interval = m.integer("{arch}.full_attention_interval", 4)
        if interval < 1:
            raise GGPYError(f"The metadata gives attention in every {interval}th layer; that is impossible.")
        return [(layer + 1) % interval != 0 for layer in range(n_layer)]

    def build(self, g: Graph) -> Value:
        hp, rope = self.hparams, self.rope(g.vector("rope_freqs.weight"))
        sizes, recurrent = DeltaNet.read(self.metadata), self.recurrent_layers()
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            x = self._block(g, x, layer, rope, sizes if recurrent[layer] else None)
        return g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)

    def build_predictor(self, g: Graph) -> Value | None:
        whole, layer, rope = self.with_predictors(), self.hparams.n_layer, self.rope(g.vector("rope_freqs.weight"))
        return predictor(g, whole.hparams, layer, lambda x: whole._block(g, x, layer, rope, None))

    def _block(self, g: Graph, x: Value, layer: int, rope: Rope, delta: DeltaNet | None) -> Value:
        """A layer: a delta net of these sizes, or attention, and the feed-forward."""
        at, eps = f"blk.{layer}.", self.hparams.norm_eps
        normed = g.norm(x, at + "attn_norm", eps)
        mixed = self._delta_net(g, normed, layer, delta) if delta else self._attention(g, normed, layer, rope)
        x = g.add(x, mixed)
        normed = g.norm(x, at + "post_attention_norm", eps)  # before the feed-forward, despite its name
        return g.add(x, self._feed_forward(g, normed, layer))

    def _attention(self, g: Graph, x: Value, layer: int, rope: Rope) -> Value:
        """Attention whose query matrix has two halves for each head: the query, and a gate on the result."""
        at, size = f"blk.{layer}.", self.hparams.layers[layer]
        n_kv, head_dim = size.n_head_kv * size.head_dim, size.head_dim
        both = g.linear(x, at + "attn_q", 2 * size.n_head * head_dim)
        k, v = g.linear(x, at + "attn_k", n_kv), g.linear(x, at + "attn_v", n_kv)
        attended = g.attention(
            g.select_columns(both, size.n_head, 0, head_dim),
            k,
            v,
            layer=layer,
            n_head=size.n_head,
            n_head_kv=size.n_head_kv,
            rope=rope,
            q_norm=at + "attn_q_norm",
            k_norm=at + "attn_k_norm",
            eps=self.hparams.norm_eps,
        )
        gate = g.select_columns(both, size.n_head, head_dim, head_dim)
        return g.linear(g.gate(attended, gate), at + "attn_output", self.hparams.n_embd)

    def _delta_net(self, g: Graph, x: Value, layer: int, s: DeltaNet) -> Value:
        at = f"blk.{layer}."
        # Products of the same activations stand side by side, for devices that make one of them.
        mixed, gate = g.linear(x, at + "attn_qkv", 2 * s.n_k + s.n_v), g.linear(x, at + "attn_gate", s.n_v)
        beta, alpha = self._rates(g, x, layer, s)
        mixed = g.conv_state(mixed, at + "ssm_conv1d", s.width, layer, "silu")
        q, k, v = mixed.columns(0, s.n_k), mixed.columns(s.n_k, s.n_k), mixed.columns(2 * s.n_k, s.n_v)
        q, k = (g.norm(heads, None, _L2_EPS, kind="l2", width=s.k_dim) for heads in (q, k))
        ruled = g.delta_rule(
            g.scale(q, s.k_dim**-0.5),
            k,
            v,
            g.scale_columns(g.activation(g.shift_columns(alpha, at + "ssm_dt.bias"), "softplus"), at + "ssm_a"),
            g.activation(beta, "sigmoid"),
            layer=layer,
            n_k_head=s.n_k_head,
            n_v_head=s.n_v_head,
            tiled=self.tiled,
        )
        normed = g.norm(ruled, at + "ssm_norm", self.hparams.norm_eps, width=s.v_dim)
        gated = g.glu(gate, normed, "silu")
        return g.linear(gated, at + "ssm_out", self.hparams.n_embd)

    def _rates(self, g: Graph, x: Value, layer: int, s: DeltaNet) -> tuple[Value, Value]:
        """The rate of each value head before its sigmoid, and its decay before bias and softplus."""
        at = f"blk.{layer}."
        return g.linear(x, at + "ssm_beta", s.n_v_head), g.linear(x, at + "ssm_alpha", s.n_v_head)

    def _feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return glu_ffn(g, x, layer, self.hparams)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf_delta_net import delta_net_layout

        return delta_net_layout(config, cls.name, tiled=cls.tiled)


class Qwen35Moe(Qwen35):
    """Experts, and one that every token takes, under a gate of its own."""

    name = "qwen35moe"
    hf_names: ClassVar[tuple[str, ...]] = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")

    def _feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        if not g.has(f"blk.{layer}.ffn_gate_inp.weight"):  # some layers of Qwen3-Next may be dense
            return super()._feed_forward(g, x, layer)
        mixed = expert_ffn(g, x, layer, self.hparams.n_embd, Experts.read(self.metadata))
        n_ff = self.metadata.integer("{arch}.expert_shared_feed_forward_length")
        return g.add(mixed, shared_expert(g, x, layer, self.hparams.n_embd, n_ff))


class Qwen3Next(Qwen35Moe):
    """The rates and decays of value heads come from one matrix, in groups by key head, as value heads do."""

    name = "qwen3next"
    hf_names = ("Qwen3NextForCausalLM",)
    tiled = False

    def _rates(self, g: Graph, x: Value, layer: int, s: DeltaNet) -> tuple[Value, Value]:
        at, n = f"blk.{layer}.", s.n_v_head // s.n_k_head
        both = g.linear(x, at + "ssm_ba", 2 * s.n_v_head)
        beta, alpha = (g.select_columns(both, s.n_k_head, first, n) for first in (0, n))
        return beta, alpha
