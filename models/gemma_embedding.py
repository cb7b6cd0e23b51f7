"""EmbeddingGemma (arXiv 2509.20354): Gemma 3 without causality, its windows to either side, the mean of rows, and two
matrices behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.gemma3 import Gemma3
from ggpy.models.pooled import pooled

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.base import HyperParameters
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: The matrices behind the pooling, as GGUF names them, where sentence-transformers has so many of them.
DENSE = ("dense_2", "dense_3")


class GemmaEmbedding(Gemma3):
    name = "gemma-embedding"
    pools = True
    default_pooling = "mean"

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        """Windows are half of the file's number, to either side."""
        hp = super().read_hparams(n_vocab)
        return replace(hp, layers=tuple(replace(layer, window=layer.window // 2) for layer in hp.layers))

    def build(self, g: Graph) -> Value:
        hp = self.hparams
        x = pooled(g, g.norm(self.rows(g, causal=False), "output_norm", hp.norm_eps), hp)
        for name in DENSE:
            if g.has(name + ".weight"):
                x = g.linear(x, name, g.file.tensors[name + ".weight"].shape[0])
        return x

    @classmethod
    def converts(cls, config: Config) -> bool:
        return not super().converts(config)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        if any(name.startswith("Gemma3For") for name in config.classes):
            raise GGPYError(
                f"{config.where} gives 'use_bidirectional_attention' as True for a model that writes text; "
                "ggpy converts False."
            )
        layout = super().hf_layout(config)
        layout.metadata[f"{cls.name}.attention.causal"] = False
        layout.tensors = [rule for rule in layout.tensors if rule.target != "output.weight"]
        layout.tied = True
        return layout
