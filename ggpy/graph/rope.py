"""Rotary position embedding as numbers: which pairs of a head's dimensions rotate, how fast, and their scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoFormer, arXiv 2104.09864): which pairs rotate, how fast, and how YaRN scales
    the result.

    `style` is "interleaved" (pairs 2i, 2i+1) or "neox" (pairs i, i + n_rot/2). `inv_freq` has n_rot/2 entries in
    radians a position; in contexts of more than `n_ctx_orig` tokens `long_inv_freq` stands in its place, if there are
    any (LongRoPE, arXiv 2402.13753). The context decides and not the text, as keys that are in the cache stay turned as
    they are.
    """

    style: str
    n_rot: int
    inv_freq: tuple[float, ...]
    magnitude: float = 1.0
    long_inv_freq: tuple[float, ...] = ()
    n_ctx_orig: int = 0

    def __post_init__(self) -> None:
        if self.style not in ("interleaved", "neox") or len(self.inv_freq) * 2 != self.n_rot:
            raise ValueError(f"rope {self.style!r} with {len(self.inv_freq)} frequencies for {self.n_rot} dimensions")

    def table(self, first: int, last: int, n_ctx: int) -> np.ndarray:
        """Cosine and sine of every pair's angle at positions first .. last of a context of `n_ctx` tokens: float32
        [last - first, n_rot / 2, 2]."""
        long = self.long_inv_freq and n_ctx > self.n_ctx_orig
        angle = np.arange(first, last)[:, None] * np.array(self.long_inv_freq if long else self.inv_freq)
        return (np.stack([np.cos(angle), np.sin(angle)], 2) * self.magnitude).astype(np.float32)
