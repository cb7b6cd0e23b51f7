"""State-space layers of Mamba-2 (arXiv 2405.21060), which several families mix with attention: their sizes and the
mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf.metadata import TypedMetadata
    from ggpy.graph.language import Graph, Value


@dataclass(frozen=True)
class StateSpace:
    """The sizes of the layers with a state."""

    n_inner: int  # columns of all heads
    d_state: int
    n_head: int
    n_group: int  # of heads that share B and C
    width: int  # tokens that the convolution takes

    def __post_init__(self) -> None:
        sound = all(0 < n < 1 << 24 for n in (self.n_inner, self.d_state, self.n_head, self.n_group))
        if not sound or self.n_inner % self.n_head or self.n_head % self.n_group or not 1 < self.width < 1 << 10:
            raise GGPYError(
                f"A state-space model of {self.n_inner} columns in {self.n_head} heads and {self.n_group} groups, with"
                f" {self.d_state} states and convolutions of {self.width} tokens, is impossible."
            )

    @classmethod
    def read(cls, m: TypedMetadata) -> StateSpace:
        return cls(
            n_inner=m.integer("{arch}.ssm.inner_size"),
            d_state=m.integer("{arch}.ssm.state_size"),
            n_head=m.integer("{arch}.ssm.time_step_rank"),
            n_group=m.integer("{arch}.ssm.group_count", 1),
            width=m.integer("{arch}.ssm.conv_kernel"),
        )

    @property
    def n_shared(self) -> int:
        """Columns of B in all groups, and as many of C."""
        return self.n_group * self.d_state

    @property
    def n_mixed(self) -> int:
        """Columns that the convolution takes."""
        return self.n_inner + 2 * self.n_shared


def mamba2_mixer(g: Graph, x: Value, layer: int, s: StateSpace, n_embd: int, eps: float) -> Value:
    """The layer's scan, gated by silu and, where the file has the weight, normalised by groups: x [n_tokens, n_embd] to
    [n_tokens, n_embd]."""
    at = f"blk.{layer}."
    given = g.linear(x, at + "ssm_in", s.n_inner + s.n_mixed + s.n_head)
    gate, dt = given.columns(0, s.n_inner), given.columns(s.n_inner + s.n_mixed, s.n_head)
    mixed = g.conv_state(given.columns(s.n_inner, s.n_mixed), at + "ssm_conv1d", s.width, layer, "silu")
    scanned = g.ssm_scan(
        mixed.columns(0, s.n_inner),
        g.shift_columns(dt, at + "ssm_dt.bias"),
        mixed.columns(s.n_inner, s.n_shared),
        mixed.columns(s.n_inner + s.n_shared, s.n_shared),
        layer=layer,
        n_head=s.n_head,
        n_groups=s.n_group,
        a=at + "ssm_a",
        d=at + "ssm_d",
    )
    gated = g.glu(gate, scanned, "silu")
    if g.has(at + "ssm_norm.weight"):
        gated = g.norm(gated, at + "ssm_norm", eps, width=s.n_inner // s.n_group)
    return g.linear(gated, at + "ssm_out", n_embd)
