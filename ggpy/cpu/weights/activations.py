"""Activations as the matrix product reads them: RMS norm of float32 rows, then int8 blocks
or plain floats, laid out in tiles (see `ggpy.cpu.ops.tiles`).

In a small step every thread prepares all rows for itself: redundant work of a microsecond is cheaper than meeting at a
barrier. In a large one the rows are shared out.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_i32
from ggpy.cpu.isa.layout import GROUP_WORDS, SUM_STARTS, TOKEN_BLOCK_BYTES
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.vector import LANES, VI, Vec, f32, i8, i32
from ggpy.quant.packed import BLOCK


def sum_squares_intrinsic(isa: str) -> Any:
    """`sum_squares(row, n)`: the sum of squares of n floats; the padding to 16 is read, but not counted."""

    def sum_squares(typingctx: Any, row: Any, n: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            row, n = args

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                x = v.first_lanes(v.load_f32(c[0]), b.sub(n, v.mul(i, LANES)))
                return [v.at(c[0], 64), v.fma(x, x, c[1])]

            n_vectors = b.lshr(b.add(n, v.const(LANES - 1)), v.const(4))
            return v.sum_lanes(v.loop(n_vectors, [row, v.float(0.0)], body)[1])

        return types.float32(types.uintp, types.intp), codegen

    return intrinsic(sum_squares)


def quantize_row_intrinsic(isa: str, n_planes: int) -> Any:
    """`quantize_row(row, weight, factor, n_blocks, dst, width, lane)`: row * factor
    * weight as int8 blocks, as token `lane` of a tile; with two planes (`layout.planes`), the rounding error as the
    next token."""

    def quantize_row(
        typingctx: Any, row: Any, weight: Any, factor: Any, n: Any, dst: Any, width: Any, lane: Any
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            row, weight, factor, n, dst, width, lane = args
            v = Vec(b, isa)
            times = v.splat(factor)
            group_step = v.mul(width, 4)
            block_step = v.mul(width, TOKEN_BLOCK_BYTES)
            lane_at = v.mul(lane, 4)

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                row, weight, dst = c
                halves = [
                    b.fmul(b.fmul(v.load_f32(v.at(row, 64 * h)), times), v.load_f32(v.at(weight, 64 * h)))
                    for h in range(2)
                ]
                for plane in range(n_planes):
                    halves = block(halves, v.at(v.at(dst, lane_at), 4 * plane))
                return [v.at(row, 128), v.at(weight, 128), b.add(dst, block_step)]

            def block(halves: list[ir.Value], at: ir.Value) -> list[ir.Value]:
                """Store 32 columns, and return their rounding errors."""
                largest = v.max_lanes(v.maximum(v.abs(halves[0]), v.abs(halves[1])))
                scale = b.fdiv(largest, ir.Constant(f32, 127.0))
                positive = b.fcmp_ordered(">", scale, ir.Constant(f32, 1e-38))
                inverse = v.splat(b.select(positive, b.fdiv(ir.Constant(f32, 127.0), largest), ir.Constant(f32, 0.0)))
                sums, left = [], []
                for h in range(2):
                    whole = v.round(b.fmul(halves[h], inverse))
                    left.append(v.fma(whole, b.fneg(v.splat(scale)), halves[h]))
                    codes = b.fptosi(whole, VI)
                    sums.append(v.sum_lanes_int(codes))
                    packed = b.bitcast(b.trunc(codes, ir.VectorType(i8, 16)), ir.VectorType(i32, 4))
                    for g in range(4):
                        v.store(b.extract_element(packed, ir.Constant(i32, g)), at)
                        at = b.add(at, group_step)
                total = b.add(sums[0], sums[1])
                v.store(scale, at)
                at = b.add(at, group_step)
                v.store(b.fmul(scale, b.sitofp(total, f32)), at)
                for offset, part in SUM_STARTS:
                    at = b.add(at, group_step)
                    v.store(b.mul((total, *sums)[part], ir.Constant(i32, -offset)), at)
                return left

            v.loop(n, [row, weight, dst], body)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, u, types.float32, i, u, i, i), codegen

    return intrinsic(quantize_row)


def scale_row_intrinsic(isa: str) -> Any:
    """`scale_row(row, weight, factor, n, dst, width, lane)`: n columns of row * factor * weight as floats, as token
    `lane` of a tile, 8 columns at a time: zeros after the last one."""

    def scale_row(
        typingctx: Any, row: Any, weight: Any, factor: Any, n: Any, dst: Any, width: Any, lane: Any
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            row, weight, factor, n, dst, width, lane = args
            v = Vec(b, isa, 8)
            column_step = v.mul(width, 4)
            times = v.splat(factor)

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                row, weight, at = c
                x = b.fmul(b.fmul(v.load_f32(row), times), v.load_f32(weight))
                x = v.first_lanes(x, b.sub(n, v.mul(i, 8)))
                for k in range(8):
                    v.store(b.extract_element(x, ir.Constant(i32, k)), at)
                    at = b.add(at, column_step)
                return [v.at(row, 32), v.at(weight, 32), at]

            n_eights = b.lshr(b.add(n, v.const(7)), v.const(3))
            v.loop(n_eights, [row, weight, v.at(dst, v.mul(lane, 4))], body)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, u, types.float32, i, u, i, i), codegen

    return intrinsic(scale_row)


PER_STEP = BLOCK  # columns that `write_row` counts by; these names are set by `specialized`
sum_squares: Any = None
write_row: Any = None
join_parts: Any = None
widest_tile: Any = None
WIDEST = 0
PLANES = 1


def quantize_activations(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """Write rows of src, RMS-normalised unless `eps` is negative, times `weight`, into the activation tiles at dst.
    Rows for chosen experts (`pairs`) form tiles expert by expert."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)
    dst = op.dst
    first, last = n * tid // nth, n * (tid + 1) // nth
    if step.small:
        dst += types.uint64(tid * op.private_stride)
        first, last = 0, n
    for i in range(first, last):
        token, group, count = i, 0, n  # the row of src, and the rows that stand together: first of them, their number
        if op.select:
            token = types.int64(load_i32(step.outputs + types.uint64(4 * i)))
        if op.pairs:
            pair = op.pairs + types.uint64(4 * GROUP_WORDS * i)
            if op.spread:
                token = types.int64(load_i32(pair))
            group, count = types.int64(load_i32(pair + types.uint64(4))), types.int64(load_i32(pair + types.uint64(8)))
        row = op.src + types.uint64(token * op.src_stride)
        if op.combine and step.small:
            state = op.scratch + types.uint64(tid * op.scratch_stride)
            row = state + types.uint64(64 + 4 * op.head_pad)
            position = types.int64(load_i32(step.positions + types.uint64(4 * token)))
            for head in range(op.n_head):
                join_parts(op, position, token, head, state, row + types.uint64(head * op.v_dim * 4))
        factor = types.float32(1.0)
        if op.eps >= types.float32(0.0):
            mean = sum_squares(row, op.n_cols) / types.float32(op.n_cols)
            factor = types.float32(1.0) / types.float32(math.sqrt(mean + op.eps))
        place, places = (i - group) * PLANES, count * PLANES
        start = place // WIDEST * WIDEST
        width = widest_tile(places - start)
        while place >= start + width:
            start += width
            width = widest_tile(places - start)
        tile = dst + types.uint64((group * PLANES + start) * op.token_bytes)
        write_row(row, op.weight, factor, op.n_cols // PER_STEP, tile, width, place - start)
