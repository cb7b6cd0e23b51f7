"""Qwen3; query and key heads are normalised before rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.base import Architecture
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph import Graph, Value


class Qwen3(Architecture):
    name = "qwen3"
    hf_names = ("Qwen3ForCausalLM",)
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))
