"""Phi-3, 3.5 and 4: one matrix for query, key and value, one for gate and up, LongRoPE, and in Phi-4-mini rope of a
part of each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Phi3(Decoder):
    name = "phi3"
    hf_names = ("Phi3ForCausalLM",)
    rope_style = "neox"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule, add_sliding_windows
        from ggpy.models.hf_parts import Sizes, decoder_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        n_embd, tied = sizes.n_embd, config.flag("tie_word_embeddings", default=False)

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
            qkv = (sizes.n_q + 2 * sizes.n_kv, n_embd)
            return [
                *norm_rules(to, of, n_embd, norms),
                TensorRule(to + "attn_qkv.weight", of + "self_attn.qkv_proj.weight", qkv),
                TensorRule(to + "attn_output.weight", of + "self_attn.o_proj.weight", (n_embd, sizes.n_q)),
                TensorRule(to + "ffn_up.weight", of + "mlp.gate_up_proj.weight", (2 * n_ff, n_embd)),
                TensorRule(to + "ffn_down.weight", of + "mlp.down_proj.weight", (n_embd, n_ff)),
            ]

        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        # Readers take the original context from the file even where rope is not scaled.
        metadata[f"{arch}.rope.scaling.original_context_length"] = config.integer("original_max_position_embeddings")
        add_rope(layout, config, sizes.head_dim, partial=True, longrope=True)
        add_sliding_windows(layout, config, sizes.n_layer)
        metadata.setdefault(f"{arch}.attention.sliding_window", 0)  # without the key, readers put in one
        return layout
