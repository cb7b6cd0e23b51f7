"""Causal convolutions of single columns, each over the last few tokens of its sequence, whose inputs a slot keeps.

Runs of a row are read as they lie: a vector of columns through all tokens of a prompt, with its last inputs in
registers, would save loads, but touches a cache line in each of many pages, which no CPU fetches ahead. 512 tokens of
6,144 columns take 1.6 ms on one thread, half of it silu (so: 2.6).
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.records import as_op, as_step, stripes_of
from ggpy.cpu.isa.vector import Vec

convolve_row: Any = None  # these names are set by `specialized`
WIDTH = 0
TOGETHER = 64  # stripes of a row: 4 KB, so that a few tokens' rows stay in the first-level cache


def conv_state(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[t] = f(bias + sum over j of weight[j] * src[t - WIDTH + 1 + j]), over the stripes of 16 columns that are this
    thread's. weight is [WIDTH][columns]; a slot's state are the inputs before its next token, [WIDTH - 1][columns]; a
    sequence begins with zeros."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    if first >= last:
        return
    row_bytes = 64 * op.n_stripes
    for unit in range(step.n_segments * ((last - first + TOGETHER - 1) // TOGETHER)):
        s, stripe = unit % step.n_segments, first + unit // step.n_segments * TOGETHER
        at, n16 = types.uint64(64 * stripe), min(TOGETHER, last - stripe)
        segment = step.segments + types.uint64(16 * s)
        slot, token = types.int64(load_i32(segment)), types.int64(load_i32(segment + types.uint64(4)))
        count = types.int64(load_i32(segment + types.uint64(8)))
        src = op.src + types.uint64(token * op.src_stride) + at
        state = op.state + types.uint64(slot * op.state_stride) + at
        if load_i32(segment + types.uint64(12)) == 0:
            for j in range(WIDTH - 1):
                for i in range(16 * n16):
                    store_f32(state + types.uint64(j * row_bytes + 4 * i), types.float32(0.0))
        for t in range(count):
            # the first rows, as many as are, in the state; the others in src, where the last one is the token's own
            before = max(0, WIDTH - 1 - t)
            kept = state + types.uint64(min(t, WIDTH - 1) * row_bytes)
            own = src + types.uint64(max(0, t - WIDTH + 1) * op.src_stride)
            dst = op.dst + types.uint64((token + t) * op.dst_stride) + at
            convolve_row(kept, row_bytes, before, own, op.src_stride, op.weight + at, op.bias + at, dst, n16)
        for j in range(WIDTH - 1):  # ascending: what is still needed lies further up
            back = count - WIDTH + 1 + j
            row = src + types.uint64(back * op.src_stride)
            if back < 0:
                row = state + types.uint64((WIDTH - 1 + back) * row_bytes)
            for i in range(16 * n16):
                x = load_f32(row + types.uint64(4 * i))
                store_f32(state + types.uint64(j * row_bytes + 4 * i), x)


def _convolve_row_intrinsic(isa: str, width: int, silu: bool) -> Any:
    """`convolve_row(kept, row_bytes, before, own, stride, weight, bias, dst, n16)`: 16 * n16 columns of one token. Its
    inputs are `before` rows from `kept` on, then rows from `own` on; those of kept and weight are `row_bytes` apart."""

    def convolve_row(
        typingctx: Any,
        kept: Any,
        row_bytes: Any,
        before: Any,
        own: Any,
        stride: Any,
        weight: Any,
        bias: Any,
        dst: Any,
        n16: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            kept, row_bytes, before, own, stride, weight, bias, dst, n16 = args
            v, rows, weights = Vec(b, isa), [], []
            for j in range(width):
                old = b.icmp_signed("<", v.const(j), before)
                new = b.add(own, b.mul(b.sub(v.const(j), before), stride))
                rows.append(b.select(old, b.add(kept, v.mul(row_bytes, j)), new))
                weights.append(b.add(weight, v.mul(row_bytes, j)))

            def body(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                place, dst, bias = carried
                total = v.load_f32(bias)
                for row, w in zip(rows, weights, strict=True):
                    total = v.fma(v.load_f32(b.add(w, place)), v.load_f32(b.add(row, place)), total)
                v.store(b.fmul(total, v.sigmoid(total)) if silu else total, dst)
                return [v.at(p, 64) for p in carried]

            v.loop(n16, [v.const(0), dst, bias], body)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, i, i, u, i, u, u, u, i), codegen

    return intrinsic(convolve_row)


def _plain_convolve_row(width: int, silu: bool) -> Any:
    @njit
    def convolve_row(kept, row_bytes, before, own, stride, weight, bias, dst, n16):  # type: ignore[no-untyped-def]
        for i in range(16 * n16):
            at = types.uint64(4 * i)
            total = types.float64(load_f32(bias + at))
            for j in range(width):
                row = kept + types.uint64(j * row_bytes) if j < before else own + types.uint64((j - before) * stride)
                w = types.float64(load_f32(weight + types.uint64(j * row_bytes) + at))
                total += w * types.float64(load_f32(row + at))
            if silu:
                total /= 1.0 + math.exp(-total)
            store_f32(dst + at, types.float32(total))

    return convolve_row


def build(tier: str, variant: str) -> tuple[Any, dict[str, Any]]:
    """Build a convolution; variant: its width, then a dot and "silu" where that follows it."""
    width, _, activation = variant.partition(".")
    make = _plain_convolve_row if tier == "plain" else lambda *given: _convolve_row_intrinsic(tier, *given)
    return conv_state, {"convolve_row": make(int(width), activation == "silu"), "WIDTH": int(width)}
