"""The selective scan of state-space models: Mamba (arXiv 2312.00752), whose channels each have decays of their own, and
Mamba-2 (arXiv 2405.21060), whose heads of several channels have one decay.

Columns of the states S [d_state, columns] share nothing but B and C. Eight lanes have a column in their registers,
every eighth row each, as in the delta rule (`ggpy.cuda.ops.delta_rule`); a slot's state is [columns][d_state].
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, f32, i32, u32, u64
from ggpy.cuda.isa.functions import softplus
from ggpy.cuda.isa.instructions import exp2, fma, load_f32, release_next, store_f32, wait_for_previous
from ggpy.cuda.ops.carried import dealt, lanes_sum, place_of, segment_of
from ggpy.cuda.weights.layout import LOG2_E, STATE_THREADS
from ggpy.cuda.weights.layout import STATE_LANES as LANES


def source(d_state_: str, kind: str) -> Source:
    """ssm_scan.D_STATE.KIND(x, dt, b, c, each with its stride, shift, a, d, n_cols, head_dim, group_cols, state,
    place_bytes, segments, dst, dst_stride), on a grid (columns / columns of a block, runs): dst = C S + D x for each
    token, after S = exp(dt A) S + dt x B, with dt = softplus of what is given, plus `shift`, for each head of
    `head_dim` columns.
    KIND: "channel", a [n_cols][D_STATE], or "head", a [n_cols / head_dim]; d, shift [n_cols / head_dim], or 0;
    `group_cols` columns share B and C. A sequence begins with zeros."""
    d_state, by_channel = int(d_state_), kind == "channel"
    rows, read, read_fresh, write = dealt(d_state)

    def ssm_scan(x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, shift, a, d, n_cols, head_dim, group_cols,
                 state, place_bytes, segments, dst, dst_stride):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        slot, first, count, position = segment_of(segments, cuda.blockIdx.y)
        thread = i32(cuda.blockIdx.x) * i32(STATE_THREADS) + i32(cuda.threadIdx.x)
        column, lane = thread >> i32(3), thread & i32(LANES - 1)
        owned = column < n_cols
        if not owned:
            column = i32(0)
        column_at = u64(u32(column)) * u64(4 * d_state)
        s, decays = cuda.local.array(rows, types.float32), cuda.local.array(rows, types.float32)
        for r in range(rows):
            s[r] = f32(0.0)
        if count != i32(0) and position != i32(0):  # what a step before has left
            read_fresh(place_of(state, place_bytes, slot, position) + column_at, lane, s)
        wait_for_previous()
        if count == i32(0):
            return
        head, group = divided(column, head_dim), divided(column, group_cols) * i32(4 * d_state)
        values = at(x + first * u64(u32(x_stride)), column * i32(4))
        times = at(dt + first * u64(u32(dt_stride)), head * i32(4))
        intos = at(b + first * u64(u32(b_stride)), group)
        outs = at(c + first * u64(u32(c_stride)), group)
        out = at(dst + first * u64(u32(dst_stride)), column * i32(4))
        into, outof = cuda.local.array(rows, types.float32), cuda.local.array(rows, types.float32)
        into2, outof2 = cuda.local.array(rows, types.float32), cuda.local.array(rows, types.float32)
        decay, skip, bias = f32(0.0), f32(0.0), f32(0.0)
        if by_channel:
            read(a + column_at, lane, decays)
            for r in range(rows):
                decays[r] *= f32(LOG2_E)
        else:
            decay = load_f32(at(a, head * i32(4))) * f32(LOG2_E)
        if d != u64(0):
            skip = load_f32(at(d, head * i32(4)))
        if shift != u64(0):
            bias = load_f32(at(shift, head * i32(4)))
        read(intos, lane, into2)
        read(outs, lane, outof2)
        value2, time2 = load_f32(values), load_f32(times)
        for t in range(count):
            value, time = value2, softplus(time2 + bias)
            for r in range(rows):
                into[r] = into2[r]
                outof[r] = outof2[r]
            if t + i32(1) < count:
                values += u64(u32(x_stride))
                times += u64(u32(dt_stride))
                intos += u64(u32(b_stride))
                outs += u64(u32(c_stride))
                read(intos, lane, into2)
                read(outs, lane, outof2)
                value2, time2 = load_f32(values), load_f32(times)
            new, fade, found = time * value, exp2(time * decay), f32(0.0)
            for r in range(rows):
                if by_channel:
                    fade = exp2(time * decays[r])
                s[r] = fma(new, into[r], fade * s[r])
                found = fma(outof[r], s[r], found)
            found = fma(skip, value, lanes_sum(found))
            if owned and lane == i32(0):
                store_f32(out, found)
            out += u64(u32(dst_stride))
        if owned:
            write(place_of(state, place_bytes, slot, position + count) + column_at, lane, s)

    return Source(
        ssm_scan, "u64 i32 u64 i32 u64 i32 u64 i32 u64 u64 u64 i32 i32 i32 u64 u64 u64 u64 i32", STATE_THREADS
    )
