"""The gated delta rule (arXiv 2412.06464): a matrix for each value head of a slot, which every token fades, corrects
and reads.

A head's matrix S [d_k, d_v] is kept as runs of 16 columns, [d_v / 16][d_k][16]. A run is work of its own, all of a
prompt's tokens in turn, and lies in the first-level cache meanwhile. Each token passes over it once: while S is brought
up to date, what this token reads from it (q S) and what the next one will find under its key (k' S) are summed up.

For 16 columns of a row of S that takes a load, a product, three multiply-adds and a store: two cycles with two 512-bit
ports. The form in chunks of 64 tokens (a triangular system a chunk, then products of matrices) does 90 multiply-adds
where this does 65, for heads of 128 x 128, so it pays on matrix units alone.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.vector import Vec

UNROLL = 4  # rows of S at a time, each with sums of its own: what hides the multiply-add's latency

delta_run: Any = None  # set by `specialized`


def delta_rule(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = q S for each token and value head, after S *= exp(decay); S += k (beta (v - k S)). Sources: q, k, v, decay,
    beta. A sequence begins with zeros."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    runs = (op.v_dim + 15) // 16
    units = op.n_head * runs
    for s in range(step.n_segments):
        segment = step.segments + types.uint64(16 * s)
        slot, token = types.int64(load_i32(segment)), types.int64(load_i32(segment + types.uint64(4)))
        count = types.int64(load_i32(segment + types.uint64(8)))
        begins = load_i32(segment + types.uint64(12)) == 0
        for unit in range(units * tid // nth, units * (tid + 1) // nth):
            head, run = unit // runs, unit % runs
            key_head = head % op.n_head_kv if op.flag else head // (op.n_head // op.n_head_kv)
            state = op.state + types.uint64(slot * op.state_stride + unit * op.head_dim * 64)
            if begins:
                for i in range(16 * op.head_dim):
                    store_f32(state + types.uint64(4 * i), types.float32(0.0))
            column = 4 * (head * op.v_dim + 16 * run)
            delta_run(
                state,
                op.head_dim,
                op.src + types.uint64(token * op.src_stride + 4 * key_head * op.head_dim),
                op.src_stride,
                op.src2 + types.uint64(token * op.src2_stride + 4 * key_head * op.head_dim),
                op.src2_stride,
                op.src3 + types.uint64(token * op.src3_stride + column),
                op.src3_stride,
                op.src4 + types.uint64(token * op.src4_stride + 4 * head),
                op.src4_stride,
                op.src5 + types.uint64(token * op.src5_stride + 4 * head),
                op.src5_stride,
                op.dst + types.uint64(token * op.dst_stride + column),
                op.dst_stride,
                count,
                min(16, op.v_dim - 16 * run),
            )


def _delta_run_intrinsic(isa: str) -> Any:
    """`delta_run(state, d_k, q, q_stride, k, k_stride, v, v_stride, decay, decay_stride, beta, beta_stride, out,
    out_stride, n, width)`: n tokens over `width` columns of a head's matrix; strides are bytes from token to token."""

    def delta_run(
        typingctx: Any, state: Any, d_k: Any, q: Any, q_stride: Any, k: Any, k_stride: Any, v: Any, v_stride: Any,
        decay: Any, decay_stride: Any, beta: Any, beta_stride: Any, out: Any, out_stride: Any, n: Any, width: Any,
    ) -> tuple[Signature, Any]:  # fmt: skip
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            state, d_k, q, q_stride, k, k_stride, values, v_stride, decay, decay_stride, beta, beta_stride = args[:12]
            out, out_stride, n, width = args[12:]
            v = Vec(b, isa)
            zeros = [v.float(0.0)] * UNROLL
            n_fours = b.lshr(d_k, v.const(UNROLL.bit_length() - 1))
            n_rest = b.and_(d_k, v.const(UNROLL - 1))

            def total(sums: list[ir.Value]) -> ir.Value:
                return b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))

            def rows(body: Any, carried: list[ir.Value]) -> list[ir.Value]:
                """All rows of S: UNROLL at a time, then the rest, which go to the first sums."""
                carried = v.loop(n_fours, carried, lambda i, c: body(c, UNROLL), may_be_empty=True)
                return v.loop(n_rest, carried, lambda i, c: body(c, 1), may_be_empty=True)

            def found(c: list[ir.Value], count: int) -> list[ir.Value]:
                at, key, *sums = c
                for r in range(count):
                    sums[r] = v.fma(v.load_f32(v.at(at, 64 * r)), v.bcast_f32(v.at(key, 4 * r)), sums[r])
                return [v.at(at, 64 * count), v.at(key, 4 * count), *sums]

            first = total(rows(found, [state, k, *zeros])[2:])

            def token(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                q, k, values, decay, beta, out, held = c
                last = b.icmp_signed("==", b.add(i, v.const(1)), n)
                following = b.select(last, k, b.add(k, k_stride))
                keep = v.exp(v.bcast_f32(decay))
                value = v.first_lanes(v.load_f32(values), width)
                change = b.fmul(b.fsub(value, b.fmul(keep, held)), v.bcast_f32(beta))

                def update(inner: list[ir.Value], count: int) -> list[ir.Value]:
                    at, query, key, after, *sums = inner
                    for r in range(count):
                        here = v.at(at, 64 * r)
                        row = b.fmul(v.load_f32(here), keep)
                        row = v.fma(change, v.bcast_f32(v.at(key, 4 * r)), row)
                        v.store(row, here)
                        sums[r] = v.fma(row, v.bcast_f32(v.at(query, 4 * r)), sums[r])
                        other = UNROLL + r
                        sums[other] = v.fma(row, v.bcast_f32(v.at(after, 4 * r)), sums[other])
                    return [v.at(at, 64 * count), *(v.at(p, 4 * count) for p in (query, key, after)), *sums]

                sums = rows(update, [state, q, k, following, *zeros, *zeros])[4:]
                v.store_first(total(sums[:UNROLL]), out, width)
                moved = ((q, q_stride), (k, k_stride), (values, v_stride), (decay, decay_stride), (beta, beta_stride))
                return [*(b.add(p, stride) for p, stride in moved), b.add(out, out_stride), total(sums[UNROLL:])]

            v.loop(n, [q, k, values, decay, beta, out, first], token)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, i, u, i, u, i, u, i, u, i, u, i, u, i, i, i), codegen

    return intrinsic(delta_run)


@njit
def plain_delta_run(  # type: ignore[no-untyped-def]
    state, d_k, q, q_stride, k, k_stride, v, v_stride, decay, decay_stride, beta, beta_stride, out, out_stride, n, width
):
    for t in range(n):
        keep = math.exp(types.float64(load_f32(decay + types.uint64(t * decay_stride))))
        share = types.float64(load_f32(beta + types.uint64(t * beta_stride)))
        for c in range(width):
            held, read = types.float64(0.0), types.float64(0.0)
            for i in range(d_k):
                at = state + types.uint64(64 * i + 4 * c)
                faded = types.float64(load_f32(at)) * keep
                held += faded * types.float64(load_f32(k + types.uint64(t * k_stride + 4 * i)))
            change = (types.float64(load_f32(v + types.uint64(t * v_stride + 4 * c))) - held) * share
            for i in range(d_k):
                at = state + types.uint64(64 * i + 4 * c)
                key = types.float64(load_f32(k + types.uint64(t * k_stride + 4 * i)))
                now = types.float32(types.float64(load_f32(at)) * keep + change * key)
                store_f32(at, now)
                read += types.float64(now) * types.float64(load_f32(q + types.uint64(t * q_stride + 4 * i)))
            store_f32(out + types.uint64(t * out_stride + 4 * c), types.float32(read))


def build(tier: str, _: str) -> tuple[Any, dict[str, Any]]:
    """Build the delta rule."""
    return delta_rule, {"delta_run": plain_delta_run if tier == "plain" else _delta_run_intrinsic(tier)}
