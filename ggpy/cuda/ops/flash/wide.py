"""Attention on tensor cores with heads of more dimensions than a warp's registers hold: latent caches, whose values are
the first dimensions of the keys (arXiv 2405.04434), and heads of 512 dimensions.

The four warps of a block have 16 rows in common, pairs of a token and one of the query heads that share a key/value
head. Each makes the scores of its share of a tile's positions, which they exchange through shared memory; each then has
all weights, and a share of the values' dimensions. A tile of a latent cache is copied once and read twice.

Single tokens take the same way, their positions in shares, which leave parts as those of `ggpy.cuda.ops.attention` do.
"""

from __future__ import annotations

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.warp import Value, Warp, f32, kernel
from ggpy.cuda.ops.flash.flash import PARAMETERS, Flash
from ggpy.cuda.ops.flash.layout import WideShape
from ggpy.cuda.weights.cache_layout import PART_HEAD, part_bytes, softcap_of, values_of

PARTS_PARAMETERS = "u64 u32 u64 u64 u32 u64 u64 u64 u64 u32 u32 f32"  # see `Wide.emit_parts`
CHAINS = 4  # of sums that do not wait for each other


def source(positions: str, head_dim: str, group: str, fragments: str, cache: str, *options: str) -> Source:
    """A kernel "wide.32.576.16.1.f16.values512.latent", as `WideShape.name` has it."""
    sinks, alibi, chunked, latent, parts = (
        name in options for name in ("sinks", "alibi", "chunked", "latent", "parts")
    )
    shape = WideShape(
        int(head_dim), int(group), int(fragments), cache, softcap_of(options), sinks,
        values_of(options, int(head_dim)), alibi, chunked, "two_way" in options, latent, parts, int(positions),
    )  # fmt: skip
    name = shape.name.replace(".", "_").replace("-", "_").replace("+", "_")
    emitter = Wide(shape)
    parameters = (PARTS_PARAMETERS if parts else PARAMETERS) + " u64" * (sinks * (not parts) + alibi)
    emit = emitter.emit_parts if parts else emitter.emit
    return Source(kernel(name, parameters, emit), parameters, shape.threads, shape.blocks)


class Wide(Flash):
    """Emitter of the kernel of one shape."""

    shape: WideShape

    def __init__(self, shape: WideShape) -> None:
        super().__init__(shape)
        self.value_steps = shape.warp_steps
        self.sees_any = not shape.in_parts
        self.split: tuple[Value, Value] | None = None  # the share of the positions, and how many there are

    def emit_parts(
        self,
        w: Warp,
        q: Value,  # float32 rows [token][query head][head_dim]
        q_stride: Value,
        keys: Value,  # CacheLayout
        values: Value,
        cells: Value,
        header: Value,  # int32: the number of tokens
        slots: Value,  # int32 [token]
        positions: Value,  # int32 [token]
        parts: Value,  # [token][query head][share]
        splits: Value,  # shares
        window: Value,  # as `Flash.emit` has it
        scale: Value,
        *vectors: Value,  # slopes, where the shape has them
    ) -> None:
        """Emit the kernel for single tokens. Grid: key/value heads, tokens, shares of each tile of heads."""
        shape = self.shape
        self._set_up(w)
        w.wait_for_previous()
        kv_head, n_head_kv, token = w.special("ctaid.x"), w.special("nctaid.x"), w.special("ctaid.y")
        self.split = w.special("ctaid.z") % splits, splits
        first_row, n_rows = w.special("ctaid.z") // splits * shape.rows, w.word(shape.group)
        with w.when(token < w.load(header)):
            slot, position = (w.load(of + (token * 4).wide()) for of in (slots, positions))
            keys, values = self._of_head(keys, values, slot * n_head_kv + kv_head, cells)
            head_bytes = (kv_head * (4 * shape.group * shape.head_dim)).wide()
            self._load_queries(q + head_bytes, q_stride, scale, token, first_row, n_rows)
            self.slopes = vectors[0] + (kv_head * (4 * shape.group)).wide() if vectors else None
            sums = self._attend(keys, values, first_row, n_rows, position, window)
            first_head = (token * n_head_kv + kv_head) * shape.group
            self._store_parts(*sums, parts, first_head, first_row)

    def _share(self, begin: Value, end: Value) -> tuple[Value, Value]:
        if self.split is None:
            return begin, end
        split, splits = self.split
        share = (end - begin + splits - self.w.word(1)) // splits
        first = begin + split * share
        return first, (first + share).min(end)

    def _scores(self, keys: Value, kept: list[list[list[Value]]]) -> list[Value]:
        """Scores of a tile, as every warp needs them: [8 positions][4]."""
        w, shape = self.w, self.shape
        mine = self.warp % self.columns * 8
        at = keys + (mine + (self.lane & 7)) * shape.pitch + (self.lane >> 3) * 16
        chains = [[w.real(0.0)] * 4 for _ in range(CHAINS)]
        for step in range(self.steps):
            if step % 2 == 0:
                b = w.matrices(at + 32 * step)
            (query,) = kept[step] if step < len(kept) else self._query(step)
            chains[step % CHAINS] = w.mma(chains[step % CHAINS], query, b[step % 2 * 2 :][:2])
        sums = [(a + b) + (c + d) for a, b, c, d in zip(*chains, strict=True)]
        exchange = self.shared + shape.scores_at
        to = exchange + self.group * shape.score_pitch + (mine + self.t * 2) * 4
        for place, score in enumerate(sums):
            w.store(score, to + (8 * shape.score_pitch * (place // 2) + 4 * (place % 2)))
        w.barrier()
        found = []
        of = exchange + self.group * shape.score_pitch + self.t * 8
        for column in range(self.columns):
            for half in range(2):
                found += w.load(of + (8 * half * shape.score_pitch + 32 * column), f32, 2)
        return found

    def _mix(self, values: Value, weights: list[Value], mixed: list[Value]) -> list[Value]:
        return super()._mix(values + self.warp * (32 * self.value_steps), weights, mixed)

    def _columns(self, half: int) -> list[tuple[int, int, Value]]:
        """This warp's and lane's pairs of the values' dimensions in a half of the rows: the place in the sums, the
        bytes from the first pair, and whether there are such dimensions."""
        first = self.warp * (16 * self.value_steps) + self.t * 2
        columns = range(2 * self.value_steps)
        return [(4 * c + 2 * half, 32 * c, first + 8 * c < self.shape.value_dim) for c in columns]

    def _first_pair(self) -> Value:
        return (self.warp * (64 * self.value_steps) + self.t * 8).wide()

    def _store(
        self,
        mixed: list[Value],
        totals: list[Value],
        dst: Value,
        dst_stride: Value,
        first_token: Value,
        first_row: Value,
        n_rows: Value,
    ) -> None:
        w = self.w
        for half in range(2):
            row = first_row + self.group + 8 * half
            factor = w.function("rcp.approx.ftz", totals[half])
            line = dst + self._place(row, first_token, dst_stride, self.shape.value_dim) + self._first_pair()
            for place, offset, inside in self._columns(half):
                pair = mixed[place] * factor, mixed[place + 1] * factor
                w.store2(*pair, line + offset, (row < n_rows) & inside)

    def _store_parts(
        self,
        mixed: list[Value],
        totals: list[Value],
        largest: list[Value],
        parts: Value,
        first_head: Value,
        first_row: Value,
    ) -> None:
        w, shape = self.w, self.shape
        assert self.split is not None
        split, splits = self.split
        for half in range(2):
            row = first_row + self.group + 8 * half
            part = parts + ((first_head + row) * splits + split).wide() * part_bytes(shape.value_dim)
            inside = row < shape.group
            w.store2(largest[half], totals[half], part, inside & self.thread.equals(self.group * 4))
            for place, offset, there in self._columns(half):
                line = part + PART_HEAD + self._first_pair() + offset
                w.store2(mixed[place], mixed[place + 1], line, inside & there)
