"""Checkpoints of Gemma 3n."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from ggpy.errors import GGPYError
from ggpy.models.gemma3 import KINDS, rope_of_kind
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_config import Config
from ggpy.models.hf_gemma4 import NORMS, per_layer_rules
from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
from ggpy.models.hf_rope import add_rope
from ggpy.models.hf_sources import Stored, stack

_ARCH = "gemma3n"
_STREAM_NORMS = {"altup_router_norm": "altup.router_norm", "laurel_post_norm": "laurel.post_laurel_norm"}


def gemma3n_layout(config: Config) -> Layout:
    sizes, rank, n = Sizes.read(config), config.integer("laurel_rank"), config.integer("altup_num_inputs", most=64)
    n_layer, n_embd = sizes.n_layer, sizes.n_embd
    slides, widths = _sliding_layers(config, n_layer), _widths(config, n_layer)
    n_shared, active = (config.integer(key, least=0) for key in ("num_kv_shared_layers", "altup_active_idx"))
    first = n_layer - n_shared
    if not {*slides[max(first, 0) :]} <= {*slides[: max(first, 0)]}:
        raise GGPYError(
            f"{config.where} gives {n_shared} 'num_kv_shared_layers', but no earlier layer of each kind has keys and"
            " values."
        )
    if n < 2 or active >= n or n_embd % 32:
        raise GGPYError(
            f"{config.where} gives {n} 'altup_num_inputs' of which layers compute number {active}, of {n_embd} columns;"
            " ggpy needs two at least, in columns that are a multiple of 32."
        )
    n_each, bias = config.integer("hidden_size_per_layer_input"), config.flag("attention_bias", default=False)
    scaled = config.flag("altup_correct_scale", default=True)

    def block(layer: int, to: str, of: str) -> list[TensorRule]:
        attention = attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias, norms=("q_norm", "k_norm"))
        own = [rule for rule in attention if not rule.target.startswith((to + "attn_k", to + "attn_v"))]
        # Those of layers that read others' play no part, but readers want them.
        keys = [replace(rule, required=layer < first) for rule in attention if rule not in own]
        return [
            *own, *keys,
            *norm_rules(to, of, n_embd, NORMS | _STREAM_NORMS),
            *glu_rules(to, of + "mlp.", widths[layer], n_embd),
            *per_layer_rules(to, of, n_each, n_embd),
            TensorRule(to + "altup_predict_coef.weight", of + "altup.prediction_coefs.weight", (n * n, n)),
            TensorRule(to + "altup_correct_coef.weight", of + "altup.correction_coefs.weight", (n, n)),
            *([TensorRule(to + "altup_correct_scale.weight", of + "altup.correct_output_scale", (n_embd,))]
              if scaled else []),
            TensorRule(to + "altup_router.weight", of + "altup.modality_router.weight", (n, n_embd)),
            TensorRule(to + "laurel_l.weight", of + "laurel.linear_left.weight", (rank, n_embd)),
            TensorRule(to + "laurel_r.weight", of + "laurel.linear_right.weight", (n_embd, rank)),
        ]  # fmt: skip

    tied, n_vocab = config.flag("tie_word_embeddings", default=True), sizes.n_vocab
    rules = decoder_rules(sizes, block, tied=tied)
    for target, source in (("altup_proj", "altup_projections"), ("altup_unembd_proj", "altup_unembed_projections")):
        matrices = [Stored(f"model.{source}.{i}.weight", (n_embd, n_embd)) for i in range(n - 1)]
        rules.append(TensorRule(target + ".weight", stack(matrices)))
    n_known, all_layers = config.integer("vocab_size_per_layer_input", most=n_vocab), n_layer * n_each
    table = Stored("model.embed_tokens_per_layer.weight", (n_known, all_layers))
    rules += [  # tokens beyond the table, of images and sound, have the first one's row
        TensorRule("per_layer_token_embd.weight", table.take([*range(n_known), *[0] * (n_vocab - n_known)])),
        TensorRule("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", (all_layers, n_embd)),
        TensorRule("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", (n_each,)),
    ]
    metadata = {
        **sizes.keys(_ARCH, config),
        f"{_ARCH}.feed_forward_length": widths[0] if len({*widths}) == 1 else np.array(widths, np.int32),
        f"{_ARCH}.attention.shared_kv_layers": n_shared,
        f"{_ARCH}.attention.sliding_window": config.integer("sliding_window"),
        f"{_ARCH}.attention.sliding_window_pattern": np.array(slides),
        f"{_ARCH}.embedding_length_per_layer_input": n_each,
        f"{_ARCH}.altup.num_inputs": n,
        f"{_ARCH}.altup.active_idx": active,
        f"{_ARCH}.activation_sparsity_scale": _deviations(config, n_layer),
    }
    cap = config.get("final_logit_softcapping")
    metadata[f"{_ARCH}.final_logit_softcapping"] = 0.0 if cap is None else config.number("final_logit_softcapping")
    unseen = r"(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\."
    layout = Layout(
        _ARCH, metadata, rules, n_vocab, "model.", tied,
        renames=((r"^(model\.language_model|language_model\.model)\.", "model."), (r"^language_model\.lm_", "lm_")),
        left_out=((unseen, "images and sound are not read: the file holds the text model."),),
    )  # fmt: skip
    if not scaled:
        ones = {f"blk.{layer}.altup_correct_scale.weight": np.ones(n_embd, np.float32) for layer in range(n_layer)}
        layout.generated |= ones
        layout.left_out += ((r".*\.altup\.correct_output_scale$", "scales that the config turns off are left out."),)
    add_rope(layout, config, sizes.head_dim, rope_of_kind(config, KINDS[0]))
    sliding = rope_of_kind(config, KINDS[1])
    layout.metadata[f"{_ARCH}.rope.freq_base_swa"] = sliding.number("rope_theta")
    if (sliding.get("rope_type", "type") or "default") != "default":
        raise GGPYError(f"{sliding.where} scales rope of sliding layers; GGUF's {_ARCH} has no place for that.")
    return layout


def _sliding_layers(config: Config, n_layer: int) -> list[bool]:
    """Which layers have the window: all but every fifth, where the config does not say."""
    slides = config.layer_kinds(n_layer, {"sliding_attention": True, "full_attention": False})
    return slides or [(layer + 1) % 5 != 0 for layer in range(n_layer)]


def _widths(config: Config, n_layer: int) -> list[int]:
    """The width of each layer's feed-forward."""
    given = config.get("intermediate_size")
    if not isinstance(given, list):
        return [config.integer("intermediate_size")] * n_layer
    if len(given) != n_layer or not all(type(width) is int and 0 < width < 1 << 31 for width in given):
        raise GGPYError(
            f"{config.where} gives 'intermediate_size' as {given!r:.60}; it must be a width or one for each of"
            f" {n_layer} layers."
        )
    return given


def _deviations(config: Config, n_layer: int) -> np.ndarray:
    """How many standard deviations above the mean gates of each layer are kept: float32 [n_layer]."""
    shares = config.get("activation_sparsity_pattern")
    if shares is None:
        shares = [0.95 if n_layer > 10 and layer < 10 else 0.0 for layer in range(n_layer)]
    numbers = isinstance(shares, list) and all(type(share) in (int, float) and 0 <= share < 1 for share in shares)
    if not numbers or len(shares) != n_layer:
        raise GGPYError(
            f"{config.where} gives 'activation_sparsity_pattern' as {shares!r:.60}; it must list a share below 1 for"
            f" each of {n_layer} layers."
        )
    return np.array([NormalDist().inv_cdf(share) if share else -math.inf for share in shares], np.float32)
