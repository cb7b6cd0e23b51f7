"""ERNIE 4.5: Llama with rope of neighbouring pairs; and its mixtures, whose experts a bias helps to choose, beside one
that every token takes, in all or some layers behind the first ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder
from ggpy.models.experts import expert_count, expert_rules

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes


class Ernie45(Decoder):
    name = "ernie4_5"
    hf_names = ("Ernie4_5ForCausalLM",)
    rope_style = "interleaved"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias, norms = config.flag("use_bias", default=False), {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        }  # fmt: skip

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, sizes.n_embd, norms),
                *attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias),
                *cls._ffn_rules(config, layer, to, of + "mlp.", sizes, bias),
            ]

        tied = config.flag("tie_word_embeddings", default=True)
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        layout.renames = ((r"^ernie\.", "model."),)
        add_rope(layout, config, sizes.head_dim)
        return layout

    @classmethod
    def _ffn_rules(cls, config: Config, layer: int, to: str, of: str, sizes: Sizes, bias: bool) -> list[TensorRule]:
        from ggpy.models.hf_parts import glu_rules

        return glu_rules(to, of, config.integer("intermediate_size"), sizes.n_embd, bias=bias)


class Ernie45Moe(Ernie45):
    name = "ernie4_5-moe"
    hf_names = ("Ernie4_5_MoeForCausalLM",)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = super().hf_layout(config)
        n_layer = config.integer("num_hidden_layers")
        n_expert = expert_count(config, n_layer, "moe_num_experts")
        n_ff, shared = (
            config.integer("moe_intermediate_size"),
            config.integer("moe_num_shared_experts", default=0, least=0),
        )
        first = config.integer("moe_layer_start_index", least=0)
        layout.metadata |= {
            f"{cls.name}.expert_count": n_expert,
            f"{cls.name}.expert_used_count": config.integer("moe_k", most=n_expert),
            f"{cls.name}.expert_feed_forward_length": n_ff,
            f"{cls.name}.interleave_moe_layer_step": config.integer("moe_layer_interval"),
            f"{cls.name}.leading_dense_block_count": min(first, n_layer),
            f"{cls.name}.expert_shared_count": shared,
        }
        if shared:
            layout.metadata[f"{cls.name}.expert_shared_feed_forward_length"] = n_ff * shared
        if _last(config) < n_layer - 1:
            layout.notes.append("the last layers have no experts; other engines may not take that in ernie4_5-moe.")
        layout.left_out = (
            (
                r"model\.mtp_",
                "the layers that predict further tokens ('mtp') are left out: the text is the same without.",
            ),
        )
        return layout

    @classmethod
    def _ffn_rules(cls, config: Config, layer: int, to: str, of: str, sizes: Sizes, bias: bool) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_parts import glu_rules
        from ggpy.models.hf_sources import Stored

        first, every = config.integer("moe_layer_start_index", least=0), config.integer("moe_layer_interval")
        if (layer + 1) % every or not first <= layer <= _last(config):
            return super()._ffn_rules(config, layer, to, of, sizes, bias)
        n_expert = expert_count(config, sizes.n_layer, "moe_num_experts")
        n_ff, shared = (
            config.integer("moe_intermediate_size"),
            config.integer("moe_num_shared_experts", default=0, least=0),
        )
        chosen_by = Stored(of + "moe_statics.e_score_correction_bias", (1, n_expert)).reshape(n_expert)
        rules = [
            TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, sizes.n_embd)),
            TensorRule(to + "exp_probs_b.bias", chosen_by),
            *expert_rules(to, of, n_expert, n_ff, sizes.n_embd),
        ]
        if shared:
            at = of + "shared_experts."
            rules += glu_rules(to, at, n_ff * shared, sizes.n_embd, suffix="_shexp", bias=bias)
        return rules


def _last(config: Config) -> int:
    """The last layer that may have experts."""
    last = config.get("moe_layer_end_index")
    n_layer = config.integer("num_hidden_layers")
    return n_layer - 1 if last in (-1, None) else config.integer("moe_layer_end_index", least=0)
