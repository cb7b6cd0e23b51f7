"""ChatGLM 2 and 3, and GLM-4 of 2024: RMS norms, one matrix for query, key and value and one for gate and up, rope over
neighbours in the first half of each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class ChatGLM(Decoder):
    name = "chatglm"
    hf_names = ("ChatGLMForConditionalGeneration", "ChatGLMModel")
    rope_style = "interleaved"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, linear_rules, norm_rules

        n_head = config.integer("num_attention_heads")
        grouped = config.flag("multi_query_attention", default=False)
        values = {
            "hidden_size": config.integer("hidden_size"),
            "num_hidden_layers": config.integer("num_layers"),
            "num_attention_heads": n_head,
            "num_key_value_heads": config.integer("multi_query_group_num") if grouped else n_head,
            "head_dim": config.integer("kv_channels"),
            "vocab_size": config.integer("padded_vocab_size"),
            "max_position_embeddings": config.integer("seq_length"),
            "layernorm_epsilon": config.number("layernorm_epsilon"),
        }
        plain = Config(values, config.where)
        arch, sizes = cls.name, Sizes.read(plain)
        n_embd, n_ff = sizes.n_embd, config.integer("ffn_hidden_size")
        bias = config.flag("add_bias_linear", default=False)
        qkv_bias = bias or config.flag("add_qkv_bias", default=False)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = norm_rules(to, of, n_embd, norms)
            for target, name, shape, biased in (
                ("attn_qkv", "self_attention.query_key_value", (sizes.n_q + 2 * sizes.n_kv, n_embd), qkv_bias),
                ("attn_output", "self_attention.dense", (n_embd, sizes.n_q), bias),
                ("ffn_up", "mlp.dense_h_to_4h", (2 * n_ff, n_embd), bias),
                ("ffn_down", "mlp.dense_4h_to_h", (n_embd, n_ff), bias),
            ):
                rules += linear_rules(to + target, f"{of}{name}.weight", shape, f"{of}{name}.bias" if biased else "")
            return rules

        tied = config.flag("tie_word_embeddings", default=False)
        names = (
            "transformer.embedding.word_embeddings", "transformer.encoder.layers",
            "transformer.encoder.final_layernorm", "transformer.output_layer",
        )  # fmt: skip
        metadata = {
            **sizes.keys(arch, plain, eps="layernorm_epsilon"),
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.rope.dimension_count": sizes.head_dim // 2,
            f"{arch}.rope.freq_base": 10000.0 * config.number("rope_ratio", default=1.0),
        }
        rules = decoder_rules(sizes, block, tied=tied, names=names)
        return Layout(arch, metadata, rules, sizes.n_vocab, "transformer.", tied)
