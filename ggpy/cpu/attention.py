"""Attention over the cache: one pass with a running softmax (arXiv 2205.14135),
query heads that share a key/value head computed together.

The cache of a layer, in half or single precision, each slot contiguous:

    keys    [slot][kv head][position / 16][head_dim][16 positions]   a vector of scores needs no sum across lanes
    values  [slot][kv head][position][head_dim padded to 16]

Every PART positions are summed apart and joined in order, by the same code whether one thread takes all parts of a row
or, in a small step, each part is work of its own: a token's result depends neither on its batch nor on the number of
threads.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import CHUNK, PART, ROW_STATE_BYTES, ROW_TILES
from ggpy.cpu.memory import load_f32, load_i32, store_f32, store_i32
from ggpy.cpu.records import as_op, as_step
from ggpy.cpu.vector import Vec

attend: Any = None  # these names are set by `specialized`
rows_for: Any = None
WIDEST = 0
ELEMENT = 2


@intrinsic
def fill_zeros(typingctx: Any, dst: Any, n16: Any) -> tuple[Signature, Any]:
    """Sets 16 * n16 floats."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")

        def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            v.store(v.float(0.0), c[0])
            return [v.at(c[0], 64)]

        v.loop(args[1], [args[0]], body)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp), codegen


@intrinsic
def blend(typingctx: Any, dst: Any, keep: Any, src: Any, take: Any, n16: Any) -> tuple[Signature, Any]:
    """dst = dst * keep + src * take, over 16 * n16 floats."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")
        keep, take = v.splat(args[1]), v.splat(args[3])

        def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            kept, taken = b.fmul(v.load_f32(c[0]), keep), b.fmul(v.load_f32(c[1]), take)
            v.store(b.fadd(kept, taken), c[0])
            return [v.at(c[0], 64), v.at(c[1], 64)]

        v.loop(args[4], [args[0], args[2]], body)
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32, types.uintp, types.float32, types.intp), codegen


@intrinsic
def scale(typingctx: Any, dst: Any, src: Any, factor: Any, n16: Any) -> tuple[Signature, Any]:
    """dst = src * factor, over 16 * n16 floats."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")
        factor = v.splat(args[2])

        def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            v.store(b.fmul(v.load_f32(c[1]), factor), c[0])
            return [v.at(c[0], 64), v.at(c[1], 64)]

        v.loop(args[3], [args[0], args[1]], body)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.float32, types.intp), codegen


@njit
def clear_state(state, head_pad):  # type: ignore[no-untyped-def]
    """The attention over no position, for a head of so many dimensions."""
    store_f32(state, types.float32(-1e30))
    store_f32(state + types.uint64(4), types.float32(0.0))
    fill_zeros(state + types.uint64(64), head_pad // 16)


@njit
def join(state, largest, total, values, head_pad):  # type: ignore[no-untyped-def]
    """Add a part (its largest score, its sum of exponentials, the address of its weighted values) to `state`."""
    before = load_f32(state)
    now = max(before, largest)
    keep, take = types.float32(math.exp(before - now)), types.float32(math.exp(largest - now))
    store_f32(state, now)
    store_f32(state + types.uint64(4), load_f32(state + types.uint64(4)) * keep + total * take)
    blend(state + types.uint64(64), keep, values, take, head_pad // 16)


@njit
def finish(state, out, head_dim):  # type: ignore[no-untyped-def]
    """Weighted values over the sum of weights: the head's outputs."""
    factor = types.float32(1.0) / load_f32(state + types.uint64(4))
    whole = head_dim // 16
    if whole:
        scale(out, state + types.uint64(64), factor, whole)
    for d in range(16 * whole, head_dim):
        store_f32(out + types.uint64(4 * d), load_f32(state + types.uint64(64 + 4 * d)) * factor)


@njit
def join_parts(op, position, token, head, state, out):  # type: ignore[no-untyped-def]
    """One head of one token from the parts that a small step's attention left."""
    size = 64 + 4 * op.head_pad
    base = op.src2 + types.uint64((token * op.n_head + head) * op.max_parts * size)
    first = max(0, position - op.window + 1) // PART if op.window else 0
    clear_state(state, op.head_pad)
    for part in range(first, position // PART + 1):
        at = base + types.uint64(part * size)
        join(state, load_f32(at), load_f32(at + types.uint64(4)), at + types.uint64(64), op.head_pad)
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
    values = working + types.uint64((ROW_STATE_BYTES + 4 * CHUNK) * rows)
    fill_zeros(values, rows * op.head_pad // 16)
    return values


@njit
def first_seen_chunk(op, position):  # type: ignore[no-untyped-def]
    """The first position that a token at `position` sees, rounded down to a whole chunk."""
    return max(0, position - op.window + 1) // CHUNK * CHUNK if op.window else 0


def attention(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, head] = softmax(q . k / sqrt(head_dim)) v over the positions each token sees; in a small step, its
    parts.

    A unit of work is up to ROW_TILES row tiles of one key/value head, which meet a part of the cache while it is in the
    second-level cache; in a small step it is one part alone. Thread-private scratch: what `attend` works on; then each
    tile's queries [head_dim][rows]; then the joined state of each row.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    group = op.n_head // op.n_head_kv
    state_bytes = 64 + 4 * op.head_pad
    tile_bytes = WIDEST * op.head_dim * 4
    working = op.scratch + types.uint64(tid * op.scratch_stride)
    queries = working + types.uint64((ROW_STATE_BYTES + 4 * CHUNK + 4 * op.head_pad) * WIDEST)
    states = queries + types.uint64(ROW_TILES * tile_bytes)
    unit = 0
    for s in range(step.n_segments):
        seg = step.segments + types.uint64(16 * s)
        slot, first_token = types.int64(load_i32(seg)), types.int64(load_i32(seg + types.uint64(4)))
        n_rows = types.int64(load_i32(seg + types.uint64(8))) * group
        first_position = types.int64(load_i32(seg + types.uint64(12)))
        # fewer tiles a unit where there would be too few units to share out
        tiles = max(1, min(ROW_TILES, n_rows * op.n_head_kv // (WIDEST * 4 * nth)))
        for kv_head in range(op.n_head_kv):
            slot_head = slot * op.n_head_kv + kv_head
            keys = op.cache_k + types.uint64(slot_head * op.n_ctx * op.head_dim * ELEMENT)
            values = op.cache_v + types.uint64(slot_head * op.n_ctx * op.head_pad * ELEMENT)
            for row in range(0, n_rows, WIDEST * tiles):
                last_row = min(n_rows, row + WIDEST * tiles)
                begin = first_seen_chunk(op, first_position + row // group)
                end = first_position + (last_row - 1) // group + 1
                n_parts = (end + PART - 1) // PART - begin // PART
                for piece in range(n_parts if step.small else 1):
                    mine = unit % nth == tid
                    unit += 1
                    if not mine:
                        continue
                    first_part = begin // PART + piece
                    last_part = first_part + (1 if step.small else n_parts)
                    for t in range(row, last_row, WIDEST):
                        count = min(WIDEST, last_row - t)
                        at = queries + types.uint64((t - row) // WIDEST * tile_bytes)
                        load_queries(op, first_token, kv_head * group, t, count, rows_for(count), at)
                    for r in range(row, last_row):
                        clear_state(states + types.uint64((r - row) * state_bytes), op.head_pad)
                    for part in range(first_part, last_part):
                        for t in range(row, last_row, WIDEST):
                            count = min(WIDEST, last_row - t)
                            rows = rows_for(count)
                            start = max(part * PART, first_seen_chunk(op, first_position + t // group))
                            stop = min((part + 1) * PART, first_position + (t + count - 1) // group + 1)
                            if start >= stop:
                                continue
                            mixed = begin_part(op, first_position, t, count, rows, working)
                            at = queries + types.uint64((t - row) // WIDEST * tile_bytes)
                            attend(rows, at, keys, values, op.head_dim, op.head_pad, start, stop, working)
                            for m in range(count):
                                r = t + m
                                state = states + types.uint64((r - row) * state_bytes)
                                if step.small:  # joined later, with the other parts
                                    token, head = first_token + r // group, kv_head * group + r % group
                                    place = ((token * op.n_head + head) * op.max_parts + part) * state_bytes
                                    state = op.src2 + types.uint64(place)
                                    clear_state(state, op.head_pad)
                                largest = load_f32(working + types.uint64(4 * (2 * rows + m)))
                                total = load_f32(working + types.uint64(4 * (3 * rows + m)))
                                join(state, largest, total, mixed + types.uint64(4 * m * op.head_pad), op.head_pad)
                    if not step.small:
                        for r in range(row, last_row):
                            token, head = first_token + r // group, kv_head * group + r % group
                            to = op.dst + types.uint64(token * op.dst_stride + head * op.head_dim * 4)
                            finish(states + types.uint64((r - row) * state_bytes), to, op.head_dim)
