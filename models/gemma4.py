"""Gemma 4, its text: Gemma 3 whose norms are stored as they are and whose full layers have heads of another width.
Values are normalised without a weight; the last layers read keys and values of earlier ones, and each layer an
embedding of its own (E2B, E4B); experts stand beside the feed-forward (26B-A4B)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, expert_ffn
from ggpy.models.layers import glu_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

ACTIVATION = "gelu_tanh"


class Gemma4(Architecture):
    name = "gemma4"
    hf_names = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")
    rope_style = "neox"
    usual_softcap: ClassVar[float] = 0.0  # of logits, where a file does not say

    def ropes(self, freq_factors: Any = None) -> tuple[Rope, Rope]:
        """The ropes of full and of sliding layers."""
        m, layers = self.metadata, self.hparams.layers
        full = next((layer.head_dim for layer in layers if not layer.window), layers[0].head_dim)
        sliding = next((layer.head_dim for layer in layers if layer.window), full)
        base, base_swa = m.number("{arch}.rope.freq_base", 1e6), m.number("{arch}.rope.freq_base_swa", 1e4)
        n_rot, n_rot_swa = (
            m.integer("{arch}.rope.dimension_count" + end, width) for end, width in (("", full), ("_swa", sliding))
        )
        return (
            self.rope(freq_factors, base=base, n_rot=n_rot, head_dim=full),
            self.rope(base=base_swa, n_rot=n_rot_swa, head_dim=sliding, scaled=False),
        )

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        self.ropes(freq_factors)
        self.first_shared_layer()

    def shared_layers(self) -> int:
        """How many layers at the end read keys and values of earlier ones."""
        return self.metadata.integer("{arch}.attention.shared_kv_layers", 0)

    def first_shared_layer(self) -> int:
        n_layer, n_shared = self.hparams.n_layer, self.shared_layers()
        if not 0 <= n_shared < n_layer:
            raise GGPYError(
                f"The metadata has {n_shared} of {n_layer} layers read keys and values of earlier ones, which is"
                " impossible."
            )
        return n_layer - n_shared

    def kv_layer(self, layer: int) -> int | None:
        """The layer whose keys and values this one reads: the last of its kind that has some; None: its own."""
        hp, first = self.hparams, self.first_shared_layer()
        if layer < first:
            return None
        found = [i for i in range(first) if bool(hp.window(i)) == bool(hp.window(layer))]
        if not found:
            raise GGPYError(
                f"The metadata has layer {layer} read keys and values of an earlier one of its kind; none is."
            )
        return found[-1]

    def build(self, g: Graph) -> Value:
        hp, eps = self.hparams, self.hparams.norm_eps
        full, sliding = self.ropes(g.vector("rope_freqs.weight"))
        x = g.scale(g.embed(hp.n_embd), math.sqrt(hp.n_embd))
        n_each = self.metadata.integer("{arch}.embedding_length_per_layer_input", 0)
        each = self.layer_inputs(g, x, n_each) if n_each else None
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            y = self.attention(g, g.norm(x, at + "attn_norm", eps), layer, sliding if hp.window(layer) else full)
            x = g.add(x, g.norm(y, at + "post_attention_norm", eps))
            x = g.add(x, g.norm(self._feed_forward(g, x, layer), at + "post_ffw_norm", eps))
            if each:
                gate = g.linear(x, at + "inp_gate", n_each)
                y = g.linear(g.glu(gate, each.columns(layer * n_each, n_each), ACTIVATION), at + "proj", hp.n_embd)
                x = g.add(x, g.norm(y, at + "post_norm", eps))
            if g.has(at + "layer_output_scale.weight"):
                x = g.scale_columns(x, at + "layer_output_scale.weight")
        logits = g.output(g.norm(g.select_outputs(x), "output_norm", eps), hp.n_vocab)
        return g.softcap(logits, self.softcap())

    def softcap(self) -> float:
        cap = self.metadata.number("{arch}.final_logit_softcapping", self.usual_softcap)
        if not 0 <= cap < 1e6:
            raise GGPYError(f"The metadata caps logits at {cap}, which is impossible.")
        return cap

    def layer_inputs(self, g: Graph, x: Value, n_each: int) -> Value:
        """The input of each layer beside the residuals, an embedding of the token and a part of the first rows, all
        side by side: [n_tokens, n_layer * n_each]."""
        hp, table, n = self.hparams, "per_layer_token_embd", self.hparams.n_layer * n_each
        if g.has(table + ".weight") and not g.has(table + ".weight", rows=hp.n_vocab):
            raise GGPYError(f"{g.file.path}: the tensor '{table}.weight' has no row for each of {hp.n_vocab} tokens.")
        tokens = g.scale(g.embed(n, table), math.sqrt(n_each))
        projected = g.scale(g.linear(x, "per_layer_model_proj", n), hp.n_embd**-0.5)
        normed = g.norm(projected, "per_layer_proj_norm", hp.norm_eps, width=n_each)
        return g.scale(g.add(normed, tokens), 0.5**0.5)

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope) -> Value:
        """Where the file has no matrix of values, keys are values as well, before norm and rope."""
        at, hp, size, shared = f"blk.{layer}.", self.hparams, self.hparams.layers[layer], self.kv_layer(layer)
        n_kv, k, v = size.n_head_kv * size.head_dim, None, None
        q = g.linear(x, at + "attn_q", size.n_head * size.head_dim)
        if shared is None:
            k = g.linear(x, at + "attn_k", n_kv)
            v = g.linear(x, at + "attn_v", n_kv) if g.has(at + "attn_v.weight") else k
            v = g.norm(v, None, hp.norm_eps, width=size.head_dim)
        attended = g.attention(
            q,
            k,
            v,
            layer=layer,
            n_head=size.n_head,
            n_head_kv=size.n_head_kv,
            rope=rope,
            q_norm=at + "attn_q_norm",
            k_norm=at + "attn_k_norm",
            eps=hp.norm_eps,
            scale=1.0,
            window=size.window,
            kv_layer=shared,
        )
        return g.linear(attended, at + "attn_output", hp.n_embd)

    def _feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        """The sum of a plain branch and one of experts, each between norms of its own; or the plain one alone. The
        router reads the residuals."""
        at, hp, eps = f"blk.{layer}.", self.hparams, self.hparams.norm_eps
        y = glu_ffn(g, g.norm(x, at + "ffn_norm", eps), layer, hp, ACTIVATION)
        if not g.has(at + "ffn_gate_inp.weight"):
            return y
        experts = Experts.read(self.metadata, activation=ACTIVATION)
        asked = g.scale(g.scale_columns(g.norm(x, None, eps), at + "ffn_gate_inp.scale"), hp.n_embd**-0.5)
        given = g.norm(x, at + "pre_ffw_norm_2", eps)
        mixed = expert_ffn(g, asked, layer, hp.n_embd, experts, given)
        return g.add(g.norm(y, at + "post_ffw_norm_1", eps), g.norm(mixed, at + "post_ffw_norm_2", eps))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf_gemma4 import gemma4_layout

        return gemma4_layout(config)
