"""Qwen, the first generation (QWenLMHeadModel); query, key and value come fused, with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS, Architecture, HyperParameters
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Qwen(Architecture):
    name = "qwen"
    hf_names = ("QWenLMHeadModel",)
    rope_style = "neox"

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        # The checkpoint's intermediate_size counts gate and up together, and GGUF files carry that number on.
        hparams = super().read_hparams(n_vocab)
        return replace(hparams, layers=tuple(replace(layer, n_ff=layer.n_ff // 2) for layer in hparams.layers))

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule

        n_layer = config.integer("num_hidden_layers", most=MAX_LAYERS)
        n_embd = config.integer("hidden_size")
        n_head = config.integer("num_attention_heads")
        head_dim = config.integer("kv_channels", default=max(1, n_embd // n_head))
        n_ff_both = config.integer("intermediate_size")
        n_vocab = config.integer("vocab_size")
        if n_head * head_dim != n_embd:
            raise GGPYError(
                f"{config.where} gives {n_head} heads of {head_dim} 'kv_channels' for a 'hidden_size' of {n_embd}"
                "; GGUF's qwen has room for equal widths alone."
            )
        if n_ff_both % 2:
            raise GGPYError(
                f"{config.where} gives 'intermediate_size' as {n_ff_both}; it counts gate and up and must be even."
            )
        n_ctx = config.integer("seq_length", "max_position_embeddings")
        n_ctx = min(n_ctx, config.integer("max_position_embeddings", default=n_ctx))
        metadata = {
            "qwen.block_count": n_layer,
            "qwen.context_length": n_ctx,
            "qwen.embedding_length": n_embd,
            "qwen.feed_forward_length": n_ff_both,
            "qwen.attention.head_count": n_head,
            "qwen.attention.layer_norm_rms_epsilon": config.number("layer_norm_epsilon"),
            "qwen.vocab_size": n_vocab,
            "qwen.rope.dimension_count": head_dim,
            "qwen.rope.freq_base": config.number("rotary_emb_base", default=10000.0),
        }
        n_ff = n_ff_both // 2
        tensors = [TensorRule("token_embd.weight", "transformer.wte.weight", (n_vocab, n_embd))]
        for layer in range(n_layer):
            to, of = f"blk.{layer}.", f"transformer.h.{layer}."
            tensors += [
                TensorRule(to + "attn_norm.weight", of + "ln_1.weight", (n_embd,)),
                TensorRule(to + "attn_qkv.weight", of + "attn.c_attn.weight", (3 * n_embd, n_embd)),
                TensorRule(to + "attn_qkv.bias", of + "attn.c_attn.bias", (3 * n_embd,)),
                TensorRule(to + "attn_output.weight", of + "attn.c_proj.weight", (n_embd, n_embd)),
                TensorRule(to + "ffn_norm.weight", of + "ln_2.weight", (n_embd,)),
                TensorRule(to + "ffn_gate.weight", of + "mlp.w2.weight", (n_ff, n_embd)),
                TensorRule(to + "ffn_up.weight", of + "mlp.w1.weight", (n_ff, n_embd)),
                TensorRule(to + "ffn_down.weight", of + "mlp.c_proj.weight", (n_embd, n_ff)),
            ]
        tensors.append(TensorRule("output_norm.weight", "transformer.ln_f.weight", (n_embd,)))
        tied = config.flag("tie_word_embeddings", default=False)
        tensors.append(TensorRule("output.weight", "lm_head.weight", (n_vocab, n_embd), required=not tied))
        layout = Layout(cls.name, metadata, tensors, n_vocab, "transformer.", tied)
        beyond = [key for key in ("use_dynamic_ntk", "use_logn_attn") if config.flag(key, default=False)]
        if beyond:
            layout.notes.append(
                f"beyond {n_ctx} tokens the original changes rope and attention by length ({', '.join(beyond)}), for"
                " which GGUF has no keys: the file is exact up to there."
            )
        return layout
