"""SmolLM3: Llama without rope in every fourth layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder

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
        rope, n_layer = self.file_rope(g), self.hparams.n_layer
        turns = self.metadata.flags("{arch}.attention.rope_pattern") or _usual(n_layer)
        if len(turns) != n_layer:
            raise GGPYError(
                f"The metadata says of {len(turns)} layers whether they have rope; the model has {n_layer}."
            )
        return [rope if turn else None for turn in turns]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        import numpy as np

        from ggpy.models.hf import decoder_layout
        from ggpy.models.hf_config import Config

        n_layer = config.integer("num_hidden_layers")
        turns = _layers_with_rope(config, n_layer)
        if config.get("layer_types") is None:  # where windows are used, layers without rope have them
            slides = config.flag("use_sliding_window", default=False) and config.get("sliding_window") is not None
            kinds = ["sliding_attention" if slides and not turn else "full_attention" for turn in turns]
            config = Config({**config.values, "layer_types": kinds}, config.where, config.defaults)
        layout = decoder_layout(config, cls.name, interleaved=True)
        if turns != _usual(n_layer):
            layout.metadata[f"{cls.name}.attention.rope_pattern"] = np.array(turns)
            layout.notes.append(
                f"which layers have rope stands under '{cls.name}.attention.rope_pattern'; other engines may leave it"
                f" out in every {_PERIOD}th layer."
            )
        return layout


def _usual(n_layer: int) -> list[bool]:
    return [(layer + 1) % _PERIOD != 0 for layer in range(n_layer)]


def _layers_with_rope(config: Config, n_layer: int) -> list[bool]:
    listed, interval = config.get("no_rope_layers"), config.integer("no_rope_layer_interval", default=_PERIOD)
    if listed is None:
        return [(layer + 1) % interval != 0 for layer in range(n_layer)]
    if not isinstance(listed, list) or len(listed) < n_layer or not all(turns in (0, 1) for turns in listed):
        raise GGPYError(
            f"{config.where} gives 'no_rope_layers' as {listed!r:.60}; it must list 1 or 0 for each of {n_layer}"
            " layers."
        )
    return [bool(turns) for turns in listed[:n_layer]]
