"""The gated delta rule (arXiv 2412.06464): a matrix for each value head of a slot, which every token fades, corrects
and reads.

A head's matrix S [d_k, d_v] is kept as runs of 16 columns, [d_v / 16][d_k][16]. A few runs are work of their own, all
of a prompt's tokens in turn, and lie in the first-level cache meanwhile. Each token passes over them once: while S is
brought up to date, what this token reads from it (q S) and what the next one will find under its key (k' S) are summed
up.

For 16 columns of a row of S that takes a product, three multiply-adds, a load and a store: two cycles with two 512-bit
ports. Three loads more, of one number each of q, k and k', serve four runs; one run at a time waited for them, and for
the sums at a token's end. With 16 heads of 128 x 128, 512 tokens, AVX-512 on one thread (Xeon, 2.6 GHz): 6.5 ms, which
are 2.0 cycles and 145 GFLOP/s (one run at a time: 11.2 ms; four without fetching the next tokens' q and k ahead: 7.0).
That is a tenth of a prompt's time in such a layer of Qwen3.5-0.8B in Q4_0 (`benchmarks/operations.py delta`).

A form in chunks of tokens would not be faster here. Per token and element of S it takes three multiply-adds for what
passes from chunk to chunk, and for 64 tokens 1.25 for products within one, beside a triangular system: more than the
four operations of this form, which runs at the speed of its ports, and a result would depend on where a step begins.
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

UNROLL = 2  # rows of S at a time, each with sums of its own: what hides the multiply-add's latency

delta_runs: Any = None  # these names are set by `specialized`
MOST_RUNS = 1


def delta_rule(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = q S for each token and value head, after S *= exp(decay); S += k (beta (v - k S)). Sources: q, k, v, decay,
    beta. A sequence begins with zeros."""
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
            head, run = unit // together, unit % together * MOST_RUNS
            n_runs = min(MOST_RUNS, runs - run)
            key_head = head % op.n_head_kv if op.flag else head // (op.n_head // op.n_head_kv)
            state = op.state + types.uint64(slot * op.state_stride + (head * runs + run) * op.head_dim * 64)
            if begins:
                for i in range(16 * n_runs * op.head_dim):
                    store_f32(state + types.uint64(4 * i), types.float32(0.0))
            column = 4 * (head * op.v_dim + 16 * run)
            delta_runs(
                n_runs,
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
                op.v_dim - 16 * run,
            )


def _delta_runs_intrinsic(isa: str) -> Any:
    """`delta_runs(n_runs, state, d_k, q, q_stride, k, k_stride, v, v_stride, decay, decay_stride, beta, beta_stride,
    out, out_stride, n, width)`: n tokens over `width` columns of a head's matrix, in `n_runs` runs; strides are bytes
    from token to token."""

    def delta_runs(
        typingctx: Any, n_runs: Any, state: Any, d_k: Any, q: Any, q_stride: Any, k: Any, k_stride: Any, v: Any,
        v_stride: Any, decay: Any, decay_stride: Any, beta: Any, beta_stride: Any, out: Any, out_stride: Any, n: Any,
        width: Any,
    ) -> tuple[Signature, Any]:  # fmt: skip
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            functions = {
                count: v.function(f"delta_runs_{count}", len(args) - 1, partial(_emit, count))
                for count in range(1, STATE_RUNS[isa] + 1)
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, i, u, i, u, i, u, i, u, i, u, i, u, i, i, i), codegen

    return intrinsic(delta_runs)


def _emit(n_runs: int, v: Vec, args: list[ir.Value]) -> None:
    """The function for so many runs, which share what is loaded of q and k."""
    state, d_k, q, q_stride, k, k_stride, values, v_stride, decay, decay_stride, beta, beta_stride = args[:12]
    out, out_stride, n, width = args[12:]
    b, runs = v.b, range(n_runs)
    apart = [v.mul(d_k, 64 * run) for run in runs]
    widths = [b.sub(width, v.const(16 * run)) for run in runs]
    zeros = [v.float(0.0)] * (UNROLL * n_runs)
    n_whole = b.lshr(d_k, v.const(UNROLL.bit_length() - 1))
    n_rest = b.and_(d_k, v.const(UNROLL - 1))

    def totals(sums: list[ir.Value]) -> list[ir.Value]:
        """The sums of each run."""
        found = []
        for run in runs:
            parts = [sums[r * n_runs + run] for r in range(UNROLL)]
            while len(parts) > 1:
                parts = [b.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
            found += parts
        return found

    def rows(body: Any, carried: list[ir.Value]) -> list[ir.Value]:
        """All rows of S: UNROLL at a time, then the rest, which go to the first sums."""
        carried = v.loop(n_whole, carried, lambda i, c: body(c, UNROLL), may_be_empty=True)
        return v.loop(n_rest, carried, lambda i, c: body(c, 1), may_be_empty=True)

    def load_row(at: ir.Value, r: int) -> list[ir.Value]:
        return [v.load_f32(v.at(b.add(at, apart[run]), 64 * r)) for run in runs]

    def found(c: list[ir.Value], count: int) -> list[ir.Value]:
        at, key, *sums = c
        for r in range(count):
            row, factor = load_row(at, r), v.bcast_f32(v.at(key, 4 * r))
            for run in runs:
                sums[r * n_runs + run] = v.fma(row[run], factor, sums[r * n_runs + run])
        return [v.at(at, 64 * count), v.at(key, 4 * count), *sums]

    first = totals(rows(found, [state, k, *zeros])[2:])

    def fetch_ahead(q: ir.Value, k: ir.Value, values: ir.Value) -> None:
        """Prefetch what the token after the next one reads: rows lie too far apart for the CPU to do so."""
        for run in runs:
            v.prefetch(v.at(b.add(values, v.mul(v_stride, 2)), 64 * run), level=1)

        def line(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
            for at in c:
                v.prefetch(at, level=1)
            return [v.at(at, 64) for at in c]

        ahead = [b.add(at, v.mul(stride, 2)) for at, stride in ((q, q_stride), (k, k_stride))]
        v.loop(b.lshr(d_k, v.const(4)), ahead, line, may_be_empty=True)

    def token(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
        q, k, values, decay, beta, out, *held = c
        last = b.icmp_signed("==", b.add(i, v.const(1)), n)
        following = b.select(last, k, b.add(k, k_stride))
        fetch_ahead(q, k, values)
        keep, share, change = v.exp(v.bcast_f32(decay)), v.bcast_f32(beta), []
        for run in runs:
            value = v.first_lanes(v.load_f32(v.at(values, 64 * run)), widths[run])
            change.append(b.fmul(b.fsub(value, b.fmul(keep, held[run])), share))

        def update(inner: list[ir.Value], count: int) -> list[ir.Value]:
            at, query, key, after, *sums = inner
            for r in range(count):
                before, own = load_row(at, r), v.bcast_f32(v.at(key, 4 * r))
                row = [v.fma(change[run], own, b.fmul(before[run], keep)) for run in runs]
                read, find = v.bcast_f32(v.at(query, 4 * r)), v.bcast_f32(v.at(after, 4 * r))
                for run in runs:
                    v.store(row[run], v.at(b.add(at, apart[run]), 64 * r))
                    for factor, sum_of in ((read, r * n_runs + run), (find, (UNROLL + r) * n_runs + run)):
                        sums[sum_of] = v.fma(row[run], factor, sums[sum_of])
            return [v.at(at, 64 * count), *(v.at(p, 4 * count) for p in (query, key, after)), *sums]

        sums = rows(update, [state, q, k, following, *zeros, *zeros])[4:]
        for run, total in zip(runs, totals(sums[: UNROLL * n_runs]), strict=True):
            v.store_first(total, v.at(out, 64 * run), widths[run])
        moved = ((q, q_stride), (k, k_stride), (values, v_stride), (decay, decay_stride), (beta, beta_stride))
        following = [*(b.add(p, stride) for p, stride in moved), b.add(out, out_stride)]
        return [*following, *totals(sums[UNROLL * n_runs :])]

    v.loop(n, [q, k, values, decay, beta, out, *first], token)


@njit
def plain_delta_runs(  # type: ignore[no-untyped-def]
    n_runs,
    state,
    d_k,
    q,
    q_stride,
    k,
    k_stride,
    v,
    v_stride,
    decay,
    decay_stride,
    beta,
    beta_stride,
    out,
    out_stride,
    n,
    width,
):
    for t in range(n):
        keep = math.exp(types.float64(load_f32(decay + types.uint64(t * decay_stride))))
        share = types.float64(load_f32(beta + types.uint64(t * beta_stride)))
        for c in range(min(16, width)):
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
    runs = plain_delta_runs if tier == "plain" else _delta_runs_intrinsic(tier)
    return delta_rule, {"delta_runs": runs, "MOST_RUNS": STATE_RUNS[tier]}
