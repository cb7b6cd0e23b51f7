"""BERT (arXiv 1810.04805) and RoBERTa, XLM-RoBERTa and CamemBERT after it: learned positions, GELU, and for rerankers a
classifier of the first row. One vector a text comes out, as the file says, or its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.encoder import Encoder
from ggpy.models.layers import plain_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Bert(Encoder):
    name = "bert"
    hf_names = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
    learned_positions = True

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return plain_ffn(g, x, layer, self.hparams, "gelu_erf")

    @classmethod
    def converts(cls, config: Config) -> bool:
        return (config.get("position_embedding_type"), config.get("feed_forward_type")) != ("alibi", "geglu")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_encoder import EncoderSizes, classifier_rules, encoder_layout, named_rules
        from ggpy.models.hf_sources import Stored

        kinds = [config.get("position_embedding_type"), config.get("feed_forward_type")]
        if kinds not in (["absolute", "original"], [None, None]):
            raise GGPYError(
                f"{config.where} gives 'position_embedding_type' as {kinds[0]!r:.40} and 'feed_forward_type' as"
                f" {kinds[1]!r:.40}; ggpy knows 'absolute' with 'original', and Jina's 'alibi' with 'geglu'."
            )
        sizes = EncoderSizes.read(config)
        n_embd, n_ff = sizes.n_embd, sizes.n_ff
        of = "bert.embeddings."
        # RoBERTa numbers a text's tokens from the one behind its padding token: rows before it are never read.
        first = 0 if config.get("model_type") == "bert" else (1 if config.padding is None else config.padding) + 1
        n_ctx = config.integer("max_position_embeddings", least=first + 1)
        positions = Stored(of + "position_embeddings.weight", (n_ctx, n_embd))
        layout = encoder_layout(cls, config, sizes, n_ctx - first, "bert.")
        layout.tensors += [
            TensorRule("token_embd.weight", of + "word_embeddings.weight", (sizes.n_vocab, n_embd)),
            TensorRule("position_embd.weight", positions.slice(first, n_ctx - first) if first else positions),
            TensorRule("token_types.weight", of + "token_type_embeddings.weight", (sizes.n_types, n_embd)),
            *named_rules("", of, {"token_embd_norm": "LayerNorm"}, n_embd),
        ]
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"bert.encoder.layer.{layer}."
            square = {"attn_q": "query", "attn_k": "key", "attn_v": "value"}
            layout.tensors += [
                *named_rules(to, of + "attention.self.", square, n_embd, n_embd),
                *named_rules(to, of, {"attn_output": "attention.output.dense"}, n_embd, n_embd),
                *named_rules(to, of, {"ffn_up": "intermediate.dense"}, n_ff, n_embd),
                *named_rules(to, of, {"ffn_down": "output.dense"}, n_embd, n_ff),
                *named_rules(
                    to, of, {"attn_output_norm": "attention.output.LayerNorm", "layer_output_norm": "output.LayerNorm"},
                    n_embd,
                ),
            ]  # fmt: skip
        layout.renames = (
            (r"^(roberta|camembert|xlm_roberta)\.", "bert."),
            (r"\.gamma$", ".weight"),  # before the names were PyTorch's
            (r"\.beta$", ".bias"),
        )
        if config.get("model_type") == "bert":
            layout.tensors += classifier_rules(layout, config, n_embd, "bert.pooler.dense", "classifier")
        else:
            layout.tensors += classifier_rules(layout, config, n_embd, "classifier.dense", "classifier.out_proj")
        return layout
