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
    def warp_rows(self) -> int:
        """Rows from a warp's first to the next one's."""
        return 16 * self.fragments

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
    def value_pitch(self) -> int:
        return 2 * self.value_pad + 16

    @property
    def pads(self) -> tuple[int, int]:
        """Dimensions of a key and of a value as the cache has them."""
        return self.head_pad, self.value_pad

    @property
    def tile_bytes(self) -> tuple[int, int]:
        """Bytes of a tile of keys and of one of values as halves."""
        return self.positions * self.pitch, self.positions * self.value_pitch

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
    def kept_steps(self) -> int:
        """Runs of 16 dimensions of the queries that stay in registers; others are read from shared memory for every
        tile."""
        return self.head_pad // 16 if self.fragments * self.widest <= 128 else 0

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor can hold at once."""
        return 2 if self.widest <= 128 else 1


@dataclass(frozen=True)
class WideShape(FlashShape):
    """A kernel for heads of more dimensions than a warp's registers hold (`ggpy.cuda.ops.flash.wide`): a block's warps
    have 16 rows in common, each its share of the positions' scores and of the values' dimensions.

    latent: values are the first dimensions of the keys, and not in the cache. in_parts: of single tokens, in shares of
    the positions, as parts (`ggpy.cuda.ops.attention`)."""

    latent: bool = False
    in_parts: bool = False
    positions: int = 32

    @property
    def name(self) -> str:
        options = ".latent" * self.latent + ".parts" * self.in_parts
        return f"wide.{self.positions}.{super().name.removeprefix('flash.')}{options}"

    @property
    def rows(self) -> int:
        return 16

    @property
    def warp_rows(self) -> int:
        return 0

    @property
    def value_pitch(self) -> int:
        return self.pitch if self.latent else super().value_pitch

    @property
    def copied_bytes(self) -> tuple[int, int]:
        keys, values = super().copied_bytes
        return keys, 0 if self.latent else values

    @property
    def widened_bytes(self) -> int:
        return self.tile_bytes[0] if self.latent and self.quantized[0] else 0 if self.latent else super().widened_bytes

    @property
    def warp_steps(self) -> int:
        """Runs of 16 of the values' dimensions that a warp has."""
        return -(-self.value_pad // (16 * WARPS))

    @property
    def score_pitch(self) -> int:
        """Bytes from row to row of the scores, float32, that the warps exchange."""
        return 4 * self.positions + 32

    @property
    def shared_bytes(self) -> int:
        return super().shared_bytes + self.rows * self.score_pitch + 64 * WARPS  # the last may be read, but not used

    @property
    def scores_at(self) -> int:
        return super().shared_bytes

    @property
    def kept_steps(self) -> int:
        return min(30, self.head_pad // 16)

    @property
    def blocks(self) -> int:
        return 1
