"""Attention over the cache: one pass with a running softmax (arXiv 2205.14135),
query heads that share a key/value head computed together.

The cache of a layer, in half or single precision, each slot contiguous:

    keys    [slot][kv head][position / 16][head_dim][16 positions]   a vector of scores needs no sum across lanes
    values  [slot][kv head][position][head_dim padded to 16]

A unit of work is one row tile (up to 8 pairs of token and query head that read the same key/value head), over all its
positions or, in a small step, over one part of PART of them. Either way the parts are summed apart and joined in order
by the same code, so that a token's result depends neither on the batch it came in nor on the number of threads.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import CACHE_BYTES, CHUNK, PART, ROW_WIDTHS
from ggpy.cpu.memory import load_f32, load_i32, store_f32, store_i32
from ggpy.cpu.records import as_op, as_step
from ggpy.cpu.vector import LANES, Vec, f32, i32

HIDDEN = -1e30  # the score of a position that must not be seen


def attend_intrinsic(isa: str, cache: str) -> Any:
    """`attend(rows, q, k, v, head_dim, head_pad, begin, end, scratch)`; see `attention` for the layout of scratch.

    Positions begin (a multiple of 16) up to end; `q` is [head_dim][rows]. Updates the running maximum, sum and values
    in scratch.
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
            functions = {
                n: v.function(f"attend_{n}", len(args) - 1, partial(_emit_rows, cache, n)) for n in ROW_WIDTHS[isa]
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, u, u, i, i, i, i, u), codegen

    return intrinsic(attend)


def _emit_rows(cache: str, rows: int, v: Vec, args: list[ir.Value]) -> None:
    element, load = CACHE_BYTES[cache], {"f16": v.load_f16, "f32": v.load_f32}[cache]
    q, k, vals, head_dim, head_pad, begin, end, scratch = args
    b = v.b
    first_seen, last_seen, largest_at, total_at = (v.at(scratch, 4 * rows * i) for i in range(4))
    scores_at = v.at(scratch, 16 * rows)
    values_at = v.at(scores_at, 4 * rows * CHUNK)
    key_block_bytes = v.mul(head_dim, element * LANES)
    value_bytes = v.mul(head_pad, element)
    n_chunks = b.sdiv(b.add(b.sub(end, begin), v.const(CHUNK - 1)), v.const(CHUNK))

    def chunk(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        start, k_at = carried
        left = b.sub(end, start)
        n_cells = b.select(b.icmp_signed("<", left, v.const(CHUNK)), left, v.const(CHUNK))
        n_blocks = b.lshr(b.add(n_cells, v.const(LANES - 1)), v.const(4))

        # scores of 16 positions at a time, hidden ones replaced, and the chunk's largest
        def score_block(j: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            k_at, out, position, *largest = c

            def dims(d: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                k_at, q_at, *sums = inner
                keys = load(k_at)
                sums = [v.fma(keys, v.bcast_f32(v.at(q_at, 4 * m)), s) for m, s in enumerate(sums)]
                return [v.at(k_at, element * LANES), v.at(q_at, 4 * rows), *sums]

            k_next, _, *sums = v.loop(head_dim, [k_at, q, *[v.float(0.0)] * rows], dims)
            where = b.add(v.splat(b.trunc(position, i32)), v.lane_index())
            for m in range(rows):
                early = b.icmp_signed(">=", where, v.bcast_i32(v.at(first_seen, 4 * m)))
                late = b.icmp_signed("<=", where, v.bcast_i32(v.at(last_seen, 4 * m)))
                score = b.select(b.and_(early, late), sums[m], v.float(HIDDEN))
                v.store(score, v.at(out, 4 * CHUNK * m))
                largest[m] = v.maximum(largest[m], score)
            return [k_next, v.at(out, 4 * LANES), v.at(position, LANES), *largest]

        _, _, _, *largest = v.loop(n_blocks, [k_at, scores_at, start, *[v.float(HIDDEN)] * rows], score_block)

        # the running maximum moves, and with it what was summed before
        shrink = []
        for m in range(rows):
            before = v.load(v.at(largest_at, 4 * m), f32)
            chunk_max = v.max_lanes(largest[m])
            now = b.select(b.fcmp_ordered(">", chunk_max, before), chunk_max, before)
            v.store(now, v.at(largest_at, 4 * m))
            shift = v.splat(now)

            def weigh(j: ir.Value, c: list[ir.Value], shift: ir.Value = shift) -> list[ir.Value]:
                at, total = c
                score = v.load_f32(at)
                weight = b.select(
                    b.fcmp_ordered(">", score, v.float(HIDDEN / 2)), v.exp(b.fsub(score, shift)), v.float(0.0)
                )
                v.store(weight, at)
                return [v.at(at, 4 * LANES), b.fadd(total, weight)]

            total = v.loop(n_blocks, [v.at(scores_at, 4 * CHUNK * m), v.float(0.0)], weigh)[1]
            shrink.append(v.exp(b.fsub(v.splat(before), shift)))
            old = b.fmul(v.load(v.at(total_at, 4 * m), f32), b.extract_element(shrink[m], ir.Constant(i32, 0)))
            v.store(b.fadd(old, v.sum_lanes(total)), v.at(total_at, 4 * m))

        # values, weighted: `wide` vectors of dimensions at a time, the rest one by one
        def dimensions(wide: int) -> Any:
            def body(j: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                out, v_at = c
                held = []
                for m in range(rows):
                    row_at = b.add(out, v.mul(head_pad, 4 * m))
                    held += [b.fmul(v.load_f32(v.at(row_at, 64 * w)), shrink[m]) for w in range(wide)]

                def cells(p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                    at, weight_at, *sums = inner
                    values = [load(v.at(at, element * LANES * w)) for w in range(wide)]
                    for m in range(rows):
                        weight = v.bcast_f32(v.at(weight_at, 4 * CHUNK * m))
                        for w in range(wide):
                            sums[m * wide + w] = v.fma(values[w], weight, sums[m * wide + w])
                    return [b.add(at, value_bytes), v.at(weight_at, 4), *sums]

                _, _, *sums = v.loop(n_cells, [v_at, scores_at, *held], cells)
                for m in range(rows):
                    row_at = b.add(out, v.mul(head_pad, 4 * m))
                    for w in range(wide):
                        v.store(sums[m * wide + w], v.at(row_at, 64 * w))
                return [v.at(out, 64 * wide), v.at(v_at, element * LANES * wide)]

            return body

        first_value = b.add(vals, b.mul(start, value_bytes))
        wide = max(1, min(4, (16 if v.isa == "avx512vnni" else 8) // rows))
        n_vectors = b.lshr(head_pad, v.const(4))
        n_wide = b.sdiv(n_vectors, v.const(wide))
        n_rest = b.srem(n_vectors, v.const(wide))
        if wide == 1:
            v.loop(n_vectors, [values_at, first_value], dimensions(1))
        else:
            with b.if_then(b.icmp_signed(">", n_wide, v.const(0))):
                v.loop(n_wide, [values_at, first_value], dimensions(wide))
            with b.if_then(b.icmp_signed(">", n_rest, v.const(0))):
                done = b.mul(n_wide, v.const(wide))
                v.loop(
                    n_rest,
                    [b.add(values_at, v.mul(done, 64)), b.add(first_value, v.mul(done, element * LANES))],
                    dimensions(1),
                )
        return [v.at(start, CHUNK), b.add(k_at, v.mul(key_block_bytes, CHUNK // LANES))]

    first_key = b.add(k, b.mul(b.lshr(begin, v.const(4)), key_block_bytes))
    v.loop(n_chunks, [begin, first_key], chunk)


attend: Any = None  # these names are set by `specialized`
WIDEST = 0
ELEMENT = 2


@njit
def clear_state(state, n):  # type: ignore[no-untyped-def]
    """The attention over no position, for a head of n dimensions."""
    store_f32(state, types.float32(-1e30))
    store_f32(state + types.uint64(4), types.float32(0.0))
    for d in range(n):
        store_f32(state + types.uint64(64 + 4 * d), types.float32(0.0))


@njit
def join(state, largest, total, values, n):  # type: ignore[no-untyped-def]
    """Add a part (its largest score, its sum of exponentials, the address of its n weighted values) to `state`."""
    before = load_f32(state)
    now = max(before, largest)
    keep, take = types.float32(math.exp(before - now)), types.float32(math.exp(largest - now))
    store_f32(state, now)
    store_f32(state + types.uint64(4), load_f32(state + types.uint64(4)) * keep + total * take)
    for d in range(n):
        at = state + types.uint64(64 + 4 * d)
        store_f32(at, load_f32(at) * keep + load_f32(values + types.uint64(4 * d)) * take)


@njit
def finish(state, out, n):  # type: ignore[no-untyped-def]
    """Weighted values over the sum of weights: the head's n outputs."""
    total = load_f32(state + types.uint64(4))
    for d in range(n):
        store_f32(out + types.uint64(4 * d), load_f32(state + types.uint64(64 + 4 * d)) / total)


@njit
def join_parts(op, position, token, head, state, out):  # type: ignore[no-untyped-def]
    """One head of one token from the parts that a small step's attention left."""
    size = 64 + 4 * op.head_pad
    base = op.src2 + types.uint64((token * op.n_head + head) * op.max_parts * size)
    first = max(0, position - op.window + 1) // PART if op.window else 0
    clear_state(state, op.head_dim)
    for part in range(first, position // PART + 1):
        at = base + types.uint64(part * size)
        join(state, load_f32(at), load_f32(at + types.uint64(4)), at + types.uint64(64), op.head_dim)
    finish(state, out, op.head_dim)


@njit
def load_queries(op, first_token, first_head, row, count, rows, q_at):  # type: ignore[no-untyped-def]
    """The scaled queries of a row tile as [head_dim][rows]; a tile that is not full repeats its last row."""
    group = op.n_head // op.n_head_kv
    for m in range(rows):
        r = row + min(m, count - 1)
        q = op.src + types.uint64(
            (first_token + r // group) * op.src_stride + (first_head + r % group) * op.head_dim * 4
        )
        for d in range(op.head_dim):
            store_f32(q_at + types.uint64(4 * (d * rows + m)), load_f32(q + types.uint64(4 * d)) * op.scale)


@njit
def begin_part(op, first_position, row, count, rows, working):  # type: ignore[no-untyped-def]
    """What each row may see, and the attention over nothing yet. Returns where the weighted values are."""
    group = op.n_head // op.n_head_kv
    for m in range(rows):
        position = first_position + (row + min(m, count - 1)) // group
        seen = max(0, position - op.window + 1) if op.window else 0
        store_i32(working + types.uint64(4 * m), types.int32(seen))
        store_i32(working + types.uint64(4 * (rows + m)), types.int32(position))
        store_f32(working + types.uint64(4 * (2 * rows + m)), types.float32(-1e30))
        store_f32(working + types.uint64(4 * (3 * rows + m)), types.float32(0.0))
    values = working + types.uint64(16 * rows + 4 * rows * CHUNK)
    for d in range(rows * op.head_pad):
        store_f32(values + types.uint64(4 * d), types.float32(0.0))
    return values


def attention(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, head] = softmax(q . k / sqrt(head_dim)) v over the positions each token sees; in a small step, its
    parts.

    Thread-private scratch: q [head_dim][rows]; then first_seen, last_seen (int32), largest score and sum [rows] each,
    scores [rows][CHUNK], values [rows][head_pad]; then the joined state of each row.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    group = op.n_head // op.n_head_kv
    size = 64 + 4 * op.head_pad
    unit = 0
    q_at = op.scratch + types.uint64(tid * op.scratch_stride)
    working = q_at + types.uint64((WIDEST * op.head_dim * 4 + 63) // 64 * 64)
    joined = working + types.uint64(16 * WIDEST + 4 * WIDEST * CHUNK + 4 * WIDEST * op.head_pad)
    for s in range(step.n_segments):
        seg = step.segments + types.uint64(16 * s)
        slot, first_token = types.int64(load_i32(seg)), types.int64(load_i32(seg + types.uint64(4)))
        n_rows = types.int64(load_i32(seg + types.uint64(8))) * group
        first_position = types.int64(load_i32(seg + types.uint64(12)))
        for kv_head in range(op.n_head_kv):
            slot_head = slot * op.n_head_kv + kv_head
            keys = op.cache_k + types.uint64(slot_head * op.n_ctx * op.head_dim * ELEMENT)
            values = op.cache_v + types.uint64(slot_head * op.n_ctx * op.head_pad * ELEMENT)
            for row in range(0, n_rows, WIDEST):
                count = min(WIDEST, n_rows - row)
                rows = WIDEST
                while rows >= 2 * count:
                    rows >>= 1
                begin = first_position + row // group
                begin = max(0, begin - op.window + 1) // CHUNK * CHUNK if op.window else 0
                end = first_position + (row + count - 1) // group + 1
                n_parts = (end + PART - 1) // PART - begin // PART
                for piece in range(n_parts if step.small else 1):
                    mine = unit % nth == tid
                    unit += 1
                    if not mine:
                        continue
                    first_part = begin // PART + piece
                    last_part = first_part + (1 if step.small else n_parts)
                    load_queries(op, first_token, kv_head * group, row, count, rows, q_at)
                    for m in range(count):
                        clear_state(joined + types.uint64(m * size), op.head_dim)
                    for part in range(first_part, last_part):
                        mixed = begin_part(op, first_position, row, count, rows, working)
                        start, stop = max(begin, part * PART), min(end, (part + 1) * PART)
                        attend(rows, q_at, keys, values, op.head_dim, op.head_pad, start, stop, working)
                        for m in range(count):
                            state = joined + types.uint64(m * size)
                            if step.small:  # joined later, with the other parts
                                token, head = first_token + (row + m) // group, kv_head * group + (row + m) % group
                                state = op.src2 + types.uint64(
                                    ((token * op.n_head + head) * op.max_parts + part) * size
                                )
                                clear_state(state, op.head_dim)
                            largest = load_f32(working + types.uint64(4 * (2 * rows + m)))
                            total = load_f32(working + types.uint64(4 * (3 * rows + m)))
                            join(state, largest, total, mixed + types.uint64(4 * m * op.head_pad), op.head_dim)
                    if not step.small:
                        for m in range(count):
                            token, head = first_token + (row + m) // group, kv_head * group + (row + m) % group
                            to = op.dst + types.uint64(token * op.dst_stride + head * op.head_dim * 4)
                            finish(joined + types.uint64(m * size), to, op.head_dim)
