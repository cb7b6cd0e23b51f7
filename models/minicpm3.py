"""MiniCPM 3: latent attention whose keys and values are made for every head, under MiniCPM's factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.latent_attention import LatentAttention, latent_attention
from ggpy.models.minicpm import MiniCPM

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class MiniCPM3(MiniCPM):
    name = "minicpm3"
    hf_names = ("MiniCPM3ForCausalLM",)
    rope_style = "neox"

    def _head_dim(self, suffix: str, default: int) -> int:
        return self.metadata.integer("{arch}.attention.key_length", default)

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        assert rope is not None
        hp = self.hparams
        sizes = LatentAttention.read(self.metadata, hp.n_head, hp.n_embd // hp.n_head)
        return latent_attention(g, x, layer, sizes, rope, hp.n_embd)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_latent import latent_keys, latent_rules, latent_sizes
        from ggpy.models.hf_parts import decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, (sizes, latent) = cls.name, latent_sizes(config)
        n_embd, n_layer, n_ff = sizes.n_embd, sizes.n_layer, config.integer("intermediate_size")
        bias, mlp_bias = config.flag("attention_bias", default=False), config.flag("mlp_bias", default=False)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, n_embd, norms),
                *latent_rules(to, of + "self_attn.", latent, n_embd, bias=bias, by_head=False),
                *glu_rules(to, of + "mlp.", n_ff, n_embd, bias=mlp_bias),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        depth = config.number("scale_depth", default=n_layer**0.5)
        metadata = {
            **sizes.keys(arch, config),
            **latent_keys(arch, latent, by_head=False),
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.embedding_scale": config.number("scale_emb"),
            f"{arch}.residual_scale": depth / n_layer**0.5,
            f"{arch}.logit_scale": n_embd / config.integer("dim_model_base", default=n_embd),
        }
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        add_rope(layout, config, latent.n_rot, longrope=True)
        usual = (12.0, 1.4 / n_layer**0.5, n_embd / 256)
        if tuple(metadata[f"{arch}.{key}"] for key in ("embedding_scale", "residual_scale", "logit_scale")) != usual:
            layout.notes.append("the file says MiniCPM's factors; other engines take those of MiniCPM3-4B in minicpm3.")
        return layout
