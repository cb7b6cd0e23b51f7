"""Attention of single tokens over the cache: positions are split over blocks, warps and lanes, each with a running
softmax (arXiv 2205.14135), and joined at the end.

A block takes GROUP query heads that share a kv head, over one of `splits` shares of the positions, and leaves a *part*:
the largest score (times log2 e), the sum of exponentials under it, and the weighted values, to be joined by whoever
reads them (`ggpy.cuda.activations.joined`, or the kernel `join`).
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.device import at, f32, i32, u32, u64
from ggpy.cuda.instructions import (
    dynamic_shared,
    exp2,
    fma,
    halves_to_f32,
    larger,
    load_128,
    load_f32,
    load_i32,
    release_next,
    shared_load_f32,
    shared_store_f32,
    store_f32,
    swap_f32,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.layout import PART_HEAD

THREADS = 256
WARPS = THREADS // 32
HIDDEN = -1e30


def shared_bytes(lanes: int, group: int) -> int:
    return WARPS * group * (8 * lanes + 2) * 4


def source(lanes_: str, group_: str) -> Source:
    """attention.LANES.GROUP, on a grid (splits, n_head / GROUP, tokens): LANES lanes, a power of two, hold 8 of the
    dimensions of a head each. Tokens from `header`[0] on are left alone."""
    lanes, group = int(lanes_), int(group_)
    subs = 32 // lanes  # positions that a warp takes at once
    dims = 8 * lanes
    stride, held = dims + 2, 8 * group

    def attention(q, q_stride, keys, values, header, slots, positions, n_head, n_head_kv, head_dim,
                  cell_bytes, head_bytes, window, scale, parts, part_bytes):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        wait_for_previous()
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        sub, d = lane // i32(lanes), (lane % i32(lanes)) * i32(8)
        split, splits = i32(cuda.blockIdx.x), i32(cuda.gridDim.x)
        head, token = i32(cuda.blockIdx.y) * i32(group), i32(cuda.blockIdx.z)
        if token >= load_i32(header):
            return
        slot, position = load_i32(at(slots, token * i32(4))), load_i32(at(positions, token * i32(4)))
        begin, end = i32(0), position + i32(1)
        if window > i32(0) and end > window:
            begin = end - window
        share = (end - begin + splits - i32(1)) // splits
        begin += split * share
        if begin + share < end:
            end = begin + share
        kv = head // (n_head // n_head_kv)
        base = u64(u32(slot * n_head_kv + kv)) * head_bytes + u64(u32(d * i32(2)))
        query = cuda.local.array(held, types.float32)
        acc = cuda.local.array(held, types.float32)
        largest = cuda.local.array(group, types.float32)
        total = cuda.local.array(group, types.float32)
        row = q + u64(u32(token)) * u64(u32(q_stride)) + u64(u32((head * head_dim + d) * i32(4)))
        for g in range(group):
            largest[g], total[g] = f32(HIDDEN), f32(0.0)
            for k in range(8):
                acc[8 * g + k] = f32(0.0)
                x = f32(0.0)
                if d + i32(k) < head_dim:
                    x = load_f32(at(row, (i32(g) * head_dim + i32(k)) * i32(4))) * scale
                query[8 * g + k] = x
        in_head = d * i32(2) < cell_bytes
        for first in range(begin + warp * i32(subs), end, i32(WARPS * subs)):
            p = first + sub
            seen = p < end
            k0, k1, k2, k3 = u32(0), u32(0), u32(0), u32(0)
            v0, v1, v2, v3 = u32(0), u32(0), u32(0), u32(0)
            if seen and in_head:
                cell = base + u64(u32(p)) * u64(u32(cell_bytes))
                k0, k1, k2, k3 = load_128(keys + cell)
                v0, v1, v2, v3 = load_128(values + cell)
            a0, a1 = halves_to_f32(k0)
            a2, a3 = halves_to_f32(k1)
            a4, a5 = halves_to_f32(k2)
            a6, a7 = halves_to_f32(k3)
            b0, b1 = halves_to_f32(v0)
            b2, b3 = halves_to_f32(v1)
            b4, b5 = halves_to_f32(v2)
            b6, b7 = halves_to_f32(v3)
            for g in range(group):
                o = 8 * g
                score = fma(query[o], a0, fma(query[o + 1], a1, fma(query[o + 2], a2, query[o + 3] * a3)))
                score += fma(query[o + 4], a4, fma(query[o + 5], a5, fma(query[o + 6], a6, query[o + 7] * a7)))
                for mask in (1, 2, 4, 8, 16):
                    if mask < lanes:
                        score += swap_f32(score, u32(mask))
                if not seen:
                    score = f32(HIDDEN)
                now = larger(largest[g], score)
                shrink, weight = exp2(largest[g] - now), exp2(score - now)
                if not seen:
                    weight = f32(0.0)
                largest[g] = now
                total[g] = fma(total[g], shrink, weight)
                acc[o] = fma(weight, b0, acc[o] * shrink)
                acc[o + 1] = fma(weight, b1, acc[o + 1] * shrink)
                acc[o + 2] = fma(weight, b2, acc[o + 2] * shrink)
                acc[o + 3] = fma(weight, b3, acc[o + 3] * shrink)
                acc[o + 4] = fma(weight, b4, acc[o + 4] * shrink)
                acc[o + 5] = fma(weight, b5, acc[o + 5] * shrink)
                acc[o + 6] = fma(weight, b6, acc[o + 6] * shrink)
                acc[o + 7] = fma(weight, b7, acc[o + 7] * shrink)
        memory = dynamic_shared()
        for g in range(group):
            for mask in (1, 2, 4, 8, 16):  # join the positions of this warp
                if mask >= lanes:
                    other = swap_f32(largest[g], u32(mask))
                    now = larger(largest[g], other)
                    mine, theirs = exp2(largest[g] - now), exp2(other - now)
                    largest[g] = now
                    total[g] = total[g] * mine + swap_f32(total[g], u32(mask)) * theirs
                    for k in range(8):
                        acc[8 * g + k] = acc[8 * g + k] * mine + swap_f32(acc[8 * g + k], u32(mask)) * theirs
            if sub == i32(0):
                out = memory + u32((warp * i32(group) + i32(g)) * i32(stride * 4))
                if d == i32(0):
                    shared_store_f32(out, largest[g])
                    shared_store_f32(out + u32(4), total[g])
                for k in range(8):
                    shared_store_f32(out + u32((i32(2 + k) + d) * i32(4)), acc[8 * g + k])
        sync_block()
        for item in range(tid, i32(group * dims), i32(THREADS)):  # join the warps
            g, column = item // i32(dims), item % i32(dims)
            of = memory + u32(g * i32(stride * 4))
            peak = f32(HIDDEN)
            for w in range(WARPS):
                peak = larger(peak, shared_load_f32(of + u32(w * group * stride * 4)))
            sum_, value = f32(0.0), f32(0.0)
            for w in range(WARPS):
                here = of + u32(w * group * stride * 4)
                factor = exp2(shared_load_f32(here) - peak)
                sum_ = fma(shared_load_f32(here + u32(4)), factor, sum_)
                value = fma(shared_load_f32(here + u32((column + i32(2)) * i32(4))), factor, value)
            part = parts + u64(u32(((token * n_head) + head + g) * splits + split)) * u64(u32(part_bytes))
            if column * i32(2) < cell_bytes:
                store_f32(at(part, i32(PART_HEAD) + column * i32(4)), value)
            if column == i32(0):
                store_f32(part, peak)
                store_f32(at(part, i32(4)), sum_)

    return Source(attention, "u64 i32 u64 u64 u64 u64 u64 i32 i32 i32 i32 u64 i32 f32 u64 i32", THREADS, 2)
