"""Sizes of attention over many tokens (`flash`). Free of numba."""

from __future__ import annotations

from dataclasses import dataclass

WARPS = 4
STAGES = 2


@dataclass(frozen=True)
class FlashShape:
    """One kernel: heads of `head_dim`, `group` query heads to a key/value head, `fragments` times 16 rows a warp."""

    head_dim: int
    group: int
    fragments: int

    @property
    def name(self) -> str:
        return f"flash.{self.head_dim}.{self.group}.{self.fragments}"

    @property
    def head_pad(self) -> int:
        return -(-self.head_dim // 16) * 16

    @property
    def rows(self) -> int:
        """Of a block: pairs of a token and a query head."""
        return 16 * self.fragments * WARPS

    @property
    def positions(self) -> int:
        """Of the cache in shared memory at once; fewer for large heads, so that 99 KiB are enough for all."""
        return 64 if self.head_pad <= 128 else 32

    @property
    def threads(self) -> int:
        return 32 * WARPS

    @property
    def pitch(self) -> int:
        """Bytes from row to row in shared memory: an odd number of 16-byte pieces, so eight rows meet all banks."""
        return 2 * self.head_pad + 16

    @property
    def stage_bytes(self) -> int:
        """Keys, then values."""
        return 2 * self.positions * self.pitch

    @property
    def shared_bytes(self) -> int:
        return self.rows * self.pitch + STAGES * self.stage_bytes

    @property
    def keeps_queries(self) -> bool:
        """In registers; else they are read from shared memory for every tile."""
        return self.fragments * self.head_pad <= 128

    @property
    def blocks(self) -> int:
        """That a multiprocessor can hold at once."""
        return 2 if self.head_pad <= 128 else 1
