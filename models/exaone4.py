"""EXAONE 4: norms after the branches, normalised heads; where some layers have a window, the others have no rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Exaone4(Decoder):
    name = "exaone4"
    hf_names = ("Exaone4ForCausalLM",)
    rope_style = "neox"
    norms_before = False
    norms_after = True
    window_period = 4

    def ropes(self, g: Graph) -> list[Rope | None]:
        rope, hybrid = self.file_rope(g), self.metadata.integer("{arch}.attention.sliding_window", 0)
        return [rope if layer.window or not hybrid else None for layer in self.hparams.layers]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, add_sliding_windows
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        norms = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, sizes.n_embd, norms),
                *attention_rules(to, of + "self_attn.", sizes, norms=("q_norm", "k_norm")),
                *glu_rules(to, of + "mlp.", n_ff, sizes.n_embd),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim)
        if config.get("sliding_window") is not None:
            period = config.integer("sliding_window_pattern", default=4)
            add_sliding_windows(layout, config, sizes.n_layer, period=period, fixed=4)
            # Without a layer that slides, the key still says that no layer has rope.
            metadata[f"{arch}.attention.sliding_window"] = config.integer("sliding_window")
        return layout
