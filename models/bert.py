"""BERT (arXiv 1810.04805) as an embedder of texts: learned positions, LayerNorm after each branch, attention over the
whole text. One vector a text comes out, the mean of its rows or one of them, as the file says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS, Architecture
from ggpy.models.layers import self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Bert(Architecture):
    name = "bert"
    hf_names = ("BertModel",)
    norm_eps_key = "layer_norm_epsilon"
    writes_text = False

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        self.pooling("mean")

    def build(self, g: Graph) -> Value:
        hp = self.hparams

        def norm(x: Value, name: str) -> Value:
            return g.norm(x, name, hp.norm_eps, kind="layer")

        if self.metadata.find("{arch}.attention.causal", bool):
            raise GGPYError(f"{self.metadata.where} wants causal attention of a {hp.arch} model; ggpy runs none.")
        x = g.embed(hp.n_embd)
        if g.has("token_types.weight"):
            x = g.add(x, g.embed_types("token_types", hp.n_embd))
        x = norm(g.add(x, g.embed_positions("position_embd", hp.n_embd)), "token_embd_norm")
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            x = norm(g.add(x, self_attention(g, x, layer, hp, None, causal=False)), at + "attn_output_norm")
            y = g.activation(g.linear(x, at + "ffn_up", hp.layers[layer].n_ff), "gelu_erf")
            x = norm(g.add(x, g.linear(y, at + "ffn_down", hp.n_embd)), at + "layer_output_norm")
        return g.pool(x, self.pooling("mean"))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule

        n_layer = config.integer("num_hidden_layers", most=MAX_LAYERS)
        n_embd, n_head = config.integer("hidden_size"), config.integer("num_attention_heads")
        n_ff, n_vocab = config.integer("intermediate_size"), config.integer("vocab_size")
        n_ctx, n_types = config.integer("max_position_embeddings"), config.integer("type_vocab_size")
        if n_embd % n_head or n_embd // n_head % 2:
            raise GGPYError(
                f"{config.where} gives a 'hidden_size' of {n_embd} for {n_head} 'num_attention_heads'; ggpy needs heads"
                " of an even number of dimensions."
            )
        metadata = {
            "bert.block_count": n_layer,
            "bert.context_length": n_ctx,
            "bert.embedding_length": n_embd,
            "bert.feed_forward_length": n_ff,
            "bert.attention.head_count": n_head,
            "bert.attention.layer_norm_epsilon": config.number("layer_norm_eps"),
            "bert.attention.causal": False,
        }

        def both(target: str, source: str, *shape: int) -> list[TensorRule]:
            """A weight with its bias."""
            weight = TensorRule(target + ".weight", source + ".weight", shape)
            return [weight, TensorRule(target + ".bias", source + ".bias", shape[:1])]

        of = "bert.embeddings."
        tensors = [
            TensorRule("token_embd.weight", of + "word_embeddings.weight", (n_vocab, n_embd)),
            TensorRule("position_embd.weight", of + "position_embeddings.weight", (n_ctx, n_embd)),
            TensorRule("token_types.weight", of + "token_type_embeddings.weight", (n_types, n_embd)),
            *both("token_embd_norm", of + "LayerNorm", n_embd),
        ]
        for layer in range(n_layer):
            to, of = f"blk.{layer}.", f"bert.encoder.layer.{layer}."
            tensors += [
                *both(to + "attn_q", of + "attention.self.query", n_embd, n_embd),
                *both(to + "attn_k", of + "attention.self.key", n_embd, n_embd),
                *both(to + "attn_v", of + "attention.self.value", n_embd, n_embd),
                *both(to + "attn_output", of + "attention.output.dense", n_embd, n_embd),
                *both(to + "attn_output_norm", of + "attention.output.LayerNorm", n_embd),
                *both(to + "ffn_up", of + "intermediate.dense", n_ff, n_embd),
                *both(to + "ffn_down", of + "output.dense", n_embd, n_ff),
                *both(to + "layer_output_norm", of + "output.LayerNorm", n_embd),
            ]
        layout = Layout(cls.name, metadata, tensors, n_vocab, "bert.", tied=True)
        layout.renames = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))  # before the names were PyTorch's
        layout.left_out = (
            (r"(bert\.)?pooler\.", "the pooler is left out: it feeds classifiers, and embeddings are made without it."),
            (r"cls\.", "the head that predicts words is left out: the file embeds texts."),
        )
        return layout
