"""Rope's settings in a config.json, and what a GGUF file says in their place.

Where GGUF has keys of a reader's own formula (linear, YaRN), these are written. Any other frequencies that do not
depend on the text's length stand in the tensor `rope_freqs.weight`, one divisor a frequency, as Llama 3's do.
Source: `modeling_rope_utils.py` of transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.hf_config import Config, listed

if TYPE_CHECKING:
    import numpy as np

    from ggpy.models.hf import Layout

#: What any type of rope reads; to the others it is without effect, in transformers too.
_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor",
    "mscale", "mscale_all_dim", "truncate", "mrope_section", "mrope_interleaved", "finetuned", "alpha",
    "llama_4_scaling_beta", "max_position_embeddings",
}  # fmt: skip

#: The divisor of a frequency that is 0: no position that a text can have turns such a pair.
_NEVER = 1e30


def add_rope(
    layout: Layout,
    config: Config,
    head_dim: int,
    rope: Config | None = None,
    *,
    partial: bool = False,
    yarn_truncates: bool = True,
    longrope: bool = False,
) -> None:
    """Rope's base and scaling, from every place that transformers reads them from: `rope_scaling` goes before
    `rope_parameters`, what stands inside before what stands beside, except for the original context's length.

    `rope`: the settings themselves, where a family has them elsewhere. `partial`: the family's code reads
    'partial_rotary_factor', so that only the first part of each head turns. `yarn_truncates`: readers of this
    architecture round the ends of YaRN's ramp. `longrope`: they know two lists of divisors.
    """
    rope = _section(layout, config) if rope is None else rope
    arch = layout.arch
    kind = rope.get("rope_type", "type") or "default"
    if kind == "mrope" and layout.arch == "qwen2vl":  # whose classes alone know the name; of text it is the plain one
        kind = "default"
    base = rope.number("rope_theta") if rope.get("rope_theta") is not None else config.number("rope_theta", default=1e4)
    layout.metadata[f"{arch}.rope.freq_base"] = base
    unknown = [key for key in rope.values if key not in _KEYS]
    if unknown:
        layout.notes.append(f"{rope.where} has keys that ggpy does not know; they play no part: {listed(unknown)}.")
    share = _share(rope if rope.get("partial_rotary_factor") is not None else config)
    if partial and kind != "proportional":
        head_dim = int(head_dim * share)
        if head_dim % 2 or not head_dim:
            raise GGPYError(
                f"{config.where} gives 'partial_rotary_factor' as {share}: rope would turn {head_dim} dimensions of"
                " each head, and it needs an even number."
            )
        layout.metadata[f"{arch}.rope.dimension_count"] = head_dim
    elif share != 1.0 and kind == "default":
        layout.notes.append(
            f"{config.where} gives 'partial_rotary_factor' as {share}, which these models' code does not read: rope"
            " turns whole heads."
        )
    elif share != 1.0 and kind != "proportional":
        raise GGPYError(
            f"{config.where} gives 'partial_rotary_factor' as {share} with rope of type {kind!r:.40}; these models turn"
            " whole heads alone."
        )

    key = f"{arch}.rope.scaling."
    if kind == "default":
        return
    if kind == "dynamic":
        layout.notes.append(
            "rope scaling 'dynamic' has no place in GGUF: the file is exact up to its trained context, not beyond."
        )
    elif kind == "linear":
        layout.metadata[key + "type"] = "linear"
        layout.metadata[key + "factor"] = rope.number("factor")
    elif kind == "yarn":
        _add_yarn(layout, config, rope, base, head_dim, yarn_truncates)
    elif kind in ("longrope", "su") and longrope:
        _add_longrope(layout, config, rope, head_dim)
    elif kind == "llama3":
        _add_divisors(layout, llama3_divisors(rope, _original_context(config, rope), base, head_dim))
    elif kind == "proportional":
        _add_divisors(layout, proportional_divisors(rope, share, head_dim))
    else:
        raise GGPYError(
            f"{config.where} asks for rope scaling {kind!r:.40}; linear, dynamic, yarn, llama3 and proportional are"
            " supported."
        )


def _section(layout: Layout, config: Config) -> Config:
    scaling, parameters = config.section("rope_scaling"), config.section("rope_parameters")
    if scaling.values and parameters.values and scaling.values != parameters.values:
        layout.notes.append("'rope_scaling' and 'rope_parameters' differ; the first is followed, as transformers does.")
    rope = scaling if scaling.values else parameters
    nested = [name for name, value in rope.values.items() if isinstance(value, Mapping)]
    if nested:
        raise GGPYError(f"{rope.where} gives rope for {nested[0]!r:.40} alone; ggpy converts models of one rope.")
    return rope


def _share(config: Config) -> float:
    """The part of each head that turns."""
    share = config.number("partial_rotary_factor", default=1.0)
    if share > 1:
        raise GGPYError(f"{config.where} gives 'partial_rotary_factor' as {share}; it must lie between 0 and 1.")
    return share


def _original_context(config: Config, rope: Config) -> int:
    """The context before stretching; beside rope's own settings it goes before the one among them."""
    if config.get("original_max_position_embeddings") is not None:
        return config.integer("original_max_position_embeddings")
    return rope.integer("original_max_position_embeddings", default=config.integer("max_position_embeddings"))


def _add_divisors(layout: Layout, divisors: np.ndarray) -> None:
    import numpy as np

    with np.errstate(all="ignore"):
        layout.generated["rope_freqs.weight"] = divisors.astype(np.float32)
    if layout.arch not in ("llama", "llama4"):
        layout.notes.append(
            f"this rope stands in the tensor 'rope_freqs.weight', which other readers may not take in {layout.arch}."
        )


def _add_yarn(layout: Layout, config: Config, rope: Config, base: float, head_dim: int, truncates: bool) -> None:
    """YaRN (arXiv 2309.00071) by GGUF's keys, or by divisors where its readers' formula is not the one asked for."""
    import numpy as np

    n_ctx = _original_context(config, rope)
    factor = rope.number("factor", default=config.integer("max_position_embeddings") / n_ctx)
    fast, slow = rope.number("beta_fast", default=32.0), rope.number("beta_slow", default=1.0)
    truncate = rope.values.get("truncate", True)
    if truncate not in (True, False, None):
        raise GGPYError(f"{rope.where} gives 'truncate' as {truncate!r:.60}; it must be true or false.")
    if base <= 1:
        raise GGPYError(f"{config.where} gives 'rope_theta' as {base}; YaRN needs one above 1.")

    def magnitude_of(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    magnitude = magnitude_of(1)
    if rope.get("attention_factor") is not None:
        magnitude = rope.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):  # one alone is not read, nor is 0
        magnitude = magnitude_of(rope.number("mscale")) / magnitude_of(rope.number("mscale_all_dim"))

    def dimension(turns: float) -> float:
        """The (fractional) index of the pair that turns so many times in the original context."""
        return head_dim * math.log(n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    key = f"{layout.arch}.rope.scaling."
    if (truncate or not truncates) and low <= high:
        layout.metadata[key + "type"] = "yarn"
        layout.metadata[key + "factor"] = factor
        layout.metadata[key + "original_context_length"] = n_ctx
        if truncate and not truncates:  # a key of ggpy's own; other readers round always
            layout.metadata[key + "yarn_truncate"] = True
        if magnitude != magnitude_of(1):  # readers multiply this key with YaRN's own
            layout.metadata[key + "attn_factor"] = magnitude / magnitude_of(1)
        for name, value in (("beta_fast", fast), ("beta_slow", slow)):
            if rope.get(name) is not None:
                layout.metadata[f"{key}yarn_{name}"] = value
        return
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0, 1)  # 1 where a pair is slowed
    _add_divisors(layout, 1 / (ramp / factor + 1 - ramp))
    layout.metadata[key + "attn_factor"] = magnitude


def _add_longrope(layout: Layout, config: Config, rope: Config, head_dim: int) -> None:
    """LongRoPE (arXiv 2402.13753): divisors for contexts up to the original one, and others for those beyond."""
    import numpy as np

    n_ctx, key = _original_context(config, rope), f"{layout.arch}.rope.scaling."
    factor = rope.number("factor", default=config.integer("max_position_embeddings") / n_ctx)
    if rope.get("attention_factor") is not None:
        magnitude = rope.number("attention_factor")
    elif n_ctx < 2:
        raise GGPYError(f"{config.where} gives an original context of {n_ctx} tokens, which no model can have.")
    else:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(n_ctx)) if factor > 1 else 1.0
    for name in ("short", "long"):
        divisors = rope.get(f"{name}_factor")
        numbers = isinstance(divisors, list) and all(type(d) in (int, float) and 0 < d < 1e30 for d in divisors)
        if not numbers or len(divisors) != head_dim // 2:
            raise GGPYError(
                f"{rope.where} gives '{name}_factor' as {divisors!r:.60}; it must list {head_dim // 2} numbers above 0."
            )
        layout.generated[f"rope_factors_{name}.weight"] = np.array(divisors, np.float32)
    layout.metadata[key + "type"] = "longrope"
    layout.metadata[key + "original_context_length"] = n_ctx
    layout.metadata[key + "attn_factor"] = magnitude


def proportional_divisors(rope: Config, share: float, head_dim: int) -> np.ndarray:
    """The first part of the pairs turns as in whole heads, slowed by `factor`; the others stand still."""
    import numpy as np

    turning = np.arange(head_dim // 2) < int(share * head_dim // 2)
    return np.where(turning, rope.number("factor", default=1.0), _NEVER)


def llama3_divisors(rope: Config, n_ctx_orig: int, base: float, head_dim: int) -> np.ndarray:
    """Llama 3.1's scaling as one divisor per rope frequency, float32 [head_dim/2].

    Frequencies that turn less than `low_freq_factor` times in the original context are slowed by `factor`, those that
    turn more than `high_freq_factor` times stay, and between the two (in Llama 4 one number) they are blended linearly
    in the number of turns.
    """
    import numpy as np

    factor = rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high < low:
        raise GGPYError(
            f"{rope.where} gives 'high_freq_factor' {high} and 'low_freq_factor' {low}; the first must be the greater."
        )
    # float32 throughout, as checkpoints were trained and other converters compute
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with np.errstate(all="ignore"):  # of an absurd base come absurd divisors, which are refused as such
        frequency = (1.0 / np.float32(base) ** exponent).astype(np.float64)  # [head_dim/2], radians a position
    turns = n_ctx_orig * frequency / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns >= low).astype(np.float64)
    return 1.0 / ((1.0 - share) / factor + share)
