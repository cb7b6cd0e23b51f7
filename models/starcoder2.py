"""StarCoder2: LayerNorm and biases, a feed-forward without a gate, rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class StarCoder2(Decoder):
    name = "starcoder2"
    hf_names = ("Starcoder2ForCausalLM",)
    rope_style = "neox"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    gated = False
    activation = "gelu_tanh"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, add_sliding_windows
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules, plain_ffn_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias, n_embd = config.flag("use_bias", default=True), sizes.n_embd
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, n_embd, norms, bias=True),
                *attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias),
                *plain_ffn_rules(to, of + "mlp.c_fc", of + "mlp.c_proj", n_ff, n_embd, bias=bias),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True)
        metadata = sizes.keys(arch, config, eps="norm_epsilon", norm="layer")
        layout = Layout(arch, metadata | {f"{arch}.feed_forward_length": n_ff}, rules, sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim)
        add_sliding_windows(layout, config, sizes.n_layer)
        return layout
