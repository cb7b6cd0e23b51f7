"""The inside of attention as vector code: scores, softmax and weighted values of one row tile over one part.

A row is a pair of token and query head. `scratch` holds, for `rows` rows,

    first_seen, last_seen  [rows] int32   the positions each row may see
    largest, total         [rows]         running maximum of its scores, and the sum of their exponentials under it
    shrink                 [rows]         what the last move of the maximum did to earlier sums
    maxima                 [rows][16]     of the chunk at hand
    scores                 [rows][CHUNK]  of the chunk at hand, then their exponentials
    values                 [rows][head_pad]
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import CACHE_BYTES, CHUNK, ROW_STATE_BYTES, ROW_WIDTHS
from ggpy.cpu.vector import LANES, Vec, f32, i32

HIDDEN = -1e30  # the score of a position that must not be seen


def attend_intrinsic(isa: str, cache: str) -> Any:
    """`attend(rows, q, k, v, head_dim, head_pad, begin, end, scratch)` for a cache of that type.

    Positions begin (a multiple of CHUNK) up to end; `q` is [head_dim][rows]; k and v are the slot's, as
    `ggpy.cpu.attention` lays them out. Updates the running maximum, sum and values in scratch.
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
        scratch: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            n_args = len(args) - 1
            functions = {n: v.function(f"attend_{n}", n_args, partial(_emit, cache, n)) for n in ROW_WIDTHS[isa]}
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, u, u, i, i, i, i, u), codegen

    return intrinsic(attend)


def _emit(cache: str, rows: int, v: Vec, args: list[ir.Value]) -> None:
    Attend(v, cache, rows, args).emit()


class Attend:
    """Emits the function for one number of rows."""

    def __init__(self, v: Vec, cache: str, rows: int, args: list[ir.Value]) -> None:
        self.v, self.b, self.rows = v, v.b, rows
        self.element = CACHE_BYTES[cache]
        self.load = {"f16": v.load_f16, "f32": v.load_f32}[cache]
        self.q, self.keys, self.values, self.head_dim, self.head_pad, self.begin, self.end, scratch = args
        words = [v.at(scratch, 4 * rows * i) for i in range(5)]
        self.first_seen, self.last_seen, self.largest, self.total, self.shrink = words
        self.maxima = v.at(scratch, 32 * rows)
        self.scores = v.at(scratch, ROW_STATE_BYTES * rows)
        self.sums = v.at(self.scores, 4 * CHUNK * rows)
        # with 32 registers, two blocks of positions share each broadcast query, two or more vectors each weight
        self.blocks = 2 if v.isa == "avx512vnni" else 1
        self.wide = max(1, min(4, {"avx512vnni": 16, "neon": 4}.get(v.isa, 8) // rows))
        self.key_block_bytes = v.mul(self.head_dim, self.element * LANES)
        self.value_bytes = v.mul(self.head_pad, self.element)

    def emit(self) -> None:
        v, b = self.v, self.b
        n_chunks = b.sdiv(b.add(b.sub(self.end, self.begin), v.const(CHUNK - 1)), v.const(CHUNK))
        first_key = b.add(self.keys, b.mul(b.lshr(self.begin, v.const(4)), self.key_block_bytes))

        def chunk(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            start, keys = carried
            left = b.sub(self.end, start)
            n_cells = b.select(b.icmp_signed("<", left, v.const(CHUNK)), left, v.const(CHUNK))
            span = LANES * self.blocks
            n_spans = b.sdiv(b.add(n_cells, v.const(span - 1)), v.const(span))
            self.score(start, keys, n_spans)
            self.weigh(b.mul(n_spans, v.const(self.blocks)))
            self.mix(b.add(self.values, b.mul(start, self.value_bytes)), n_cells)
            return [v.at(start, CHUNK), b.add(keys, v.mul(self.key_block_bytes, CHUNK // LANES))]

        v.loop(n_chunks, [self.begin, first_key], chunk)

    def score(self, start: ir.Value, keys: ir.Value, n_spans: ir.Value) -> None:
        """q . k of 16 or 32 positions at a time, hidden ones replaced, and each row's largest in `maxima`.

        Blocks past the last position are read too: the cache has room for them, and they are hidden.
        """
        v, b, rows, blocks = self.v, self.b, self.rows, self.blocks

        def span(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            keys, out, position, *largest = carried

            def two_dims(d: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                at, q, *sums = inner
                for d in range(2):
                    block_at = [b.add(at, v.mul(self.key_block_bytes, n)) if n else at for n in range(blocks)]
                    key = [self.load(v.at(a, d * self.element * LANES)) for a in block_at]
                    for m in range(rows):
                        query = v.bcast_f32(v.at(q, 4 * (d * rows + m)))
                        for n in range(blocks):
                            sums[n * rows + m] = v.fma(key[n], query, sums[n * rows + m])
                return [v.at(at, 2 * self.element * LANES), v.at(q, 2 * 4 * rows), *sums]

            zeros = [v.float(0.0)] * (rows * blocks)
            sums = v.loop(b.lshr(self.head_dim, v.const(1)), [keys, self.q, *zeros], two_dims)[2:]
            for n in range(blocks):
                where = b.add(v.splat(b.trunc(position, i32)), b.add(v.lane_index(), v.int(LANES * n)))
                for m in range(rows):
                    early = b.icmp_signed(">=", where, v.bcast_i32(v.at(self.first_seen, 4 * m)))
                    late = b.icmp_signed("<=", where, v.bcast_i32(v.at(self.last_seen, 4 * m)))
                    score = b.select(b.and_(early, late), sums[n * rows + m], v.float(HIDDEN))
                    v.store(score, v.at(out, 4 * (CHUNK * m + LANES * n)))
                    largest[m] = v.maximum(largest[m], score)
            following = b.add(keys, v.mul(self.key_block_bytes, blocks))
            return [following, v.at(out, 4 * LANES * blocks), v.at(position, LANES * blocks), *largest]

        largest = v.loop(n_spans, [keys, self.scores, start, *[v.float(HIDDEN)] * rows], span)[3:]
        for m in range(rows):
            v.store(largest[m], v.at(self.maxima, 4 * LANES * m))

    def weigh(self, n_blocks: ir.Value) -> None:
        """Move the running maximum, and turn scores into exponentials under it."""
        v, b = self.v, self.b

        def row(m: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            word, maxima, scores = carried

            def of(base: ir.Value) -> ir.Value:
                return b.add(base, word)

            before = v.load(of(self.largest), f32)
            largest = v.max_lanes(v.load_f32(maxima))
            now = b.select(b.fcmp_ordered(">", largest, before), largest, before)
            v.store(now, of(self.largest))
            shift = v.splat(now)

            def block(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                at, total = inner
                score = v.load_f32(at)
                seen = b.fcmp_ordered(">", score, v.float(HIDDEN / 2))
                weight = b.select(seen, v.exp(b.fsub(score, shift)), v.float(0.0))
                v.store(weight, at)
                return [v.at(at, 4 * LANES), b.fadd(total, weight)]

            total = v.sum_lanes(v.loop(n_blocks, [scores, v.float(0.0)], block)[1])
            shrink = b.extract_element(v.exp(b.fsub(v.splat(before), shift)), ir.Constant(i32, 0))
            v.store(shrink, of(self.shrink))
            v.store(b.fadd(b.fmul(v.load(of(self.total), f32), shrink), total), of(self.total))
            return [v.at(word, 4), v.at(maxima, 4 * LANES), v.at(scores, 4 * CHUNK)]

        v.loop(v.const(self.rows), [v.const(0), self.maxima, self.scores], row)

    def mix(self, values: ir.Value, n_cells: ir.Value) -> None:
        """values [row] = values [row] * shrink + weights . v, `wide` vectors of dimensions at a time, the rest one by
        one."""
        v, b = self.v, self.b
        n_vectors = b.lshr(self.head_pad, v.const(4))
        n_wide = b.sdiv(n_vectors, v.const(self.wide))
        n_rest = b.srem(n_vectors, v.const(self.wide))
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
        row_at = [b.add(out, v.mul(self.head_pad, 4 * m)) for m in range(rows)]
        held = []
        for m in range(rows):
            shrink = v.bcast_f32(v.at(self.shrink, 4 * m))
            held += [b.fmul(v.load_f32(v.at(row_at[m], 4 * LANES * w)), shrink) for w in range(wide)]

        def cells(count: int, p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, weights, *sums = inner
            for c in range(count):
                value = [self.load(v.at(at, self.element * LANES * w)) for w in range(wide)]
                for m in range(rows):
                    weight = v.bcast_f32(v.at(weights, 4 * (CHUNK * m + c)))
                    for w in range(wide):
                        sums[m * wide + w] = v.fma(value[w], weight, sums[m * wide + w])
                at = b.add(at, self.value_bytes)
            return [at, v.at(weights, 4 * count), *sums]

        state = [values, self.scores, *held]
        with b.goto_entry_block():  # what carries the sums over two loops, either of which may not run
            slots = [b.alloca(s.type) for s in state]
        for slot, s in zip(slots, state, strict=True):
            b.store(s, slot)
        for count, times in ((4, b.lshr(n_cells, v.const(2))), (1, b.and_(n_cells, v.const(3)))):
            with b.if_then(b.icmp_signed(">", times, v.const(0))):
                after = v.loop(times, [b.load(slot) for slot in slots], partial(cells, count))
                for slot, s in zip(slots, after, strict=True):
                    b.store(s, slot)
        for m in range(rows):
            for w in range(wide):
                v.store(b.load(slots[2 + m * wide + w]), v.at(row_at[m], 4 * LANES * w))
        return [v.at(out, 4 * LANES * wide), v.at(values, self.element * LANES * wide)]
