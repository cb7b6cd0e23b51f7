"""Tencent's Hunyuan of 2025: heads are normalised after rope, whose base a fixed factor stretches; and its mixture,
with an expert that every token takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder
from ggpy.models.experts import expert_count, expert_rules

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes


class HunyuanDense(Decoder):
    name = "hunyuan-dense"
    hf_names = ("HunYuanDenseV1ForCausalLM",)
    rope_style = "neox"
    head_norms = "head after rope"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias = config.flag("attention_bias", default=False)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            at = of + "self_attn."
            return [
                *norm_rules(to, of, sizes.n_embd, norms),
                *attention_rules(to, at, sizes, bias=bias, out_bias=bias, norms=("query_layernorm", "key_layernorm")),
                *cls._ffn_rules(config, to, of + "mlp.", n_ff, sizes),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        _add_rope(layout, config, sizes.head_dim)
        return layout

    @classmethod
    def _ffn_rules(cls, config: Config, to: str, of: str, n_ff: int, sizes: Sizes) -> list[TensorRule]:
        from ggpy.models.hf_parts import glu_rules

        return glu_rules(to, of, n_ff, sizes.n_embd)


class HunyuanMoe(HunyuanDense):
    name = "hunyuan-moe"
    hf_names = ("HunYuanMoEV1ForCausalLM",)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = super().hf_layout(config)
        n_ff, n_expert = config.integer("intermediate_size"), _experts(config)
        layout.metadata |= {
            f"{cls.name}.expert_count": n_expert,
            f"{cls.name}.expert_used_count": _alike(config, "moe_topk").integer("moe_topk", most=n_expert),
            f"{cls.name}.expert_feed_forward_length": n_ff,
            f"{cls.name}.expert_shared_count": 1,
            f"{cls.name}.expert_shared_feed_forward_length": n_ff,
        }
        return layout

    @classmethod
    def _ffn_rules(cls, config: Config, to: str, of: str, n_ff: int, sizes: Sizes) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_parts import glu_rules

        n_expert = _experts(config)
        return [
            TensorRule(to + "ffn_gate_inp.weight", of + "gate.wg.weight", (n_expert, sizes.n_embd)),
            *expert_rules(to, of, n_expert, n_ff, sizes.n_embd),
            *glu_rules(to, of + "shared_mlp.", n_ff, sizes.n_embd, suffix="_shexp"),
        ]


def _experts(config: Config) -> int:
    return expert_count(_alike(config, "num_experts"), config.integer("num_hidden_layers"), "num_experts")


def _alike(config: Config, key: str) -> Config:
    """The config with one number under a key that may list one for each layer."""
    from ggpy.models.hf_config import Config

    value: Any = config.get(key)
    if isinstance(value, list):
        if not value or any(other != value[0] for other in value):
            raise GGPYError(
                f"{config.where} gives {key!r} as {value!r:.60}; GGUF's hunyuan-moe has one for all layers."
            )
        value = value[0]
    return Config({**config.values, key: value}, config.where, config.defaults)


def _add_rope(layout: Layout, config: Config, head_dim: int) -> None:
    """Rope of type 'dynamic' with an 'alpha' stretches the base once and for all, whatever its name says."""
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_rope import add_rope

    rope = config.section("rope_scaling")
    rope = rope if rope.values else config.section("rope_parameters")
    kind = rope.get("rope_type", "type")
    if kind != "dynamic" or not rope.get("alpha"):
        add_rope(layout, config, head_dim)
        return
    if head_dim < 4:
        raise GGPYError(f"{config.where} makes heads of {head_dim} dimensions; this rope needs 4 at least.")
    base = config.number("rope_theta") if rope.get("rope_theta") is None else rope.number("rope_theta")
    try:
        base *= rope.number("alpha") ** (head_dim / (head_dim - 2))
    except OverflowError:
        raise GGPYError(f"{rope.where} gives 'alpha' as {rope.get('alpha')}, which no model can have.") from None
    add_rope(layout, config, head_dim, Config({"rope_type": "default", "rope_theta": base}, rope.where))
