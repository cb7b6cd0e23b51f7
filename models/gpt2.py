"""GPT-2: learned positions, LayerNorm and biases, matrices that stand on their side in the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class GPT2(Decoder):
    name = "gpt2"
    hf_names = ("GPT2LMHeadModel",)
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    gated = False
    activation = "gelu_tanh"

    def ropes(self, g: Graph) -> list[None]:
        return [None] * self.hparams.n_layer

    def embed(self, g: Graph) -> Value:
        n_embd = self.hparams.n_embd
        return g.add(g.embed(n_embd), g.embed_positions("position_embd", n_embd))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, linear_rules, norm_rules
        from ggpy.models.hf_sources import Stored

        own = {
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        }  # fmt: skip
        values = {**config.values, **{key: config.get(name) for key, name in own.items()}}
        config = Config(values, config.where, config.defaults)
        arch, sizes, n_ctx = cls.name, Sizes.read(config), config.integer("n_positions")
        n_embd, n_ff = sizes.n_embd, config.integer("n_inner", default=4 * sizes.n_embd)

        def turned(to: str, of: str, n_in: int, n_out: int) -> list[TensorRule]:
            return linear_rules(to, Stored(of + ".weight", (n_in, n_out)).transpose(), (n_out, n_in), of + ".bias")

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, n_embd, {"attn_norm": "ln_1", "ffn_norm": "ln_2"}, bias=True),
                *turned(to + "attn_qkv", of + "attn.c_attn", n_embd, 3 * n_embd),
                *turned(to + "attn_output", of + "attn.c_proj", n_embd, n_embd),
                *turned(to + "ffn_up", of + "mlp.c_fc", n_embd, n_ff),
                *turned(to + "ffn_down", of + "mlp.c_proj", n_ff, n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        names = ("transformer.wte", "transformer.h", "transformer.ln_f", "lm_head")
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True, names=names)
        rules.append(TensorRule("position_embd.weight", "transformer.wpe.weight", (n_ctx, n_embd)))
        metadata = sizes.keys(arch, config, eps="layer_norm_epsilon", norm="layer")
        del metadata[f"{arch}.rope.dimension_count"]
        layout = Layout(
            arch, metadata | {f"{arch}.feed_forward_length": n_ff}, rules, sizes.n_vocab, "transformer.", tied
        )
        layout.left_out = ((r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias$", "masks are made anew."),)
        return layout

    def check(self, freq_factors: object = None, long_factors: object = None) -> None:
        """Nothing beside the hyper-parameters is read."""
