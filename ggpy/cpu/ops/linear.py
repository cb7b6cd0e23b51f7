"""Matrix products: activations of all tokens times the stripes of a weight, tile by tile (`ggpy.cpu.ops.tiles`); and
those of chosen experts, each with the rows that chose it, or of heads, each with its own columns."""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types

from ggpy.codegen.scalars import fetch_add, load_i32
from ggpy.cpu.isa.layout import (
    FROM_BIAS,
    FROM_BOTH,
    FROM_DST,
    GROUP_WORDS,
    TILE_STRIPES,
    TOKEN_BLOCK_BYTES,
    planes,
    tile_widths,
)
from ggpy.cpu.isa.records import as_op, as_step, stripes_of
from ggpy.cpu.ops import plain
from ggpy.cpu.ops.tiles import tile_intrinsic
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import BLOCK

# Activations walked at a time, so that they stay in the second-level cache while weights stream by; of them, and of a
# stripe, so many columns that the stripe's stay in the first-level cache while tiles of tokens stream by.
CHUNK_BYTES = 384 * 1024
CHUNK_COLS = 512
UNITS_A_THREAD = 8  # of work that threads take in turn

multiply: Any = None  # these names are set by `specialized`
WIDEST = 0
PLANES = 1


def linear(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, row] (+)= weight[row] . x[token] + bias[row].

    In a small step each thread takes a run of stripes, in a large one the next few that nobody has taken yet: threads
    are not equally fast, because of other programs or cores of two kinds, and the slowest would keep all waiting.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = PLANES * (step.n_outputs if op.outputs_only else step.n_tokens)
    first, last = stripes_of(tid, nth, op.n_stripes)
    x = op.src
    if step.small:
        x += types.uint64(tid * op.private_stride)
    whole = WIDEST * PLANES
    chunk = max(whole, CHUNK_BYTES // op.token_bytes // whole * whole)
    n_units = (n + chunk - 1) // chunk
    size = op.n_stripes
    shared = op.next and nth > 1 and not step.small
    if shared:
        size = 2 * max(1, op.n_stripes // (2 * UNITS_A_THREAD * nth))
    by_stripes = (op.n_stripes + size - 1) // size
    n_units *= by_stripes
    unit = 0
    while True:
        if shared:
            unit = fetch_add(op.next, 1)
            first = unit % by_stripes * size
            last = min(op.n_stripes, first + size)
        if unit >= n_units:
            break
        start = unit // by_stripes * chunk
        unit += 1
        multiply(op, op.weight, op.bias, x, op.dst, first, last, start, min(n, start + chunk), n, 0)


def expert_linear(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[row] (+)= weight[expert] . x[row] + bias[expert], for rows that stand by their expert: only the weights of
    experts that some token chose are read. Threads share the work as in `linear`."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    x = op.src
    if step.small:
        x += types.uint64(tid * op.private_stride)
    chunk = max(WIDEST, CHUNK_BYTES // op.token_bytes // WIDEST * WIDEST)
    n_groups = types.int64(load_i32(op.groups))
    size = op.n_stripes
    shared = op.next and nth > 1 and not step.small
    if shared:
        units = max(1, UNITS_A_THREAD * nth // max(1, n_groups))
        size = 2 * max(1, op.n_stripes // (2 * units))
    by_stripes = (op.n_stripes + size - 1) // size
    unit = 0
    while True:
        if shared:
            unit = fetch_add(op.next, 1)
            first = unit % by_stripes * size
            last = min(op.n_stripes, first + size)
        if unit >= n_groups * by_stripes:
            break
        group = op.groups + types.uint64(4 * GROUP_WORDS * (1 + unit // by_stripes))
        unit += 1
        expert = types.int64(load_i32(group))
        row, n = types.int64(load_i32(group + types.uint64(4))), types.int64(load_i32(group + types.uint64(8)))
        weight = op.weight + types.uint64(expert * op.expert_bytes)
        bias = op.bias + types.uint64(expert * op.bias_stride)
        own, dst = x + types.uint64(row * op.token_bytes), op.dst + types.uint64(row * op.dst_stride)
        for start in range(0, n, chunk):
            multiply(op, weight, bias, own, dst, first, last, start, min(n, start + chunk), n, 0)


def head_linear(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, head, row] (+)= weight[head, row] . x[token, head]: each head's columns times its own matrix. Threads
    share the heads as they do stripes in `linear`."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = PLANES * (step.n_outputs if op.outputs_only else step.n_tokens)
    x = op.src
    if step.small:
        x += types.uint64(tid * op.private_stride)
    whole = WIDEST * PLANES
    chunk = max(whole, CHUNK_BYTES // op.token_bytes // whole * whole)
    by_heads = op.n_head
    n_units = by_heads * ((n + chunk - 1) // chunk)
    shared = op.next and nth > 1 and not step.small
    unit, last = n_units * tid // nth, n_units * (tid + 1) // nth
    if shared:
        last = n_units
        unit = fetch_add(op.next, 1)
    while unit < last:
        head, start = unit % by_heads, unit // by_heads * chunk
        weight = op.weight + types.uint64(head * op.expert_bytes)
        dst = op.dst + types.uint64(head * op.n_stripes * 64)
        multiply(op, weight, op.bias, x, dst, 0, op.n_stripes, start, min(n, start + chunk), n, head * op.n_cols)
        unit = fetch_add(op.next, 1) if shared else unit + 1


def multiply_function(tile: Any, tier: str, form: str, chunk_weight: int) -> Any:
    """`multiply(op, weight, bias, x, dst, first, last, start, end, n, begin)`: the stripes first .. last of a weight
    times the columns from `begin` (a multiple of 32) on of the rows start .. end of n. chunk_weight: bytes of
    CHUNK_COLS columns of a stripe; 0 where columns are not taken in chunks."""
    widest_tile, widest, n_planes = widest_tile_function(tier, form), tile_widths(tier, form == "f32")[0], planes(form)
    stripes, block_bytes = TILE_STRIPES[tier], 4 * BLOCK if form == "f32" else TOKEN_BLOCK_BYTES

    @njit(inline="always")
    def multiply(op, weight, bias, x, dst, first, last, start, end, n, begin):  # type: ignore[no-untyped-def]
        columns = op.n_cols
        if chunk_weight and n > widest:  # few tokens read every weight once: a chunk would only break the stream
            columns = min(columns, CHUNK_COLS)
        for s in range(first, last, stripes):
            apart = op.stripe_bytes if s + 1 < last else 0
            ahead = stripes * op.stripe_bytes
            for c in range(0, op.n_cols, columns):
                t = start
                while t < end:
                    width = widest_tile(end - t)
                    tile(
                        width,
                        weight + types.uint64(s * op.stripe_bytes + c // columns * chunk_weight),
                        apart,
                        ahead if t == start else 0,
                        x + types.uint64(t * op.token_bytes + (begin + c) // BLOCK * width * block_bytes),
                        min(columns, op.n_cols - c),
                        bias + types.uint64(s * 64),
                        dst + types.uint64(t // n_planes * op.dst_stride + s * 64),
                        op.dst_stride,
                        FROM_DST if c or t % n_planes else FROM_BOTH if op.accumulate else FROM_BIAS,
                    )
                    t += width

    return multiply


def widest_tile_function(tier: str, form: str) -> Any:
    """`widest_tile(n)`: the widest tile that n tokens fill."""
    widths = tile_widths(tier, form == "f32")

    @njit(inline="always")
    def widest_tile(n):  # type: ignore[no-untyped-def]
        width = 1
        for w in widths:
            if w <= n:
                width = max(width, w)
        return width

    return widest_tile


def build(body: Any, tier: str, variant: str) -> tuple[Any, dict[str, Any]]:
    """Build a matrix product. variant: a format, followed by a dot and the form of activations where that is q16."""
    format_name, _, form = variant.partition(".")
    packed = PACKED[format_name]
    form = "f32" if packed.is_float else form or "q8"
    tile = plain.tile_function(packed) if tier == "plain" else tile_intrinsic(packed, tier, planes(form))
    # planes are added when all columns are: in chunks they would be added in another order
    chunk = packed.stripe_bytes(CHUNK_COLS) if form == "q8" and tier != "plain" else 0
    names = {"multiply": multiply_function(tile, tier, form, chunk), "WIDEST": tile_widths(tier, form == "f32")[0]}
    return body, {**names, "PLANES": planes(form)}
