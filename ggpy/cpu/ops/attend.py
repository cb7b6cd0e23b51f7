"""The inside of attention as vector code: scores, softmax and weighted values of one row tile over one part.

A row is a pair of token and query head. `scratch` holds, for `rows` rows,

    first_seen, last_seen  [rows] int32  the positions each row may see
    largest, total         [rows]        of its scores, and the sum of their exponentials under it
    cap, slope             [rows]        of scores (`special` says whether there are any), in logarithms to base two
    position               [rows] int32  the row's own
    values                 [rows][head_pad]
    scores                 [PART / 16][rows][16]  then their exponentials
    scales                 [PART / 16][head_pad / 32][16]  of a q8_0 cache's values

Scores are logarithms to base two: the queries come multiplied by log2(e), which saves a multiplication in every
exponential.

What it costs with AVX-512 on two 512-bit ports, in cycles for 16 positions of 64 dimensions:

    12 rows, float32   limit 64 a row: a multiply-add for each score and one for each value, two a cycle. The inner
                       loops take just that from the first-level cache (half precision took 80: a conversion is worth
                       three operations). Reached 95: exponentials are 9, the rest waits for the second level.
    3 rows, f16        the ports allow 410, exponentials included; but 4 KB are 1,020 where memory gives a core 10 GB/s.
                       Reached 600 out of the last-level cache, 1,130 to 1,300 out of memory: its bandwidth remains.
    3 rows, q8_0       the ports allow 410 (extend, convert, scale, three products), memory 540. Reached 750 out of the
                       last-level cache, 1,090 out of memory: there the latency of both streams remains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.layout import ROW_STATE_BYTES, cell_bytes
from ggpy.cpu.isa.vector import LANES, Vec, i32
from ggpy.graph.state import PART
from ggpy.quant.packed import BLOCK

HIDDEN = -1e30  # the score of a position that must not be seen
VISIBLE = -5e29  # no score that counts is below
EDGES, CAPPED, SLOPED = 1, 2, 4  # bits of `special`: positions to hide, a softcap, ALiBi
FETCH_AHEAD = 8192  # bytes of keys or of values
FETCHING_ROWS = 6

Change = Callable[[ir.Value, ir.Value], ir.Value]  # of 16 scores, given the positions that they are of


def attend_intrinsic(isa: str, cache_k: str, cache_v: str, widths: tuple[int, ...], kind: type[Attend]) -> Any:
    """`attend(rows, q, k, v, head_dim, head_pad, begin, end, special, scratch)` for a cache of those types and tiles of
    `widths` rows.

    Positions begin (a multiple of SPAN) up to end, both in one part; `q` is [head_dim][rows]; k and v are where
    position 0 would be, as `ggpy.cpu.ops.attention` lays them out. `special`: EDGES where some row may not see some of
    these positions, or end is no multiple of SPAN, and what else is to be done with scores. Sets the largest score, sum
    and values in scratch."""

    def attend(
        typingctx: Any,
        rows: Any,
        q: Any,
        k: Any,
        v: Any,
        head_dim: Any,
        head_pad: Any,
        begin: Any,
        end: Any,
        special: Any,
        scratch: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            n_args = len(args) - 1
            functions = {
                n: v.function(f"attend_{n}", n_args, partial(_emit, kind, cache_k, cache_v, n)) for n in widths
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, u, u, i, i, i, i, i, u), codegen

    return intrinsic(attend)


def _emit(kind: type[Attend], cache_k: str, cache_v: str, rows: int, v: Vec, args: list[ir.Value]) -> None:
    kind(v, cache_k, cache_v, rows, args).emit()


class Cells:
    """Reader of keys or values of a type, 16 elements at a time. A q8_0 code must still be multiplied by its scale, and
    is then exact in float32: all ways to read a cache give the same numbers."""

    def __init__(self, v: Vec, cache: str, n_dims: ir.Value) -> None:
        self.v, self.scaled = v, cache == "q8_0"
        self.element = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}[cache]
        self.load = {"f32": v.load_f32, "f16": v.load_f16, "bf16": v.load_bf16, "q8_0": v.load_s8}[cache]
        self.row_bytes = v.mul(n_dims, self.element)  # of one position without scales
        self.codes_bytes = v.mul(n_dims, LANES * self.element)  # of 16 positions without scales
        self.n_scales = v.b.lshr(n_dims, v.const(5))
        self.block_bytes = v.b.lshr(v.mul(n_dims, LANES * cell_bytes(cache, BLOCK)), v.const(5))  # of 16 positions

    def blocks_at(self, start: ir.Value, position: ir.Value) -> ir.Value:
        """The address of a position that is a multiple of 16."""
        return self.v.b.add(start, self.v.b.mul(self.v.b.lshr(position, self.v.const(4)), self.block_bytes))


class Attend:
    """Emitter of the function for one number of rows."""

    def __init__(self, v: Vec, cache_k: str, cache_v: str, rows: int, args: list[ir.Value]) -> None:
        self.v, self.b, self.rows = v, v.b, rows
        self.q, self.keys, self.values, self.head_dim, self.head_pad, self.begin, self.end, self.special, scratch = args
        self.k, self.v_cells = Cells(v, cache_k, self.head_dim), Cells(v, cache_v, self.head_pad)
        words = [v.at(scratch, 4 * rows * i) for i in range(7)]
        self.first_seen, self.last_seen, self.largest, self.total, self.cap, self.slope, self.position = words
        self.sums = v.at(scratch, ROW_STATE_BYTES * rows)
        self.scores = v.at(self.sums, v.mul(self.head_pad, 4 * rows))
        self.scales = v.at(self.scores, 4 * PART * rows)
        self.score_bytes = 4 * LANES * rows  # of 16 positions
        # sums that registers hold beside what is multiplied: one each of 32, two each of 16, four each of NEON's 32
        held = self.held = {"avx512vnni": 24, "neon": 4}.get(v.isa, 6)
        self.blocks = {0: 1, 1: 1, 2: 2, 3: 2}.get(held // rows, 4)
        # a power of two: the two vectors that share a scale of a q8_0 cache then meet in one tile, or are alone
        self.wide = 1 << (max(1, min(4, held // rows)).bit_length() - 1)

    def emit(self) -> None:
        v, b = self.v, self.b
        n_cells = b.sub(self.end, self.begin)
        span = LANES * self.blocks
        n_spans = b.sdiv(b.add(n_cells, v.const(span - 1)), v.const(span))
        n_blocks = b.mul(n_spans, v.const(self.blocks))
        self.score(self.k.blocks_at(self.keys, self.begin), n_spans)
        with b.if_then(b.icmp_signed("!=", self.special, v.const(0))):
            for bit, change in ((CAPPED, self.capped), (SLOPED, self.sloped), (EDGES, self.hidden)):
                with b.if_then(b.icmp_signed("!=", b.and_(self.special, v.const(bit)), v.const(0))):
                    self.change(n_blocks, change)
        self.weigh(n_blocks)
        self.mix(self.v_cells.blocks_at(self.values, self.begin), n_cells)

    def score(self, keys: ir.Value, n_spans: ir.Value) -> None:
        """Scores q . k, of `blocks` times 16 positions at a time.

        Blocks past the last position are read too: the cache has room for them, and they are masked afterwards.
        """
        v, b, k, rows, blocks = self.v, self.b, self.k, self.rows, self.blocks
        block_at = [v.mul(k.block_bytes, n) for n in range(blocks)]
        n_dims = max(2, 64 // (LANES * k.element))  # a pass takes: whole cache lines

        def dims(scales: list[ir.Value], i: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, q, *sums = inner
            for n in range(blocks):
                self.fetch_ahead(b.add(at, block_at[n]), n_dims * k.element * LANES)
            for d in range(n_dims):
                key = [k.load(v.at(b.add(at, block_at[n]), d * k.element * LANES)) for n in range(blocks)]
                if scales:
                    key = [b.fmul(code, scale) for code, scale in zip(key, scales, strict=True)]
                for m in range(rows):
                    query = v.bcast_f32(v.at(q, 4 * (d * rows + m)))
                    for n in range(blocks):
                        sums[n * rows + m] = v.fma(key[n], query, sums[n * rows + m])
            return [v.at(at, n_dims * k.element * LANES), v.at(q, n_dims * 4 * rows), *sums]

        def scaled_dims(i: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            scale_at, *others = inner
            scales = [v.load_f16(b.add(scale_at, block_at[n])) for n in range(blocks)]
            return [v.at(scale_at, 2 * LANES), *v.loop(v.const(BLOCK // n_dims), others, partial(dims, scales))]

        def span(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            keys, out = carried
            begin = [keys, self.q, *[v.float(0.0)] * (rows * blocks)]
            if k.scaled:
                sums = v.loop(k.n_scales, [b.add(keys, k.codes_bytes), *begin], scaled_dims)[3:]
            else:
                sums = v.loop(b.lshr(self.head_dim, v.const(1)), begin, partial(dims, []))[2:]
            for m in range(rows):
                for n in range(blocks):
                    v.store(sums[n * rows + m], v.at(out, 4 * LANES * (n * rows + m)))
            return [b.add(keys, v.mul(k.block_bytes, blocks)), v.at(out, self.score_bytes * blocks)]

        v.loop(n_spans, [keys, self.scores], span)

    def fetch_ahead(self, at: ir.Value, n_bytes: int) -> None:
        """Prefetch what follows where few rows wait for memory: the CPU does not do so across the end of a page or of a
        part. Many rows find in the second-level cache what the first ones fetched."""
        if self.rows <= FETCHING_ROWS:
            for line in range(0, n_bytes, 64):
                self.v.prefetch(self.v.at(at, FETCH_AHEAD + line), level=1)

    def change(self, n_blocks: ir.Value, make: Callable[[ir.Value], Change]) -> None:
        """Replace the scores of each row: `make` gives, for the place of a row's words, what becomes of 16 scores and
        the positions that they are of."""
        v, b = self.v, self.b

        def row(m: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            word, scores = carried
            new = make(word)
            here = b.add(v.splat(b.trunc(self.begin, i32)), v.lane_index())

            def block(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                at, where = inner
                v.store(new(v.load_f32(at), where), at)
                return [v.at(at, self.score_bytes), b.add(where, v.int(LANES))]

            v.loop(n_blocks, [scores, here], block)
            return [v.at(word, 4), v.at(scores, 4 * LANES)]

        v.loop(v.const(self.rows), [v.const(0), self.scores], row)

    def hidden(self, word: ir.Value) -> Change:
        """Scores without those of positions that the row may not see."""
        v, b = self.v, self.b
        first, last = (v.bcast_i32(b.add(at, word)) for at in (self.first_seen, self.last_seen))

        def new(score: ir.Value, where: ir.Value) -> ir.Value:
            seen = b.and_(b.icmp_signed(">=", where, first), b.icmp_signed("<=", where, last))
            return b.select(seen, score, v.float(HIDDEN))

        return new

    def capped(self, word: ir.Value) -> Change:
        """Scores as cap * tanh(score / cap)."""
        v, b = self.v, self.b
        cap = v.bcast_f32(b.add(self.cap, word))
        return lambda score, where: b.fmul(cap, v.tanh(b.fdiv(score, cap)))

    def sloped(self, word: ir.Value) -> Change:
        """Scores less the slope times the distance."""
        v, b = self.v, self.b
        slope, own = v.bcast_f32(b.add(self.slope, word)), v.bcast_i32(b.add(self.position, word))

        def new(score: ir.Value, where: ir.Value) -> ir.Value:
            distance = v.abs(b.sitofp(b.sub(where, own), v.vf))
            return b.fsub(score, b.fmul(slope, distance))

        return new

    def weigh(self, n_blocks: ir.Value) -> None:
        """Each row's largest score, and its scores as exponentials under it.

        Rows are processed side by side, so that nothing waits for one row's chain of maxima or sums.
        """
        v, b, rows = self.v, self.b, self.rows

        def larger(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, *found = inner
            found = [v.maximum(x, v.load_f32(v.at(at, 4 * LANES * m))) for m, x in enumerate(found)]
            return [v.at(at, self.score_bytes), *found]

        # a row that sees nothing here must not take the hidden score for its largest
        largest = v.loop(n_blocks, [self.scores, *[v.float(VISIBLE)] * rows], larger)[1:]
        for m in range(rows):
            v.store(v.max_lanes(largest[m]), v.at(self.largest, 4 * m))
        for first in range(0, rows, 4):
            together = range(first, min(first + 4, rows))

            def weights(j: ir.Value, inner: list[ir.Value], together: range = together) -> list[ir.Value]:
                at, *totals = inner
                for i, m in enumerate(together):
                    here = v.at(at, 4 * LANES * m)
                    weight = v.exp2_negative(b.fsub(v.load_f32(here), v.bcast_f32(v.at(self.largest, 4 * m))))
                    v.store(weight, here)
                    totals[i] = b.fadd(totals[i], weight)
                return [v.at(at, self.score_bytes), *totals]

            totals = v.loop(n_blocks, [self.scores, *[v.float(0.0)] * len(together)], weights)[1:]
            for m, total in zip(together, totals, strict=True):
                v.store(v.sum_lanes(total), v.at(self.total, 4 * m))

    def mix(self, values: ir.Value, n_cells: ir.Value) -> None:
        """values [row] = weights . v, `wide` vectors of dimensions at a time, the rest one by one."""
        v, b = self.v, self.b
        if self.v_cells.scaled:
            self.unpack_scales(values, n_cells)
        n_vectors = b.lshr(self.head_pad, v.const(4))
        n_wide = b.udiv(n_vectors, v.const(self.wide))
        n_rest = b.urem(n_vectors, v.const(self.wide))
        vector_bytes = self.v_cells.element * LANES
        with b.if_then(b.icmp_signed(">", n_wide, v.const(0))):
            v.loop(n_wide, [self.sums, values], partial(self.dimensions, self.wide, v.const(0), n_cells))
        if self.wide > 1:
            with b.if_then(b.icmp_signed(">", n_rest, v.const(0))):
                done = b.mul(n_wide, v.const(self.wide))
                starts = [b.add(self.sums, v.mul(done, 4 * LANES)), b.add(values, v.mul(done, vector_bytes))]
                v.loop(n_rest, starts, partial(self.dimensions, 1, done, n_cells))

    def unpack_scales(self, values: ir.Value, n_cells: ir.Value) -> None:
        """The values' scales as float32, so that one can be a multiplication's operand in memory."""
        v, b, cells = self.v, self.b, self.v_cells

        def block(p: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            at, out = carried

            def some(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                v.store(v.load_f16(inner[0]), inner[1])
                return [v.at(inner[0], 2 * LANES), v.at(inner[1], 4 * LANES)]

            out = v.loop(cells.n_scales, [b.add(at, cells.codes_bytes), out], some)[1]
            return [b.add(at, cells.block_bytes), out]

        v.loop(b.lshr(b.add(n_cells, v.const(LANES - 1)), v.const(4)), [values, self.scales], block)

    def dimensions(
        self, wide: int, done: ir.Value, n_cells: ir.Value, j: ir.Value, carried: list[ir.Value]
    ) -> list[ir.Value]:
        v, b, cells, rows = self.v, self.b, self.v_cells, self.rows
        out, values = carried
        vector = b.add(done, v.mul(j, wide))

        def some(count: int, p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, weights, scales, *sums = inner
            for c in range(count):
                self.fetch_ahead(at, wide * cells.element * LANES)
                value = [cells.load(v.at(at, cells.element * LANES * w)) for w in range(wide)]
                if cells.scaled:  # two vectors have one
                    scale = [v.bcast_f32(v.at(scales, 4 * (LANES * i + c))) for i in range((wide + 1) // 2)]
                    value = [b.fmul(code, scale[w // 2]) for w, code in enumerate(value)]
                for m in range(rows):
                    weight = v.bcast_f32(v.at(weights, 4 * (LANES * m + c)))
                    for w in range(wide):
                        sums[m * wide + w] = v.fma(value[w], weight, sums[m * wide + w])
                at = b.add(at, cells.row_bytes)
            return [at, v.at(weights, 4 * count), v.at(scales, 4 * count), *sums]

        def block(p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, weights, scales, *_ = inner
            sums = v.loop(v.const(LANES // 4), inner, partial(some, 4))[3:]
            following = [b.add(at, cells.block_bytes), v.at(weights, self.score_bytes)]
            return [*following, b.add(scales, v.mul(cells.n_scales, 4 * LANES)), *sums]

        scales = v.at(self.scales, v.mul(b.lshr(vector, v.const(1)), 4 * LANES))
        state = [values, self.scores, scales, *[v.float(0.0)] * (rows * wide)]
        with b.goto_entry_block():  # what carries the sums over two loops, either of which may not run
            slots = [b.alloca(s.type) for s in state]
        for slot, s in zip(slots, state, strict=True):
            b.store(s, slot)
        for body, times in ((block, b.lshr(n_cells, v.const(4))), (partial(some, 1), b.and_(n_cells, v.const(15)))):
            with b.if_then(b.icmp_signed(">", times, v.const(0))):
                after = v.loop(times, [b.load(slot) for slot in slots], body)
                for slot, s in zip(slots, after, strict=True):
                    b.store(s, slot)
        for m in range(rows):
            row_at = b.add(out, v.mul(self.head_pad, 4 * m))
            for w in range(wide):
                v.store(b.load(slots[3 + m * wide + w]), v.at(row_at, 4 * LANES * w))
        return [v.at(out, 4 * LANES * wide), v.at(values, cells.element * LANES * wide)]
