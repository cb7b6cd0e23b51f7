"""Baichuan 1 and 2: Llama whose query, key and value stand in one matrix; the larger models have ALiBi for rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggpy.graph.language import Graph
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

#: The largest slope of scores in models with ALiBi.
_ALIBI = 8.0

#: Layers of the models that have it, where a file has no key that says so.
_LAYERS = 40

#: The context of those models, whose configs have it under a key that is the tokenizer's elsewhere.
_CONTEXT = 4096

#: Rows of the output matrix of Baichuan 2, whose code brings each to a length of 1.
_NORMALISED = 125696


class Baichuan(Decoder):
    name = "baichuan"
    hf_names = ("BaichuanForCausalLM", "BaiChuanForCausalLM")
    rope_style = "interleaved"

    def alibi(self) -> float:
        usual = _ALIBI if self.hparams.n_layer == _LAYERS else 0.0
        return self.metadata.number("{arch}.attention.max_alibi_bias", usual)

    def ropes(self, g: Graph) -> Sequence[Rope | None]:
        return [None] * self.hparams.n_layer if self.alibi() else super().ropes(g)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules, glu_rules, linear_rules, norm_rules, separate_qkv_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored

        alibi = config.get("max_position_embeddings") is None
        if alibi:
            config = Config({**config.values, "max_position_embeddings": _CONTEXT}, config.where, config.defaults)
        arch, sizes = cls.name, Sizes.read(config)
        n_embd, n_ff = sizes.n_embd, config.integer("intermediate_size")
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            packed = Stored(of + "self_attn.W_pack.weight", (3 * n_embd, n_embd))
            return [
                *norm_rules(to, of, n_embd, norms),
                *separate_qkv_rules(to, packed, None, sizes),
                *linear_rules(to + "attn_output", of + "self_attn.o_proj.weight", (n_embd, n_embd)),
                *glu_rules(to, of + "mlp.", n_ff, n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        rules = decoder_rules(sizes, block, tied=tied)
        if sizes.n_vocab == _NORMALISED:
            head = Stored("lm_head.weight", (sizes.n_vocab, n_embd)).unit_rows()
            rules[-1] = TensorRule("output.weight", head, required=not tied)
        metadata = {**sizes.keys(arch, config), f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, rules, sizes.n_vocab, "model.", tied)
        if not alibi:
            add_rope(layout, config, sizes.head_dim)
        if alibi != (sizes.n_layer == _LAYERS):
            layout.metadata[f"{arch}.attention.max_alibi_bias"] = _ALIBI if alibi else 0.0
            layout.notes.append(
                f"the file says that scores {'fall' if alibi else 'do not fall'} with the distance (ALiBi); other"
                " engines go by the number of layers."
            )
        return layout
