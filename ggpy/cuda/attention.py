"""Attention of single tokens over the cache: positions are split over blocks, warps and lanes, each with a running
softmax (arXiv 2205.14135), and joined at the end.

A block takes GROUP query heads that share a kv head, over one of `splits` shares of the positions, and leaves a *part*:
the largest score (times log2 e), the sum of exponentials under it, and the weighted values, to be joined by whoever
reads them (`ggpy.cuda.activations.row_reader`, or the kernel `join`).

Where every token of the batch has a slot to itself, the kernel also turns its queries and the token's key (and
normalises them, where the model does), and the block whose share holds the token's own cell stores key and value there;
tokens that see each other need the kernel `rope_store` before.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cpu.layout import cache_types
from ggpy.cuda.cache import bring_near, head_bytes, reader, writer
from ggpy.cuda.compile import Source
from ggpy.cuda.device import at, divided, f32, i32, u32, u64, warp_sum
from ggpy.cuda.instructions import (
    divide,
    dynamic_shared,
    exp2,
    fma,
    fresh_i32,
    halves_to_f32,
    larger,
    load_2f32,
    load_f32,
    release_next,
    root,
    shared_load_f32,
    shared_store_f32,
    store_f32,
    swap_f32,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.layout import ATTENTION_THREADS, PART_HEAD

WARPS = ATTENTION_THREADS // 32
HIDDEN = -1e30

SIGNATURE = (
    "u64 i32 u64 i32 u64 i32 "  # q, k and v with their strides; k and v only where they are turned and stored here
    "u64 u64 f32 u64 i32 i32 "  # q_norm and k_norm or 0, eps; angles, half, neox
    "u64 u64 u64 "  # header, slots, positions
    "i32 i32 i32 "  # n_head, n_head_kv, head_dim
    "u64 u64 i32 i32 i32 f32 "  # keys, values, cells, head_pad; window, scale
    "u64 i32"  # parts, bytes of a part
)


def source(lanes_: str, group_: str, turning: str, cache: str) -> Source:
    """attention.LANES.GROUP.turn.CACHE (or .turned), on a grid (splits, n_head / GROUP, tokens): LANES lanes, a power
    of two, hold 8 of the dimensions of a head each. Tokens from `header`[0] on are left alone."""
    lanes, group, turn = int(lanes_), int(group_), turning == "turn"
    subs = 32 // lanes  # groups of lanes in a warp
    at_once = 4 if group <= 2 else 2  # positions that each of them takes at a time
    dims = 8 * lanes
    stride, held, cells = dims + 2, 8 * group, 4 * at_once
    n_items = (group + 2) * dims if turn else group * dims
    key_type, value_type = cache_types(cache)
    key_head_bytes, store_key, bring_key = (made(key_type) for made in (head_bytes, writer, bring_near))
    value_head_bytes, store_value, bring_value = (made(value_type) for made in (head_bytes, writer, bring_near))
    (start_keys, read_key), (start_values, read_value) = reader(key_type), reader(value_type)

    def attention(q, q_stride, k, k_stride, v, v_stride, q_norm, k_norm, eps, angles, half, neox,
                  header, slots, positions, n_head, n_head_kv, head_dim,
                  keys, values, slot_cells, head_pad, window, scale, parts, part_bytes):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        sub, d = lane // i32(lanes), (lane % i32(lanes)) * i32(8)
        split, splits = i32(cuda.blockIdx.x), i32(cuda.gridDim.x)
        head, token = i32(cuda.blockIdx.y) * i32(group), i32(cuda.blockIdx.z)
        # What describes the batch, and the cells of earlier steps, are there before the kernel ahead has ended.
        n_tokens = fresh_i32(header)
        slot, position = fresh_i32(at(slots, token * i32(4))), fresh_i32(at(positions, token * i32(4)))
        if token >= n_tokens:
            wait_for_previous()
            return
        begin, end = i32(0), position + i32(1)
        if window > i32(0) and end > window:
            begin = end - window
        share = divided(end - begin + splits - i32(1), splits)
        begin += split * share
        if begin + share < end:
            end = begin + share
        kv = divided(head, divided(n_head, n_head_kv))
        key_head = u64(u32(slot * n_head_kv + kv)) * key_head_bytes(slot_cells, head_pad)
        value_head = u64(u32(slot * n_head_kv + kv)) * value_head_bytes(slot_cells, head_pad)
        for p in range(begin + tid, end, i32(ATTENTION_THREADS)):
            bring_key(keys, key_head, slot_cells, head_pad, p)
            bring_value(values, value_head, slot_cells, head_pad, p)
        wait_for_previous()
        memory = dynamic_shared()

        # queries, and in one block the new key and value: an element a thread
        queries = memory + u32(4 * (group + 1))
        q_row = q + u64(u32(token)) * u64(u32(q_stride)) + u64(u32(head * head_dim * i32(4)))
        k_row, v_row = u64(0), u64(0)
        own = position >= begin and position < end
        if turn:
            k_row = k + u64(u32(token)) * u64(u32(k_stride)) + u64(u32(kv * head_dim * i32(4)))
            v_row = v + u64(u32(token)) * u64(u32(v_stride)) + u64(u32(kv * head_dim * i32(4)))
            if q_norm != u64(0):
                if warp <= i32(group):
                    row = k_row if warp == i32(group) else at(q_row, warp * head_dim * i32(4))
                    total = f32(0.0)
                    for c in range(lane, head_dim, i32(32)):
                        x = load_f32(at(row, c * i32(4)))
                        total = fma(x, x, total)
                    total = warp_sum(total)
                    if lane == i32(0):
                        factor = divide(f32(1.0), root(divide(total, f32(head_dim)) + eps))
                        shared_store_f32(memory + u32(warp * i32(4)), factor)
                sync_block()
        for item in range(tid, i32(n_items), i32(ATTENTION_THREADS)):
            which, j = item // i32(dims), item % i32(dims)
            x = f32(0.0)
            if j < head_dim:
                if not turn:
                    x = load_f32(at(q_row, (which * head_dim + j) * i32(4)))
                elif which == i32(group + 1):
                    if own:
                        x = load_f32(at(v_row, j * i32(4)))
                elif which < i32(group) or own:
                    row = k_row if which == i32(group) else at(q_row, which * head_dim * i32(4))
                    x = load_f32(at(row, j * i32(4)))
                    other, angle, sign = j, j, f32(0.0)
                    if j < half * i32(2):
                        if neox != i32(0):
                            if j < half:
                                other, sign = j + half, f32(-1.0)
                            else:
                                other, angle, sign = j - half, j - half, f32(1.0)
                        else:
                            other, angle = j ^ i32(1), j >> i32(1)
                            sign = f32(-1.0) if j == angle * i32(2) else f32(1.0)
                    y = load_f32(at(row, other * i32(4)))
                    if q_norm != u64(0):
                        norm = k_norm if which == i32(group) else q_norm
                        factor = shared_load_f32(memory + u32(which * i32(4)))
                        x *= factor * load_f32(at(norm, j * i32(4)))
                        y *= factor * load_f32(at(norm, other * i32(4)))
                    if sign != f32(0.0):
                        c, s = load_2f32(
                            angles + u64(u32(position)) * u64(u32(half * i32(8))) + u64(u32(angle * i32(8)))
                        )
                        x = x * c + sign * (y * s)
            if which < i32(group):
                shared_store_f32(queries + u32(item * i32(4)), x * scale)
            elif own and j < head_pad:
                if which == i32(group):
                    store_key(keys, key_head, slot_cells, head_pad, position, j, x)
                else:
                    store_value(values, value_head, slot_cells, head_pad, position, j, x)
        sync_block()

        query = cuda.local.array(held, types.float32)
        acc = cuda.local.array(held, types.float32)
        largest = cuda.local.array(group, types.float32)
        total = cuda.local.array(group, types.float32)
        score = cuda.local.array(at_once, types.float32)
        kx = cuda.local.array(cells, types.uint32)
        vx = cuda.local.array(cells, types.uint32)
        by_key = cuda.local.array(at_once, types.float32)
        by_value = cuda.local.array(at_once, types.float32)
        for g in range(group):
            largest[g], total[g] = f32(HIDDEN), f32(0.0)
            for e in range(8):
                acc[8 * g + e] = f32(0.0)
                query[8 * g + e] = shared_load_f32(queries + u32((i32(g * dims + e) + d) * i32(4)))
        in_head = d < head_pad
        first_key, key_scales = start_keys(key_head, slot_cells, head_pad, d)
        first_value, value_scales = start_values(value_head, slot_cells, head_pad, d)
        for first in range(begin + warp * i32(subs * at_once), end, i32(WARPS * subs * at_once)):
            for n in range(at_once):
                kx[4 * n], kx[4 * n + 1], kx[4 * n + 2], kx[4 * n + 3] = u32(0), u32(0), u32(0), u32(0)
                vx[4 * n], vx[4 * n + 1], vx[4 * n + 2], vx[4 * n + 3] = u32(0), u32(0), u32(0), u32(0)
                by_key[n], by_value[n] = f32(1.0), f32(1.0)
                p = first + i32(n * subs) + sub
                if p < end and in_head:
                    kx[4 * n], kx[4 * n + 1], kx[4 * n + 2], kx[4 * n + 3], by_key[n] = read_key(
                        keys, first_key, key_scales, head_pad, p
                    )
                    vx[4 * n], vx[4 * n + 1], vx[4 * n + 2], vx[4 * n + 3], by_value[n] = read_value(
                        values, first_value, value_scales, head_pad, p
                    )
            for g in range(group):
                now = largest[g]
                for n in range(at_once):
                    s = f32(0.0)
                    for e in range(4):
                        low, high = halves_to_f32(kx[4 * n + e])
                        s = fma(query[8 * g + 2 * e], low, fma(query[8 * g + 2 * e + 1], high, s))
                    s *= by_key[n]
                    for mask in (1, 2, 4, 8, 16):
                        if mask < lanes:
                            s += swap_f32(s, u32(mask))
                    if first + i32(n * subs) + sub >= end:
                        s = f32(HIDDEN)
                    score[n] = s
                    now = larger(now, s)
                shrink = exp2(largest[g] - now)
                largest[g] = now
                total[g] *= shrink
                for e in range(8):
                    acc[8 * g + e] *= shrink
                for n in range(at_once):
                    weight = exp2(score[n] - now)
                    if first + i32(n * subs) + sub >= end:
                        weight = f32(0.0)
                    total[g] += weight
                    weight *= by_value[n]
                    for e in range(4):
                        low, high = halves_to_f32(vx[4 * n + e])
                        acc[8 * g + 2 * e] = fma(weight, low, acc[8 * g + 2 * e])
                        acc[8 * g + 2 * e + 1] = fma(weight, high, acc[8 * g + 2 * e + 1])
        sync_block()  # the queries' memory is used again
        for g in range(group):
            for mask in (1, 2, 4, 8, 16):  # join the positions of this warp
                if mask >= lanes:
                    other = swap_f32(largest[g], u32(mask))
                    now = larger(largest[g], other)
                    mine, theirs = exp2(largest[g] - now), exp2(other - now)
                    largest[g] = now
                    total[g] = total[g] * mine + swap_f32(total[g], u32(mask)) * theirs
                    for e in range(8):
                        acc[8 * g + e] = acc[8 * g + e] * mine + swap_f32(acc[8 * g + e], u32(mask)) * theirs
            if sub == i32(0):
                out = memory + u32((warp * i32(group) + i32(g)) * i32(stride * 4))
                if d == i32(0):
                    shared_store_f32(out, largest[g])
                    shared_store_f32(out + u32(4), total[g])
                for e in range(8):
                    shared_store_f32(out + u32((i32(2 + e) + d) * i32(4)), acc[8 * g + e])
        sync_block()
        for item in range(tid, i32(group * dims), i32(ATTENTION_THREADS)):  # join the warps
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
            if column < head_pad:
                store_f32(at(part, i32(PART_HEAD) + column * i32(4)), value)
            if column == i32(0):
                store_f32(part, peak)
                store_f32(at(part, i32(4)), sum_)

    return Source(attention, SIGNATURE, ATTENTION_THREADS, 2)
