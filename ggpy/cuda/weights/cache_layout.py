"""How the GPU keeps keys and values, and how attention for single tokens is cut into blocks and parts. Free of numba
and of any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.cpu.isa.layout import cache_types, cell_bytes
from ggpy.cuda.weights.layout import ALIGN, LOG2_E, ring_kib, round_up

if TYPE_CHECKING:
    from ggpy.graph.operations import Attention

WARP_HEAD = 256  # dimensions of a head, or of its values, that a warp's registers hold
MOST_HEAD_DIM = 576  # that a block's do (`ggpy.cuda.ops.flash.wide`)
PART_HEAD = 16  # bytes before the values of a part of attention: its largest score, its sum of exponentials
WIDE_SHARES = 64  # of the positions, at most, where a block reads all heads' keys at once
DEEP = 2048  # tokens before that of a step of one token, from which on attention is cut in more shares


def attention_ring_kib(shared_bytes: int) -> int:
    """KiB of shared memory that a block of attention for single tokens has for cache cells in flight; with this much it
    fits beside a product."""
    return ring_kib(shared_bytes) * 2 // 3


def padded_head(head_dim: int) -> int:
    """Dimensions of a head in the cache, padding included."""
    return round_up(head_dim, 16)


def part_bytes(head_dim: int) -> int:
    """Bytes of one part of attention for a head whose values have so many dimensions: PART_HEAD, then the weighted
    values, float32 [padded head]."""
    return PART_HEAD + 4 * padded_head(head_dim)


@dataclass(frozen=True)
class CacheLayout:
    """Keys and values of one layer: each [slot][kv head] halves [position][head_pad], where what pads a head is 0; or,
    as q8_0, int8 codes [position][head_pad], then halves [position][head_pad / 32], the scales of 32 dimensions."""

    n_slots: int
    n_head_kv: int
    n_ctx: int
    head_dim: int
    types: str = "f16"  # of keys and values, as `ggpy.cpu.isa.layout.cache_name` has them
    v_head_dim: int = 0  # of values; 0: as the keys'
    latent: bool = False  # values are the first dimensions of the keys, and not stored

    @staticmethod
    def of(attention: Attention, n_slots: int, n_ctx: int, types: str) -> CacheLayout:
        """The layout of what an attention reads."""
        a = attention
        return CacheLayout(n_slots, a.n_head_kv, n_ctx, a.head_dim, types, a.v_head_dim, a.latent)

    @property
    def wide(self) -> bool:
        """True where a head is read by a whole block of threads."""
        return self.latent or max(self.head_dim, self.value_dim) > WARP_HEAD

    @property
    def cells(self) -> int:
        """Positions of a slot as stored, padded since attention may read whole tiles to their end."""
        return round_up(self.n_ctx, 64)

    @property
    def head_pad(self) -> int:
        return padded_head(self.head_dim)

    @property
    def value_dim(self) -> int:
        """Dimensions of a head's values."""
        return self.v_head_dim or self.head_dim

    @property
    def value_pad(self) -> int:
        """Dimensions of a head's values in the cache, padding included."""
        return padded_head(self.value_dim)

    @property
    def part_bytes(self) -> int:
        return part_bytes(self.value_dim)

    @property
    def slot_key_bytes(self) -> int:
        """Bytes of one slot's keys of a layer."""
        return self.n_head_kv * self.cells * cell_bytes(cache_types(self.types)[0], self.head_pad)

    @property
    def slot_value_bytes(self) -> int:
        return (
            0 if self.latent else self.n_head_kv * self.cells * cell_bytes(cache_types(self.types)[1], self.value_pad)
        )

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys of one layer."""
        return round_up(self.n_slots * self.slot_key_bytes, ALIGN)

    @property
    def value_bytes(self) -> int:
        return round_up(self.n_slots * self.slot_value_bytes, ALIGN)


@dataclass(frozen=True)
class AttentionTile:
    """Shared memory of a block of attention for single tokens (`ggpy.cuda.ops.attention`): sums of norms, queries with
    the new key and value, the new cell as the cache rounds it, and cells in flight. At the block's end the same
    memory holds, from its start, the sums of each warp."""

    lanes: int  # that hold a head, 8 dimensions each: a power of two
    group: int  # query heads
    types: str  # of the cache
    ring: int  # KiB for cells on their way

    @property
    def dims(self) -> int:
        return 8 * self.lanes

    @property
    def subs(self) -> int:
        """Groups of lanes in a warp."""
        return 32 // self.lanes

    @property
    def threads(self) -> int:
        """Threads of a block: more where each needs fewer registers."""
        return 512 if self.group == 1 else 256

    @property
    def at_once(self) -> int:
        """Positions that each group of lanes takes at a time."""
        return 4 if self.group == 2 else 2

    @property
    def key_piece(self) -> int:
        """Bytes that the lanes of a warp hold of `subs` keys."""
        return 32 * _lane_bytes(cache_types(self.types)[0])

    @property
    def value_piece(self) -> int:
        return 32 * _lane_bytes(cache_types(self.types)[1])

    @property
    def stage_bytes(self) -> int:
        """Bytes that a warp takes at a time."""
        return self.at_once * (self.key_piece + self.value_piece)

    @property
    def stages(self) -> int:
        """Stages of a warp in flight."""
        return max(2, min(8, (self.ring << 10) // (self.threads // 32) // self.stage_bytes))

    @property
    def queries_at(self) -> int:
        return round_up(4 * (self.group + 1), 16)

    @property
    def own_at(self) -> int:
        return self.queries_at + (self.group + 2) * self.dims * 4

    @property
    def ring_at(self) -> int:
        return self.own_at + self.key_piece + self.value_piece

    @property
    def shared_bytes(self) -> int:
        warps = self.threads // 32
        sums = warps * self.group * (self.dims + 2) * 4
        return max(sums, self.ring_at + warps * self.stages * self.stage_bytes)


def softcap_name(cap: float) -> str:
    """The part of a kernel's name, whose parts dots separate, that says how it caps scores; "" where it does not."""
    return f".softcap{float(cap)!r}".replace(".", "_").replace("_", ".", 1) if cap else ""


def softcap_of(options: Sequence[str]) -> float:
    """`softcap_name` backwards: the cap from the parts of a kernel's name; 0 where none says so."""
    caps = (part.removeprefix("softcap") for part in options if part.startswith("softcap"))
    return float(next(caps, "0").replace("_", "."))


def values_name(head_dim: int, v_head_dim: int) -> str:
    """The part of a kernel's name that says how many dimensions values have; "" where they have as many as keys."""
    return f".values{v_head_dim}" if v_head_dim != head_dim else ""


def values_of(options: Sequence[str], head_dim: int) -> int:
    """`values_name` backwards."""
    found = (part.removeprefix("values") for part in options if part.startswith("values"))
    return int(next(found, head_dim))


def _lane_bytes(kind: str) -> int:
    """Bytes of eight dimensions in shared memory: halves, or codes and a word with their scale."""
    return 12 if kind == "q8_0" else 16


@dataclass(frozen=True)
class AttentionShape:
    """Division of attention of single tokens over blocks (`ggpy.cuda.ops.attention`)."""

    cache: CacheLayout
    n_head: int
    ring: int  # KiB of shared memory of a block for cells on their way
    batch_invariant: bool = False  # as many shares whatever the batch, since it matters to rounding how they are joined
    softcap: float = 0.0  # scores become softcap * tanh(score / softcap)
    norm_after_rope: bool = False
    alibi: bool = False  # scores fall with the distance
    chunked: bool = False  # what a launch calls the window is the length of the chunks

    @staticmethod
    def of(attention: Attention, cache: CacheLayout, ring: int, batch_invariant: bool = False) -> AttentionShape:
        """The division of an attention, with so many KiB of shared memory for cells on their way."""
        return AttentionShape(
            cache, attention.n_head, ring, batch_invariant, attention.softcap, attention.norm_after_rope,
            bool(attention.alibi), bool(attention.chunk),
        )  # fmt: skip

    @property
    def tile(self) -> AttentionTile:
        lanes = 1
        while 8 * lanes < max(self.cache.head_pad, self.cache.value_pad):
            lanes *= 2
        return AttentionTile(lanes, self.group, self.cache.types, self.ring)

    @property
    def group(self) -> int:
        """Query heads of a block of threads, which share a kv head."""
        shared = self.n_head // self.cache.n_head_kv
        if self.cache.wide:
            return min(16, shared)
        return max(g for g in (1, 2, 3, 4) if shared % g == 0)

    def kernel(self, turn: bool) -> str:
        """Name of the kernel. turn: it applies rope to queries and keys itself, and stores keys and values."""
        tile = self.tile
        options = softcap_name(self.softcap) + values_name(self.cache.head_dim, self.cache.value_dim)
        options += ".alibi" * self.alibi + ".chunked" * self.chunked + ".late" * (turn and self.norm_after_rope)
        return f"attention.{tile.lanes}.{tile.group}.{'turn' if turn else 'turned'}.{tile.types}.{tile.ring}{options}"

    @property
    def score_unit(self) -> float:
        """The factor of scores in the kernel: log2 e, as it raises 2 to their power, or the inverse of the cap, since
        it takes their tanh first."""
        return 1.0 / self.softcap if self.softcap else LOG2_E

    @property
    def shared_bytes(self) -> int:
        return self.tile.shared_bytes

    def splits(self, n_tokens: int, n_multiprocessors: int, deep: bool) -> int:
        """Shares of the positions: enough to keep every multiprocessor at work, but no more, since they must be joined.
        deep: after so many tokens that reading them takes longer than the joining."""
        if self.batch_invariant:
            n_tokens, deep = 1, False
        most = WIDE_SHARES if self.cache.wide else 16
        blocks = n_tokens * self.n_head // self.group
        wanted = n_multiprocessors if n_tokens == 1 and not deep else 2 * n_multiprocessors
        return max(1, min(most, round(wanted / blocks), self.cache.cells // 64))

    def parts_bytes(self, n_tokens: int, n_multiprocessors: int) -> int:
        return n_tokens * self.n_head * self.splits(n_tokens, n_multiprocessors, True) * self.cache.part_bytes
