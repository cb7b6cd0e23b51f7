"""Parts that layouts of checkpoints are made of: sizes that a config.json gives, attention, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS
from ggpy.models.decoder import all_but_every
from ggpy.models.experts import PROJECTIONS
from ggpy.models.hf import TensorRule
from ggpy.models.hf_sources import Source, Stored, concat

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

    def keys(
        self, arch: str, config: Config, *, eps: str = "rms_norm_eps", norm: str = "rms"
    ) -> dict[str, MetadataValue]:
        """The keys of these sizes. `eps`: the config's name of the norms' epsilon; `norm`: their kind."""
        keys = {
            f"{arch}.block_count": self.n_layer,
            f"{arch}.context_length": config.integer("max_position_embeddings"),
            f"{arch}.embedding_length": self.n_embd,
            f"{arch}.attention.head_count": self.n_head,
            f"{arch}.attention.head_count_kv": self.n_head_kv,
            f"{arch}.attention.layer_norm_{'rms_' if norm == 'rms' else ''}epsilon": config.number(eps),
            f"{arch}.vocab_size": self.n_vocab,
            f"{arch}.rope.dimension_count": self.head_dim,
        }
        if self.head_dim != self.n_embd // self.n_head or config.get("head_dim") is not None:
            keys[f"{arch}.attention.key_length"] = keys[f"{arch}.attention.value_length"] = self.head_dim
        return keys


def linear_rules(to: str, source: str | Source, shape: tuple[int, int], bias: str | Source = "") -> list[TensorRule]:
    """The matrix `to` and, where `bias` names one, its bias."""
    rules = [TensorRule(to + ".weight", source, shape)]
    return [*rules, TensorRule(to + ".bias", bias, shape[:1])] if bias else rules


def attention_rules(
    to: str, of: str, sizes: Sizes, *, bias: bool = False, out_bias: bool = False, interleaved: bool = False,
    norms: tuple[str, str] | None = None, norm_shapes: tuple[tuple[int, ...], ...] = (),
    out: str = "o_proj",
) -> list[TensorRule]:  # fmt: skip
    """Query, key, value and output in a matrix each. `interleaved`: the file's rope pairs neighbouring rows, and the
    checkpoint's halves of heads. `norms`: names of the norms of query and key in the checkpoint, of the width of a head
    or of `norm_shapes`. `out`: the name of the output there."""

    def turned(name: str, shape: tuple[int, ...], heads: int) -> Source:
        values = Stored(of + name, shape)
        return values.rope_pairs(heads) if interleaved and heads else values

    rules = []
    for target, name, rows, heads in (
        ("attn_q", "q_proj", sizes.n_q, sizes.n_head),
        ("attn_k", "k_proj", sizes.n_kv, sizes.n_head_kv),
        ("attn_v", "v_proj", sizes.n_kv, 0),
    ):
        weight = turned(name + ".weight", (rows, sizes.n_embd), heads)
        rules += linear_rules(
            to + target, weight, (rows, sizes.n_embd), turned(name + ".bias", (rows,), heads) if bias else ""
        )
    shapes = norm_shapes or ((sizes.head_dim,),) * 2
    for target, norm, shape in zip(("attn_q_norm", "attn_k_norm"), norms or (), shapes, strict=False):
        rules.append(TensorRule(f"{to}{target}.weight", f"{of}{norm}.weight", shape))
    return rules + linear_rules(
        to + "attn_output", f"{of}{out}.weight", (sizes.n_embd, sizes.n_q), f"{of}{out}.bias" if out_bias else ""
    )


def norm_rules(to: str, of: str, n: int, names: Mapping[str, str], *, bias: bool = False) -> list[TensorRule]:
    """Norms over `n` columns: `names` gives the checkpoint's of each of the file's."""
    parts = ("weight", "bias") if bias else ("weight",)
    return [
        TensorRule(f"{to}{file}.{part}", f"{of}{name}.{part}", (n,)) for file, name in names.items() for part in parts
    ]


#: Names of embeddings, layers, last norm and output matrix in most checkpoints.
NAMES = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")


def decoder_rules(
    sizes: Sizes, block: Callable[[int, str, str], list[TensorRule]], *, tied: bool, norm_bias: bool = False,
    names: tuple[str, str, str, str] = NAMES, head_bias: bool = False,
) -> list[TensorRule]:  # fmt: skip
    """Embeddings, the layers that `block` gives (by number, and the beginnings of names in the file and in the
    checkpoint's layers), the last norm and the output matrix."""
    embed, layers, norm, head = names
    rules = [TensorRule("token_embd.weight", embed + ".weight", (sizes.n_vocab, sizes.n_embd))]
    for layer in range(sizes.n_layer):
        rules += block(layer, f"blk.{layer}.", f"{layers}.{layer}.")
    rules += norm_rules("", "", sizes.n_embd, {"output_norm": norm}, bias=norm_bias)
    rules.append(TensorRule("output.weight", head + ".weight", (sizes.n_vocab, sizes.n_embd), required=not tied))
    return [*rules, TensorRule("output.bias", head + ".bias", (sizes.n_vocab,))] if head_bias else rules


def grouped_qkv(source: Source, sizes: Sizes) -> Source:
    """Query, key and value of one matrix (or bias) one behind the other, where the checkpoint has them by heads of
    keys: the queries that read one, the key, the value."""
    group, tail = sizes.n_head // sizes.n_head_kv, source.shape[1:]
    heads = source.reshape(sizes.n_head_kv, group + 2, sizes.head_dim, *tail)

    def part(first: int, n: int) -> Source:
        return heads.slice(first, n, axis=1).reshape(sizes.n_head_kv * n * sizes.head_dim, *tail)

    return concat([part(0, group), part(group, 1), part(group + 1, 1)])


def separate_qkv_rules(to: str, weight: Source, bias: Source | None, sizes: Sizes) -> list[TensorRule]:
    """Query, key and value in a matrix each, from one that has them one behind the other. Its rope pairs the halves of
    heads, the file's neighbouring rows."""
    rules, first = [], 0
    for target, n, heads in (
        ("attn_q", sizes.n_q, sizes.n_head),
        ("attn_k", sizes.n_kv, sizes.n_head_kv),
        ("attn_v", sizes.n_kv, 0),
    ):
        for source, part in ((weight, "weight"), (bias, "bias")):
            if source is not None:
                rows = source.slice(first, n)
                rules.append(TensorRule(f"{to}{target}.{part}", rows.rope_pairs(heads) if heads else rows))
        first += n
    return rules


def plain_ffn_rules(to: str, up: str, down: str, n_ff: int, n_embd: int, *, bias: bool = True) -> list[TensorRule]:
    """A feed-forward without a gate, from matrices of these names."""
    return [
        *linear_rules(to + "ffn_up", up + ".weight", (n_ff, n_embd), up + ".bias" if bias else ""),
        *linear_rules(to + "ffn_down", down + ".weight", (n_embd, n_ff), down + ".bias" if bias else ""),
    ]


def glu_rules(
    to: str, of: str, n_ff: int, n_embd: int, *, names: tuple[str, str, str] = PROJECTIONS, suffix: str = "",
    bias: bool = False,
) -> list[TensorRule]:  # fmt: skip
    """A gated feed-forward: `names` are those of gate, up and down in the checkpoint, `suffix` ends them in the
    file."""
    rules = []
    for part, name, shape in zip(
        ("gate", "up", "down"), names, ((n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff)), strict=True
    ):
        rules += linear_rules(
            f"{to}ffn_{part}{suffix}", f"{of}{name}.weight", shape, f"{of}{name}.bias" if bias else ""
        )
    return rules


def fused_glu_rules(
    to: str, source: Source, down: str, n_ff: int, n_embd: int, *, suffix: str = ""
) -> list[TensorRule]:  # fmt: skip
    """A gated feed-forward whose gate and up stand in one matrix in that order, `source`, as three matrices."""
    return [
        TensorRule(f"{to}ffn_gate{suffix}.weight", source.slice(0, n_ff)),
        TensorRule(f"{to}ffn_up{suffix}.weight", source.slice(n_ff, n_ff)),
        TensorRule(f"{to}ffn_down{suffix}.weight", down, (n_embd, n_ff)),
    ]


def head_rule(sizes: Sizes, *, tied: bool) -> TensorRule:
    """The output matrix; where it is `tied`, the checkpoint may lack it."""
    return TensorRule("output.weight", "lm_head.weight", (sizes.n_vocab, sizes.n_embd), required=not tied)


def layers_with_rope(config: Config, n_layer: int) -> list[bool]:
    """Which layers have rope: those of 1 in 'no_rope_layers', else all but every 'no_rope_layer_interval'-th."""
    listed, interval = config.get("no_rope_layers"), config.integer("no_rope_layer_interval", default=4)
    if listed is None or listed == []:
        return all_but_every(interval, n_layer)
    if not isinstance(listed, list) or len(listed) < n_layer or not all(turns in (0, 1) for turns in listed):
        raise GGPYError(
            f"{config.where} gives 'no_rope_layers' as {listed!r:.60}; it must list 1 or 0 for each of {n_layer}"
            " layers."
        )
    return [bool(turns) for turns in listed[:n_layer]]
