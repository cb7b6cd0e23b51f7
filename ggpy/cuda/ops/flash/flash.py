"""Attention of many tokens over the cache on tensor cores: one pass with a running softmax (arXiv 2205.14135 and
2307.08691).

The query heads that share a key/value head are rows of one product: row r of a segment is token r / group and query
head r % group of the group. A block of four warps owns 64 or 128 rows and reads the cache 64 or 32 positions at a time,
copied to shared memory one tile ahead. A warp's scores stay in its registers, where they are already what the product
with the values takes as its first operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.warp import Value, Warp, f32, kernel
from ggpy.cuda.ops.flash.layout import STAGES, FlashShape
from ggpy.cuda.ops.matmul.formats import half2
from ggpy.cuda.weights.cache_layout import softcap_of, values_of
from ggpy.cuda.weights.layout import LOG2_E

PARAMETERS = "u64 u32 u64 u64 u32 u64 u64 u32 u32 f32"  # see `Flash.emit`
NOTHING = -1e30  # the largest score of no position


def source(head_dim: str, group: str, fragments: str, cache: str, *options: str) -> Source:
    """A kernel "flash.128.4.2.f16", as `FlashShape.name` has it."""
    sinks, alibi, chunked, two_way = (name in options for name in ("sinks", "alibi", "chunked", "two_way"))
    shape = FlashShape(
        int(head_dim), int(group), int(fragments), cache, softcap_of(options), sinks,
        values_of(options, int(head_dim)), alibi, chunked, two_way,
    )  # fmt: skip
    name = shape.name.replace(".", "_").replace("-", "_").replace("+", "_")
    parameters = PARAMETERS + " u64" * (sinks + alibi)
    return Source(kernel(name, parameters, Flash(shape).emit), parameters, shape.threads, shape.blocks)


class Flash:
    """Emitter of the kernel of one shape."""

    def __init__(self, shape: FlashShape) -> None:
        self.shape = shape
        self.steps, self.value_steps = shape.head_pad // 16, shape.value_pad // 16
        self.positions = shape.positions
        self.columns = shape.positions // 8
        self.sees_any = True  # a block has some tile
        self.sinks: Value | None = None
        self.slopes: Value | None = None
        self.first_tile: Value | None = None

    def emit(
        self,
        w: Warp,
        q: Value,  # float32 rows [token][query head][head_dim]
        q_stride: Value,  # bytes from token to token
        keys: Value,  # CacheLayout
        values: Value,  # likewise
        cells: Value,  # of a slot
        segments: Value,  # int32 [segment][4]: slot (two-way: cell), first token, tokens, position of the first
        dst: Value,  # float32 rows [token][query head][values' head_dim]
        dst_stride: Value,
        window: Value,  # positions that a token sees, or to either side; 0: all; or the length of the chunks
        scale: Value,  # times log2 e, what the exponent of 2 is, or, where scores are capped, their tanh is taken of
        *vectors: Value,  # float32 [query head], as the shape has them: sinks; slopes of the scores, times log2 e
    ) -> None:
        """Emit the kernel. Grid: key/value heads, segments, tiles of the longest segment's rows."""
        shape = self.shape
        self._set_up(w)
        kv_head, n_head_kv = w.special("ctaid.x"), w.special("nctaid.x")
        slot, first_token, n_tokens, first_position = w.load(segments + (w.special("ctaid.y") * 16).wide(), count=4)
        # the last rows see the most: they begin first
        tile = w.special("nctaid.z") - w.word(1) - w.special("ctaid.z")
        first_row, n_rows = tile * shape.rows, n_tokens * shape.group
        with w.when(first_row < n_rows):
            head = kv_head if shape.two_way else slot * n_head_kv + kv_head
            keys, values = self._of_head(keys, values, head, cells)
            # two-way: the sequences of a step lie side by side, each from a whole tile on
            self.first_tile = slot // self.positions if shape.two_way else None
            head_bytes = (kv_head * (4 * shape.group * shape.head_dim)).wide()
            out_bytes = (kv_head * (4 * shape.group * shape.value_dim)).wide()
            self._load_queries(q + head_bytes, q_stride, scale, first_token, first_row, n_rows)
            given = [vector + (kv_head * (4 * shape.group)).wide() for vector in vectors]
            self.sinks = given.pop(0) if shape.sinks else None
            self.slopes = given.pop(0) if shape.alibi else None
            self.last = first_position + n_tokens - w.word(1)
            mixed, totals, _ = self._attend(keys, values, first_row, n_rows, first_position, window)
            self._store(mixed, totals, dst + out_bytes, dst_stride, first_token, first_row, n_rows)

    def _set_up(self, w: Warp) -> None:
        self.w, self.shared = w, w.shared_memory()
        self.thread = w.special("tid.x")
        self.lane, self.warp = self.thread & 31, self.thread >> 5
        self.group, self.t = self.lane >> 2, self.lane & 3
        self.warp_row = self.warp * self.shape.warp_rows

    def _of_head(self, keys: Value, values: Value, head: Value, cells: Value) -> list[Value]:
        """Where a head's keys and values begin; `head` counts those of all slots before it."""
        self.cells = cells
        return [
            start + head.wide() * (cells * (pad + pad // 16 if q else 2 * pad)).wide()
            for start, pad, q in zip((keys, values), self.shape.pads, self.shape.quantized, strict=True)
        ]

    def _place(self, row: Value, first_token: Value, stride: Value, head_dim: int) -> Value:
        """Offset in bytes of a row from the first query head of this group in the first token."""
        token, head = first_token + row // self.shape.group, row % self.shape.group
        return token.wide() * stride.wide() + (head * (4 * head_dim)).wide()

    def _load_queries(
        self, q: Value, q_stride: Value, scale: Value, first_token: Value, first_row: Value, n_rows: Value
    ) -> None:
        """Store scaled queries in shared memory, as halves; rows beyond the last repeat it."""
        w, shape = self.w, self.shape
        pairs = shape.head_pad // 2
        scale = scale * LOG2_E

        def body(step: Value, state: Sequence[Value]) -> list[Value]:
            item = step * shape.threads + self.thread
            row, pair = item // pairs, item % pairs
            place = self._place((first_row + row).min(n_rows - w.word(1)), first_token, q_stride, shape.head_dim)
            at = q + place + (pair * 8).wide()
            inside = pair < shape.head_dim // 2
            first, second = (w.load_where(inside, at + 4 * k, w.real(0.0)) for k in range(2))
            w.store(w.halves(first * scale, second * scale), self.shared + row * shape.pitch + pair * 4)
            return []

        w.loop(w.word(0), w.word(shape.rows * pairs // shape.threads), [], body, once=True)
        w.barrier()

    def _query(self, step: int) -> list[list[Value]]:
        """Columns 16 * step .. of each fragment's rows."""
        row = self.warp_row + (self.lane & 15)
        at = self.shared + row * self.shape.pitch + (self.lane >> 4) * 16 + 32 * step
        return [self.w.matrices(at + 16 * m * self.shape.pitch) for m in range(self.shape.fragments)]

    def _attend(
        self, keys: Value, values: Value, first_row: Value, n_rows: Value, first_position: Value, window: Value
    ) -> tuple[list[Value], list[Value], list[Value]]:
        """The weighted values of each fragment, and of each of its two rows the sum of weights and the largest
        score."""
        w, shape = self.w, self.shape
        last_row = (first_row + shape.rows).min(n_rows) - w.word(1)
        low, high = first_position + first_row // shape.group, first_position + last_row // shape.group
        begin = self._lowest(low, window) // self.positions
        high = self._highest(high, window)
        begin, end = self._share(begin, high // self.positions + 1)
        stages = self.shared + shape.rows * shape.pitch

        values_at = shape.copied_bytes[0]  # of a stage

        def fetch(tile: Value, stage: Value) -> None:
            places, sizes = (stage, stage + values_at), shape.copied_bytes
            kinds = zip((keys, values), places, sizes, shape.pads, shape.quantized, strict=True)
            with w.when(tile < end):
                for source, at, size, pad, q in kinds:
                    if not size:
                        continue
                    (self._fetch_codes if q else self._fetch_halves)(tile, high, source, at, pad)
            w.commit_copies()

        fetch(begin, stages)
        kept = [self._query(step) for step in range(shape.kept_steps)]

        # ---- rows of this lane: of each fragment two, eight apart
        positions = []
        for m in range(shape.fragments):
            for half in range(2):
                row = first_row + self.warp_row + self.group + (16 * m + 8 * half)
                positions.append(first_position + row // shape.group)
        slopes = [w.load(self.slopes + (row * 4).wide(), f32) for row in self._heads(first_row)] if self.slopes else []

        def body(tile: Value, state: Sequence[Value]) -> list[Value]:
            here, there, *rest = state
            w.wait_copies(0)
            w.barrier()
            fetch(tile + 1, there)
            largest, totals = rest[: 2 * shape.fragments], rest[2 * shape.fragments : 4 * shape.fragments]
            mixed = rest[4 * shape.fragments :]
            keys_here, values_here = self._halves(here)
            scores = self._scores(keys_here, kept)
            if shape.softcap:
                scores = [self._tanh(score) * (shape.softcap * LOG2_E) for score in scores]
            first = tile * self.positions
            if slopes:
                scores = self._lower(scores, first, positions, slopes)
            hides = ((high if shape.two_way else low) < first + (self.positions - 1)) | (window > 0)
            scores = w.change(hides, scores, lambda s: self._hide(s, first, positions, window))
            largest, totals, mixed, weights = self._soften(scores, largest, totals, mixed)
            return [there, here, *largest, *totals, *self._mix(values_here, weights, mixed)]

        n_rows_here = 2 * shape.fragments
        start = [w.real(NOTHING)] * n_rows_here + [w.real(0.0)] * n_rows_here
        zeros = [w.real(0.0)] * (shape.fragments * 2 * self.value_steps * 4)
        state = [stages, stages + shape.stage_bytes * (STAGES - 1), *start, *zeros]
        done = w.loop(begin, end, state, body, once=self.sees_any)[2:]
        greatest, totals, mixed = done[:n_rows_here], done[n_rows_here : 2 * n_rows_here], done[2 * n_rows_here :]
        totals = [self._over_quad(total, lambda a, b: a + b) for total in totals]
        if self.sinks:
            for place, (head, largest) in enumerate(zip(self._heads(first_row), greatest, strict=True)):
                sink = w.load(self.sinks + (head * 4).wide(), f32)
                totals[place] = totals[place] + w.exp2(sink * LOG2_E - largest)
        return mixed, totals, greatest

    def _share(self, begin: Value, end: Value) -> tuple[Value, Value]:
        """The tiles of a block, of those that its rows see."""
        return begin, end

    def _heads(self, first_row: Value) -> list[Value]:
        """The query heads, of the group's, that this lane's rows are of."""
        rows = range(2 * self.shape.fragments)
        return [(first_row + self.warp_row + self.group + 8 * place) % self.shape.group for place in rows]

    def _lowest(self, position: Value, window: Value) -> Value:
        """The first position that one sees."""
        if self.shape.chunked:
            return position - position % window
        seen = position if self.shape.two_way else position + 1  # so many positions without a window, up to its own
        return (window.equals(0) | (seen < window)).select(self.w.word(0), seen - window)

    def _highest(self, position: Value, window: Value) -> Value:
        """The last position that one sees."""
        if not self.shape.two_way:
            return position
        return window.equals(0).select(self.last, (position + window).min(self.last))

    def _over_quad(self, value: Value, join) -> Value:  # type: ignore[no-untyped-def]
        """Values of the four lanes that share a row, joined in each of them."""
        for distance in (1, 2):
            value = join(value, self.w.from_lane(value, distance))
        return value

    def _tanh(self, x: Value) -> Value:
        """As exact as scores of halves need."""
        return self.w.function("rcp.approx.ftz", self.w.exp2(x * (2 * LOG2_E)) + 1.0) * -2.0 + 1.0

    # ---- tiles of the cache

    def _items(self, n: int) -> Iterator[Value]:
        """This thread's share of n items; threads left over do the same again."""
        for k in range(0, n, self.shape.threads):
            item = self.thread + k
            yield item % n if k + self.shape.threads > n else item

    def _fetch_halves(self, tile: Value, high: Value, source: Value, to: Value, pad: int) -> None:
        w, pieces = self.w, pad // 8
        for item in self._items(self.positions * pieces):
            cell, piece = item // pieces, item % pieces
            valid = (high < tile * self.positions + cell).select(w.word(0), w.word(16))  # nobody has written these
            at = to + cell * (2 * pad + 16) + piece * 16
            place = self._in_cache(tile) * self.positions + cell
            w.copy(at, source + (place * (2 * pad) + piece * 16).wide(), 16, valid)

    def _fetch_codes(self, tile: Value, high: Value, source: Value, to: Value, pad: int) -> None:
        """Copy codes as they are, then their scales; zeros for positions that are not yet written."""
        w = self.w
        written = high + 1 - tile * self.positions
        for each in (pad, pad // 16):  # bytes of a position
            for item in self._items(self.positions * each // 16):
                left = written * each - item * 16
                valid = left.below(0).select(w.word(0), left).min(16)
                place = self._in_cache(tile) * (self.positions * each) + item * 16
                w.copy(to + item * 16, source + place.wide(), 16, valid)
            source, to = source + (self.cells * pad).wide(), to + self.positions * each

    def _in_cache(self, tile: Value) -> Value:
        """A tile of the sequence's, counted from where its head's cells begin."""
        return tile if self.first_tile is None else tile + self.first_tile

    def _halves(self, stage: Value) -> tuple[Value, Value]:
        """Addresses of a tile's keys and of its values as halves, converted from codes where they are quantized."""
        w, shape = self.w, self.shape
        to = self.shared + shape.rows * shape.pitch + STAGES * shape.stage_bytes
        found: list[Value] = []
        places = (stage, stage + shape.copied_bytes[0])
        sizes = zip(shape.copied_bytes, shape.tile_bytes, strict=True)
        for at, (copied, whole), pad, q in zip(places, sizes, shape.pads, shape.quantized, strict=True):
            if not copied:  # values are in the keys
                found.append(found[0])
                continue
            found.append(to if q else at)
            if q:
                self._widen(at, to, pad)
                to = to + whole
        if any(shape.quantized):
            w.barrier()
        return found[0], found[1]

    def _widen(self, codes: Value, to: Value, pad: int) -> None:
        w, pieces = self.w, pad // 8
        scales, less = codes + self.positions * pad, w.word(half2(1024 + 128))
        for item in self._items(self.positions * pieces):
            cell, piece = item // pieces, item % pieces
            place = cell * (pad // 32) + (piece >> 2)
            scale = w.twice(w.load(scales + (place >> 1) * 4) >> ((place & 1) << 4), 0)
            found = []
            for word in w.load(codes + item * 8, count=2):
                for selector in (0x4140, 0x4342):
                    pair = w.half2_sub(w.permute(word ^ 0x80808080, 0x64646464, selector), less)
                    found.append(w.half2_mul(pair, scale))
            w.store4(found, to + cell * (2 * pad + 16) + piece * 16)

    # ---- one tile

    def _scores(self, keys: Value, kept: list[list[list[Value]]]) -> list[Value]:
        """Scores of a tile: [fragment][8 positions][4]."""
        w, shape = self.w, self.shape
        scores = [w.real(0.0)] * (shape.fragments * self.columns * 4)
        cell = (self.lane >> 4) * 8 + (self.lane & 7)
        at = keys + cell * shape.pitch + (self.lane >> 3 & 1) * 16
        for step in range(self.steps):
            query = kept[step] if step < len(kept) else self._query(step)
            for pair in range(self.columns // 2):
                b = w.matrices(at + 16 * pair * shape.pitch + 32 * step)
                for k in range(2):
                    for m, a in enumerate(query):
                        place = 4 * (m * self.columns + 2 * pair + k)
                        scores[place : place + 4] = w.mma(scores[place : place + 4], a, b[2 * k : 2 * k + 2])
        return scores

    def _hide(self, scores: Sequence[Value], first: Value, positions: list[Value], window: Value) -> list[Value]:
        """Scores with NOTHING at positions that a row does not see."""
        w, found = self.w, []
        # both tests in one: how far back a position lies; one ahead is, as an unsigned number, very far
        if self.shape.chunked:
            ends = [(position, position % window + 1) for position in positions]
        elif self.shape.two_way:
            tops = [self._highest(position, window) for position in positions]
            ends = [(top, top + 1 - self._lowest(own, window)) for top, own in zip(tops, positions, strict=True)]
        else:
            reach = window.equals(0).select(w.word(0x7FFFFFFF), window)
            ends = [(position, reach) for position in positions]
        for place, score in enumerate(scores):
            m, column = divmod(place // 4, self.columns)
            position = first + (self.t << 1) + (8 * column + place % 2)
            last, reach = ends[2 * m + place % 4 // 2]
            found.append((last - position < reach).select(score, NOTHING))
        return found

    def _lower(self, scores: Sequence[Value], first: Value, positions: list[Value], slopes: list[Value]) -> list[Value]:
        """Scores less the slope times the distance."""
        w, found = self.w, []
        begin = w.float_of(first + (self.t << 1))
        back = [begin - w.float_of(position) for position in positions]
        for place, score in enumerate(scores):
            m, column = divmod(place // 4, self.columns)
            row = 2 * m + place % 4 // 2
            distance = back[row] + float(8 * column + place % 2)  # before its own below 0
            if self.shape.two_way:
                distance = w.real(0.0) - w.max(distance, w.real(0.0) - distance)
            found.append(w.fma(distance, slopes[row], score))
        return found

    def _soften(
        self, scores: list[Value], largest: list[Value], totals: list[Value], mixed: list[Value]
    ) -> tuple[list[Value], list[Value], list[Value], list[Value]]:
        """Turn scores into weights, and rescale earlier sums to the new largest score."""
        w, shape = self.w, self.shape
        largest, totals, mixed = list(largest), list(totals), list(mixed)
        weights = list(scores)
        for m in range(shape.fragments):
            for half in range(2):
                row = 2 * m + half
                mine = [4 * (m * self.columns + c) + 2 * half + k for c in range(self.columns) for k in range(2)]
                best = scores[mine[0]]
                for place in mine[1:]:
                    best = w.max(best, scores[place])
                best = w.max(self._over_quad(best, w.max), largest[row])
                shrink = w.exp2(largest[row] - best)
                total = totals[row] * shrink
                for place in mine:
                    weights[place] = w.exp2(scores[place] - best)
                    total = total + weights[place]
                largest[row], totals[row] = best, total
                for column in range(2 * self.value_steps):
                    for k in range(2):
                        place = 4 * (m * 2 * self.value_steps + column) + 2 * half + k
                        mixed[place] = mixed[place] * shrink
        return largest, totals, mixed, weights

    def _mix(self, values: Value, weights: list[Value], mixed: list[Value]) -> list[Value]:
        """The sums mixed[fragment][8 dims][4] + weights x values."""
        w, shape, mixed = self.w, self.shape, list(mixed)
        pitch = shape.value_pitch
        at = values + (self.lane & 15) * pitch + (self.lane >> 4) * 16
        for step in range(self.positions // 16):
            a = []
            for m in range(shape.fragments):
                s = weights[4 * (m * self.columns + 2 * step) : 4 * (m * self.columns + 2 * step) + 8]
                a.append([w.halves(s[k], s[k + 1]) for k in (0, 2, 4, 6)])
            for pair in range(self.value_steps):
                b = w.matrices(at + 16 * step * pitch + 32 * pair, transposed=True)
                for k in range(2):
                    for m in range(shape.fragments):
                        place = 4 * (m * 2 * self.value_steps + 2 * pair + k)
                        mixed[place : place + 4] = w.mma(mixed[place : place + 4], a[m], b[2 * k : 2 * k + 2])
        return mixed

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
        w, shape = self.w, self.shape
        for m in range(shape.fragments):
            for half in range(2):
                row = first_row + self.warp_row + self.group + (16 * m + 8 * half)
                factor = w.function("rcp.approx.ftz", totals[2 * m + half])
                line = dst + self._place(row, first_token, dst_stride, shape.value_dim) + (self.t * 8).wide()
                for column in range(2 * self.value_steps):
                    if 8 * column >= shape.value_dim:
                        continue
                    inside = row < n_rows
                    if 8 * column + 8 > shape.value_dim:
                        inside = inside & (self.t * 2 < shape.value_dim - 8 * column)
                    place = 4 * (m * 2 * self.value_steps + column) + 2 * half
                    w.store2(mixed[place] * factor, mixed[place + 1] * factor, line + 32 * column, inside)
