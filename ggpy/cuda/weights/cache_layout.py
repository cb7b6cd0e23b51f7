"""How the GPU keeps keys and values, and how attention for single tokens is cut into blocks and parts. Free of numba
and of any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggpy.cpu.isa.layout import cache_types, cell_bytes
from ggpy.cuda.weights.layout import ALIGN, LOG2_E, ring_kib, round_up

PART_HEAD = 16  # bytes before the values of a part of attention: its largest score, its sum of exponentials
DEEP = 2048  # tokens before that of a step of one token, from which on attention is cut in more shares


def attention_ring_kib(shared_bytes: int) -> int:
    """KiB of shared memory that a block of attention for single tokens has for cache cells in flight; with this much it
    fits beside a product."""
    return ring_kib(shared_bytes) * 2 // 3


def padded_head(head_dim: int) -> int:
    """Dimensions of a head in the cache, padding included."""
    return round_up(head_dim, 16)


def part_bytes(head_dim: int) -> int:
    """Bytes of one part of one head's attention: PART_HEAD, then its weighted values, float32 [padded head]."""
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

    @property
    def cells(self) -> int:
        """Positions of a slot as stored, padded since attention may read whole tiles to their end."""
        return round_up(self.n_ctx, 64)

    @property
    def head_pad(self) -> int:
        return padded_head(self.head_dim)

    @property
    def part_bytes(self) -> int:
        return part_bytes(self.head_dim)

    def _slot_bytes(self, kind: str) -> int:
        return self.n_head_kv * self.cells * cell_bytes(kind, self.head_pad)

    def _bytes(self, kind: str) -> int:
        return round_up(self.n_slots * self._slot_bytes(kind), ALIGN)

    @property
    def slot_key_bytes(self) -> int:
        """Bytes of one slot's keys of a layer."""
        return self._slot_bytes(cache_types(self.types)[0])

    @property
    def slot_value_bytes(self) -> int:
        return self._slot_bytes(cache_types(self.types)[1])

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys of one layer."""
        return self._bytes(cache_types(self.types)[0])

    @property
    def value_bytes(self) -> int:
        return self._bytes(cache_types(self.types)[1])


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

    @property
    def tile(self) -> AttentionTile:
        lanes = 1
        while 8 * lanes < self.cache.head_pad:
            lanes *= 2
        return AttentionTile(lanes, self.group, self.cache.types, self.ring)

    @property
    def group(self) -> int:
        """Query heads of a block of threads, which share a kv head."""
        shared = self.n_head // self.cache.n_head_kv
        return max(g for g in (1, 2, 3, 4) if shared % g == 0)

    def kernel(self, turn: bool) -> str:
        """Name of the kernel. turn: it applies rope to queries and keys itself, and stores keys and values."""
        tile = self.tile
        options = softcap_name(self.softcap) + (".late" if turn and self.norm_after_rope else "")
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
        blocks = n_tokens * self.n_head // self.group
        wanted = n_multiprocessors if n_tokens == 1 and not deep else 2 * n_multiprocessors
        return max(1, min(16, round(wanted / blocks), self.cache.cells // 64))

    def parts_bytes(self, n_tokens: int, n_multiprocessors: int) -> int:
        return n_tokens * self.n_head * self.splits(n_tokens, n_multiprocessors, True) * self.cache.part_bytes
