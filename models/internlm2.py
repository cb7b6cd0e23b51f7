"""InternLM 2 and 2.5: Llama whose query, key and value stand in one matrix by heads of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class InternLM2(Decoder):
    name = "internlm2"
    hf_names = ("InternLM2ForCausalLM",)
    rope_style = "interleaved"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import (
            Sizes,
            decoder_rules,
            glu_rules,
            grouped_qkv,
            linear_rules,
            norm_rules,
            separate_qkv_rules,
        )
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored

        arch, sizes = cls.name, Sizes.read(config)
        n_embd, n_ff, bias = sizes.n_embd, config.integer("intermediate_size"), config.flag("bias", default=True)
        n_rows = sizes.n_q + 2 * sizes.n_kv

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            qkv, out = of + "attention.wqkv", of + "attention.wo"
            weight = grouped_qkv(Stored(qkv + ".weight", (n_rows, n_embd)), sizes)
            biases = grouped_qkv(Stored(qkv + ".bias", (n_rows,)), sizes) if bias else None
            return [
                *norm_rules(to, of, n_embd, {"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"}),
                *separate_qkv_rules(to, weight, biases, sizes),
                *linear_rules(to + "attn_output", out + ".weight", (n_embd, sizes.n_q), out + ".bias" if bias else ""),
                *glu_rules(to, of + "feed_forward.", n_ff, n_embd, names=("w1", "w3", "w2")),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        names = ("model.tok_embeddings", "model.layers", "model.norm", "output")
        layout = Layout(
            arch,
            {**sizes.keys(arch, config), f"{arch}.feed_forward_length": n_ff},
            decoder_rules(sizes, block, tied=tied, names=names),
            sizes.n_vocab,
            "model.",
            tied,
        )
        add_rope(layout, config, sizes.head_dim)
        return layout
