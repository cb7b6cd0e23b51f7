"""Causal convolutions of single columns, each over the last few tokens of its sequence, whose inputs a slot keeps."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.records import as_op, as_step, stripes_of
from ggpy.cpu.isa.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.vector import Vec

convolve: Any = None  # set by `specialized`


def conv_state(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[t] = f(bias + sum over j of weight[j] * src[t - width + 1 + j]), over the stripes of 16 columns that are this
    thread's. weight is [width][columns]; a slot's state are the inputs before its next token, [width - 1][columns]; a
    sequence begins with zeros."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    row_bytes = 64 * op.n_stripes
    for s in range(step.n_segments):
        segment = step.segments + types.uint64(16 * s)
        slot, token = types.int64(load_i32(segment)), types.int64(load_i32(segment + types.uint64(4)))
        count = types.int64(load_i32(segment + types.uint64(8)))
        begins = 1 if load_i32(segment + types.uint64(12)) == 0 else 0
        for stripe in range(first, last):
            at = types.uint64(64 * stripe)
            src = op.src + types.uint64(token * op.src_stride) + at
            dst = op.dst + types.uint64(token * op.dst_stride) + at
            state = op.state + types.uint64(slot * op.state_stride) + at
            weight, bias = op.weight + at, op.bias + at
            convolve(src, op.src_stride, dst, op.dst_stride, count, weight, bias, state, row_bytes, begins)


def _convolve_intrinsic(isa: str, width: int, silu: bool) -> Any:
    """`convolve(src, src_stride, dst, dst_stride, n, weight, bias, state, row_bytes, begins)`: 16 columns of n tokens;
    rows of weight and state are `row_bytes` apart. The inputs that are still needed stay in registers."""

    def convolve(
        typingctx: Any,
        src: Any,
        src_stride: Any,
        dst: Any,
        dst_stride: Any,
        n: Any,
        weight: Any,
        bias: Any,
        state: Any,
        row_bytes: Any,
        begins: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            src, src_stride, dst, dst_stride, n, weight, bias, state, row_bytes, begins = args
            v = Vec(b, isa)
            fresh = v.splat(b.icmp_signed("!=", begins, v.const(0)))

            def rows(start: ir.Value, count: int) -> list[ir.Value]:
                places = [start]
                for _ in range(count - 1):
                    places.append(b.add(places[-1], row_bytes))
                return places

            weights = [v.load_f32(at) for at in rows(weight, width)]
            first, kept = v.load_f32(bias), rows(state, width - 1)
            before = [b.select(fresh, v.float(0.0), v.load_f32(at)) for at in kept]

            def token(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                src, dst, *window = carried
                window.append(v.load_f32(src))
                total = first
                for w, x in zip(weights, window, strict=True):
                    total = v.fma(w, x, total)
                v.store(b.fmul(total, v.sigmoid(total)) if silu else total, dst)
                return [b.add(src, src_stride), b.add(dst, dst_stride), *window[1:]]

            after = v.loop(n, [src, dst, *before], token)[2:]
            for x, at in zip(after, kept, strict=True):
                v.store(x, at)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, i, u, i, i, u, u, u, i, i), codegen

    return intrinsic(convolve)


def _plain_convolve(width: int, silu: bool) -> Any:
    @njit
    def convolve(src, src_stride, dst, dst_stride, n, weight, bias, state, row_bytes, begins):  # type: ignore[no-untyped-def]
        for lane in range(16):
            at = types.uint64(4 * lane)
            for t in range(n):
                total = types.float64(load_f32(bias + at))
                for j in range(width):
                    back = t - width + 1 + j
                    if back >= 0:
                        x = load_f32(src + types.uint64(back * src_stride) + at)
                    elif begins:
                        x = types.float32(0.0)
                    else:
                        x = load_f32(state + types.uint64((width - 1 + back) * row_bytes) + at)
                    total += types.float64(load_f32(weight + types.uint64(j * row_bytes) + at)) * types.float64(x)
                if silu:
                    total /= 1.0 + math.exp(-total)
                store_f32(dst + types.uint64(t * dst_stride) + at, types.float32(total))
            for j in range(width - 1):  # ascending: what is still needed lies further up
                back = n - width + 1 + j
                if back >= 0:
                    x = load_f32(src + types.uint64(back * src_stride) + at)
                elif begins:
                    x = types.float32(0.0)
                else:
                    x = load_f32(state + types.uint64((width - 1 + back) * row_bytes) + at)
                store_f32(state + types.uint64(j * row_bytes) + at, x)

    return convolve


def build(tier: str, variant: str) -> tuple[Any, dict[str, Any]]:
    """Build a convolution; variant: its width, then a dot and "silu" where that follows it."""
    width, _, activation = variant.partition(".")
    silu = activation == "silu"
    if tier == "plain":
        return conv_state, {"convolve": _plain_convolve(int(width), silu)}
    return conv_state, {"convolve": _convolve_intrinsic(tier, int(width), silu)}
