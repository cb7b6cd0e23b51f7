"""The selective scan of state-space models: Mamba (arXiv 2312.00752), whose channels each have decays of their own, and
Mamba-2 (arXiv 2405.21060), whose heads of several channels have one decay.

A block of columns (a head, or with decays a channel all channels of a group) has a matrix S [d_state, columns], kept as
runs of 16 columns, [columns / 16][d_state][16]. A run is work of its own, all of a prompt's tokens in turn, and lies in
the first-level cache meanwhile: 16 columns are the lanes, so that no sum goes across them.

For 16 columns of a row of S that takes a load, a product, two multiply-adds and a store; with decays a channel, an
exponential besides, which is five times as much.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.vector import Vec
from ggpy.cpu.ops.elementwise import softplus

UNROLL = 4  # rows of S at a time, each with a sum of its own: what hides the multiply-add's latency

ssm_run: Any = None  # these names are set by `specialized`
BY_CHANNEL = False


def ssm_scan(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = C S + D x for each token, after S = exp(dt A) S + dt x B, with dt = softplus of what is given. Sources: x,
    dt, B, C. A sequence begins with zeros.

    `n_head` blocks of `v_dim` columns, `head_dim` rows each; A is [blocks][runs][head_dim][16] where BY_CHANNEL, else
    [blocks]; D is [blocks][runs][16] or [blocks]."""
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
            block, run = unit // runs, unit % runs
            group = 4 * (block // (op.n_head // op.n_groups)) * op.head_dim
            state = op.state + types.uint64(slot * op.state_stride + unit * op.head_dim * 64)
            if begins:
                for i in range(16 * op.head_dim):
                    store_f32(state + types.uint64(4 * i), types.float32(0.0))
            column = 4 * (block * op.v_dim + 16 * run)
            ssm_run(
                state,
                op.head_dim,
                op.src + types.uint64(token * op.src_stride + column),
                op.src_stride,
                op.src2 + types.uint64(token * op.src2_stride + (column if BY_CHANNEL else 4 * block)),
                op.src2_stride,
                op.src3 + types.uint64(token * op.src3_stride + group),
                op.src3_stride,
                op.src4 + types.uint64(token * op.src4_stride + group),
                op.src4_stride,
                op.weight + types.uint64(unit * op.head_dim * 64 if BY_CHANNEL else 4 * block),
                op.weight2 + types.uint64(unit * 64 if BY_CHANNEL else 4 * block),
                op.dst + types.uint64(token * op.dst_stride + column),
                op.dst_stride,
                count,
                min(16, op.v_dim - 16 * run),
            )


def _ssm_run_intrinsic(isa: str, by_channel: bool) -> Any:
    """`ssm_run(state, d_state, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, a, d, out, out_stride, n, width)`:
    n tokens over `width` columns of a block's matrix; strides are bytes from token to token."""

    def ssm_run(
        typingctx: Any, state: Any, d_state: Any, x: Any, x_stride: Any, dt: Any, dt_stride: Any, b: Any, b_stride: Any,
        c: Any, c_stride: Any, a: Any, d: Any, out: Any, out_stride: Any, n: Any, width: Any,
    ) -> tuple[Signature, Any]:  # fmt: skip
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            state, d_state, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, a, d, out, out_stride = args[:14]
            n, width = args[14:]
            v = Vec(builder, isa)
            get = v.load_f32 if by_channel else v.bcast_f32
            skip, decay = get(d), None if by_channel else v.bcast_f32(a)

            def token(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                x, dt, b, c, out = carried
                given = v.first_lanes(v.load_f32(x), width)
                times = softplus(v, v.first_lanes(get(dt), width) if by_channel else get(dt))
                new = builder.fmul(given, times)
                keep = None if decay is None else v.exp(builder.fmul(times, decay))

                def update(inner: list[ir.Value], count: int) -> list[ir.Value]:
                    at, into, read, decays, *sums = inner
                    for r in range(count):
                        kept = keep or v.exp(builder.fmul(times, v.load_f32(v.at(decays, 64 * r))))
                        row = builder.fmul(v.load_f32(v.at(at, 64 * r)), kept)
                        row = v.fma(new, v.bcast_f32(v.at(into, 4 * r)), row)
                        v.store(row, v.at(at, 64 * r))
                        sums[r] = v.fma(row, v.bcast_f32(v.at(read, 4 * r)), sums[r])
                    moved = ((at, 64), (into, 4), (read, 4), (decays, 64))
                    return [*(v.at(place, size * count) for place, size in moved), *sums]

                inner = [state, b, c, a, *[v.float(0.0)] * UNROLL]
                inner = v.loop(n_fours, inner, lambda i, now: update(now, UNROLL), may_be_empty=True)
                sums = v.loop(n_rest, inner, lambda i, now: update(now, 1), may_be_empty=True)[4:]
                total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
                v.store_first(v.fma(given, skip, total), out, width)
                moved = ((x, x_stride), (dt, dt_stride), (b, b_stride), (c, c_stride), (out, out_stride))
                return [builder.add(place, stride) for place, stride in moved]

            n_fours = builder.lshr(d_state, v.const(UNROLL.bit_length() - 1))
            n_rest = builder.and_(d_state, v.const(UNROLL - 1))
            v.loop(n, [x, dt, b, c, out], token)
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(u, i, u, i, u, i, u, i, u, i, u, u, u, i, i, i), codegen

    return intrinsic(ssm_run)


def _plain_ssm_run(by_channel: bool) -> Any:
    @njit
    def ssm_run(  # type: ignore[no-untyped-def]
        state, d_state, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, a, d, out, out_stride, n, width
    ):
        for t in range(n):
            for column in range(width):
                own = 4 * column if by_channel else 0
                raw = types.float64(load_f32(dt + types.uint64(t * dt_stride + own)))
                times = max(raw, 0.0) + math.log1p(math.exp(-abs(raw)))
                given = types.float64(load_f32(x + types.uint64(t * x_stride + 4 * column)))
                total = given * types.float64(load_f32(d + types.uint64(own)))
                for i in range(d_state):
                    at = state + types.uint64(64 * i + 4 * column)
                    decay = types.float64(load_f32(a + types.uint64(64 * i + own if by_channel else 0)))
                    new = times * given * types.float64(load_f32(b + types.uint64(t * b_stride + 4 * i)))
                    now = types.float32(types.float64(load_f32(at)) * math.exp(times * decay) + new)
                    store_f32(at, now)
                    total += types.float64(now) * types.float64(load_f32(c + types.uint64(t * c_stride + 4 * i)))
                store_f32(out + types.uint64(t * out_stride + 4 * column), types.float32(total))

    return ssm_run


def build(tier: str, variant: str) -> tuple[Any, dict[str, Any]]:
    """Build a selective scan; variant: "channel" (Mamba) or "head" (Mamba-2), of what has a decay of its own."""
    by_channel = variant == "channel"
    run = _plain_ssm_run(by_channel) if tier == "plain" else _ssm_run_intrinsic(tier, by_channel)
    return ssm_scan, {"ssm_run": run, "BY_CHANNEL": by_channel}
