"""Phi-1.5 and Phi-2: attention and a feed-forward without a gate side by side behind one LayerNorm, rope of a part of
each head, an output matrix with a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Phi2(Decoder):
    name = "phi2"
    hf_names = ("PhiForCausalLM",)
    rope_style = "neox"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    parallel = True
    gated = False
    activation = "gelu_tanh"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules, plain_ffn_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            attention = attention_rules(to, of + "self_attn.", sizes, bias=True, out_bias=True, out="dense")
            return [
                *norm_rules(to, of, sizes.n_embd, {"attn_norm": "input_layernorm"}, bias=True),
                *attention,
                *plain_ffn_rules(to, of + "mlp.fc1", of + "mlp.fc2", n_ff, sizes.n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        names = ("model.embed_tokens", "model.layers", "model.final_layernorm", "lm_head")
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True, names=names, head_bias=True)
        metadata = sizes.keys(arch, config, eps="layer_norm_eps", norm="layer")
        layout = Layout(arch, metadata | {f"{arch}.feed_forward_length": n_ff}, rules, sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim, partial=True)
        return layout
