"""Preparation of a batch's description, shared by executors on all devices."""

from __future__ import annotations

import numpy as np


def token_segments(slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Runs of tokens in one slot at consecutive positions: int32 [n][slot, first token, tokens, position of the
    first]."""
    breaks = np.flatnonzero((np.diff(slots) != 0) | (np.diff(positions) != 1)) + 1
    first = np.concatenate([[0], breaks])
    count = np.diff(np.concatenate([first, [len(slots)]]))
    return np.stack([slots[first], first, count, positions[first]], axis=1).astype(np.int32)
