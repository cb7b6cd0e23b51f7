"""GLM-4 of 2025 and GLM-4.5: rope of a part of each head; norms before and after each branch in the dense models, and
experts chosen by a sigmoid and a bias, beside one that every token takes, in the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggpy.models.base import HyperParameters
from ggpy.models.decoder import Decoder
from ggpy.models.experts import PROJECTIONS, expert_count, expert_rules, group_keys

if TYPE_CHECKING:
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes


class Glm4(Decoder):
    """Files of models that see have rope by sections and rows in the order of halves; for text it is rope of halves."""

    name = "glm4"
    hf_names = ("Glm4ForCausalLM",)
    rope_style = "interleaved"
    norms_after = True

    def __init__(self, metadata: Mapping[str, Any], n_vocab: int, where: str = "the model's file") -> None:
        super().__init__(metadata, n_vocab, where)
        sections = self.metadata.find("{arch}.rope.dimension_sections", list)
        if sections is not None and any(sections):
            self.rope_style = "neox"  # type: ignore[misc]

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        return self.without_predictors(super().read_hparams(n_vocab))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        n_embd, bias = sizes.n_embd, config.flag("attention_bias", default=True)
        norms = {
            "attn_norm": "input_layernorm", "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm", "post_ffw_norm": "post_mlp_layernorm",
        }  # fmt: skip

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, n_embd, norms),
                *attention_rules(to, of + "self_attn.", sizes, bias=bias),
                TensorRule(to + "ffn_up.weight", of + "mlp.gate_up_proj.weight", (2 * n_ff, n_embd)),
                TensorRule(to + "ffn_down.weight", of + "mlp.down_proj.weight", (n_embd, n_ff)),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim, partial=True)
        return layout


class Glm4Moe(Glm4):
    name = "glm4moe"
    hf_names = ("Glm4MoeForCausalLM",)
    rope_style = "neox"
    norms_after = False
    ffn_norm = "post_attention_norm"  # before the feed-forward, whatever its name says
    gating = "sigmoid"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.next_token import predictor_rules

        arch, sizes = cls.name, Sizes.read(config)
        n_expert = expert_count(config, sizes.n_layer, "n_routed_experts")
        bias, normed = config.flag("attention_bias", default=False), config.flag("use_qk_norm", default=False)
        n_dense = config.integer("first_k_dense_replace", default=1, least=0)
        norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, sizes.n_embd, norms),
                *attention_rules(
                    to, of + "self_attn.", sizes, bias=bias, norms=("q_norm", "k_norm") if normed else None
                ),
                *cls._feed_forward_rules(config, to, of + "mlp.", 0 if layer < n_dense else n_expert, sizes),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = sizes.keys(arch, config) | {
            f"{arch}.feed_forward_length": config.integer("intermediate_size"),
            f"{arch}.expert_count": n_expert,
            f"{arch}.expert_used_count": config.integer("num_experts_per_tok", most=n_expert),
            f"{arch}.expert_feed_forward_length": config.integer("moe_intermediate_size"),
            f"{arch}.expert_shared_count": config.integer("n_shared_experts"),
            f"{arch}.leading_dense_block_count": min(n_dense, sizes.n_layer),
            f"{arch}.expert_gating_func": 2,
            f"{arch}.expert_weights_scale": config.number("routed_scaling_factor"),
            f"{arch}.expert_weights_norm": config.flag("norm_topk_prob", default=True),
            **group_keys(arch, config, n_expert),
        }
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim, partial=True)
        n, of, shape = sizes.n_layer, f"model.layers.{sizes.n_layer}.", (sizes.n_vocab, sizes.n_embd)
        names = of + "eh_proj", of + "enorm", of + "hnorm", of + "shared_head.norm"

        def norm(target: str, source: str, n_cols: int) -> TensorRule:
            return TensorRule(target + ".weight", source + ".weight", (n_cols,))

        layout.predictor = [
            *block(n, f"blk.{n}.", of),
            *predictor_rules(n, sizes.n_embd, norm, names),
            TensorRule(f"blk.{n}.nextn.embed_tokens.weight", of + "embed_tokens.weight", shape, required=False),
            TensorRule(f"blk.{n}.nextn.shared_head_head.weight", of + "shared_head.head.weight", shape, required=False),
        ]
        incomplete = "the layer that predicts further tokens is incomplete, and left out: the text is the same without."
        layout.left_out = ((rf"model\.layers\.{n}\.", incomplete),)
        return layout

    @staticmethod
    def _feed_forward_rules(config: Config, to: str, of: str, n_expert: int, sizes: Sizes) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_parts import glu_rules

        n_embd = sizes.n_embd
        if not n_expert:
            return glu_rules(to, of, config.integer("intermediate_size"), n_embd)
        n_ff = config.integer("moe_intermediate_size")
        shared = n_ff * config.integer("n_shared_experts")
        return [
            TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)),
            TensorRule(to + "exp_probs_b.bias", of + "gate.e_score_correction_bias", (n_expert,)),
            *expert_rules(to, of, n_expert, n_ff, n_embd, PROJECTIONS),
            *glu_rules(to, of + "shared_experts.", shared, n_embd, suffix="_shexp"),
        ]
