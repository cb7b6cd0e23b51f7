"""Sizes of attention over many tokens (`flash`). Free of numba."""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.cpu.isa.layout import cache_types
from ggpy.cuda.weights.cache_layout import softcap_name

WARPS = 4
STAGES = 2


@dataclass(frozen=True)
class FlashShape:
    """One kernel: heads of `head_dim`, `group` query heads to a key/value head, `fragments` times 16 rows a warp; types
    of keys and values as `ggpy.cpu.isa.layout.cache_name` has them."""

    head_dim: int
    group: int
    fragments: int
    cache: str = "f16"
    softcap: float = 0.0  # scores become softcap * tanh(score / softcap)
    sinks: bool = False  # scores without a value, one a head, take part

    @property
    def name(self) -> str:
        options = softcap_name(self.softcap) + (".sinks" if self.sinks else "")
        return f"flash.{self.head_dim}.{self.group}.{self.fragments}.{self.cache}{options}"

    @property
    def quantized(self) -> tuple[bool, bool]:
        """Flags of keys and of values: True where they are q8_0, copied as codes and converted to halves before use."""
        key, value = (kind == "q8_0" for kind in cache_types(self.cache))
        return key, value

    @property
    def head_pad(self) -> int:
        return -(-self.head_dim // 16) * 16

    @property
    def rows(self) -> int:
        """Rows of a block: pairs of a token and a query head."""
        return 16 * self.fragments * WARPS

    @property
    def positions(self) -> int:
        """Positions of the cache in shared memory at once; fewer for large heads, so that 99 KiB are enough for all."""
        if self.head_pad > 128:
            return 16 if any(self.quantized) and self.head_pad > 224 else 32
        return 64

    @property
    def threads(self) -> int:
        return 32 * WARPS

    @property
    def pitch(self) -> int:
        """Bytes from row to row in shared memory: an odd number of 16-byte pieces, so that eight rows cover all
        banks."""
        return 2 * self.head_pad + 16

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile of keys, or of values, as halves."""
        return self.positions * self.pitch

    @property
    def copied_bytes(self) -> tuple[int, int]:
        """Bytes of a tile of keys and of one of values as copied: halves, or codes and then their scales."""
        key, value = (
            self.positions * (self.head_pad + self.head_pad // 16) if q else self.tile_bytes for q in self.quantized
        )
        return key, value

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage: keys, then values."""
        return sum(self.copied_bytes)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory: queries, stages, and room for quantized tiles as halves."""
        return self.rows * self.pitch + STAGES * self.stage_bytes + sum(self.quantized) * self.tile_bytes

    @property
    def keeps_queries(self) -> bool:
        """True where queries stay in registers; else they are read from shared memory for every tile."""
        return self.fragments * self.head_pad <= 128

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor can hold at once."""
        return 2 if self.head_pad <= 128 else 1
