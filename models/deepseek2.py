"""DeepSeek-V2 and V3, and what has their form: Kimi K2, GLM-4.7-Flash. Latent attention; in all but the first layers
experts, chosen by softmax or by sigmoid and a bias, and one that every token takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder
from ggpy.models.experts import Experts, expert_count, expert_rules, group_keys
from ggpy.models.latent_attention import LatentAttention, latent_attention

if TYPE_CHECKING:
    from typing import Any

    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class Deepseek2(Decoder):
    """`yarn_log_multiplier` is a tenth of what the config calls mscale_all_dim: it scales scores, where other
    architectures' scales what rope turns."""

    name = "deepseek2"
    hf_names = ("DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM")
    rope_style = "interleaved"
    normalizes = False

    def _head_dim(self, suffix: str, default: int) -> int:
        return self.metadata.integer("{arch}.attention.key_length", default)

    def sizes(self) -> LatentAttention:
        return LatentAttention.read(self.metadata, self.hparams.n_head)

    def rope(self, freq_factors: Any = None, **options: Any) -> Rope:
        rope, m = super().rope(freq_factors, **options), self.metadata
        if self._stretch():
            return replace(rope, magnitude=m.number("{arch}.rope.scaling.attn_factor", 1.0))
        return rope

    def _stretch(self) -> float:
        """The part of the factor of scores that YaRN adds to 1, before it is squared."""
        m = self.metadata
        multiplier = m.number("{arch}.rope.scaling.yarn_log_multiplier", 0.0)
        factor = m.number("{arch}.rope.scaling.factor", 1.0)
        if m.string("{arch}.rope.scaling.type", "none") != "yarn" or not multiplier:
            return 0.0
        if not 0 < multiplier < 1e3:
            raise GGPYError(f"The metadata gives YaRN a yarn_log_multiplier of {multiplier}, which is impossible.")
        return multiplier * math.log(max(1.0, factor))

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        assert rope is not None
        sizes = self.sizes()
        scale = sizes.head_dim**-0.5 * (1 + self._stretch()) ** 2
        return latent_attention(g, x, layer, sizes, rope, self.hparams.n_embd, scale)

    def experts(self) -> Experts:
        """V2 chooses groups by their best expert, V3 by their two best. llama.cpp takes V2's as V3's."""
        experts = Experts.read(self.metadata, gating=self.gating, normalize=self.normalizes)
        return experts if experts.gating == "sigmoid" else replace(experts, group_best=1)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout
        from ggpy.models.hf_latent import latent_keys, latent_rules, latent_sizes
        from ggpy.models.hf_parts import decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch = cls.name
        sizes, latent = latent_sizes(config)
        n_embd, n_ff, bias = sizes.n_embd, config.integer("intermediate_size"), config.flag("mlp_bias", default=False)
        n_dense, n_expert = (
            _dense_layers(config, sizes.n_layer),
            expert_count(config, sizes.n_layer, "n_routed_experts"),
        )
        sigmoid = "topk_method" not in config.defaults  # V3's router and its relatives'
        method = config.get("topk_method")
        if not sigmoid and method not in ("greedy", "group_limited_greedy", None):
            raise GGPYError(
                f"{config.where} gives 'topk_method' as {method!r:.60}; ggpy knows greedy and group_limited_greedy."
            )
        grouped = sigmoid or (method == "group_limited_greedy" and config.integer("n_group", default=1) > 1)
        attention_bias = config.flag("attention_bias", default=False)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = norm_rules(to, of, n_embd, norms)
            rules += latent_rules(to, of + "self_attn.", latent, n_embd, bias=attention_bias, by_head=True)
            if layer < n_dense:
                return rules + glu_rules(to, of + "mlp.", n_ff, n_embd, bias=bias)
            return rules + _mixture_rules(config, to, of + "mlp.", n_expert, n_embd, biased=sigmoid, mlp_bias=bias)

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = {
            **sizes.keys(arch, config),
            **latent_keys(arch, latent, by_head=True),
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.leading_dense_block_count": n_dense,
            f"{arch}.expert_count": n_expert,
            f"{arch}.expert_used_count": config.integer("num_experts_per_tok", most=n_expert),
            f"{arch}.expert_feed_forward_length": config.integer("moe_intermediate_size"),
            f"{arch}.expert_shared_count": config.integer("n_shared_experts"),
            f"{arch}.expert_weights_scale": config.number("routed_scaling_factor"),
            f"{arch}.expert_weights_norm": sigmoid and config.flag("norm_topk_prob", default=True),
            f"{arch}.expert_gating_func": 2 if sigmoid else 1,
            **(group_keys(arch, config, n_expert) if grouped else {}),
        }
        further = "the layers that predict further tokens are left out: the text is the same without."
        layout = Layout(
            arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied,
            left_out=((rf"model\.layers\.({'|'.join(str(sizes.n_layer + i) for i in range(9))})\.", further),),
        )  # fmt: skip
        add_rope(layout, config, latent.n_rot)
        _add_score_factor(layout, config)
        return layout


def _dense_layers(config: Config, n_layer: int) -> int:
    """The number of layers at the beginning that have a plain feed-forward."""
    if "mlp_layer_types" not in config.defaults:
        return min(config.integer("first_k_dense_replace", default=0, least=0), n_layer)
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return 1
    n_dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * n_dense + ["sparse"] * (n_layer - n_dense):
        raise GGPYError(
            f"{config.where} gives 'mlp_layer_types' as {kinds!r:.60}; it must list {n_layer} layers, those that are"
            " dense before those that are sparse."
        )
    return n_dense


def _mixture_rules(
    config: Config, to: str, of: str, n_expert: int, n_embd: int, *, biased: bool, mlp_bias: bool
) -> list[TensorRule]:
    from ggpy.models.hf import TensorRule
    from ggpy.models.hf_parts import glu_rules

    n_ff = config.integer("moe_intermediate_size")
    chosen_by = TensorRule(to + "exp_probs_b.bias", of + "gate.e_score_correction_bias", (n_expert,))
    return [
        TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)),
        *([chosen_by] if biased else []),
        *expert_rules(to, of, n_expert, n_ff, n_embd),
        *glu_rules(
            to, of + "shared_experts.", n_ff * config.integer("n_shared_experts"), n_embd, suffix="_shexp",
            bias=mlp_bias,
        ),
    ]  # fmt: skip


def _add_score_factor(layout: Layout, config: Config) -> None:
    """The key of the factor that 'mscale_all_dim' gives scores, which there is for YaRN alone."""
    rope = config.section("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    kind, every = rope.get("rope_type", "type") or "default", rope.get("mscale_all_dim")
    if kind == "default" or not every:
        return
    key = f"{layout.arch}.rope.scaling."
    if layout.metadata.get(key + "type") != "yarn":
        raise GGPYError(
            f"{rope.where} gives 'mscale_all_dim' with a rope that files of {layout.arch} have no key for; ggpy follows"
            " it with YaRN."
        )
    stretch = math.log(max(1.0, layout.metadata[key + "factor"]))
    magnitude = layout.metadata.pop(key + "attn_factor", 1.0) * (1 + 0.1 * stretch)
    layout.metadata[key + "yarn_log_multiplier"] = 0.1 * rope.number("mscale_all_dim")
    if not math.isclose(magnitude, 1.0, rel_tol=1e-9):
        layout.metadata[key + "attn_factor"] = magnitude
        layout.notes.append(
            f"what rope turns is scaled by {magnitude:.4g}; other engines may scale scores by it as well."
        )
