"""The state that a model keeps between steps, by layer: each kind with its size and what can be done with it.

A slot holds one sequence's state of every kind. Kinds differ in whether a sequence can be cut back: keys and values of
the whole context are overwritten, never erased, so any earlier length is still there; a ring has lost what lies further
back than its slack; convolution and recurrent state hold the last length alone. What cannot be cut back is copied aside
while it stands (a checkpoint) and put back later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SPAN = 64  # positions: attention begins at a multiple of them, and may read up to the next one past its end
PART = 256  # positions that are always summed apart and then joined in order: what makes results independent of batches


@dataclass(frozen=True)
class KVState:
    """Keys and values of a layer's attention. window: of how many positions at most a token sees any, 0 for all;
    causal: whether only those up to its own. Attention that is not causal needs the sequence for one step only: its
    layers share one memory."""

    layer: int
    n_head_kv: int
    head_dim: int
    v_head_dim: int
    window: int = 0
    causal: bool = True

    def n_cells(self, n_ctx: int, n_batch: int) -> int:
        """Positions that a slot has room for. Of a window: those that the first token of a step sees and the step's
        own, each in a part of its own, unless the context has no more anyway."""
        whole = -(-n_ctx // SPAN) * SPAN
        if not self.window or not self.causal:
            return whole
        ring = (-(-(self.window + n_batch) // PART) + 1) * PART
        return min(whole, ring)

    @staticmethod
    def step_cells(n_slots: int, n_batch: int) -> int:
        """Cells that the sequences of a step take side by side (`ggpy.graph.batch.side_by_side`), in layers that keep
        no position."""
        return -(-n_batch // SPAN) * SPAN + SPAN * n_slots

    def grows(self, n_ctx: int, n_batch: int) -> bool:
        """True where every position of a sequence has a cell of its own, so that a sequence takes as many as it has
        tokens; else a slot's state has one size."""
        return self.causal and self.n_cells(n_ctx, n_batch) >= n_ctx


@dataclass(frozen=True)
class LatentState(KVState):
    """Keys that are values as well, by their first `v_head_dim` dimensions (multi-head latent attention, arXiv
    2405.04434): one vector a position and key/value head, which takes no memory twice."""


@dataclass(frozen=True)
class ConvState:
    """The last inputs of a causal convolution: float32 [n_rows, n_cols]."""

    layer: int
    n_rows: int
    n_cols: int

    @property
    def n_floats(self) -> int:
        return self.n_rows * self.n_cols


@dataclass(frozen=True)
class RecurrentState:
    """The matrix that each head of a recurrent layer carries on: float32 [n_head, n_rows, n_cols]."""

    layer: int
    n_head: int
    n_rows: int
    n_cols: int

    @property
    def n_floats(self) -> int:
        return self.n_head * self.n_rows * self.n_cols


State = KVState | ConvState | RecurrentState


@dataclass(frozen=True)
class Reach:
    """How far back a slot can be cut, so that its sequence goes on from an earlier length.

    carried: some of its state stands for one length alone. rings: the cells of each ring, and its window.
    """

    carried: bool = False
    rings: frozenset[tuple[int, int]] = frozenset()

    @staticmethod
    def of(states: Iterable[State], n_ctx: int, n_batch: int) -> Reach:
        """The reach of a model with these states."""
        carried, rings = False, set()
        for state in states:
            if not isinstance(state, KVState):
                carried = True
            elif state.causal and not state.grows(n_ctx, n_batch):
                rings.add((state.n_cells(n_ctx, n_batch), state.window))
        return Reach(carried, frozenset(rings))

    @property
    def everywhere(self) -> bool:
        """True where every earlier length is still there."""
        return not self.carried and not self.rings

    def cuts(self, stands: int, written: int, n: int) -> bool:
        """True where a sequence can go on from length n. stands: the length that its carried state is of, -1 where
        unknown; written: the greatest length that its cells were written for."""
        if n == 0:
            return True
        if self.carried and stands != n:
            return False
        return all(max(0, n - window + 1) >= written - n_cells for n_cells, window in self.rings)
