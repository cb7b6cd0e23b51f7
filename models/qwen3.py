"""Qwen3; query and key heads are normalised before rope. Embedders of it take a text's last row, rerankers answer in
words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.models.base import Architecture
from ggpy.models.layers import pre_norm_decoder

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: What its rerankers were trained to be asked: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    f"<Instruct>: {INSTRUCTION}\n<Query>: {{query}}\n<Document>: {{document}}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


class Qwen3(Architecture):
    name = "qwen3"
    hf_names: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM",)
    pools = True
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        return pre_norm_decoder(g, self.hparams, self.rope(g.vector("rope_freqs.weight")))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout
        from ggpy.models.hf_encoder import classifies, score_rules

        layout = decoder_layout(config, cls.name, head_norms=True)
        if classifies(config):
            layout.tensors = [rule for rule in layout.tensors if rule.target != "output.weight"]
            layout.tensors += score_rules(layout, config, config.integer("hidden_size"))
        return layout


class Qwen3VL(Qwen3):
    """The text model of Qwen3-VL."""

    name = "qwen3vl"
    hf_names = ("Qwen3VLForConditionalGeneration", "Qwen3VLTextModel")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf_pictures import leave_pictures_out

        layout = super().hf_layout(config)
        leave_pictures_out(layout, config, deep=True)
        return layout
