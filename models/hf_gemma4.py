"""Checkpoints of Gemma 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ggpy.errors import GGPYError
from ggpy.models.experts import expert_count
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_config import Config
from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
from ggpy.models.hf_rope import proportional_divisors
from ggpy.models.hf_sources import Stored

_ARCH = "gemma4"
NORMS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_MIXTURE_NORMS = {
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2", "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}  # fmt: skip

#: Rope of each kind of layer where a config does not say it: type, base, share of a head that turns.
_ROPE = {"full_attention": ("proportional", 1e6, 0.25), "sliding_attention": ("default", 1e4, 1.0)}


def gemma4_layout(config: Config) -> Layout:
    sliding, same = Sizes.read(config), config.flag("attention_k_eq_v", default=False)
    slides = _sliding_layers(config, sliding.n_layer)
    full = _full_layers(config, sliding, slides, same=same)
    if sliding.n_head % full.n_head_kv or full.head_dim % 2:
        raise GGPYError(
            f"{config.where} gives full layers {full.n_head_kv} heads of keys, with {full.head_dim} dimensions, for"
            f" {full.n_head} queries, which is impossible."
        )
    n_layer, n_embd, n_ff = sliding.n_layer, sliding.n_embd, config.integer("intermediate_size")
    n_shared = config.integer("num_kv_shared_layers", default=0, least=0)
    first = n_layer - n_shared
    if not {*slides[first:]} <= {*slides[: max(first, 0)]}:
        raise GGPYError(
            f"{config.where} gives {n_shared} 'num_kv_shared_layers', but no earlier layer of each kind has keys and"
            " values."
        )
    n_each = config.integer("hidden_size_per_layer_input", default=0, least=0)
    mixed = config.flag("enable_moe_block", default=False)
    n_expert = expert_count(config, n_layer) if mixed else 0
    wide = config.flag("use_double_wide_mlp", default=False)
    widths = [n_ff * (2 if wide and layer >= first else 1) for layer in range(n_layer)]
    bias = config.flag("attention_bias", default=False)

    def block(layer: int, to: str, of: str) -> list[TensorRule]:
        sizes = sliding if slides[layer] else full
        skipped = ("attn_k", "attn_v") if layer >= first else ("attn_v",) if same and not slides[layer] else ()
        attention = attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias, norms=("q_norm", "k_norm"))
        rules = [rule for rule in attention if not rule.target.removeprefix(to).startswith(skipped or " ")]
        rules += norm_rules(to, of, n_embd, NORMS)
        rules += glu_rules(to, of + "mlp.", widths[layer], n_embd)
        rules.append(TensorRule(to + "layer_output_scale.weight", of + "layer_scalar", (1,), required=False))
        if mixed:
            rules += _mixture_rules(config, to, of, n_expert, n_embd)
        if n_each:
            rules += per_layer_rules(to, of, n_each, n_embd)
        return rules

    tied = config.flag("tie_word_embeddings", default=True)
    rules = decoder_rules(sliding, block, tied=tied)
    if n_each:
        n = n_layer * n_each
        if config.integer("vocab_size_per_layer_input") != sliding.n_vocab:
            raise GGPYError(
                f"{config.where} gives 'vocab_size_per_layer_input' as {config.integer('vocab_size_per_layer_input')};"
                f" ggpy needs the {sliding.n_vocab} of 'vocab_size'."
            )
        rules += [
            TensorRule("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", (sliding.n_vocab, n)),
            TensorRule("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", (n, n_embd)),
            TensorRule("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", (n_each,)),
        ]
    metadata = {
        **sliding.keys(_ARCH, config),
        f"{_ARCH}.feed_forward_length": np.array(widths, np.int32) if wide else n_ff,
        f"{_ARCH}.attention.head_count_kv": np.array(
            [(sliding if slid else full).n_head_kv for slid in slides], np.int32
        ),
        f"{_ARCH}.attention.shared_kv_layers": n_shared,
        f"{_ARCH}.attention.sliding_window": config.integer("sliding_window"),
        f"{_ARCH}.attention.sliding_window_pattern": np.array(slides),
        f"{_ARCH}.embedding_length_per_layer_input": n_each,
        **{f"{_ARCH}.attention.{part}_length": full.head_dim for part in ("key", "value")},
        **{f"{_ARCH}.attention.{part}_length_swa": sliding.head_dim for part in ("key", "value")},
    }
    if mixed:
        metadata |= {
            f"{_ARCH}.expert_count": n_expert,
            f"{_ARCH}.expert_used_count": config.integer("top_k_experts", most=n_expert),
            f"{_ARCH}.expert_feed_forward_length": config.integer("moe_intermediate_size"),
        }
    if config.get("final_logit_softcapping") is not None:
        metadata[f"{_ARCH}.final_logit_softcapping"] = config.number("final_logit_softcapping")
    unseen = r"(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio|multi_modal_projector)\."
    shared = "|".join(map(str, range(first, n_layer))) or " "
    layout = Layout(
        _ARCH, metadata, rules, sliding.n_vocab, "model.", tied,
        renames=((r"^(model\.language_model|language_model\.model)\.", "model."), (r"^language_model\.lm_", "lm_")),
        left_out=(
            (unseen, "images and sound are not read: the file holds the text model."),
            (
                rf"model\.layers\.({shared})\.self_attn\.([kv]_proj|[kv]_norm)\.",
                "keys and values of layers that read an earlier one's are left out: they play no part.",
            ),
        ),
    )  # fmt: skip
    _add_ropes(layout, config, full.head_dim, sliding.head_dim)
    return layout


def per_layer_rules(to: str, of: str, n_each: int, n_embd: int) -> list[TensorRule]:
    """The tensors that join a layer with its own embedding of the token."""
    return [
        TensorRule(to + "inp_gate.weight", of + "per_layer_input_gate.weight", (n_each, n_embd)),
        TensorRule(to + "proj.weight", of + "per_layer_projection.weight", (n_embd, n_each)),
        *norm_rules(to, of, n_embd, {"post_norm": "post_per_layer_input_norm"}),
    ]


def _full_layers(config: Config, sliding: Sizes, slides: list[bool], *, same: bool) -> Sizes:
    """The sizes of full layers: by keys of their own or, as newer transformers writes them, by layer."""
    by_layer = config.get("per_layer_config") or {}
    if not by_layer:
        full = replace(sliding, head_dim=config.integer("global_head_dim", default=512))
        n_kv = config.integer("num_global_key_value_heads", default=sliding.n_head_kv)
        return replace(full, n_head_kv=n_kv) if same else full
    listed = isinstance(by_layer, Mapping) and {str(i) for i, slid in enumerate(slides) if not slid} == {*by_layer}
    given = [*by_layer.values()] if listed else []
    alike = listed and all(isinstance(one, Mapping) and one == given[0] for one in given)
    if not alike or not {*given[0]} <= {"head_dim", "num_key_value_heads"}:
        raise GGPYError(
            f"{config.where} gives 'per_layer_config' as {by_layer!r:.60}; it must give all full layers the same"
            " 'head_dim' and 'num_key_value_heads'."
        )
    section = Config(given[0], f"{config.where}'s 'per_layer_config'")
    return replace(
        sliding,
        head_dim=section.integer("head_dim", default=sliding.head_dim),
        n_head_kv=section.integer("num_key_value_heads", default=sliding.n_head_kv),
    )


def _sliding_layers(config: Config, n_layer: int) -> list[bool]:
    """Which layers have the window: all but every sixth, where the config does not say; the last one never."""
    slides = config.layer_kinds(n_layer, {"sliding_attention": True, "full_attention": False})
    if slides is None:
        slides = [(layer + 1) % 6 != 0 for layer in range(n_layer)]
    return [*slides[:-1], False]


def _mixture_rules(config: Config, to: str, of: str, n_expert: int, n_embd: int) -> list[TensorRule]:
    n_ff = config.integer("moe_intermediate_size")
    return [
        *norm_rules(to, of, n_embd, _MIXTURE_NORMS),
        TensorRule(to + "ffn_gate_inp.weight", of + "router.proj.weight", (n_expert, n_embd)),
        TensorRule(to + "ffn_gate_inp.scale", of + "router.scale", (n_embd,)),
        TensorRule(to + "ffn_gate_up_exps.weight", Stored(of + "experts.gate_up_proj", (n_expert, 2 * n_ff, n_embd))),
        TensorRule(to + "ffn_down_exps.weight", Stored(of + "experts.down_proj", (n_expert, n_embd, n_ff))),
        TensorRule(to + "ffn_down_exps.scale", of + "router.per_expert_scale", (n_expert,)),
    ]


def _add_ropes(layout: Layout, config: Config, full: int, sliding: int) -> None:
    """Rope of full layers turns the first pairs of a head as whole heads have them; divisors let the others stand."""
    sections = config.section("rope_parameters")
    unknown = [key for key in sections.values if key not in _ROPE]
    if unknown:
        raise GGPYError(f"{sections.where} has {unknown[0]!r:.40}; it must hold rope's settings by kind of layer.")
    for kind, (usual, base, share) in _ROPE.items():
        rope, suffix, width = sections.section(kind), *(("", full) if kind == "full_attention" else ("_swa", sliding))
        given = rope.get("rope_type") or ("default" if rope.values else usual)
        if given not in ("default", usual):
            raise GGPYError(f"{rope.where} asks for rope {given!r:.40}; ggpy follows {usual} in this kind of layer.")
        layout.metadata[f"{_ARCH}.rope.freq_base{suffix}"] = rope.number("rope_theta", default=base)
        layout.metadata[f"{_ARCH}.rope.dimension_count{suffix}"] = width
        if given == "proportional":
            share = rope.number("partial_rotary_factor", default=share if not rope.values else 1.0)
            if share > 1:
                raise GGPYError(f"{rope.where} gives 'partial_rotary_factor' as {share}; it must lie between 0 and 1.")
            layout.generated["rope_freqs.weight"] = proportional_divisors(rope, share, width).astype(np.float32)
