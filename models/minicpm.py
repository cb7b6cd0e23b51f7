"""MiniCPM 1, 2 and 4: Granite's factors at the embeddings, the residuals and the logits, under other names, and
LongRoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.granite import Granite

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class MiniCPM(Granite):
    """The factors of files from before they had keys are those of the first models."""

    name = "minicpm"
    hf_names = ("MiniCPMForCausalLM",)

    def ropes(self, g: Graph) -> list[Rope | None]:
        return [self.file_rope(g)] * self.hparams.n_layer

    def embed(self, g: Graph) -> Value:
        return g.scale(g.embed(self.hparams.n_embd), self.factor("embedding_scale") or 12.0)

    def residual_factor(self) -> float:
        return self.factor("residual_scale") or 1.4 / self.hparams.n_layer**0.5

    def logit_factor(self) -> float:
        return 1 / (self.factor("logit_scale") or self.hparams.n_embd / 256)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout

        layout = decoder_layout(config, cls.name, interleaved=True, longrope=True)
        depth, width = config.integer("num_hidden_layers"), config.integer("hidden_size")
        layout.metadata |= {
            f"{cls.name}.embedding_scale": config.number("scale_emb"),
            f"{cls.name}.residual_scale": config.number("scale_depth") / depth**0.5,
            f"{cls.name}.logit_scale": width / config.integer("dim_model_base"),
        }
        return layout
