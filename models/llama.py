"""Llama 1 to 3.x and what shares its form (Mistral, SmolLM2, Yi …); GGUF permutes Q and K for interleaved rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.base import Architecture
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph import Graph, Value


class Llama(Architecture):
    name = "llama"
    hf_names = ("LlamaForCausalLM", "MistralForCausalLM")
    rope_style = "interleaved"

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))
