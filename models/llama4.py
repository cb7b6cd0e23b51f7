"""Llama 4 (Scout, Maverick), its text: rope with attention in chunks, and every fourth layer without either, whose
queries grow with the position. Every so many layers experts, whose inputs their weights multiply, and one that every
token takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.graph.operations import Temperature
from ggpy.models.decoder import Decoder, all_but_every
from ggpy.models.experts import Experts, expert_count
from ggpy.models.layers import self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.base import HyperParameters
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

#: What files do not say, as other engines have it.
_CHUNK, _TEMPERATURE, _UNNORMED_EXPERTS = 8192, (0.1, 8192), 128


class Llama4(Decoder):
    """A layer's `window` is the length of the chunks that it attends in."""

    name = "llama4"
    hf_names = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
    rope_style = "interleaved"
    window_period = 4
    default_window = _CHUNK  # a file that gives 0 has rope and whole attention in all layers
    gating = "sigmoid"
    normalizes = False

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        hp, length = super().read_hparams(n_vocab), self.metadata.integer("{arch}.attention.chunk_size", 0)
        return (
            replace(hp, layers=tuple(replace(layer, window=layer.window and length) for layer in hp.layers))
            if length
            else hp
        )

    def ropes(self, g: Graph) -> list[Rope | None]:
        whole = self.metadata.integer("{arch}.attention.sliding_window", _CHUNK) == 0
        return self.ropes_by_pattern(g, all_but_every(0 if whole else self.window_period, self.hparams.n_layer))

    def temperature(self) -> Temperature | None:
        beta = self.metadata.number("{arch}.attention.temperature_scale", _TEMPERATURE[0])
        length = self.metadata.integer("{arch}.attention.temperature_length", _TEMPERATURE[1])
        if not 0 <= beta < 1e3 or length < 1:
            raise GGPYError(
                f"The metadata has queries grow by {beta} for every {length} positions, which is impossible."
            )
        return Temperature(beta, length, 1) if beta else None

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        norms = self.metadata.find("{arch}.use_qk_norm", bool)
        norms = self.hparams.n_expert != _UNNORMED_EXPERTS if norms is None else norms
        # The norm stands behind rope, which leaves lengths alone but for its scale: the one takes the other out.
        if norms and rope is not None:
            rope = replace(rope, magnitude=1.0)
        return self_attention(
            g,
            x,
            layer,
            self.hparams,
            rope,
            head_norms="unweighted" if norms and rope is not None else "head",
            temperature=self.temperature() if rope is None else None,
            chunked=True,
        )

    def experts(self) -> Experts:
        return replace(super().experts(), weighs_inputs=True)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        import numpy as np

        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored

        arch, sizes = cls.name, Sizes.read(config)
        n_layer, n_embd = sizes.n_layer, sizes.n_embd
        step, sparse = _sparse_layers(config, n_layer)
        n_expert = expert_count(config, n_layer) if sparse else 0
        n_ff, bias = config.integer("intermediate_size"), config.flag("attention_bias", default=False)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = norm_rules(to, of, n_embd, norms)
            rules += attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias)
            at = of + "feed_forward."
            if layer not in sparse:
                return rules + glu_rules(to, at, config.integer("intermediate_size_mlp"), n_embd)
            both = Stored(at + "experts.gate_up_proj", (n_expert, n_embd, 2 * n_ff)).transpose()
            down = Stored(at + "experts.down_proj", (n_expert, n_ff, n_embd)).transpose()
            return [
                *rules,
                TensorRule(to + "ffn_gate_inp.weight", at + "router.weight", (n_expert, n_embd)),
                TensorRule(to + "ffn_gate_exps.weight", both.slice(0, n_ff, axis=1)),
                TensorRule(to + "ffn_up_exps.weight", both.slice(n_ff, n_ff, axis=1)),
                TensorRule(to + "ffn_down_exps.weight", down),
                *glu_rules(to, at + "shared_expert.", n_ff, n_embd, suffix="_shexp"),
            ]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = {
            **sizes.keys(arch, config),
            f"{arch}.feed_forward_length": config.integer("intermediate_size_mlp"),
            f"{arch}.interleave_moe_layer_step": step,
            f"{arch}.expert_feed_forward_length": n_ff,
        }
        if sparse:
            metadata[f"{arch}.expert_count"] = n_expert
            metadata[f"{arch}.expert_used_count"] = config.integer("num_experts_per_tok", most=n_expert)
        layout = Layout(
            arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied,
            renames=((r"^(model\.language_model|language_model\.model)\.", "model."), (r"^language_model\.lm_", "lm_")),
            left_out=((r"(model\.)?(vision_model|multi_modal_projector)\.",
                       "images are not read: the file holds the text model."),),
        )  # fmt: skip
        add_rope(layout, config, sizes.head_dim)
        turns, chunked = _kinds_of_layers(config, n_layer)
        own: dict[str, object] = {}  # what other engines take for granted
        if not any(chunked):
            metadata[f"{arch}.attention.sliding_window"] = 0
        elif chunked != all_but_every(cls.window_period, n_layer):
            own[f"{arch}.attention.sliding_window_pattern"] = np.array(chunked)
        if turns != all_but_every(cls.window_period if any(chunked) else 0, n_layer):
            own[f"{arch}.attention.rope_pattern"] = np.array(turns)
        if any(chunked) and config.integer("attention_chunk_size") != _CHUNK:
            own[f"{arch}.attention.chunk_size"] = config.integer("attention_chunk_size")
        grows, beta = config.get("attn_temperature_tuning"), config.number("attn_scale")
        if not all(turns) and (not grows or beta != _TEMPERATURE[0]):
            own[f"{arch}.attention.temperature_scale"] = beta if grows else 0.0
        if not all(turns) and grows and config.integer("floor_scale") != _TEMPERATURE[1]:
            own[f"{arch}.attention.temperature_length"] = config.integer("floor_scale")
        norms_heads = config.flag("use_qk_norm", default=True)
        if norms_heads != (n_expert != _UNNORMED_EXPERTS):
            own[f"{arch}.use_qk_norm"] = norms_heads
        layout.metadata |= own
        if own:
            layout.notes.append(f"other engines may take these keys for granted in {arch}: {', '.join(sorted(own))}.")
        return layout


def _sparse_layers(config: Config, n_layer: int) -> tuple[int, Sequence[int]]:
    """Every how many layers there are experts, and the layers that have them."""
    listed, step = config.get("moe_layers"), config.integer("interleave_moe_layer_step", least=0)
    if listed is None:
        if not step:
            raise GGPYError(f"{config.where} gives 'interleave_moe_layer_step' as 0 and no 'moe_layers'.")
        return step, range(step - 1, n_layer, step)
    if not isinstance(listed, list) or not all(type(layer) is int and 0 <= layer < n_layer for layer in listed):
        raise GGPYError(f"{config.where} gives 'moe_layers' as {listed!r:.60}; it must list some of {n_layer} layers.")
    steps = [n for n in range(1, n_layer + 1) if sorted(listed) == [*range(n - 1, n_layer, n)]]
    if listed and not steps:
        raise GGPYError(
            f"{config.where} gives 'moe_layers' as {listed!r:.60}; files of llama4 can say every how many layers there"
            " are experts."
        )
    return steps[0] if steps else 0, listed


def _kinds_of_layers(config: Config, n_layer: int) -> tuple[list[bool], list[bool]]:
    """Which layers have rope, and which attend in chunks."""
    from ggpy.models.hf_parts import layers_with_rope

    turns = layers_with_rope(config, n_layer)
    chunked = config.layer_kinds(n_layer, {"chunked_attention": True, "full_attention": False})
    if chunked is None:
        has_chunks = config.get("attention_chunk_size") is not None
        chunked = [turn and has_chunks for turn in turns]
    return turns, chunked
