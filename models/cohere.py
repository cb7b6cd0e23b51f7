"""Cohere's Command R and Command R7B (cohere2): attention and feed-forward side by side behind one LayerNorm, scaled
logits; the second has rope in the layers with a window alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class CommandR(Decoder):
    name = "command-r"
    hf_names = ("CohereForCausalLM",)
    rope_style = "interleaved"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    head_norms = "layer"
    parallel = True

    def logit_factor(self) -> float:
        return self.metadata.number("{arch}.logit_scale", 0.0) or 1.0

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias = config.flag("attention_bias", default=False)
        normed = ("q_norm", "k_norm") if config.flag("use_qk_norm", default=False) else None
        heads = ((sizes.n_head, sizes.head_dim), (sizes.n_head_kv, sizes.head_dim))

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            at = of + "self_attn."
            return [
                *norm_rules(to, of, sizes.n_embd, {"attn_norm": "input_layernorm"}),
                *attention_rules(to, at, sizes, bias=bias, out_bias=bias, norms=normed, norm_shapes=heads),
                *glu_rules(to, of + "mlp.", n_ff, sizes.n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        metadata = sizes.keys(arch, config, eps="layer_norm_eps", norm="layer") | {
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.logit_scale": config.number("logit_scale"),
        }
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        if not tied:
            layout.notes.append(
                f"the file has an output matrix of its own, which other engines do not expect in {arch}."
            )
        add_rope(layout, config, sizes.head_dim)
        metadata.setdefault(f"{arch}.rope.scaling.type", "none")
        return layout


class Cohere2(CommandR):
    name = "cohere2"
    hf_names = ("Cohere2ForCausalLM",)
    window_period = 4

    def ropes(self, g: Graph) -> list[Rope | None]:
        rope = self.file_rope(g)
        return [rope if layer.window else None for layer in self.hparams.layers]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import add_sliding_windows

        layout = super().hf_layout(config)
        period = config.integer("sliding_window_pattern", default=4)
        add_sliding_windows(layout, config, config.integer("num_hidden_layers"), period=period, fixed=4)
        return layout
