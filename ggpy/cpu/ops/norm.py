"""Norms of whole rows as operations of their own; norms that only products read are fused with quantization."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.scalars import load_f32, store_f32
from ggpy.cpu.isa.vector import Vec

sum_squares: Any = None  # these names are set by `specialized`
scale_by_row: Any = None


def norm(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = src / sqrt(mean of its squares + eps) * weight, a row at a time."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = step.n_outputs if op.outputs_only else step.n_tokens
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src = op.src + types.uint64(row * op.src_stride)
        mean = sum_squares(src, op.n_cols) / types.float32(op.n_cols)
        factor = types.float32(1.0) / types.float32(math.sqrt(mean + op.eps))
        scale_by_row(src, op.weight, factor, op.dst + types.uint64(row * op.dst_stride), (op.n_cols + 15) // 16)


def scale_by_row_intrinsic(isa: str) -> Any:
    """`scale_by_row(row, weight, factor, dst, n16)`: row * factor * weight over 16 * n16 floats."""

    def scale_by_row(typingctx: Any, row: Any, weight: Any, factor: Any, dst: Any, n16: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            times = v.splat(args[2])

            def body(i: ir.Value, at: list[ir.Value]) -> list[ir.Value]:
                v.store(b.fmul(b.fmul(v.load_f32(at[0]), times), v.load_f32(at[1])), at[2])
                return [v.at(p, 64) for p in at]

            v.loop(args[4], [args[0], args[1], args[3]], body)
            return context.get_dummy_value()

        u = types.uintp
        return types.void(u, u, types.float32, u, types.intp), codegen

    return intrinsic(scale_by_row)


@njit
def plain_scale_by_row(row, weight, factor, dst, n16):  # type: ignore[no-untyped-def]
    """`scale_by_row`, a number at a time."""
    for i in range(16 * n16):
        at = types.uint64(4 * i)
        store_f32(dst + at, load_f32(row + at) * factor * load_f32(weight + at))
