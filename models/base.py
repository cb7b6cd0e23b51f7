"""The base of every architecture file: hyper-parameters read from GGUF metadata, rotary frequencies, and the
`Architecture` contract.

Knows nothing of kernels and devices: an architecture describes its graph in the words of `ggpy.graph.language`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError, quoted
from ggpy.gguf.metadata import TypedMetadata
from ggpy.graph.rope import Rope

if TYPE_CHECKING:
    from typing_extensions import Self

    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


#: How rows become one vector, by the number under `pooling_type` (`llama_pooling_type` in llama.h).
POOLINGS = ("none", "mean", "cls", "last", "rank")

#: Layers believed: each takes memory before a tensor of it is looked for.
MAX_LAYERS = 4096


@dataclass(frozen=True)
class LayerParameters:
    """The sizes of one layer. Heads are 0 where it has no attention, `n_ff` where it has no dense feed-forward."""

    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    window: int = 0  # positions a token sees, itself included; 0: all


@dataclass(frozen=True)
class HyperParameters:
    """The sizes of one model, as its GGUF metadata states them, and of each of its layers.

    `n_head`, `n_head_kv`, `head_dim` and `n_ff` are those of all layers that have any, and a GGPYError where they
    differ: who can run such models asks `layers`.
    """

    arch: str
    n_vocab: int
    n_ctx_train: int
    n_layer: int
    n_embd: int
    norm_eps: float
    layers: tuple[LayerParameters, ...]
    n_expert: int = 0  # that a router chooses from
    n_expert_used: int = 0  # by one token
    #: How the rows of a text become one vector, one of POOLINGS; "rank" gives scores of texts. None: what comes out are
    #: logits, and the model writes text.
    pooling: str | None = None
    predictors: tuple[LayerParameters, ...] = ()  # blocks behind the model's own that predict further tokens

    def __post_init__(self) -> None:
        for key in ("n_vocab", "n_ctx_train", "n_embd"):
            self._check(key, getattr(self, key))
        for layer in set(self.layers):
            self._check("n_ff", layer.n_ff, least=0)
            self._check("n_head", layer.n_head, least=0)
            self._check("n_head_kv", layer.n_head_kv, least=0)
            if layer.n_head and layer.n_head_kv:
                self._check("head_dim", layer.head_dim)
            if layer.n_head_kv and layer.n_head % layer.n_head_kv:
                raise GGPYError(
                    f"The metadata gives {layer.n_head} query heads for {layer.n_head_kv} key/value heads; "
                    "one must divide the other."
                )
            if not 0 <= layer.window < 1 << 32:
                raise GGPYError(f"The metadata gives a sliding window of {layer.window} tokens; that is impossible.")
        if not 0 <= self.norm_eps < 1:
            raise GGPYError(f"The metadata gives a norm epsilon of {self.norm_eps}; it must lie between 0 and 1.")
        if not 0 <= self.n_expert_used <= self.n_expert < 1 << 16 or (self.n_expert and not self.n_expert_used):
            raise GGPYError(
                f"The metadata gives {self.n_expert} experts of which a token uses {self.n_expert_used}; that is"
                " impossible."
            )

    def _check(self, key: str, value: int, least: int = 1) -> None:
        if not least <= value < 1 << 31:
            raise GGPYError(f"The metadata of this {self.arch} model gives {key} = {value}, which no model can have.")

    def _alike(self, key: str) -> int:
        values = {getattr(layer, key) for layer in self.layers} - {0}
        if len(values) > 1:
            raise GGPYError(
                f"The metadata of this {self.arch} model gives {key} by layer ({', '.join(map(str, sorted(values)))});"
                " ggpy runs such models where all layers are alike."
            )
        return values.pop() if values else 0

    @property
    def writes_text(self) -> bool:
        return self.pooling is None

    @property
    def n_head(self) -> int:
        return self._alike("n_head")

    @property
    def n_head_kv(self) -> int:
        return self._alike("n_head_kv")

    @property
    def head_dim(self) -> int:
        return self._alike("head_dim")

    @property
    def n_ff(self) -> int:
        return self._alike("n_ff")

    @property
    def n_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_head // self.n_head_kv

    def window(self, layer: int) -> int:
        """Positions that a token sees in this layer, itself included; 0: all."""
        return self.layers[layer].window


class Architecture:
    """One model family: how its GGUF metadata is read and what graph it
    computes. A file in this folder subclasses it."""

    name: ClassVar[str]  # the value of general.architecture
    hf_names: ClassVar[tuple[str, ...]] = ()  # config.json "architectures" that convert to it
    rope_style: ClassVar[str] = "neox"
    norm_eps_key: ClassVar[str] = "layer_norm_rms_epsilon"
    #: Every so many layers one without the window, the last of them; where the file does not say it by layer. 0: none.
    window_period: ClassVar[int] = 0
    attends: ClassVar[bool] = True  # whether some layers have heads
    #: Whether its files may embed texts: `build` then ends in `pooled` where the file says how rows become one vector.
    pools: ClassVar[bool] = False
    #: How rows become one vector where the file does not say; None: such a file writes text.
    default_pooling: ClassVar[str | None] = None
    default_window: ClassVar[int] = 0  # where the file gives none
    yarn_truncates: ClassVar[bool] = True  # whether the ends of YaRN's ramp are rounded to whole dimensions
    #: Whether `rope.scaling.yarn_log_multiplier` divides YaRN's scale of results (DeepSeek's mscale_all_dim).
    yarn_log_multiplier: ClassVar[bool] = False

    #: Whether a head that predicts further tokens goes on from its row after the norm before its logits, or before it.
    predictor_goes_on_normed: ClassVar[bool] = False

    def __init__(self, metadata: Mapping[str, Any], n_vocab: int, where: str = "the model's file") -> None:
        """`where` names the file in errors."""
        self.metadata = TypedMetadata(metadata, where, self.name)
        self.hparams = self.read_hparams(n_vocab)

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        """`n_vocab` is the number of rows of the embedding: the metadata's own count is often absent."""
        m = self.metadata
        n_layer = m.integer("{arch}.block_count")
        if not 0 < n_layer <= MAX_LAYERS:
            raise GGPYError(
                f"The metadata of this {self.name} model gives n_layer = {n_layer}, which no model can have."
            )
        n_embd = m.integer("{arch}.embedding_length")
        n_expert = m.integer("{arch}.expert_count", 0)
        n_head = m.integers("{arch}.attention.head_count", n_layer)
        if self.attends and not any(n_head):
            raise GGPYError(f"The metadata key '{self.name}.attention.head_count' is 0.")
        window = m.integer("{arch}.attention.sliding_window", self.default_window)
        sliding = self._sliding_layers(n_layer)
        shared = m.integers("{arch}.feed_forward_length", n_layer, 0 if n_expert else None)
        head_dim = self._head_dim("", n_embd // max(1, max(n_head)))
        head_dim_swa = self._head_dim("_swa", head_dim) if window else head_dim
        return HyperParameters(
            arch=self.name,
            n_vocab=n_vocab,
            n_ctx_train=m.integer("{arch}.context_length"),
            n_layer=n_layer,
            n_embd=n_embd,
            norm_eps=m.number("{arch}.attention." + self.norm_eps_key),
            layers=tuple(
                LayerParameters(heads, kv, head_dim_swa if slides else head_dim, n_ff, window if slides else 0)
                for heads, kv, n_ff, slides in zip(
                    n_head, m.integers("{arch}.attention.head_count_kv", n_layer, n_head), shared, sliding, strict=True
                )
            ),
            n_expert=n_expert,
            n_expert_used=m.integer("{arch}.expert_used_count", 0),
            pooling=self._pooling() if self.pools else None,
        )

    def _head_dim(self, suffix: str, default: int) -> int:
        key_dim = self.metadata.integer("{arch}.attention.key_length" + suffix, default)
        value_dim = self.metadata.integer("{arch}.attention.value_length" + suffix, key_dim)
        if value_dim != key_dim:
            raise GGPYError(
                f"The metadata gives keys of {key_dim} and values of {value_dim} dimensions a head; "
                "ggpy runs models where they are equal."
            )
        return key_dim

    def _sliding_layers(self, n_layer: int) -> tuple[bool, ...]:
        """Which layers have the window: by a list, or by a period whose last layer has none."""
        m, key = self.metadata, "{arch}.attention.sliding_window_pattern"
        period = m.find(key, int) if m.is_integer(key) else None
        if period is None:
            flags = m.flags(key)
            if flags and len(flags) != n_layer:
                raise GGPYError(
                    f"The metadata says of {len(flags)} layers whether they have a sliding window; the model has"
                    f" {n_layer}."
                )
            if flags:
                return flags
            period = self.window_period
        if not 0 <= period < 1 << 31:
            raise GGPYError(
                f"The metadata gives a sliding window in all but every {period}th layer; that is impossible."
            )
        return tuple(not period or layer % period < period - 1 for layer in range(n_layer))

    def rope(
        self,
        freq_factors: Any = None,
        *,
        long_factors: Any = None,
        base: float | None = None,
        n_rot: int | None = None,
        head_dim: int | None = None,
        scaled: bool = True,
    ) -> Rope:
        """The rotary embedding the metadata asks for: plain, linear or YaRN (arXiv 2309.00071), with frequencies
        divided by `freq_factors` [n_rot/2] where the file has them, as for Llama 3, and by `long_factors` in contexts
        beyond the original one (LongRoPE, arXiv 2402.13753).

        Where layers differ, `base`, `n_rot` and `head_dim` (of these layers) go before what the metadata gives for the
        model, and without `scaled` rope is plain.
        """
        m = self.metadata
        head_dim = self.hparams.head_dim if head_dim is None else head_dim
        n_rot = m.integer("{arch}.rope.dimension_count", head_dim) if n_rot is None else n_rot
        base = m.number("{arch}.rope.freq_base", 10000.0) if base is None else base
        if n_rot % 2 or not 0 < n_rot <= head_dim or base <= 0:
            raise GGPYError(
                f"The metadata asks for rope over {n_rot} of {head_dim} head dimensions with base {base}, "
                "which is impossible."
            )
        half = n_rot // 2
        inv_freq = [base ** (-2.0 * i / n_rot) for i in range(half)]
        n_ctx_orig = m.integer("{arch}.rope.scaling.original_context_length", self.hparams.n_ctx_train)
        plain = inv_freq
        long_inv_freq: tuple[float, ...] = ()
        if freq_factors is not None:
            name = "rope_freqs.weight" if long_factors is None else "rope_factors_short.weight"
            inv_freq = _divided(plain, freq_factors, name)
        if long_factors is not None:
            long_inv_freq = tuple(_divided(plain, long_factors, "rope_factors_long.weight"))
        if not scaled:
            return Rope(self.rope_style, n_rot, tuple(inv_freq))
        kind = m.string("{arch}.rope.scaling.type", "linear" if m.has("{arch}.rope.scale_linear") else "none")
        factor = m.number("{arch}.rope.scaling.factor", m.number("{arch}.rope.scale_linear", 1.0)) or 1.0
        if not 1e-6 < factor < 1e6:
            raise GGPYError(f"The metadata stretches rope by a factor of {factor}, which no model can have.")
        attn_factor = m.number("{arch}.rope.scaling.attn_factor", 1.0)
        if not 0 < attn_factor < 1e4:
            raise GGPYError(f"The metadata scales rope's results by attn_factor {attn_factor}, which is impossible.")
        if kind == "longrope" and not long_inv_freq:
            raise GGPYError(
                "The model's rope scaling is 'longrope', but the file has no tensors 'rope_factors_short.weight' and"
                " 'rope_factors_long.weight'; it is incomplete."
            )
        if kind in ("none", "", "linear", "longrope"):
            stretch = factor if kind == "linear" else 1.0
            scaled_freq = tuple(f / stretch for f in inv_freq)
            return Rope(
                self.rope_style, n_rot, scaled_freq, attn_factor, long_inv_freq, n_ctx_orig if long_inv_freq else 0
            )
        if kind != "yarn":
            raise GGPYError(
                f"The model's rope scaling is {quoted(kind)}; none, linear, yarn, longrope and Llama 3's are supported."
            )
        beta_fast = m.number("{arch}.rope.scaling.yarn_beta_fast", 32.0)
        beta_slow = m.number("{arch}.rope.scaling.yarn_beta_slow", 1.0)
        if n_ctx_orig < 1 or base <= 1 or beta_fast <= 0 or beta_slow <= 0:
            raise GGPYError(
                f"The metadata asks for YaRN from {n_ctx_orig} tokens with base {base}, beta_fast {beta_fast} and "
                f"beta_slow {beta_slow}, which is impossible."
            )

        def turns_to_dim(turns: float) -> float:
            return n_rot * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = turns_to_dim(beta_fast), turns_to_dim(beta_slow)
        truncates = m.find("{arch}.rope.scaling.yarn_truncate", bool)
        if self.yarn_truncates if truncates is None else truncates:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(0, low), min(n_rot - 1, high)
        ramp = [1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low))) for i in range(half)]
        stretched = [f / factor * (1 - r) + f * r for f, r in zip(inv_freq, ramp, strict=True)]
        log_multiplier = m.number("{arch}.rope.scaling.yarn_log_multiplier", 0.0) if self.yarn_log_multiplier else 0.0
        if not 0 <= log_multiplier < 1e3:
            raise GGPYError(f"The metadata gives YaRN a yarn_log_multiplier of {log_multiplier}, which is impossible.")
        stretch = math.log(max(1.0, factor))
        magnitude = attn_factor * (1 + 0.1 * stretch) / (1 + 0.1 * log_multiplier * stretch)
        return Rope(self.rope_style, n_rot, tuple(stretched), magnitude)

    def file_rope(self, g: Graph) -> Rope:
        """The rotary embedding that metadata and tensors of the graph's file ask for."""
        short, long = g.vector("rope_factors_short.weight"), g.vector("rope_factors_long.weight")
        if short is None and long is None:
            return self.rope(g.vector("rope_freqs.weight"))
        if short is None or long is None:
            raise GGPYError(
                f"{g.file.path} has one of the tensors 'rope_factors_short.weight' and 'rope_factors_long.weight'; rope"
                " needs both or none."
            )
        return self.rope(short, long_factors=long)

    def without_predictors(self, hparams: HyperParameters) -> HyperParameters:
        """Hyper-parameters without the blocks that predict further tokens, which stand behind the model's own and play
        no part in it."""
        n_layer = hparams.n_layer - self.metadata.integer("{arch}.nextn_predict_layers", 0)
        if not 0 < n_layer <= hparams.n_layer:
            raise GGPYError(
                f"The metadata counts {hparams.n_layer - n_layer} of {hparams.n_layer} blocks as such that predict"
                " further tokens, which is impossible."
            )
        return replace(hparams, n_layer=n_layer, layers=hparams.layers[:n_layer], predictors=hparams.layers[n_layer:])

    def with_predictors(self) -> Self:
        """The same architecture, the blocks that predict further tokens being layers."""
        made, hp = copy(self), self.hparams
        made.hparams = replace(hp, n_layer=hp.n_layer + len(hp.predictors), layers=hp.layers + hp.predictors)
        return made

    def build_predictor(self, g: Graph) -> Value | None:
        """Describe the model's own head that predicts a further token, from each token's hidden row and the token after
        it to the logits of the one after that; None where the file or the family has none. See `next_token`."""
        return None

    def _pooling(self) -> str | None:
        """How the rows of a text become one vector, by `pooling_type`; None for a file that writes text."""
        number = self.metadata.find("{arch}.pooling_type", int)
        if number is None:
            return self.default_pooling
        if not 0 <= number < len(POOLINGS):
            raise GGPYError(
                f"{self.metadata.where} pools its rows by method {number} ('{self.name}.pooling_type'); ggpy knows "
                + ", ".join(f"{i} ({name})" for i, name in enumerate(POOLINGS))
                + "."
            )
        # Decoders are written with 0 by some converters, and go on to write text.
        return None if number == 0 and self.default_pooling is None else POOLINGS[number]

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        """GGPYError for metadata beside the hyper-parameters that no model can have; factors as in `rope`."""
        if self.attends:
            self.rope(freq_factors, long_factors=long_factors)

    def build(self, g: Graph) -> Value:
        """Describe the forward pass from token embeddings to logits on `g`; returns the logits."""
        raise NotImplementedError

    @classmethod
    def converts(cls, config: Config) -> bool:
        """True if checkpoints of `hf_names` with this config.json are of this architecture, not of another one that
        shares the names."""
        return True

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        """The GGUF layout of a Hugging Face checkpoint with this config.json: metadata, tensors and their sources."""
        raise NotImplementedError


def _divided(inv_freq: list[float], factors: Any, name: str) -> list[float]:
    """Frequencies divided by the tensor `name`."""
    if len(factors) != len(inv_freq):
        raise GGPYError(
            f"The tensor {name!r} has {len(factors)} entries; rope over {2 * len(inv_freq)} dimensions needs"
            f" {len(inv_freq)}."
        )
    if not all(0 < factor < math.inf for factor in factors):
        raise GGPYError(f"The tensor {name!r} holds values that are no divisors above 0.")
    return [f / float(factor) for f, factor in zip(inv_freq, factors, strict=True)]
