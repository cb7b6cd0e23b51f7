"""GPT-NeoX and Pythia: LayerNorm and biases, branches side by side, each behind a norm of its own, rope of a part of
each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class GPTNeoX(Decoder):
    name = "gptneox"
    hf_names = ("GPTNeoXForCausalLM",)
    rope_style = "neox"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    gated = False
    activation = "gelu_erf"

    def __init__(self, metadata: Mapping[str, Any], n_vocab: int, where: str = "the model's file") -> None:
        super().__init__(metadata, n_vocab, where)
        self.parallel = self.metadata.find("{arch}.use_parallel_residual", bool) is not False  # type: ignore[misc]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, grouped_qkv, linear_rules, norm_rules, plain_ffn_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        n_embd, bias = sizes.n_embd, config.flag("attention_bias", default=True)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            qkv, out, n = of + "attention.query_key_value", of + "attention.dense", 3 * n_embd
            weight = grouped_qkv(Stored(qkv + ".weight", (n, n_embd)), sizes)
            biases = grouped_qkv(Stored(qkv + ".bias", (n,)), sizes) if bias else ""
            return [
                *norm_rules(to, of, n_embd, norms, bias=True),
                *linear_rules(to + "attn_qkv", weight, (n, n_embd), biases),
                *linear_rules(to + "attn_output", out + ".weight", (n_embd, n_embd), out + ".bias" if bias else ""),
                *plain_ffn_rules(to, of + "mlp.dense_h_to_4h", of + "mlp.dense_4h_to_h", n_ff, n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        names = ("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", "embed_out")
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True, names=names)
        metadata = sizes.keys(arch, config, eps="layer_norm_eps", norm="layer") | {
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.use_parallel_residual": config.flag("use_parallel_residual", default=True),
        }
        layout = Layout(arch, metadata, rules, sizes.n_vocab, "gpt_neox.", tied)
        layout.left_out = ((r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias$", "masks are made anew."),)
        # Rope's settings beside its section have names of their own.
        own = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        values = {**config.values, **{key: config.number(name) for key, name in own.items()}}
        add_rope(layout, Config(values, config.where, config.defaults), sizes.head_dim, partial=True)
        return layout
