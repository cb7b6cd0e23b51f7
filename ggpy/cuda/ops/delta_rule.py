"""The gated delta rule (arXiv 2412.06464): a matrix for each value head of a slot, which every token fades, corrects
and reads.

Columns of a head's matrix S [d_k, d_v] share nothing but query, key and rates. Eight lanes have a column in their
registers, every eighth row each, and go through a run's tokens one after the other; what the next token brings is on
its way meanwhile. A slot's state is [n_head * d_v][d_k], so that these lanes read 32 bytes side by side.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, f32, i32, inline, u32, u64
from ggpy.cuda.isa.functions import sigmoid, softplus
from ggpy.cuda.isa.instructions import divide, exp2, fma, load_f32, release_next, root, store_f32, wait_for_previous
from ggpy.cuda.ops.carried import dealt, lanes_sum, place_of, segment_of
from ggpy.cuda.weights.layout import LOG2_E, STATE_THREADS
from ggpy.cuda.weights.layout import STATE_LANES as LANES


def source(d_k_: str, *options: str) -> Source:
    """delta_rule.D_K(q, k, v, decay, beta, each with its stride, shift, factors, eps, scale, n_head, n_k_head, tiled,
    d_v, state, place_bytes, segments, dst, dst_stride), on a grid (columns of all heads / columns of a block, runs):
    dst = q S for each token and value head, after S *= exp(decay); S += k (beta (v - k S)). Which key head a value head
    takes: see `ggpy.graph.recurrent.DeltaRule`. A sequence begins with zeros. delta_rule.D_K.whole: of queries and keys
    before their l2 norm with `eps`, a factor of queries after it; the decay is factors * softplus(decay + shift), the
    rate sigmoid(beta)."""
    d_k, whole = int(d_k_), "whole" in options
    rows, read, read_fresh, write = dealt(d_k)

    @inline
    def shorten(numbers, scale, eps):  # type: ignore[no-untyped-def]
        """Make a vector one of length `scale`."""
        squares = f32(0.0)
        for r in range(rows):
            squares = fma(numbers[r], numbers[r], squares)
        by = divide(scale, root(lanes_sum(squares) + eps))
        for r in range(rows):
            numbers[r] *= by

    def delta_rule(q, q_stride, k, k_stride, v, v_stride, decay, decay_stride, beta, beta_stride,
                   shift, factors, eps, scale, n_head, n_k_head, tiled, d_v,
                   state, place_bytes, segments, dst, dst_stride):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        slot, first, count, position = segment_of(segments, cuda.blockIdx.y)
        thread = i32(cuda.blockIdx.x) * i32(STATE_THREADS) + i32(cuda.threadIdx.x)
        column, lane = thread >> i32(3), thread & i32(LANES - 1)
        owned = column < n_head * d_v
        if not owned:
            column = i32(0)
        column_at = u64(u32(column)) * u64(4 * d_k)
        s = cuda.local.array(rows, types.float32)
        for r in range(rows):
            s[r] = f32(0.0)
        if count != i32(0) and position != i32(0):  # what a step before has left
            read_fresh(place_of(state, place_bytes, slot, position) + column_at, lane, s)
        wait_for_previous()
        if count == i32(0):
            return
        head = divided(column, d_v)
        key_head = divided(head, divided(n_head, n_k_head))
        if tiled:
            key_head = head - divided(head, n_k_head) * n_k_head
        queries = at(q + first * u64(u32(q_stride)), key_head * i32(4 * d_k))
        keys = at(k + first * u64(u32(k_stride)), key_head * i32(4 * d_k))
        values = at(v + first * u64(u32(v_stride)), column * i32(4))
        decays = at(decay + first * u64(u32(decay_stride)), head * i32(4))
        shares = at(beta + first * u64(u32(beta_stride)), head * i32(4))
        out = at(dst + first * u64(u32(dst_stride)), column * i32(4))
        query, key = cuda.local.array(rows, types.float32), cuda.local.array(rows, types.float32)
        query2, key2 = cuda.local.array(rows, types.float32), cuda.local.array(rows, types.float32)
        bias, factor = f32(0.0), f32(LOG2_E)
        if whole:
            bias, factor = load_f32(at(shift, head * i32(4))), factor * load_f32(at(factors, head * i32(4)))
        read(queries, lane, query2)
        read(keys, lane, key2)
        value2, fade2, share2 = load_f32(values), load_f32(decays), load_f32(shares)
        for t in range(count):
            value, share, decayed = value2, share2, fade2
            for r in range(rows):
                query[r] = query2[r]
                key[r] = key2[r]
            if t + i32(1) < count:
                queries += u64(u32(q_stride))
                keys += u64(u32(k_stride))
                values += u64(u32(v_stride))
                decays += u64(u32(decay_stride))
                shares += u64(u32(beta_stride))
                read(queries, lane, query2)
                read(keys, lane, key2)
                value2, fade2, share2 = load_f32(values), load_f32(decays), load_f32(shares)
            if whole:
                share, decayed = sigmoid(share), softplus(decayed + bias)
                shorten(query, scale, eps)
                shorten(key, f32(1.0), eps)
            fade, held = exp2(decayed * factor), f32(0.0)
            for r in range(rows):
                held = fma(key[r], s[r], held)
            change = (value - fade * lanes_sum(held)) * share
            found = f32(0.0)
            for r in range(rows):
                s[r] = fma(key[r], change, fade * s[r])
                found = fma(query[r], s[r], found)
            found = lanes_sum(found)
            if owned and lane == i32(0):
                store_f32(out, found)
            out += u64(u32(dst_stride))
        if owned:
            write(place_of(state, place_bytes, slot, position + count) + column_at, lane, s)

    return Source(
        delta_rule,
        "u64 i32 u64 i32 u64 i32 u64 i32 u64 i32 u64 u64 f32 f32 i32 i32 i32 i32 u64 u64 u64 u64 i32",
        STATE_THREADS,
    )
