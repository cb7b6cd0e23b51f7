"""Norms of rows, or of runs of their columns, as operations of their own; norms by the root mean square that only
products read are fused with quantization."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, store_f32
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.vector import LANES, Vec

mean_of: Any = None  # these names are set by `specialized`
squares_about: Any = None
normalize_row: Any = None
IS_LAYER = False
IS_L2 = False


def norm(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = (src - mean) / sqrt(variance + eps) * weight + bias, a run of columns at a time; without the mean where it
    is no layer norm, and by the sum of squares where it is the vector's length that matters."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * op.n_groups * (step.n_outputs if op.outputs_only else step.n_tokens)
    for item in range(n * tid // nth, n * (tid + 1) // nth):
        row, group = item // op.n_groups, item % op.n_groups
        at = types.uint64(4 * group * op.n_cols)
        src = op.src + types.uint64(row * op.src_stride) + at
        shift = mean_of(src, op.n_cols) if IS_LAYER else types.float32(0.0)
        total = squares_about(src, shift, op.n_cols)
        if not IS_L2:
            total /= types.float32(op.n_cols)
        factor = types.float32(1.0) / types.float32(math.sqrt(total + op.eps))
        own = types.uint64(group * op.weight_stride)
        dst = op.dst + types.uint64(row * op.dst_stride) + at
        if op.n_cols >= 16:
            normalize_row(src, shift, factor, op.weight + own, op.bias + own, dst, op.n_cols // 16)
        for c in range(op.n_cols // 16 * 16, op.n_cols):
            place = types.uint64(4 * c)
            x = (load_f32(src + place) - shift) * factor * load_f32(op.weight + own + place)
            store_f32(dst + place, x + load_f32(op.bias + own + place))


def _sum_intrinsic(isa: str, squares: bool) -> Any:
    """`sum_about(row, shift, n)`: the sum of n floats less `shift`, or of their squares; the padding to 16 is read, but
    not counted."""

    def sum_about(typingctx: Any, row: Any, shift: Any, n: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            row, shift, n = args
            away = v.splat(shift)

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                x = v.first_lanes(b.fsub(v.load_f32(c[0]), away), b.sub(n, v.mul(i, LANES)))
                return [v.at(c[0], 64), v.fma(x, x, c[1]) if squares else b.fadd(x, c[1])]

            n_vectors = b.lshr(b.add(n, v.const(LANES - 1)), v.const(4))
            return v.sum_lanes(v.loop(n_vectors, [row, v.float(0.0)], body)[1])

        return types.float32(types.uintp, types.float32, types.intp), codegen

    return intrinsic(sum_about)


def _normalize_row_intrinsic(isa: str) -> Any:
    """`normalize_row(row, shift, factor, weight, bias, dst, n16)`: (row - shift) * factor * weight + bias over 16 * n16
    floats."""

    def normalize_row(
        typingctx: Any, row: Any, shift: Any, factor: Any, weight: Any, bias: Any, dst: Any, n16: Any
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            row, shift, factor, weight, bias, dst, n16 = args
            away, times = v.splat(shift), v.splat(factor)

            def body(i: ir.Value, at: list[ir.Value]) -> list[ir.Value]:
                x = b.fmul(b.fsub(v.load_f32(at[0]), away), times)
                v.store(b.fadd(b.fmul(x, v.load_f32(at[1])), v.load_f32(at[2])), at[3])
                return [v.at(p, 64) for p in at]

            v.loop(n16, [row, weight, bias, dst], body)
            return context.get_dummy_value()

        u, f = types.uintp, types.float32
        return types.void(u, f, f, u, u, u, types.intp), codegen

    return intrinsic(normalize_row)


@njit
def plain_mean(row, n):  # type: ignore[no-untyped-def]
    total = types.float64(0.0)
    for i in range(n):
        total += types.float64(load_f32(row + types.uint64(4 * i)))
    return types.float32(total / n)


@njit
def plain_squares(row, shift, n):  # type: ignore[no-untyped-def]
    total = types.float64(0.0)
    for i in range(n):
        x = types.float64(load_f32(row + types.uint64(4 * i))) - types.float64(shift)
        total += x * x
    return types.float32(total)


@njit
def plain_normalize_row(row, shift, factor, weight, bias, dst, n16):  # type: ignore[no-untyped-def]
    for i in range(16 * n16):
        at = types.uint64(4 * i)
        store_f32(dst + at, (load_f32(row + at) - shift) * factor * load_f32(weight + at) + load_f32(bias + at))


def build(tier: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """Build a norm; kind: "rms", "layer" or "l2"."""
    if tier == "plain":
        names = {"mean_of": plain_mean, "squares_about": plain_squares, "normalize_row": plain_normalize_row}
    else:
        sum_about = _sum_intrinsic(tier, squares=False)

        @njit(inline="always")
        def mean_of(row, n):  # type: ignore[no-untyped-def]
            return sum_about(row, types.float32(0.0), n) / types.float32(n)

        names = {"mean_of": mean_of, "squares_about": _sum_intrinsic(tier, squares=True)}
        names["normalize_row"] = _normalize_row_intrinsic(tier)
    return norm, {**names, "IS_LAYER": kind == "layer", "IS_L2": kind == "l2"}
