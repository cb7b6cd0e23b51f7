"""Cells of the cache that slots share, in layers that keep every position: a slot has a range of them, as long as its
request may become, and many short requests or few long ones find room in the same memory.

A range grows where the cells behind it are free. Else it moves to a gap that is long enough, the shortest such, or,
where free cells lie scattered, all ranges are pushed together. A move copies what the slot holds, at the speed of
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ggpy.graph.state import SPAN

if TYPE_CHECKING:
    from ggpy.engine.cache import Slot


class CellState(Protocol):
    """The interface that ranges need of a runtime."""

    n_ctx: int
    kv_cells: int | None  # None: each slot has the whole context, and nothing moves

    def assign_cells(self, slot: int, start: int, n_cells: int, n: int) -> None: ...


def in_cells(n: int) -> int:
    """The cells of a range for n tokens."""
    return -(-n // SPAN) * SPAN


class Cells:
    """The ranges of an engine's slots: `Slot.start` and `Slot.capacity`."""

    def __init__(self, state: CellState, slots: Sequence[Slot]) -> None:
        self._state, self._slots = state, slots
        self.total = state.kv_cells // SPAN * SPAN if state.kv_cells else 0
        for slot in slots:
            slot.capacity = 0 if self.total else state.n_ctx

    @property
    def n_free(self) -> int:
        return self.total - sum(slot.capacity for slot in self._slots)

    def resize(self, slot: Slot, n: int) -> bool:
        """Give a slot a range for n tokens, which it keeps as far as it holds them: False where too few cells are
        free. Other slots may move."""
        n = in_cells(n)
        if not self.total or n == slot.capacity:
            return True
        if n - slot.capacity > self.n_free:
            return False
        start = self._place(slot, n)
        if start is None:
            self._push_together(slot)
            start = self._place(slot, n)
            assert start is not None, "free cells are in one piece now"
        self._assign(slot, start, n)
        return True

    def _place(self, slot: Slot, n: int) -> int | None:
        """Where a range of n cells may begin: where it does now, or in the shortest gap that holds it."""
        gaps, end = [], 0
        others = sorted((s for s in self._slots if s is not slot and s.capacity), key=lambda s: s.start)
        for other in others:
            gaps.append((end, other.start))
            end = other.start + other.capacity
        gaps = [(first, last) for first, last in [*gaps, (end, self.total)] if last - first >= n]
        if slot.capacity and any(first <= slot.start and slot.start + n <= last for first, last in gaps):
            return slot.start
        return min(gaps, key=lambda gap: gap[1] - gap[0])[0] if gaps else None

    def _push_together(self, slot: Slot) -> None:
        """Push the ranges up to a slot's to the beginning and those behind it to the end, so that all free cells follow
        it."""
        used = sorted((s for s in self._slots if s.capacity and s is not slot), key=lambda s: s.start)
        end = 0
        for other in [s for s in used if not slot.capacity or s.start < slot.start]:
            end += self._assign(other, end, other.capacity)
        if not slot.capacity:
            return
        self._assign(slot, end, slot.capacity)
        end = self.total
        for other in [s for s in reversed(used) if s.start > slot.start]:
            end -= other.capacity
            self._assign(other, end, other.capacity)

    def _assign(self, slot: Slot, start: int, n: int) -> int:
        if (start, n) != (slot.start, slot.capacity):
            self._state.assign_cells(slot.index, start, n, min(n, len(slot.tokens)))
            slot.start, slot.capacity = start, n
        return n
