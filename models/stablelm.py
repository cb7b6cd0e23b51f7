"""StableLM 2 and 3B: LayerNorm with a bias, a gated feed-forward, rope of a part of each head; the larger one with
branches side by side and a norm of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class StableLM(Decoder):
    name = "stablelm"
    hf_names = ("StableLmForCausalLM", "StableLMEpochForCausalLM")
    rope_style = "neox"
    norm_eps_key = "layer_norm_epsilon"
    norm_kind = "layer"
    head_norms = "layer"

    def __init__(self, metadata: Mapping[str, Any], n_vocab: int, where: str = "the model's file") -> None:
        super().__init__(metadata, n_vocab, where)
        self.parallel = self.metadata.find("{arch}.use_parallel_residual", bool) is True  # type: ignore[misc]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored, stack

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias, parallel = (config.flag(key, default=False) for key in ("use_qkv_bias", "use_parallel_residual"))
        normed = config.flag("qk_layernorm", default=False)
        norms = {"attn_norm": "input_layernorm"} | ({} if parallel else {"ffn_norm": "post_attention_layernorm"})

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = [
                *norm_rules(to, of, sizes.n_embd, norms, bias=True),
                *attention_rules(to, of + "self_attn.", sizes, bias=bias),
                *glu_rules(to, of + "mlp.", n_ff, sizes.n_embd),
            ]
            for part, heads in (("q", sizes.n_head), ("k", sizes.n_head_kv)) if normed else ():
                at = f"{of}self_attn.{part}_layernorm.norms."
                each = [Stored(f"{at}{head}.weight", (sizes.head_dim,)) for head in range(heads)]
                rules.append(TensorRule(f"{to}attn_{part}_norm.weight", stack(each)))
            return rules

        tied = config.flag("tie_word_embeddings", default=False)
        rules = decoder_rules(sizes, block, tied=tied, norm_bias=True)
        metadata = sizes.keys(arch, config, eps="layer_norm_eps", norm="layer") | {
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.use_parallel_residual": parallel,
        }
        layout = Layout(arch, metadata, rules, sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim, partial=True)
        return layout
