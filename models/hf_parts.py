"""Parts that layouts of checkpoints are made of: sizes that a config.json gives, attention, gated feed-forwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS
from ggpy.models.experts import PROJECTIONS
from ggpy.models.hf import TensorRule

if TYPE_CHECKING:
    from ggpy.models.hf import MetadataValue
    from ggpy.models.hf_config import Config


@dataclass(frozen=True)
class Sizes:
    """The sizes that a config gives for all layers."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int

    @classmethod
    def read(cls, config: Config) -> Sizes:
        n_embd, n_head = config.integer("hidden_size"), config.integer("num_attention_heads")
        sizes = cls(
            n_layer=config.integer("num_hidden_layers", most=MAX_LAYERS),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=config.integer("num_key_value_heads", default=n_head),
            head_dim=config.integer("head_dim", default=max(1, n_embd // n_head)),
            n_vocab=config.integer("vocab_size"),
        )
        if config.get("head_dim") is None and n_embd % n_head:
            raise GGPYError(
                f"{config.where} gives a 'hidden_size' of {n_embd} for {n_head} 'num_attention_heads'"
                "; the one must be a multiple of the other."
            )
        if n_head % sizes.n_head_kv:
            raise GGPYError(
                f"{config.where} gives {n_head} 'num_attention_heads' for {sizes.n_head_kv} 'num_key_value_heads'"
                "; the second must divide the first."
            )
        if sizes.head_dim % 2:
            raise GGPYError(f"{config.where} makes heads of {sizes.head_dim} dimensions; rope needs an even number.")
        return sizes

    @property
    def n_q(self) -> int:
        return self.n_head * self.head_dim

    @property
    def n_kv(self) -> int:
        return self.n_head_kv * self.head_dim

    def keys(self, arch: str, config: Config, *, eps: str = "rms_norm_eps") -> dict[str, MetadataValue]:
        """The keys of these sizes. `eps`: the config's name of the norms' epsilon."""
        keys = {
            f"{arch}.block_count": self.n_layer,
            f"{arch}.context_length": config.integer("max_position_embeddings"),
            f"{arch}.embedding_length": self.n_embd,
            f"{arch}.attention.head_count": self.n_head,
            f"{arch}.attention.head_count_kv": self.n_head_kv,
            f"{arch}.attention.layer_norm_rms_epsilon": config.number(eps),
            f"{arch}.vocab_size": self.n_vocab,
            f"{arch}.rope.dimension_count": self.head_dim,
        }
        if self.head_dim != self.n_embd // self.n_head or config.get("head_dim") is not None:
            keys[f"{arch}.attention.key_length"] = keys[f"{arch}.attention.value_length"] = self.head_dim
        return keys


def glu_rules(
    to: str, of: str, n_ff: int, n_embd: int, *, names: tuple[str, str, str] = PROJECTIONS, suffix: str = ""
) -> list[TensorRule]:
    """A gated feed-forward: `names` are those of gate, up and down in the checkpoint, `suffix` ends them in the
    file."""
    shapes = ((n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff))
    return [
        TensorRule(f"{to}ffn_{part}{suffix}.weight", f"{of}{name}.weight", shape)
        for part, name, shape in zip(("gate", "up", "down"), names, shapes, strict=True)
    ]


def head_rule(sizes: Sizes, *, tied: bool) -> TensorRule:
    """The output matrix; where it is `tied`, the checkpoint may lack it."""
    return TensorRule("output.weight", "lm_head.weight", (sizes.n_vocab, sizes.n_embd), required=not tied)
