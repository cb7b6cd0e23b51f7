"""Sizes of attention over many tokens (`flash`). Free of numba."""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.cpu.isa.layout import cache_types
from ggpy.cuda.weights.cache_layout import padded_head, softcap_name, values_name

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
    v_head_dim: int = 0  # dimensions of values; 0: as the keys'
    alibi: bool = False  # scores fall with the distance
    chunked: bool = False  # a token sees those of its own run of `window` positions
    two_way: bool = False  # and those after it

    @property
    def value_dim(self) -> int:
        return self.v_head_dim or self.head_dim

    @property
    def name(self) -> str:
        options = softcap_name(self.softcap) + values_name(self.head_dim, self.value_dim) + ".sinks" * self.sinks
        options += ".alibi" * self.alibi + ".chunked" * self.chunked + ".two_way" * self.two_way
        return f"flash.{self.head_dim}.{self.group}.{self.fragments}.{self.cache}{options}"

    @property
    def quantized(self) -> tuple[bool, bool]:
        """Flags of keys and of values: True where they are q8_0, copied as codes and converted to halves before use."""
        key, value = (kind == "q8_0" for kind in cache_types(self.cache))
        return key, value

    @property
    def head_pad(self) -> int:
        return padded_head(self.head_dim)

    @property
    def value_pad(self) -> int:
        return padded_head(self.value_dim)

    @property
    def widest(self) -> int:
        return max(self.head_pad, self.value_pad)

    @property
    def rows(self) -> int:
        """Rows of a block: pairs of a token and a query head."""
        return 16 * self.fragments * WARPS

    @property
    def positions(self) -> int:
        """Positions of the cache in shared memory at once; fewer for large heads, so that 99 KiB are enough for all."""
        if self.widest > 128:
            return 16 if any(self.quantized) and self.widest > 224 else 32
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
    def pads(self) -> tuple[int, int]:
        """Dimensions of a key and of a value as the cache has them."""
        return self.head_pad, self.value_pad

    @property
    def tile_bytes(self) -> tuple[int, int]:
        """Bytes of a tile of keys and of one of values as halves."""
        key, value = (self.positions * (2 * pad + 16) for pad in self.pads)
        return key, value

    @property
    def copied_bytes(self) -> tuple[int, int]:
        """Bytes of a tile of keys and of one of values as copied: halves, or codes and then their scales."""
        key, value = (
            self.positions * (pad + pad // 16) if q else whole
            for pad, whole, q in zip(self.pads, self.tile_bytes, self.quantized, strict=True)
        )
        return key, value

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage: keys, then values."""
        return sum(self.copied_bytes)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory: queries, stages, and room for quantized tiles as halves."""
        return self.rows * self.pitch + STAGES * self.stage_bytes + self.widened_bytes

    @property
    def widened_bytes(self) -> int:
        """Bytes of quantized tiles as halves."""
        return sum(whole for whole, q in zip(self.tile_bytes, self.quantized, strict=True) if q)

    @property
    def keeps_queries(self) -> bool:
        """True where queries stay in registers; else they are read from shared memory for every tile."""
        return self.fragments * self.widest <= 128

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor can hold at once."""
        return 2 if self.widest <= 128 else 1
