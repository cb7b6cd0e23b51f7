"""The base of every architecture file: hyper-parameters read from GGUF metadata, rotary frequencies, and the
`Architecture` contract.

Knows nothing of kernels and devices: an architecture describes its graph in the words of `ggpy.graph.language`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError, quoted
from ggpy.gguf.metadata import TypedMetadata
from ggpy.graph.rope import Rope

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


@dataclass(frozen=True)
class HyperParameters:
    """The sizes of one model, as its GGUF metadata states them."""

    arch: str
    n_vocab: int
    n_ctx_train: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    norm_eps: float
    sliding_window: int  # positions a token sees, itself included; 0 where attention is full
    sliding_layers: tuple[bool, ...] = ()  # which layers have the window; empty: all

    def __post_init__(self) -> None:
        for key in ("n_vocab", "n_ctx_train", "n_layer", "n_embd", "n_ff", "n_head", "n_head_kv", "head_dim"):
            if not 0 < getattr(self, key) < 1 << 31:
                raise GGPYError(
                    f"The metadata of this {self.arch} model gives {key} = {getattr(self, key)}, "
                    "which no model can have."
                )
        if self.n_head % self.n_head_kv:
            raise GGPYError(
                f"The metadata gives {self.n_head} query heads for {self.n_head_kv} key/value heads; "
                "one must divide the other."
            )
        if not 0 <= self.sliding_window < 1 << 32:
            raise GGPYError(f"The metadata gives a sliding window of {self.sliding_window} tokens; that is impossible.")
        if self.sliding_layers and len(self.sliding_layers) != self.n_layer:
            raise GGPYError(
                f"The metadata says of {len(self.sliding_layers)} layers whether they have a sliding window; the model"
                f" has {self.n_layer}."
            )
        if not 0 <= self.norm_eps < 1:
            raise GGPYError(f"The metadata gives a norm epsilon of {self.norm_eps}; it must lie between 0 and 1.")

    @property
    def n_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_head // self.n_head_kv

    def window(self, layer: int) -> int:
        """Positions that a token sees in this layer, itself included; 0: all."""
        return self.sliding_window if not self.sliding_layers or self.sliding_layers[layer] else 0


class Architecture:
    """One model family: how its GGUF metadata is read and what graph it
    computes. A file in this folder subclasses it."""

    name: ClassVar[str]  # the value of general.architecture
    hf_names: ClassVar[tuple[str, ...]] = ()  # config.json "architectures" that convert to it
    rope_style: ClassVar[str] = "neox"

    def __init__(self, metadata: Mapping[str, Any], n_vocab: int, where: str = "the model's file") -> None:
        """`where` names the file in errors."""
        self.metadata = TypedMetadata(metadata, where, self.name)
        self.hparams = self.read_hparams(n_vocab)

    def read_hparams(self, n_vocab: int) -> HyperParameters:
        """`n_vocab` is the number of rows of the embedding: the metadata's own count is often absent."""
        m = self.metadata
        n_head = m.integer("{arch}.attention.head_count")
        n_embd = m.integer("{arch}.embedding_length")
        if not n_head:
            raise GGPYError(f"The metadata key '{self.name}.attention.head_count' is 0.")
        head_dim = m.integer("{arch}.attention.key_length", n_embd // n_head)
        value_dim = m.integer("{arch}.attention.value_length", head_dim)
        if value_dim != head_dim:
            raise GGPYError(
                f"The metadata gives keys of {head_dim} and values of {value_dim} dimensions a head; "
                "ggpy runs models where they are equal."
            )
        return HyperParameters(
            arch=self.name,
            n_vocab=n_vocab,
            n_ctx_train=m.integer("{arch}.context_length"),
            n_layer=m.integer("{arch}.block_count"),
            n_embd=n_embd,
            n_ff=m.integer("{arch}.feed_forward_length"),
            n_head=n_head,
            n_head_kv=m.integer("{arch}.attention.head_count_kv", n_head),
            head_dim=head_dim,
            norm_eps=m.number("{arch}.attention.layer_norm_rms_epsilon"),
            sliding_window=m.integer("{arch}.attention.sliding_window", 0),
            sliding_layers=m.flags("{arch}.attention.sliding_window_pattern"),
        )

    def rope(self, freq_factors: Any = None) -> Rope:
        """The rotary embedding the metadata asks for: plain, linear or YaRN (arXiv 2309.00071), with frequencies
        divided by `freq_factors` [n_rot/2] where the file has them, as for Llama 3."""
        m, hp = self.metadata, self.hparams
        n_rot = m.integer("{arch}.rope.dimension_count", hp.head_dim)
        base = m.number("{arch}.rope.freq_base", 10000.0)
        if n_rot % 2 or not 0 < n_rot <= hp.head_dim or base <= 0:
            raise GGPYError(
                f"The metadata asks for rope over {n_rot} of {hp.head_dim} head dimensions with base {base}, "
                "which is impossible."
            )
        half = n_rot // 2
        inv_freq = [base ** (-2.0 * i / n_rot) for i in range(half)]
        if freq_factors is not None:
            if len(freq_factors) != half:
                raise GGPYError(
                    f"The tensor 'rope_freqs.weight' has {len(freq_factors)} entries; "
                    f"rope over {n_rot} dimensions needs {half}."
                )
            if not all(0 < factor < math.inf for factor in freq_factors):
                raise GGPYError("The tensor 'rope_freqs.weight' holds values that are no divisors above 0.")
            inv_freq = [f / float(factor) for f, factor in zip(inv_freq, freq_factors, strict=True)]
        kind = m.string("{arch}.rope.scaling.type", "linear" if m.has("{arch}.rope.scale_linear") else "none")
        factor = m.number("{arch}.rope.scaling.factor", m.number("{arch}.rope.scale_linear", 1.0)) or 1.0
        if not 1e-6 < factor < 1e6:
            raise GGPYError(f"The metadata stretches rope by a factor of {factor}, which no model can have.")
        attn_factor = m.number("{arch}.rope.scaling.attn_factor", 1.0)
        if not 0 < attn_factor < 1e4:
            raise GGPYError(f"The metadata scales rope's results by attn_factor {attn_factor}, which is impossible.")
        if kind in ("none", "", "linear"):
            stretch = factor if kind == "linear" else 1.0
            return Rope(self.rope_style, n_rot, tuple(f / stretch for f in inv_freq), attn_factor)
        if kind != "yarn":
            raise GGPYError(
                f"The model's rope scaling is {quoted(kind)}; none, linear, yarn and Llama 3's are supported."
            )
        n_ctx_orig = m.integer("{arch}.rope.scaling.original_context_length", hp.n_ctx_train)
        beta_fast = m.number("{arch}.rope.scaling.yarn_beta_fast", 32.0)
        beta_slow = m.number("{arch}.rope.scaling.yarn_beta_slow", 1.0)
        if n_ctx_orig < 1 or base <= 1 or beta_fast <= 0 or beta_slow <= 0:
            raise GGPYError(
                f"The metadata asks for YaRN from {n_ctx_orig} tokens with base {base}, beta_fast {beta_fast} and "
                f"beta_slow {beta_slow}, which is impossible."
            )

        def turns_to_dim(turns: float) -> float:
            return n_rot * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(0, math.floor(turns_to_dim(beta_fast)))
        high = min(n_rot - 1, math.ceil(turns_to_dim(beta_slow)))
        ramp = [1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low))) for i in range(half)]
        scaled = [f / factor * (1 - r) + f * r for f, r in zip(inv_freq, ramp, strict=True)]
        return Rope(self.rope_style, n_rot, tuple(scaled), attn_factor * (1 + 0.1 * math.log(max(1.0, factor))))

    def build(self, g: Graph) -> Value:
        """Describe the forward pass from token embeddings to logits on `g`; returns the logits."""
        raise NotImplementedError

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        """The GGUF layout of a Hugging Face checkpoint with this config.json: metadata, tensors and their sources."""
        raise NotImplementedError
