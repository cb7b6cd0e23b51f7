"""Multi-head latent attention (arXiv 2405.04434), which DeepSeek's families share: keys and values of all heads come
from one narrow vector a position, beside a few dimensions that rope turns.

Files have the matrices out of that vector by head (`attn_k_b`, `attn_v_b`), and then the vector alone is cached, once:
queries are brought into its space, results out of it. Or they have them as one (`attn_kv_b`), and then keys and values
of every head are made and cached: 16 heads of DeepSeek-V2-Lite take nine times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf.metadata import TypedMetadata
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope

#: The epsilon of the norms of narrow vectors, which is the original's whatever that of the others is.
EPS = 1e-6


@dataclass(frozen=True)
class LatentAttention:
    """The sizes of an attention's parts."""

    n_head: int
    n_plain: int  # dimensions of a head that rope leaves alone
    n_rot: int  # and those that it turns, whose keys all heads share
    n_value: int  # dimensions of a head's values
    rank: int  # of the vector that keys and values come from
    q_rank: int = 0  # of that which queries come from; 0: from the residuals

    def __post_init__(self) -> None:
        positive = (self.n_head, self.n_plain, self.n_rot, self.n_value, self.rank)
        if not all(0 < n < 1 << 24 for n in positive) or not 0 <= self.q_rank < 1 << 24 or self.n_rot % 2:
            raise GGPYError(
                f"Latent attention of {self.n_head} heads with {self.n_plain} and {self.n_rot} dimensions, values of"
                f" {self.n_value}, and ranks of {self.rank} and {self.q_rank} is impossible."
            )

    @classmethod
    def read(cls, m: TypedMetadata, n_head: int, n_value: int = 0) -> LatentAttention:
        """As the metadata says; the widths of a head stand under keys of their own where the others are those of the
        cached vector. `n_value`: where the file does not say it."""
        key_length = m.integer("{arch}.attention.key_length_mla", m.integer("{arch}.attention.key_length", 0))
        value_length = m.integer("{arch}.attention.value_length", n_value)
        n_rot = m.integer("{arch}.rope.dimension_count")
        return cls(
            n_head=n_head,
            n_plain=key_length - n_rot,
            n_rot=n_rot,
            n_value=m.integer("{arch}.attention.value_length_mla", value_length),
            rank=m.integer("{arch}.attention.kv_lora_rank"),
            q_rank=m.integer("{arch}.attention.q_lora_rank", 0),
        )

    @property
    def head_dim(self) -> int:
        """Dimensions of a head's query."""
        return self.n_plain + self.n_rot


def latent_attention(
    g: Graph, x: Value, layer: int, s: LatentAttention, rope: Rope, n_embd: int, scale: float | None = None
) -> Value:
    """x [n_tokens, n_embd] to [n_tokens, n_embd]. `scale`: of scores, None for 1 / sqrt of a head's dimensions."""
    at, scale = f"blk.{layer}.attn_", s.head_dim**-0.5 if scale is None else scale
    if s.q_rank:
        x_q, q_name = g.norm(g.linear(x, at + "q_a", s.q_rank), at + "q_a_norm", EPS), at + "q_b"
    else:
        x_q, q_name = x, at + "q"
    q = g.linear(x_q, q_name, s.n_head * s.head_dim)
    both = g.linear(x, at + "kv_a_mqa", s.rank + s.n_rot)
    latent, turning = g.norm(both.columns(0, s.rank), at + "kv_a_norm", EPS), both.columns(s.rank, s.n_rot)
    if g.has(at + "k_b.weight"):
        plain = g.head_linear(g.select_columns(q, s.n_head, 0, s.n_plain), at + "k_b", s.n_head, s.rank)
        y = g.attention(
            g.concat(plain, g.select_columns(q, s.n_head, s.n_plain, s.n_rot), s.n_head),
            g.concat(latent, turning),
            None,
            layer=layer,
            n_head=s.n_head,
            n_head_kv=1,
            rope=rope,
            rope_first=s.rank,
            v_of_k=s.rank,
            scale=scale,
        )
        y = g.head_linear(y, at + "v_b", s.n_head, s.n_value)
    else:
        n = s.n_plain + s.n_value
        kv = g.linear(latent, at + "kv_b", s.n_head * n)
        k = g.concat(g.select_columns(kv, s.n_head, 0, s.n_plain), _repeated(g, turning, s.n_head), s.n_head)
        y = g.attention(
            q,
            k,
            g.select_columns(kv, s.n_head, s.n_plain, s.n_value),
            layer=layer,
            n_head=s.n_head,
            n_head_kv=s.n_head,
            rope=rope,
            rope_first=s.n_plain,
            scale=scale,
        )
    return g.linear(y, at + "output", n_embd)


def _repeated(g: Graph, x: Value, n: int) -> Value:
    """The columns of x n times side by side, by doubling."""
    if n == 1:
        return x
    half = _repeated(g, x, n // 2)
    twice = g.concat(half, half)
    return g.concat(twice, x) if n % 2 else twice
