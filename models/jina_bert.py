"""Jina's encoders: the second generation (arXiv 2310.19923) with ALiBi and a gated feed-forward, the third (arXiv
2409.10173) with rope. The low-rank adapters that it has for tasks stand in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.encoder import Encoder
from ggpy.models.layers import glu_ffn, plain_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class JinaBertV2(Encoder):
    name = "jina-bert-v2"
    hf_names = ("BertModel",)
    alibi = 8.0

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return glu_ffn(g, x, layer, self.hparams, "gelu_erf")

    @classmethod
    def converts(cls, config: Config) -> bool:
        return (config.get("position_embedding_type"), config.get("feed_forward_type")) == ("alibi", "geglu")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_encoder import EncoderSizes, encoder_layout, named_rules

        sizes = EncoderSizes.read(config)
        n_embd, n_ff, of = sizes.n_embd, sizes.n_ff, "bert.embeddings."
        layout = encoder_layout(cls, config, sizes, config.integer("max_position_embeddings"), "bert.")
        layout.tensors += [
            TensorRule("token_embd.weight", of + "word_embeddings.weight", (sizes.n_vocab, n_embd)),
            TensorRule("token_types.weight", of + "token_type_embeddings.weight", (sizes.n_types, n_embd)),
            *named_rules("", of, {"token_embd_norm": "LayerNorm"}, n_embd),
        ]
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"bert.encoder.layer.{layer}."
            square = {"attn_q": "query", "attn_k": "key", "attn_v": "value"}
            norms = {"attn_output_norm": "attention.output.LayerNorm", "layer_output_norm": "mlp.layernorm"}
            layout.tensors += [
                *named_rules(to, of + "attention.self.", square, n_embd, n_embd),
                *named_rules(to, of, {"attn_output": "attention.output.dense"}, n_embd, n_embd),
                *named_rules(to, of, {"ffn_up": "mlp.gated_layers"}, 2 * n_ff, n_embd, bias=False),
                *named_rules(to, of, {"ffn_down": "mlp.wo"}, n_embd, n_ff),
                *named_rules(to, of, norms, n_embd),
            ]
        return layout


class JinaBertV3(Encoder):
    name = "jina-bert-v3"
    hf_names = ("JinaEmbeddingsV3Model",)
    turns = True

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return plain_ffn(g, x, layer, self.hparams, "gelu_erf")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_encoder import EncoderSizes, encoder_layout, named_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.nomic_bert import NomicBert

        sizes = EncoderSizes.read(config)
        n_embd, n_ff = sizes.n_embd, sizes.n_ff
        layout = encoder_layout(cls, config, sizes, config.integer("max_position_embeddings"), "roberta.")
        add_rope(layout, config, n_embd // sizes.n_head)
        of = "roberta.embeddings."
        layout.tensors += [
            TensorRule("token_embd.weight", of + "word_embeddings.weight", (sizes.n_vocab, n_embd)),
            TensorRule("token_types.weight", of + "token_type_embeddings.weight", (sizes.n_types, n_embd)),
            *named_rules("", of, {"token_embd_norm": "LayerNorm"}, n_embd),
        ]
        norms = {"attn_output_norm": "post_attention_layernorm", "layer_output_norm": "post_mlp_layernorm"}
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"roberta.layers.{layer}."
            layout.tensors += [
                *NomicBert.qkv_rules(to, of + "self_attn.", n_embd, bias=True),
                *named_rules(to, of, {"attn_output": "self_attn.o_proj"}, n_embd, n_embd),
                *named_rules(to, of, {"ffn_up": "mlp.fc1"}, n_ff, n_embd),
                *named_rules(to, of, {"ffn_down": "mlp.fc2"}, n_embd, n_ff),
                *named_rules(to, of, norms, n_embd),
            ]
        layout.renames = (
            (r"^(roberta\.)?encoder\.layers\.", "roberta.layers."),
            (r"^(roberta\.)?emb_ln\.", "roberta.embeddings.LayerNorm."),
            (r"\.mixer\.out_proj\.", ".self_attn.o_proj."),
            (r"\.mixer\.Wqkv\.", ".self_attn.Wqkv."),
            (r"\.norm1\.", ".post_attention_layernorm."),
            (r"\.norm2\.", ".post_mlp_layernorm."),
        )
        return layout
