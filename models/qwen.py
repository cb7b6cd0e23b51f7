"""Qwen, the first generation (QWenLMHeadModel); query, key and value come fused, with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.models.base import Architecture, HyperParameters
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph import Graph, Value


class Qwen(Architecture):
    name = "qwen"
    hf_names = ("QWenLMHeadModel",)
    rope_style = "neox"

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        # The checkpoint's intermediate_size counts gate and up together, and GGUF files carry that number on.
        hparams = super().read_hparams(n_vocab)
        return replace(hparams, n_ff=hparams.n_ff // 2)

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))
