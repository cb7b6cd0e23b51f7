"""Preparation of a batch's description, shared by executors on all devices."""

from __future__ import annotations

import numpy as np

from ggpy.graph.state import SPAN


def token_segments(slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Runs of tokens in one slot at consecutive positions: int32 [n][slot, first token, tokens, position of the
    first]."""
    breaks = np.flatnonzero((np.diff(slots) != 0) | (np.diff(positions) != 1)) + 1
    first = np.concatenate([[0], breaks])
    count = np.diff(np.concatenate([first, [len(slots)]]))
    return np.stack([slots[first], first, count, positions[first]], axis=1).astype(np.int32)


def side_by_side(segments: np.ndarray) -> np.ndarray:
    """Where the sequences of a step begin in cells that layers share which keep no position, each at a multiple of
    SPAN: int64 [n]. segments: as `token_segments` gives them. Raises ValueError for a sequence that is not whole, or
    shares a slot."""
    if segments[:, 3].any() or len(set(segments[:, 0].tolist())) < len(segments):
        raise ValueError("a text in pieces, of a model whose tokens see those after them")
    taken: np.ndarray = -(-segments[:, 2].astype(np.int64) // SPAN) * SPAN
    return np.cumsum(taken) - taken
