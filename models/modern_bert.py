"""ModernBERT (arXiv 2412.13663): norms before the branches, GEGLU, rope, and in two of three layers a window to either
side with a rope of its own. Rerankers of it classify the mean of rows or the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError
from ggpy.models.encoder import Encoder
from ggpy.models.layers import glu_ffn, self_attention
from ggpy.models.pooled import pooled

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.base import HyperParameters
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

_KINDS = ("full_attention", "sliding_attention")
_PERIOD = 3  # of layers, the first of which sees all, where the file does not say


class ModernBert(Encoder):
    name = "modern-bert"
    hf_names = ("ModernBertModel",)
    default_pooling = "cls"

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        """Windows are half of the file's number, to either side."""
        hp = super().read_hparams(n_vocab)
        return replace(hp, layers=tuple(replace(layer, window=layer.window // 2) for layer in hp.layers))

    def _sliding_layers(self, n_layer: int) -> tuple[bool, ...]:
        """Which layers have the window: by a list, or by a period whose first layer has none."""
        key = "{arch}.attention.sliding_window_pattern"
        if not self.metadata.is_integer(key) and self.metadata.has(key):
            return super()._sliding_layers(n_layer)
        period = self.metadata.integer(key, _PERIOD)
        if not 0 < period < 1 << 31:
            raise GGPYError(f"The metadata gives every {period}th layer no sliding window; that is impossible.")
        return tuple(layer % period > 0 for layer in range(n_layer))

    def ropes(self) -> tuple[Rope, Rope]:
        """The ropes of full and of sliding layers."""
        base = self.metadata.number("{arch}.rope.freq_base_swa", 10000.0)
        return self.rope(base=self.metadata.number("{arch}.rope.freq_base", 160000.0)), self.rope(base=base)

    def rank_rows(self) -> str:
        """The rows that a classifier reads: readers of these files take the mean where no key says otherwise."""
        from ggpy.models.hf_encoder import CLASSIFIED_ROWS

        rows = self.metadata.string(CLASSIFIED_ROWS, "mean")
        if rows not in ("mean", "cls"):
            raise GGPYError(f"{self.metadata.where} classifies by {rows!r:.40} ({CLASSIFIED_ROWS}), not mean or cls.")
        return rows

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        super().check(freq_factors, long_factors)
        self.ropes()
        self.rank_rows()

    def build(self, g: Graph) -> Value:
        hp = self.hparams
        self.check()
        full, sliding = self.ropes()
        x = self.norm(g, g.embed(hp.n_embd), "token_embd_norm")
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            y = self.norm(g, x, at + "attn_norm") if g.has(at + "attn_norm.weight") else x
            rope = sliding if hp.window(layer) else full
            x = g.add(x, self_attention(g, y, layer, hp, rope, causal=False))
            x = g.add(x, glu_ffn(g, self.norm(g, x, at + "ffn_norm"), layer, hp, "gelu_erf"))
        x = self.norm(g, x, "output_norm")
        return pooled(g, x, hp, rank_rows=self.rank_rows(), rank_activation="gelu_erf")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        import numpy as np

        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_encoder import (
            CLASSIFIED_ROWS,
            EncoderSizes,
            classifier_rules,
            classifies,
            encoder_layout,
            named_rules,
        )

        sizes, arch = EncoderSizes.read(config, types=False), cls.name
        n_embd, n_ff = sizes.n_embd, sizes.n_ff
        norm_bias, bias, ffn_bias = (
            config.flag(key, default=False) for key in ("norm_bias", "attention_bias", "mlp_bias")
        )
        n_ctx = config.integer("max_position_embeddings")
        layout = encoder_layout(cls, config, sizes, n_ctx, "model.", eps="norm_eps")
        bases = {kind: _rope_base(config, kind) for kind in _KINDS}
        layout.metadata |= {
            f"{arch}.attention.sliding_window": config.integer("local_attention", least=2),
            f"{arch}.rope.freq_base": bases["full_attention"],
            f"{arch}.rope.freq_base_swa": bases["sliding_attention"],
            f"{arch}.rope.scaling.type": "none",
            f"{arch}.vocab_size": sizes.n_vocab,
        }
        period = config.integer("global_attn_every_n_layers", default=_PERIOD)
        usual = [bool(layer % period) for layer in range(sizes.n_layer)]
        sliding = config.layer_kinds(sizes.n_layer, {"full_attention": False, "sliding_attention": True}) or usual
        key = f"{arch}.attention.sliding_window_pattern"
        layout.metadata[key] = period if sliding == usual else np.array(sliding)
        layout.tensors += [
            TensorRule("token_embd.weight", "model.embeddings.tok_embeddings.weight", (sizes.n_vocab, n_embd)),
            *named_rules("", "model.embeddings.", {"token_embd_norm": "norm"}, n_embd, bias=norm_bias),
            *named_rules("", "model.", {"output_norm": "final_norm"}, n_embd, bias=norm_bias),
        ]
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"model.layers.{layer}."
            norms = {"attn_norm": "attn_norm", "ffn_norm": "mlp_norm"} if layer else {"ffn_norm": "mlp_norm"}
            layout.tensors += [
                *named_rules(to, of, norms, n_embd, bias=norm_bias),
                *named_rules(to, of, {"attn_qkv": "attn.Wqkv"}, 3 * n_embd, n_embd, bias=bias),
                *named_rules(to, of, {"attn_output": "attn.Wo"}, n_embd, n_embd, bias=bias),
                *named_rules(to, of, {"ffn_up": "mlp.Wi"}, 2 * n_ff, n_embd, bias=ffn_bias),
                *named_rules(to, of, {"ffn_down": "mlp.Wo"}, n_embd, n_ff, bias=ffn_bias),
            ]
        if norm_bias or bias or ffn_bias:
            layout.notes.append("the model has biases, which other readers of modern-bert do not look for.")
        if classifies(config):
            dense_bias = config.flag("classifier_bias", default=False)
            layout.tensors += classifier_rules(
                layout, config, n_embd, "head.dense", "classifier", dense_bias=dense_bias
            )
            layout.tensors += named_rules("", "head.", {"cls.norm": "norm"}, n_embd, bias=norm_bias)
            rows = config.get("classifier_pooling")
            layout.metadata[CLASSIFIED_ROWS] = rows
            if rows != "mean":
                layout.notes.append(
                    f"the classifier reads {rows!r} rows, which ggpy follows and other readers of GGUF do not."
                )
        return layout


def _rope_base(config: Config, kind: str) -> float:
    """Rope's base in a kind of layer, from the places where the versions of transformers keep it."""
    by_kind = config.section("rope_parameters")
    if flat := [key for key in by_kind.values if key not in _KINDS]:
        raise GGPYError(f"{by_kind.where} has {flat[0]!r:.40}; it must hold rope's settings by kind of layer.")
    parameters = by_kind.section(kind)
    if (parameters.get("rope_type", "type") or "default") != "default" or config.get("rope_scaling") is not None:
        raise GGPYError(f"{config.where} scales rope of {kind!r}; GGUF's modern-bert has no place for that.")
    beside, usual = ("global_rope_theta", 160000.0) if kind == "full_attention" else ("local_rope_theta", 10000.0)
    values: Mapping[str, Any] = parameters.values
    return parameters.number("rope_theta") if values.get("rope_theta") else config.number(beside, default=usual)
