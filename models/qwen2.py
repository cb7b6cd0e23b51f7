"""Qwen2 and Qwen2.5; query, key and value carry a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.models.base import Architecture
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Qwen2(Architecture):
    name = "qwen2"
    hf_names: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)
    pools = True
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout

        return decoder_layout(config, cls.name, qkv_bias=True)


class Qwen2VL(Qwen2):
    """The text model of Qwen2-VL and Qwen2.5-VL."""

    name = "qwen2vl"
    hf_names = (
        "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen2VLTextModel",
        "Qwen2_5_VLTextModel",
    )  # fmt: skip

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf_pictures import leave_pictures_out

        layout = super().hf_layout(config)
        leave_pictures_out(layout, config)
        return layout
