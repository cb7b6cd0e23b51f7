"""Qwen, the first generation (QWenLMHeadModel); query, key and value come fused, with a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.base import Architecture
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph import Graph, Value


class Qwen(Architecture):
    name = "qwen"
    hf_names = ("QWenLMHeadModel",)
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))
