"""Operations that carry on what a sequence's tokens leave, in a state of one size: convolutions, the delta rule, scans
of state-space models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.graph.operations import Operation
from ggpy.graph.state import ConvState, RecurrentState

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo


@dataclass(frozen=True)
class ConvWithState(Operation):
    """A causal convolution of each column by itself, over the last `width` tokens of its sequence, plus a bias; then
    silu where `activation` says so."""

    weight: TensorInfo  # [n_cols, width], the last one the token's own
    bias: TensorInfo | None
    layer: int
    activation: str | None = None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)

    @property
    def state(self) -> ConvState:
        return ConvState(self.layer, self.weight.shape[1] - 1, self.weight.shape[0])


@dataclass(frozen=True)
class DeltaRule(Operation):
    """The gated delta rule (arXiv 2412.06464): each value head has a matrix S [d_k, d_v], zero at first, and for each
    token S *= exp(decay); S += k (beta (v - k S)); the result is q S. Key heads serve several value heads: head h takes
    h % n_k_head where `tiled`, else h // (n_v_head / n_k_head)."""

    layer: int
    n_k_head: int
    n_v_head: int
    k_head_dim: int
    v_head_dim: int
    tiled: bool

    @property
    def state(self) -> RecurrentState:
        return RecurrentState(self.layer, self.n_v_head, self.k_head_dim, self.v_head_dim)


@dataclass(frozen=True)
class SSMScan(Operation):
    """The selective scan of Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060): each head of `head_dim` columns
    has a matrix S [d_state, head_dim], zero at first, and for each token S = exp(dt A) S + dt x B, where dt is the
    softplus of what is given; the result is C S + D x. Heads share B and C in `n_groups` equal runs.

    `a`: [n_head, d_state] where each head is one channel (Mamba), else a number a head, [n_head] or [n_head, 1];
    `d`: a number a head."""

    layer: int
    n_head: int
    n_groups: int
    head_dim: int
    d_state: int
    a: TensorInfo
    d: TensorInfo | None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.a, self.d) if self.d else (self.a,)

    @property
    def by_channel(self) -> bool:
        """True where each channel has decays of its own."""
        return self.a.shape == (self.n_head, self.d_state) and self.head_dim == 1

    @property
    def state(self) -> RecurrentState:
        if self.by_channel:  # channels of a group stand side by side
            return RecurrentState(self.layer, self.n_groups, self.d_state, self.n_head // self.n_groups)
        return RecurrentState(self.layer, self.n_head, self.d_state, self.head_dim)
