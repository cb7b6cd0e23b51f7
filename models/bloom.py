"""BLOOM: ALiBi in place of rope, LayerNorm and biases, a norm behind the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Bloom(Decoder):
    name = "bloom"
    hf_names = ("BloomForCausalLM",)
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    gated = False
    activation = "gelu_tanh"

    def ropes(self, g: Graph) -> list[None]:
        return [None] * self.hparams.n_layer

    def embed(self, g: Graph) -> Value:
        return self.norm(g, super().embed(g), "token_embd_norm")

    def alibi(self) -> float:
        return 8.0

    def check(self, freq_factors: object = None, long_factors: object = None) -> None:
        """Nothing beside the hyper-parameters is read."""

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, grouped_qkv, linear_rules, norm_rules, plain_ffn_rules
        from ggpy.models.hf_sources import Stored

        own = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"}
        values = {**config.values, **{key: config.get(name) for key, name in own.items()}}
        if config.get("n_embed") is not None:
            values["hidden_size"] = config.integer("n_embed")
        config = Config(values, config.where, config.defaults)
        arch, sizes = cls.name, Sizes.read(config)
        n_embd, n = sizes.n_embd, 3 * sizes.n_embd

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            qkv, out = of + "self_attention.query_key_value", of + "self_attention.dense"
            weight, bias = Stored(qkv + ".weight", (n, n_embd)), Stored(qkv + ".bias", (n,))
            norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
            return [
                *norm_rules(to, of, n_embd, norms, bias=True),
                *linear_rules(to + "attn_qkv", grouped_qkv(weight, sizes), (n, n_embd), grouped_qkv(bias, sizes)),
                *linear_rules(to + "attn_output", out + ".weight", (n_embd, n_embd), out + ".bias"),
                *plain_ffn_rules(to, of + "mlp.dense_h_to_4h", of + "mlp.dense_4h_to_h", 4 * n_embd, n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        names = ("transformer.word_embeddings", "transformer.h", "transformer.ln_f", "lm_head")
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True, names=names)
        rules += norm_rules("", "", n_embd, {"token_embd_norm": "transformer.word_embeddings_layernorm"}, bias=True)
        metadata = sizes.keys(arch, config, eps="layer_norm_epsilon", norm="layer")
        del metadata[f"{arch}.rope.dimension_count"]
        return Layout(
            arch, metadata | {f"{arch}.feed_forward_length": 4 * n_embd}, rules, sizes.n_vocab, "transformer.", tied
        )
