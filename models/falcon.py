"""Falcon with rope (7B, 40B, 180B, Falcon 2): LayerNorm, branches side by side behind one norm or one each, one head of
keys and values or groups of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Falcon(Decoder):
    """Where there are two norms, `attn_norm` is the feed-forward's and `attn_norm_2` attention's."""

    name = "falcon"
    hf_names = ("FalconForCausalLM",)
    rope_style = "neox"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    parallel = True
    gated = False
    activation = "gelu_erf"

    def layer(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        at = f"blk.{layer}."
        normed = self.norm(g, x, at + "attn_norm")
        read = self.norm(g, x, at + "attn_norm_2") if g.has(at + "attn_norm_2.weight") else normed
        y = self.attention(g, read, layer, rope)
        return g.add(g.add(x, y), self.feed_forward(g, normed, layer))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, grouped_qkv, linear_rules, norm_rules, plain_ffn_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored

        grouped = config.flag("new_decoder_architecture", default=False)
        one = not grouped and config.flag("multi_query", default=True)
        n_head = config.integer("num_attention_heads")
        n_kv = 1 if one else config.integer("num_kv_heads", default=n_head) if grouped else n_head
        values = {**config.values, "num_key_value_heads": n_kv}
        arch, sizes = cls.name, Sizes.read(Config(values, config.where, config.defaults))
        n_embd, bias = sizes.n_embd, config.flag("bias", default=False)
        n_ff = config.integer("ffn_hidden_size", default=4 * n_embd)
        two = grouped and config.integer("num_ln_in_parallel_attn", default=2) == 2
        norms = {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if two else {"attn_norm": "input_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            qkv, out, n = of + "self_attention.query_key_value", of + "self_attention.dense", sizes.n_q + 2 * sizes.n_kv
            weight = grouped_qkv(Stored(qkv + ".weight", (n, n_embd)), sizes)
            biases = grouped_qkv(Stored(qkv + ".bias", (n,)), sizes) if bias else ""
            return [
                *norm_rules(to, of, n_embd, norms, bias=True),
                *linear_rules(to + "attn_qkv", weight, (n, n_embd), biases),
                *linear_rules(to + "attn_output", out + ".weight", (n_embd, sizes.n_q), out + ".bias" if bias else ""),
                *plain_ffn_rules(to, of + "mlp.dense_h_to_4h", of + "mlp.dense_4h_to_h", n_ff, n_embd, bias=bias),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        names = ("transformer.word_embeddings", "transformer.h", "transformer.ln_f", "lm_head")
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True, names=names)
        metadata = sizes.keys(arch, config, eps="layer_norm_epsilon", norm="layer")
        layout = Layout(
            arch, metadata | {f"{arch}.feed_forward_length": n_ff}, rules, sizes.n_vocab, "transformer.", tied
        )
        add_rope(layout, config, sizes.head_dim)
        return layout
