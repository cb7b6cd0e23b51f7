"""The inside of attention as vector code: scores, softmax and weighted values of one row tile over one part.

A row is a pair of token and query head. `scratch` holds, for `rows` rows,

    first_seen, last_seen  [rows] int32  the positions each row may see
    largest, total         [rows]        of its scores, and the sum of their exponentials under it
    values                 [rows][head_pad]
    scores                 [PART / 16][rows][16]  then their exponentials

Scores are logarithms to base two: the queries come multiplied by log2(e), which spares every exponential a product.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import CACHE_BYTES, ROW_STATE_BYTES
from ggpy.cpu.vector import LANES, Vec, f32

HIDDEN = -1e30  # the score of a position that must not be seen
VISIBLE = -5e29  # no score that counts is below
FETCH_AHEAD = 8192  # bytes of keys or of values
FETCHING_ROWS = 6


def attend_intrinsic(isa: str, cache: str, widths: tuple[int, ...]) -> Any:
    """`attend(rows, q, k, v, head_dim, head_pad, begin, end, edges, scratch)` for a cache of that type and tiles of
    `widths` rows.

    Positions begin (a multiple of SPAN) up to end, both in one part; `q` is [head_dim][rows]; k and v are where
    position 0 would be, as `ggpy.cpu.attention` lays them out. `edges`: some of these positions some row may not see, or end is no multiple
    of SPAN. Sets the largest score, sum and values in scratch.
    """

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
        edges: Any,
        scratch: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            n_args = len(args) - 1
            functions = {n: v.function(f"attend_{n}", n_args, partial(_emit, cache, n)) for n in widths}
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, u, u, i, i, i, i, i, u), codegen

    return intrinsic(attend)


def widen_intrinsic(isa: str, cache: str) -> Any:
    """`widen(dst, src, head_pad, n)`: n positions, a multiple of 16, of keys or of values of one head as float32."""

    def widen(typingctx: Any, dst: Any, src: Any, head_pad: Any, n: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            load, element = _loader(v, cache), CACHE_BYTES[cache]

            def vectors(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                dst, src = carried
                for w in range(4):
                    v.store(load(v.at(src, element * LANES * w)), v.at(dst, 4 * LANES * w))
                return [v.at(dst, 4 * 4 * LANES), v.at(src, 4 * element * LANES)]

            v.loop(b.lshr(b.mul(args[2], args[3]), v.const(6)), [args[0], args[1]], vectors)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.intp, types.intp), codegen

    return intrinsic(widen)


def _loader(v: Vec, cache: str) -> Any:
    return {"f16": v.load_f16, "f32": v.load_f32}[cache]


def _emit(cache: str, rows: int, v: Vec, args: list[ir.Value]) -> None:
    Attend(v, cache, rows, args).emit()


class Attend:
    """Emits the function for one number of rows."""

    def __init__(self, v: Vec, cache: str, rows: int, args: list[ir.Value]) -> None:
        self.v, self.b, self.rows = v, v.b, rows
        self.element = CACHE_BYTES[cache]
        self.load = _loader(v, cache)
        self.q, self.keys, self.values, self.head_dim, self.head_pad, self.begin, self.end, self.edges, scratch = args
        words = [v.at(scratch, 4 * rows * i) for i in range(4)]
        self.first_seen, self.last_seen, self.largest, self.total = words
        self.sums = v.at(scratch, ROW_STATE_BYTES * rows)
        self.scores = v.at(self.sums, v.mul(self.head_pad, 4 * rows))
        self.score_bytes = 4 * LANES * rows  # of 16 positions
        # sums that registers hold: with 32 of them 24 and what is multiplied, with 16 six that take two each
        held = 24 if v.isa == "avx512vnni" else 6
        self.blocks = {0: 1, 1: 1, 2: 2, 3: 2}.get(held // rows, 4)
        self.wide = max(1, min(4, held // rows))
        self.key_block_bytes = v.mul(self.head_dim, self.element * LANES)
        self.value_bytes = v.mul(self.head_pad, self.element)

    def emit(self) -> None:
        v, b = self.v, self.b
        n_cells = b.sub(self.end, self.begin)
        span = LANES * self.blocks
        n_spans = b.sdiv(b.add(n_cells, v.const(span - 1)), v.const(span))
        n_blocks = b.mul(n_spans, v.const(self.blocks))
        self.score(b.add(self.keys, b.mul(b.lshr(self.begin, v.const(4)), self.key_block_bytes)), n_spans)
        with b.if_then(b.icmp_signed("!=", self.edges, v.const(0))):
            self.hide(n_blocks)
        self.weigh(n_blocks)
        self.mix(b.add(self.values, b.mul(self.begin, self.value_bytes)), n_cells)

    def score(self, keys: ir.Value, n_spans: ir.Value) -> None:
        """q . k of `blocks` times 16 positions at a time.

        Blocks past the last position are read too: the cache has room for them, and they are hidden afterwards.
        """
        v, b, rows, blocks = self.v, self.b, self.rows, self.blocks

        def span(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            keys, out = carried

            def two_dims(d: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                at, q, *sums = inner
                block_at = [b.add(at, v.mul(self.key_block_bytes, n)) if n else at for n in range(blocks)]
                for a in block_at:
                    self.fetch_ahead(a, 2 * self.element * LANES)
                for d in range(2):
                    key = [self.load(v.at(a, d * self.element * LANES)) for a in block_at]
                    for m in range(rows):
                        query = v.bcast_f32(v.at(q, 4 * (d * rows + m)))
                        for n in range(blocks):
                            sums[n * rows + m] = v.fma(key[n], query, sums[n * rows + m])
                return [v.at(at, 2 * self.element * LANES), v.at(q, 2 * 4 * rows), *sums]

            zeros = [v.float(0.0)] * (rows * blocks)
            sums = v.loop(b.lshr(self.head_dim, v.const(1)), [keys, self.q, *zeros], two_dims)[2:]
            for m in range(rows):
                for n in range(blocks):
                    v.store(sums[n * rows + m], v.at(out, 4 * LANES * (n * rows + m)))
            return [b.add(keys, v.mul(self.key_block_bytes, blocks)), v.at(out, self.score_bytes * blocks)]

        v.loop(n_spans, [keys, self.scores], span)

    def fetch_ahead(self, at: ir.Value, n_bytes: int) -> None:
        """Few rows wait for memory, and what follows is not always seen by the CPU itself: across the end of a page or
        of a part it is not. Many rows find in the second-level cache what the first ones fetched."""
        if self.rows <= FETCHING_ROWS:
            for line in range(0, n_bytes, 64):
                self.v.prefetch(self.v.at(at, FETCH_AHEAD + line), level=1)

    def hide(self, n_blocks: ir.Value) -> None:
        """Replace the scores of positions that a row may not see."""
        v, b = self.v, self.b

        def row(m: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            word, scores = carried
            first = v.bcast_i32(b.add(self.first_seen, word))
            last = v.bcast_i32(b.add(self.last_seen, word))
            here = b.add(v.splat(b.trunc(self.begin, first.type.element)), v.lane_index())

            def block(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                at, where = inner
                seen = b.and_(b.icmp_signed(">=", where, first), b.icmp_signed("<=", where, last))
                v.store(b.select(seen, v.load_f32(at), v.float(HIDDEN)), at)
                return [v.at(at, self.score_bytes), b.add(where, v.int(LANES))]

            v.loop(n_blocks, [scores, here], block)
            return [v.at(word, 4), v.at(scores, 4 * LANES)]

        v.loop(v.const(self.rows), [v.const(0), self.scores], row)

    def weigh(self, n_blocks: ir.Value) -> None:
        """Each row's largest score, and its scores as exponentials under it.

        Rows side by side, so that no row's chain of maxima or sums is waited for.
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
        n_vectors = b.lshr(self.head_pad, v.const(4))
        n_wide = b.udiv(n_vectors, v.const(self.wide))
        n_rest = b.urem(n_vectors, v.const(self.wide))
        with b.if_then(b.icmp_signed(">", n_wide, v.const(0))):
            v.loop(n_wide, [self.sums, values], partial(self.dimensions, self.wide, n_cells))
        if self.wide > 1:
            with b.if_then(b.icmp_signed(">", n_rest, v.const(0))):
                done = b.mul(n_wide, v.const(self.wide))
                starts = [b.add(self.sums, v.mul(done, 4 * LANES)), b.add(values, v.mul(done, self.element * LANES))]
                v.loop(n_rest, starts, partial(self.dimensions, 1, n_cells))

    def dimensions(self, wide: int, n_cells: ir.Value, j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        v, b, rows = self.v, self.b, self.rows
        out, values = carried

        def cells(count: int, p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, weights, *sums = inner
            for c in range(count):
                self.fetch_ahead(at, wide * self.element * LANES)
                value = [self.load(v.at(at, self.element * LANES * w)) for w in range(wide)]
                for m in range(rows):
                    weight = v.bcast_f32(v.at(weights, 4 * (LANES * m + c)))
                    for w in range(wide):
                        sums[m * wide + w] = v.fma(value[w], weight, sums[m * wide + w])
                at = b.add(at, self.value_bytes)
            return [at, v.at(weights, 4 * count), *sums]

        def block(p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, _, *sums = v.loop(v.const(LANES // 4), inner, partial(cells, 4))
            return [at, v.at(inner[1], self.score_bytes), *sums]

        state = [values, self.scores, *[v.float(0.0)] * (rows * wide)]
        with b.goto_entry_block():  # what carries the sums over two loops, either of which may not run
            slots = [b.alloca(s.type) for s in state]
        for slot, s in zip(slots, state, strict=True):
            b.store(s, slot)
        for body, times in ((block, b.lshr(n_cells, v.const(4))), (partial(cells, 1), b.and_(n_cells, v.const(15)))):
            with b.if_then(b.icmp_signed(">", times, v.const(0))):
                after = v.loop(times, [b.load(slot) for slot in slots], body)
                for slot, s in zip(slots, after, strict=True):
                    b.store(s, slot)
        for m in range(rows):
            row_at = b.add(out, v.mul(self.head_pad, 4 * m))
            for w in range(wide):
                v.store(b.load(slots[2 + m * wide + w]), v.at(row_at, 4 * LANES * w))
        return [v.at(out, 4 * LANES * wide), v.at(values, self.element * LANES * wide)]
