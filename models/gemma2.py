"""Gemma 2 (arXiv 2408.00118): norms before and after each branch, softcapped scores and logits, a window in every
second layer. Norm weights of the file are the checkpoint's plus 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.layers import glu_ffn, self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Gemma2(Architecture):
    name = "gemma2"
    hf_names: ClassVar[tuple[str, ...]] = ("Gemma2ForCausalLM",)
    rope_style = "neox"
    window_period = 2
    default_window = 4096
    #: The layers of the one size whose scores are scaled by n_embd / n_head in place of the head's width.
    n_layer_27b: ClassVar[int] = 46
    default_softcaps: ClassVar[tuple[float, float]] = (50.0, 30.0)  # of scores and of logits; 0: none

    def ropes(self, freq_factors: Any = None) -> tuple[Rope, Rope]:
        """The ropes of full and of sliding layers."""
        rope = self.rope(freq_factors)
        return rope, rope

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        self.ropes(freq_factors)
        self.attention_scale()
        self.softcaps()

    def attention_scale(self) -> float:
        """The factor of scores, which readers of these files derive from the sizes where no key gives it."""
        hp = self.hparams
        scale = self.metadata.number("{arch}.attention.scale", self._usual_query_scalar() ** -0.5)
        if not 0 < scale < 1e4:
            raise GGPYError(f"The metadata of this {hp.arch} model scales attention by {scale}, which is impossible.")
        return scale

    def _usual_query_scalar(self) -> int:
        hp = self.hparams
        return max(1, hp.n_embd // hp.n_head if hp.n_layer == self.n_layer_27b else hp.head_dim)

    def softcaps(self) -> tuple[float, float]:
        """The caps of scores and of logits; 0: none."""
        keys = ("{arch}.attn_logit_softcapping", "{arch}.final_logit_softcapping")
        scores, logits = (self.metadata.number(key, cap) for key, cap in zip(keys, self.default_softcaps, strict=True))
        if not (0 <= scores < 1e6 and 0 <= logits < 1e6):
            raise GGPYError(f"The metadata caps scores at {scores} and logits at {logits}, which is impossible.")
        return scores, logits

    def build(self, g: Graph) -> Value:
        hp, x = self.hparams, self.rows(g)
        logits = g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)
        return g.softcap(logits, self.softcaps()[1])

    def rows(self, g: Graph, *, causal: bool = True) -> Value:
        """The last layer's rows: [n_tokens, n_embd]."""
        hp, eps = self.hparams, self.hparams.norm_eps
        full, sliding = self.ropes(g.vector("rope_freqs.weight"))
        scale, softcap = self.attention_scale(), self.softcaps()[0]
        # Trained with this factor rounded to bfloat16; files carry no such type, and their readers do not round.
        x = g.scale(g.embed(hp.n_embd), math.sqrt(hp.n_embd))
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            rope = sliding if hp.window(layer) else full
            y = g.norm(x, at + "attn_norm", eps)
            y = self_attention(g, y, layer, hp, rope, scale=scale, softcap=softcap, causal=causal)
            x = g.add(x, g.norm(y, at + "post_attention_norm", eps))
            y = glu_ffn(g, g.norm(x, at + "ffn_norm", eps), layer, hp, "gelu_tanh")
            x = g.add(x, g.norm(y, at + "post_ffw_norm", eps))
        return x

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = cls._layout(config)
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            cap = config.number(key) if config.get(key) is not None else 0.0
            layout.metadata[f"gemma2.{key}"] = cap
            if not cap:
                layout.notes.append(f"{config.where} has no {key!r}; other readers of gemma2 may put in one.")
        return layout

    @classmethod
    def _layout(cls, config: Config, *, head_norms: bool = False, rope: Config | None = None) -> Layout:
        """The layout that all generations share: norms around branches, windows, the factor of scores."""
        from ggpy.models.hf import decoder_layout

        layout = decoder_layout(
            config,
            cls.name,
            norms_less_one=True,
            post_norms=True,
            head_norms=head_norms,
            rope=rope,
            window_period=config.integer("sliding_window_pattern", default=cls.window_period),
            fixed_period=cls.window_period,
        )
        scalar = config.number("query_pre_attn_scalar")
        if scalar != cls(layout.metadata, layout.n_vocab)._usual_query_scalar():
            layout.metadata[f"{cls.name}.attention.scale"] = scalar**-0.5
            layout.notes.append(
                f"'query_pre_attn_scalar' {scalar:g} stands under '{cls.name}.attention.scale', which other readers may"
                f" not take in {cls.name}."
            )
        return layout
