"""SwiGLU: silu(gate) * up, element by element."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.records import as_op, as_step, stripes_of
from ggpy.cpu.vector import Vec

swiglu_row: Any = None  # set by `specialized`


def swiglu(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = silu(src) * src2, over the same stripes of columns that this
    thread's matrix products wrote: no barrier in between."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    if first >= last:
        return
    at = types.uint64(first * 64)
    for token in range(step.n_tokens):
        swiglu_row(
            op.src + types.uint64(token * op.src_stride) + at,
            op.src2 + types.uint64(token * op.src2_stride) + at,
            op.dst + types.uint64(token * op.dst_stride) + at,
            last - first,
        )


def swiglu_row_intrinsic(isa: str) -> Any:
    """`swiglu_row(gate, up, dst, n16)`: silu(gate) * up over 16 * n16 floats."""

    def swiglu_row(typingctx: Any, gate: Any, up: Any, dst: Any, n16: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                gate, up = v.load_f32(c[0]), v.load_f32(c[1])
                sigmoid = b.fdiv(v.float(1.0), b.fadd(v.float(1.0), v.exp(b.fneg(gate))))
                v.store(b.fmul(b.fmul(gate, sigmoid), up), c[2])
                return [v.at(p, 64) for p in c]

            v.loop(args[3], list(args[:3]), body)
            return context.get_dummy_value()

        u = types.uintp
        return types.void(u, u, u, types.intp), codegen

    return intrinsic(swiglu_row)
