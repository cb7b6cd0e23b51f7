"""Attention over the cache: one pass with a running softmax (arXiv 2205.14135),
query heads that share a key/value head computed together.

The cache of a layer, in half or single precision; a slot is a range of every head's cells, of any length (`starts`):

    keys    [kv head][cell / 16][head_dim][16 cells]   a vector of scores needs no sum across lanes
    values  [kv head][cell][head_dim padded to 16]

or as q8_0, int8 codes with a half-precision scale for every 32 dimensions of a cell, scales behind 16 cells:

    keys    [kv head][cell / 16]([head_dim][16 cells] codes, [head_dim / 32][16 cells] scales)
    values  [kv head][cell / 16]([16 cells][head_dim] codes, [head_dim / 32][16 cells] scales)

A latent cache has keys alone, whose first dimensions are the values, in the form of values:

    keys    [kv head][cell][head_dim padded to 16]

Its scores are sums across lanes, one for each 16 lanes of products: of 576 dimensions a tenth of the work of scores,
where values read out of the form of keys would take a quarter of theirs. With 16 heads of 576 and 512 dimensions behind
4096 positions it is as fast as keys and values apart, out of half the memory (AVX-512, one thread, f16: 1.2 ms a token,
with both 1.35; 128 tokens together 120 ms, with both 115).

A slot's position p is in its cell p, but in a layer whose tokens see a window it is in cell p % n_ctx of fewer than the
context has; as n_ctx then is a multiple of PART, the positions of a part are neighbours there too.

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

from ggpy.codegen.scalars import fetch_add, load_f32, load_i32, load_i64, store_f32, store_i32
from ggpy.cpu.isa.layout import ROW_STATE_BYTES, ROW_TILES
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.vector import LOG2_E, Vec, f32, i32
from ggpy.cpu.ops.attend import CAPPED, EDGES, SLOPED
from ggpy.graph.state import PART, SPAN

attend: Any = None  # these names are set by `specialized`
attend_wide: Any = None
dequantize_keys: Any = None
dequantize_values: Any = None
key_bytes: Any = None
value_bytes: Any = None
rows_for: Any = None
LATENT = False
WIDEST = 0
WIDE = 0
DEQUANTIZED_TILES = 2  # wide tiles that pay for a part made float32


@intrinsic
def fill_zeros(typingctx: Any, dst: Any, n16: Any) -> tuple[Signature, Any]:
    """Set 16 * n16 floats to zero."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")

        def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            v.store(v.float(0.0), c[0])
            return [v.at(c[0], 64)]

        v.loop(args[1], [args[0]], body)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp), codegen


@intrinsic
def join(typingctx: Any, state: Any, largest: Any, total: Any, values: Any, n16: Any) -> tuple[Signature, Any]:
    """Add a part (its largest score, its sum of exponentials, the address of its weighted values) to `state`, over
    heads of 16 * n16 dimensions."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")
        state, largest, total, values, n16 = args
        before = v.load(state, f32)
        now = b.select(b.fcmp_ordered(">", largest, before), largest, before)
        keep = v.exp2_negative(v.splat(b.fsub(before, now)), fused=False)
        take = v.exp2_negative(v.splat(b.fsub(largest, now)), fused=False)
        first = ir.Constant(i32, 0)
        kept = b.fmul(v.load(v.at(state, 4), f32), b.extract_element(keep, first))
        v.store(now, state)
        v.store(b.fadd(kept, b.fmul(total, b.extract_element(take, first))), v.at(state, 4))

        def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            v.store(b.fadd(b.fmul(v.load_f32(c[0]), keep), b.fmul(v.load_f32(c[1]), take)), c[0])
            return [v.at(c[0], 64), v.at(c[1], 64)]

        v.loop(n16, [v.at(state, 64), values], body)
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32, types.float32, types.uintp, types.intp), codegen


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
def clear_state(op, head, state):  # type: ignore[no-untyped-def]
    """Reset a head's state to that of attention over no position, but for the head's sink."""
    largest, total = types.float32(-1e30), types.float32(0.0)
    if op.sinks:
        largest, total = load_f32(op.sinks + types.uint64(4 * head)) * types.float32(LOG2_E), types.float32(1.0)
    store_f32(state, largest)
    store_f32(state + types.uint64(4), total)
    fill_zeros(state + types.uint64(64), op.head_pad // 16)


@njit
def finish(state, out, n_dims):  # type: ignore[no-untyped-def]
    """Divide the weighted values by the sum of weights: the head's outputs."""
    factor = types.float32(1.0) / load_f32(state + types.uint64(4))
    whole = n_dims // 16
    if whole:
        scale(out, state + types.uint64(64), factor, whole)
    for d in range(16 * whole, n_dims):
        store_f32(out + types.uint64(4 * d), load_f32(state + types.uint64(64 + 4 * d)) * factor)


@njit
def first_seen(op, position):  # type: ignore[no-untyped-def]
    """The first position that a token at `position` sees."""
    if op.chunk:
        return position // op.chunk * op.chunk
    return max(0, position - op.window + op.causal) if op.window else 0


@njit
def last_seen(op, position, end):  # type: ignore[no-untyped-def]
    """The last position that a token at `position` sees, of a sequence of `end` positions."""
    if op.causal:
        return position
    return min(end - 1, position + op.window) if op.window else end - 1


@njit
def part_cell(op, part):  # type: ignore[no-untyped-def]
    """The cell where a part of the positions begins."""
    parts = (op.n_ctx + PART - 1) // PART
    return (part - part // parts * parts) * PART


@njit
def join_parts(op, position, token, head, state, out):  # type: ignore[no-untyped-def]
    """Join the parts that a small step's attention left, for one head of one token."""
    size = 64 + 4 * op.head_pad
    base = op.src2 + types.uint64((token * op.n_head + head) * op.max_parts * size)
    first = first_seen(op, position) // PART
    clear_state(op, head, state)
    for part in range(first, position // PART + 1):
        at = base + types.uint64(part * size)
        join(state, load_f32(at), load_f32(at + types.uint64(4)), at + types.uint64(64), op.head_pad // 16)
    finish(state, out, op.v_dim)


@njit
def temperature(op, position):  # type: ignore[no-untyped-def]
    """The factor of queries at a position."""
    steps = (position + op.temperature_offset) // op.temperature_length
    return types.float32(1.0 + op.temperature * math.log(1.0 + steps))


@njit(inline="always")
def query_place(d, rows, m):  # type: ignore[no-untyped-def]
    """Where a row's query has its dimension d, in a tile for a latent cache."""
    return (d // 16 * rows + m) * 16 + d % 16


@njit
def load_queries(op, first_token, first_position, first_head, row, count, rows, latent, q_at):  # type: ignore[no-untyped-def]
    """Load the scaled queries of a row tile as [head_dim][rows], for a `latent` cache as [head_dim / 16][rows][16]; a
    tile that is not full repeats its last row."""
    group = op.n_head // op.n_head_kv
    for m in range(rows):
        r = row + min(m, count - 1)
        factor = op.scale * types.float32(LOG2_E)
        if op.temperature:
            factor *= temperature(op, first_position + r // group)
        q = op.src + types.uint64(
            (first_token + r // group) * op.src_stride + (first_head + r % group) * op.head_dim * 4
        )
        for d in range(op.head_dim):
            place = query_place(d, rows, m) if latent else d * rows + m
            store_f32(q_at + types.uint64(4 * place), load_f32(q + types.uint64(4 * d)) * factor)
        for d in range(op.head_dim, op.key_pad):
            store_f32(q_at + types.uint64(4 * query_place(d, rows, m)), types.float32(0.0))


@njit
def describe_rows(op, first_position, end, first_head, row, count, rows, working):  # type: ignore[no-untyped-def]
    """Store what each row of a tile sees, and what becomes of its scores."""
    group = op.n_head // op.n_head_kv
    for m in range(rows):
        r = row + min(m, count - 1)
        position = first_position + r // group
        store_i32(working + types.uint64(4 * m), types.int32(first_seen(op, position)))
        store_i32(working + types.uint64(4 * (rows + m)), types.int32(last_seen(op, position, end)))
        if op.softcap:
            store_f32(working + types.uint64(4 * (4 * rows + m)), op.softcap * types.float32(LOG2_E))
        if op.slopes:
            slope = load_f32(op.slopes + types.uint64(4 * (first_head + r % group)))
            store_f32(working + types.uint64(4 * (5 * rows + m)), slope * types.float32(LOG2_E))
            store_i32(working + types.uint64(4 * (6 * rows + m)), types.int32(position))


@njit
def rows_of_unit(op, n_rows, wide, nth):  # type: ignore[no-untyped-def]
    """The rows of a unit of work: ROW_TILES tiles, fewer where there would be too few units to share out."""
    return wide * max(1, min(ROW_TILES, n_rows * op.n_head_kv // (wide * 4 * nth)))


@njit
def parts_of(op, first_position, end, row, last_row):  # type: ignore[no-untyped-def]
    """The parts, first up to last, that the rows from row up to last_row see any position of."""
    group = op.n_head // op.n_head_kv
    last = last_seen(op, first_position + (last_row - 1) // group, end)
    return first_seen(op, first_position + row // group) // PART, last // PART + 1


@njit
def count_parts(op, step, wide, nth):  # type: ignore[no-untyped-def]
    """The units of work of a small step."""
    n = 0
    for s in range(step.n_segments):
        seg = step.segments + types.uint64(16 * s)
        n_rows = types.int64(load_i32(seg + types.uint64(8))) * (op.n_head // op.n_head_kv)
        first_position = types.int64(load_i32(seg + types.uint64(12)))
        unit_rows = rows_of_unit(op, n_rows, wide, nth)
        for row in range(0, n_rows, unit_rows):
            end = first_position + n_rows  # of no matter: only causal attention runs in small steps
            first, last = parts_of(op, first_position, end, row, min(n_rows, row + unit_rows))
            n += (last - first) * op.n_head_kv
    return n


def attention(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, head] = softmax(scale * q . k) v over the positions each token sees; in a small step, its parts.

    A unit of work is up to ROW_TILES row tiles of one key/value head, which read a part of the cache while it is in the
    second-level cache, converted to float32 for all of them; a thread takes the next free unit, last rows first, as
    they see most. In a small step a unit is one part alone, and a thread takes neighbours, which lie one behind the
    other in memory.
    Thread-private scratch: what `attend` works on; then each tile's queries [head_dim][rows]; then the joined state of
    each row; then a part's keys and values.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    group = op.n_head // op.n_head_kv
    state_bytes = 64 + 4 * op.head_pad
    special = (CAPPED if op.softcap else 0) | (SLOPED if op.slopes else 0)
    working = op.scratch + types.uint64(tid * op.scratch_stride)
    n_scales = (op.key_pad if LATENT else op.head_pad) // 32
    tile_bytes = (ROW_STATE_BYTES + 4 * PART + 4 * op.head_pad) * WIDE + PART * n_scales * 4
    queries = working + types.uint64(tile_bytes)
    states = queries + types.uint64(ROW_TILES * WIDE * op.key_pad * 4)
    wide_keys = states + types.uint64(ROW_TILES * WIDE * state_bytes)
    wide_values = wide_keys if LATENT else wide_keys + types.uint64(PART * op.key_pad * 4)
    value_dims = op.key_pad if LATENT else op.head_pad
    n_units = count_parts(op, step, WIDE, nth) if step.small else 0
    my_first, my_last = n_units * tid // nth, n_units * (tid + 1) // nth
    unit = 0
    shared = nth > 1 and not step.small
    mine = fetch_add(op.next, 1) if shared else 0
    for s in range(step.n_segments):
        seg = step.segments + types.uint64(16 * s)
        slot, first_token = types.int64(load_i32(seg)), types.int64(load_i32(seg + types.uint64(4)))
        n_rows = types.int64(load_i32(seg + types.uint64(8))) * group
        first_position = types.int64(load_i32(seg + types.uint64(12)))
        end = first_position + n_rows // group
        start_cell = load_i64(op.starts + types.uint64(8 * slot))
        unit_rows = rows_of_unit(op, n_rows, WIDE, nth)
        for kv_head in range(op.n_head_kv):
            first_cell = kv_head * op.head_cells + start_cell
            keys = op.cache_k + types.uint64(first_cell * key_bytes(op.key_pad))
            values = op.cache_v + types.uint64(first_cell * value_bytes(value_dims))
            for u in range((n_rows + unit_rows - 1) // unit_rows):
                row = (u if step.small else (n_rows - 1) // unit_rows - u) * unit_rows
                last_row = min(n_rows, row + unit_rows)
                first_part, last_part = parts_of(op, first_position, end, row, last_row)
                if step.small:
                    n_parts = last_part - first_part
                    last_part = first_part + min(my_last - unit, n_parts)
                    first_part += max(my_first - unit, 0)
                    unit += n_parts
                elif shared:
                    unit += 1
                    if mine != unit - 1:
                        continue
                    mine = fetch_add(op.next, 1)
                if first_part >= last_part:
                    continue
                dequantized = last_row - row >= DEQUANTIZED_TILES * WIDE
                tile = WIDE if dequantized else WIDEST
                for t in range(row, last_row, tile):
                    count = min(tile, last_row - t)
                    at = queries + types.uint64((t - row) * op.key_pad * 4)
                    rows, head = rows_for(count), kv_head * group
                    load_queries(op, first_token, first_position, head, t, count, rows, LATENT, at)
                for r in range(row, last_row):
                    clear_state(op, kv_head * group + r % group, states + types.uint64((r - row) * state_bytes))
                for part in range(first_part, last_part):
                    cell = part_cell(op, part)
                    if dequantized:
                        n = min(PART, (end + SPAN - 1) // SPAN * SPAN - part * PART)
                        k = keys + types.uint64(cell * key_bytes(op.key_pad))
                        v = values + types.uint64(cell * value_bytes(value_dims))
                        if not LATENT:
                            dequantize_keys(wide_keys, k, op.key_pad, n)
                        dequantize_values(wide_values, v, value_dims, n)
                    for t in range(row, last_row, tile):
                        count = min(tile, last_row - t)
                        rows = rows_for(count)
                        first, last = first_position + t // group, first_position + (t + count - 1) // group
                        start = max(part * PART, first_seen(op, first) // SPAN * SPAN)
                        stop = min((part + 1) * PART, last_seen(op, last, end) + 1)
                        if start >= stop:
                            continue
                        edges = start < first_seen(op, last) or stop > last_seen(op, first, end) + 1
                        what = special | (EDGES if edges or (stop - start) % SPAN != 0 else 0)
                        describe_rows(op, first_position, end, kv_head * group, t, count, rows, working)
                        at = queries + types.uint64((t - row) * op.key_pad * 4)
                        apart = cell - part * PART
                        if dequantized and rows == WIDE:
                            k = wide_keys - types.uint64(part * PART * op.key_pad * 4)
                            v = wide_values - types.uint64(part * PART * value_dims * 4)
                            attend_wide(rows, at, k, v, op.key_pad, op.head_pad, start, stop, what, working)
                        else:
                            k = keys + types.uint64(apart * key_bytes(op.key_pad))
                            v = values + types.uint64(apart * value_bytes(value_dims))
                            attend(rows, at, k, v, op.key_pad, op.head_pad, start, stop, what, working)
                        for m in range(count):
                            r = t + m
                            largest = load_f32(working + types.uint64(4 * (2 * rows + m)))
                            total = load_f32(working + types.uint64(4 * (3 * rows + m)))
                            mixed = working + types.uint64(ROW_STATE_BYTES * rows + 4 * m * op.head_pad)
                            if step.small:  # joined later, with the other parts
                                token, head = first_token + r // group, kv_head * group + r % group
                                place = ((token * op.n_head + head) * op.max_parts + part) * state_bytes
                                state = op.src2 + types.uint64(place)
                                store_f32(state, largest)
                                store_f32(state + types.uint64(4), total)
                                scale(state + types.uint64(64), mixed, types.float32(1.0), op.head_pad // 16)
                            else:
                                state = states + types.uint64((r - row) * state_bytes)
                                join(state, largest, total, mixed, op.head_pad // 16)
                if not step.small:
                    for r in range(row, last_row):
                        token, head = first_token + r // group, kv_head * group + r % group
                        to = op.dst + types.uint64(token * op.dst_stride + head * op.v_dim * 4)
                        finish(states + types.uint64((r - row) * state_bytes), to, op.v_dim)
