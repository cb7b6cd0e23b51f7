"""The selective scan of state-space models: Mamba (arXiv 2312.00752), whose channels each have decays of their own, and
Mamba-2 (arXiv 2405.21060), whose heads of several channels have one decay.

A block of columns (a head, or with decays a channel all channels of a group) has a matrix S [d_state, columns], kept as
runs of 16 columns, [columns / 16][d_state][16]: columns are lanes, so that no sum goes across them. A few runs are work
of their own, all of a prompt's tokens in turn, and lie in the first-level cache meanwhile.

For 16 columns of a row of S that takes a product, two multiply-adds, a load and a store; with decays a channel, an
exponential besides, which is five times as much. Loads of B and C serve four runs, and what a token brings is fetched
ahead, since its rows lie apart. 512 tokens on 2 threads (AVX-512, Xeon, 2.6 GHz) take 4.7 ms in a layer of Granite 4.0
H Tiny (48 heads of 64, 128 states) and 8.9 ms in one of Falcon-Mamba-7B (8192 channels, 16 states), which is 17 % and
7 % of these layers in Q4_0 (`benchmarks/operations.py`); one run at a time, 8.9 and 32 ms.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.layout import STATE_RUNS
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.vector import Vec
from ggpy.cpu.ops.elementwise import softplus

UNROLL = 2  # rows of S at a time, each with a sum of its own: what hides the multiply-add's latency
AHEAD = 4  # tokens that x, dt and results are fetched ahead

ssm_runs: Any = None  # these names are set by `specialized`
BY_CHANNEL = False
MOST_RUNS = 1


def ssm_scan(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = C S + D x for each token, after S = exp(dt A) S + dt x B, with dt = softplus of what is given. Sources: x,
    dt, B, C. A sequence begins with zeros.

    `n_head` blocks of `v_dim` columns, `head_dim` rows each; A is [blocks][runs][head_dim][16] where BY_CHANNEL, else
    [blocks], times log2(e); D is [blocks][runs][16] or [blocks]."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    runs = (op.v_dim + 15) // 16
    together = (runs + MOST_RUNS - 1) // MOST_RUNS
    units = op.n_head * together
    for s in range(step.n_segments):
        segment = step.segments + types.uint64(16 * s)
        slot, token = types.int64(load_i32(segment)), types.int64(load_i32(segment + types.uint64(4)))
        count = types.int64(load_i32(segment + types.uint64(8)))
        begins = load_i32(segment + types.uint64(12)) == 0
        for unit in range(units * tid // nth, units * (tid + 1) // nth):
            block, run = unit // together, unit % together * MOST_RUNS
            n_runs, place = min(MOST_RUNS, runs - run), block * runs + run
            group = 4 * (block // (op.n_head // op.n_groups)) * op.head_dim
            state = op.state + types.uint64(slot * op.state_stride + place * op.head_dim * 64)
            if begins:
                for i in range(16 * n_runs * op.head_dim):
                    store_f32(state + types.uint64(4 * i), types.float32(0.0))
            column = 4 * (block * op.v_dim + 16 * run)
            ssm_runs(
                n_runs,
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
                op.weight + types.uint64(place * op.head_dim * 64 if BY_CHANNEL else 4 * block),
                op.weight2 + types.uint64(place * 64 if BY_CHANNEL else 4 * block),
                op.dst + types.uint64(token * op.dst_stride + column),
                op.dst_stride,
                count,
                op.v_dim - 16 * run,
            )


def _ssm_runs_intrinsic(isa: str, by_channel: bool) -> Any:
    """`ssm_runs(n_runs, state, d_state, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, a, d, out, out_stride, n,
    width)`: n tokens over `width` columns of a block's matrix, in `n_runs` runs; strides are bytes from token to
    token."""

    def ssm_runs(
        typingctx: Any, n_runs: Any, state: Any, d_state: Any, x: Any, x_stride: Any, dt: Any, dt_stride: Any, b: Any,
        b_stride: Any, c: Any, c_stride: Any, a: Any, d: Any, out: Any, out_stride: Any, n: Any, width: Any,
    ) -> tuple[Signature, Any]:  # fmt: skip
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            functions = {
                count: v.function(f"ssm_runs_{count}", len(args) - 1, partial(_emit, count, by_channel))
                for count in range(1, STATE_RUNS[isa] + 1)
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, i, u, i, u, i, u, i, u, i, u, u, u, i, i, i), codegen

    return intrinsic(ssm_runs)


def _emit(n_runs: int, by_channel: bool, v: Vec, args: list[ir.Value]) -> None:
    """The function for so many runs, which share what is loaded of B and C."""
    state, d_state, x, x_stride, dt, dt_stride, into, into_stride, read, read_stride = args[:10]
    a, d, out, out_stride, n, width = args[10:]
    b, runs = v.b, range(n_runs)
    apart = [v.mul(d_state, 64 * run) for run in runs]
    widths = [b.sub(width, v.const(16 * run)) for run in runs]
    n_whole = b.lshr(d_state, v.const(UNROLL.bit_length() - 1))
    n_rest = b.and_(d_state, v.const(UNROLL - 1))

    def of_runs(at: ir.Value) -> list[ir.Value]:
        """A number a column, or one for all."""
        if by_channel:
            return [v.load_f32(v.at(at, 64 * run)) for run in runs]
        return [v.bcast_f32(at)] * n_runs

    skip = of_runs(d)

    def token(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        x, dt, into, read, out = carried
        for at, stride in ((x, x_stride), (dt, dt_stride), (out, out_stride)):  # rows lie too far apart for the CPU
            for run in runs if by_channel or at is not dt else ():
                v.prefetch(v.at(b.add(at, v.mul(stride, AHEAD)), 64 * run), level=1)
        given = [v.first_lanes(v.load_f32(v.at(x, 64 * run)), widths[run]) for run in runs]
        steps = of_runs(dt)
        if by_channel:
            times = [softplus(v, v.first_lanes(step, wide)) for step, wide in zip(steps, widths, strict=True)]
        else:
            times = [softplus(v, steps[0])] * n_runs
        new = [b.fmul(value, time) for value, time in zip(given, times, strict=True)]
        keep = None if by_channel else v.exp2_negative(b.fmul(times[0], v.bcast_f32(a)))

        def update(inner: list[ir.Value], count: int) -> list[ir.Value]:
            at, into, read, decays, *sums = inner
            for r in range(count):
                here = [v.at(b.add(at, far), 64 * r) for far in apart]
                before = [v.load_f32(place) for place in here]
                write, find = v.bcast_f32(v.at(into, 4 * r)), v.bcast_f32(v.at(read, 4 * r))
                for run in runs:
                    kept = keep
                    if kept is None:
                        decay = v.load_f32(v.at(b.add(decays, apart[run]), 64 * r))
                        kept = v.exp2_negative(b.fmul(times[run], decay))
                    row = v.fma(new[run], write, b.fmul(before[run], kept))
                    v.store(row, here[run])
                    sums[r * n_runs + run] = v.fma(row, find, sums[r * n_runs + run])
            moved = ((at, 64), (into, 4), (read, 4), (decays, 64 if by_channel else 0))
            return [*(v.at(place, size * count) for place, size in moved), *sums]

        inner = [state, into, read, a, *[v.float(0.0)] * (UNROLL * n_runs)]
        inner = v.loop(n_whole, inner, lambda i, now: update(now, UNROLL), may_be_empty=True)
        sums = v.loop(n_rest, inner, lambda i, now: update(now, 1), may_be_empty=True)[4:]
        for run in runs:
            total = b.fadd(sums[run], sums[n_runs + run])
            v.store_first(v.fma(given[run], skip[run], total), v.at(out, 64 * run), widths[run])
        moved = ((x, x_stride), (dt, dt_stride), (into, into_stride), (read, read_stride), (out, out_stride))
        return [b.add(place, stride) for place, stride in moved]

    v.loop(n, [x, dt, into, read, out], token)


def _plain_ssm_runs(by_channel: bool) -> Any:
    @njit
    def ssm_runs(  # type: ignore[no-untyped-def]
        n_runs, state, d_state, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, a, d, out, out_stride, n, width
    ):
        for t in range(n):
            for column in range(min(16, width)):
                own = 4 * column if by_channel else 0
                raw = types.float64(load_f32(dt + types.uint64(t * dt_stride + own)))
                times = max(raw, 0.0) + math.log1p(math.exp(-abs(raw)))
                given = types.float64(load_f32(x + types.uint64(t * x_stride + 4 * column)))
                total = given * types.float64(load_f32(d + types.uint64(own)))
                for i in range(d_state):
                    at = state + types.uint64(64 * i + 4 * column)
                    decay = types.float64(load_f32(a + types.uint64(64 * i + own if by_channel else 0)))
                    new = times * given * types.float64(load_f32(b + types.uint64(t * b_stride + 4 * i)))
                    now = types.float32(types.float64(load_f32(at)) * 2.0 ** (times * decay) + new)
                    store_f32(at, now)
                    total += types.float64(now) * types.float64(load_f32(c + types.uint64(t * c_stride + 4 * i)))
                store_f32(out + types.uint64(t * out_stride + 4 * column), types.float32(total))

    return ssm_runs


def build(tier: str, variant: str) -> tuple[Any, dict[str, Any]]:
    """Build a selective scan; variant: "channel" (Mamba) or "head" (Mamba-2), of what has a decay of its own."""
    by_channel = variant == "channel"
    runs = _plain_ssm_runs(by_channel) if tier == "plain" else _ssm_runs_intrinsic(tier, by_channel)
    return ssm_scan, {"ssm_runs": runs, "BY_CHANNEL": by_channel, "MOST_RUNS": STATE_RUNS[tier]}
