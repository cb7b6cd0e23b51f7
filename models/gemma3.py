"""Gemma 3 (arXiv 2503.19786), its text: Gemma 2 without softcapped scores, with query and key norms, and in five of six
layers a window and a rope of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.gemma2 import Gemma2

if TYPE_CHECKING:
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

KINDS = ("full_attention", "sliding_attention")


class Gemma3(Gemma2):
    name = "gemma3"
    hf_names: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    window_period = 6
    default_window = 0
    n_layer_27b = 62
    default_softcaps = (0.0, 0.0)

    def ropes(self, freq_factors: Any = None) -> tuple[Rope, Rope]:
        # A file has to say the first base: there is no default that all readers share. Ollama once had other keys.
        bases = []
        for key, once, default in (("freq_base", "global", None), ("freq_base_swa", "local", 10000.0)):
            old = self.metadata.find(f"{{arch}}.rope.{once}.freq_base", float)
            bases.append(self.metadata.number(f"{{arch}}.rope.{key}", default if old is None else old))
        return self.rope(freq_factors, base=bases[0]), self.rope(base=bases[1], scaled=False)

    @classmethod
    def converts(cls, config: Config) -> bool:
        return not config.flag("use_bidirectional_attention", default=False)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        full, sliding = (rope_of_kind(config, kind) for kind in KINDS)
        layout = cls._layout(config, head_norms=True, rope=full)
        if config.get("final_logit_softcapping") is not None:
            layout.metadata[f"{cls.name}.final_logit_softcapping"] = config.number("final_logit_softcapping")
        if f"{cls.name}.attention.sliding_window" in layout.metadata:
            layout.metadata[f"{cls.name}.rope.freq_base_swa"] = sliding.number("rope_theta")
            if (sliding.get("rope_type", "type") or "default") != "default":
                raise GGPYError(
                    f"{sliding.where} scales rope of sliding layers; GGUF's {cls.name} has no place for that."
                )
        # The text model's names in a model that sees, as several versions of transformers saved them.
        layout.renames = (
            (r"^(model\.language_model|language_model\.model)\.", "model."),
            (r"^language_model\.lm_", "lm_"),
        )
        layout.left_out = (
            (
                r"(model\.)?(vision_tower|multi_modal_projector)\.",
                "images are not read: the file holds the text model.",
            ),
        )
        return layout


def rope_of_kind(config: Config, kind: str) -> Config:
    """Rope's settings of a kind of layer, from the places where the versions of transformers keep them."""
    from ggpy.models.hf_config import Config

    parameters = config.section("rope_parameters")
    flat = [
        key for key, value in parameters.values.items() if key not in KINDS or not isinstance(value, Mapping | None)
    ]
    if flat:
        raise GGPYError(f"{parameters.where} has {flat[0]!r:.40}; it must hold rope's settings by kind of layer.")
    values = dict(parameters.section(kind).values)
    if kind == "full_attention":
        values.update(config.section("rope_scaling").values)
    beside, usual = ("rope_theta", 1e6) if kind == "full_attention" else ("rope_local_base_freq", 1e4)
    if values.get("rope_theta") is None:
        values["rope_theta"] = config.number(beside, default=usual)
    return Config(values, f"{config.where}'s rope of {kind!r}")
