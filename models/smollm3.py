"""SmolLM3: Llama without rope in every fourth layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder, all_but_every

if TYPE_CHECKING:
    from ggpy.graph.language import Graph
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: Every so many layers one without rope, in files that do not say it by layer.
_PERIOD = 4


class SmolLM3(Decoder):
    name = "smollm3"
    hf_names = ("SmolLM3ForCausalLM",)
    rope_style = "interleaved"

    def ropes(self, g: Graph) -> list[Rope | None]:
        return self.ropes_by_pattern(g, all_but_every(_PERIOD, self.hparams.n_layer))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        import numpy as np

        from ggpy.models.hf import decoder_layout
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import layers_with_rope

        n_layer = config.integer("num_hidden_layers")
        turns = layers_with_rope(config, n_layer)
        if config.get("layer_types") is None:  # where windows are used, layers without rope have them
            slides = config.flag("use_sliding_window", default=False) and config.get("sliding_window") is not None
            kinds = ["sliding_attention" if slides and not turn else "full_attention" for turn in turns]
            config = Config({**config.values, "layer_types": kinds}, config.where, config.defaults)
        layout = decoder_layout(config, cls.name, interleaved=True)
        if turns != all_but_every(_PERIOD, n_layer):
            layout.metadata[f"{cls.name}.attention.rope_pattern"] = np.array(turns)
            layout.notes.append(
                f"which layers have rope stands under '{cls.name}.attention.rope_pattern'; other engines may leave it"
                f" out in every {_PERIOD}th layer."
            )
        return layout
