"""Attention of single tokens over the cache: positions are split over blocks, warps and lanes, each with a running
softmax (arXiv 2205.14135), and joined at the end.

A block takes GROUP query heads that share a kv head, over one of `splits` shares of the positions, and leaves a *part*:
the largest score (times log2 e), the sum of exponentials under it, and the weighted values, to be joined by whoever
reads them (`ggpy.cuda.weights.activations.row_reader`, or the kernel `join`).

Where every token of the batch has a slot to itself, the kernel also turns its queries and the token's key (and
normalises them, where the model does), and the block whose share holds the token's own cell stores key and value there;
tokens that see each other need the kernel `rope_store` before.

Cells come through shared memory, by asynchronous copies some positions ahead of those being summed up: a lane reads
just what it has copied, so none waits for another. The first are asked for before the kernel waits for the one before
it. The token's own cell never goes that way: one warp rounds it as the cache does, and finds it in shared memory.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cpu.isa.layout import cache_types
from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, f32, i32, u32, u64, warp_sum
from ggpy.cuda.isa.functions import tanh
from ggpy.cuda.isa.instructions import (
    bring_near,
    copy_commit,
    copy_wait,
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
from ggpy.cuda.ops.kv_cache import head_bytes, pieces, tell_of_cut
from ggpy.cuda.weights.cache_layout import PART_HEAD, AttentionTile, padded_head, softcap_of, values_of
from ggpy.cuda.weights.layout import LOG2_E

HIDDEN = -1e30

SIGNATURE = (
    "u64 i32 u64 i32 u64 i32 "  # q, k and v with their strides; k and v only where they are turned and stored here
    "u64 u64 f32 u64 i32 i32 "  # q_norm and k_norm or 0, eps; angles, half, neox
    "u64 u64 u64 "  # header, slots, positions
    "i32 i32 i32 "  # n_head, n_head_kv, head_dim
    "u64 u64 i32 i32 i32 f32 u64 "  # keys, values, cells, head_pad; window, scale; slopes
    "u64 i32 "  # parts, bytes of a part
    "u64 u64 i32"  # weights that will be read next, as of `ggpy.cuda.ops.matvec`
)


def source(lanes_: str, group_: str, turning: str, cache: str, ring: str, *options: str) -> Source:
    """attention.LANES.GROUP.turn.CACHE.RING (or .turned), on a grid (splits, n_head / GROUP, tokens): LANES lanes, a
    power of two, hold 8 of the dimensions of a head each. Tokens from `header`[0] on are left alone. Options:
    `softcap_name`, whose scores come as multiples of the cap; `values_name`, where nothing is stored here; "alibi",
    where scores fall with the distance by `slopes`, float32 [n_head], times log2 e; "chunked", where a token sees
    those before it of its own run of `window` positions; and "late", where heads are normalised after rope."""
    lanes, group, turn = int(lanes_), int(group_), turning == "turn"
    tile = AttentionTile(lanes, group, cache, int(ring))
    threads, warps = tile.threads, tile.threads // 32
    subs, at_once, dims, stages = tile.subs, tile.at_once, tile.dims, tile.stages
    pairs, stride, held = dims // 2, dims + 2, 8 * group
    n_items = (group + 2 * turn) * pairs
    n_rounds = -(-n_items // threads)
    reach = subs * at_once  # positions of a warp at a time
    key_type, value_type = cache_types(cache)
    key_head_bytes, value_head_bytes = head_bytes(key_type), head_bytes(value_type)
    start_keys, copy_key, take_key, keep_key = pieces(key_type)
    start_values, copy_value, take_value, keep_value = pieces(value_type)
    key_piece, both, stage_bytes = tile.key_piece, tile.key_piece + tile.value_piece, tile.stage_bytes
    queries_at, own_at, ring_at = tile.queries_at, tile.own_at, tile.ring_at
    wait, wait_all = copy_wait(stages - 1), copy_wait(0)
    n_scores = at_once * group
    cap, late = softcap_of(options), "late" in options
    alibi, chunked, v_dim = "alibi" in options, "chunked" in options, values_of(options, 0)
    v_pad = padded_head(v_dim)
    assert not (turn and v_dim)

    def attention(q, q_stride, k, k_stride, v, v_stride, q_norm, k_norm, eps, angles, half, neox,
                  header, slots, positions, n_head, n_head_kv, head_dim,
                  keys, values, slot_cells, head_pad, window, scale, slopes, parts, part_bytes,
                  ahead, ahead_too, piece):  # type: ignore[no-untyped-def]  # fmt: skip
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
        begin, end = i32(0), i32(position + i32(1))
        if chunked:
            begin = i32(divided(position, window) * window)
        elif window > i32(0) and end > window:
            begin = i32(end - window)
        share = divided(end - begin + splits - i32(1), splits)
        begin = i32(begin + split * share)
        if begin + share < end:
            end = i32(begin + share)
        mine = i32(-1)  # the token's own cell, where it is this block's
        if turn and position >= begin and position < end:
            mine = position
        kv = divided(head, divided(n_head, n_head_kv))
        key_head = u64(u32(slot * n_head_kv + kv)) * key_head_bytes(slot_cells, head_pad)
        value_pad = i32(v_pad) if v_dim else head_pad
        value_head = u64(u32(slot * n_head_kv + kv)) * value_head_bytes(slot_cells, value_pad)
        first_key, key_scales = start_keys(key_head, slot_cells, head_pad, d)
        first_value, value_scales = start_values(value_head, slot_cells, value_pad, d)
        memory = dynamic_shared()
        queries, own = memory + u32(queries_at), memory + u32(own_at)
        of = memory + u32(ring_at) + u32(warp * i32(stages * stage_bytes))
        last_stage = of + u32((stages - 1) * stage_bytes)
        in_head, in_values = d < head_pad, d < value_pad
        first, far = i32(begin + warp * i32(reach)), i32(begin + warp * i32(reach))
        if not turn:  # the kernel ahead stores cells
            wait_for_previous()
        for s in range(stages):
            for n in range(at_once):
                p = i32(far + i32(n * subs) + sub)
                wanted = p < end and p != mine
                to = of + u32(s * stage_bytes + n * both)
                copy_key(to, lane, keys, first_key, key_scales, head_pad, p, in_head and wanted)
                wanted = in_values and wanted
                copy_value(to + u32(key_piece), lane, values, first_value, value_scales, value_pad, p, wanted)
            copy_commit()
            far = i32(far + i32(warps * reach))

        # queries, and in one block the new key and value: two numbers that turn together a thread
        angle_c = cuda.local.array(n_rounds, types.float32)
        angle_s = cuda.local.array(n_rounds, types.float32)
        one = cuda.local.array(n_rounds, types.float32)
        other = cuda.local.array(n_rounds, types.float32)
        for r in range(n_rounds):
            i = i32(tid + i32(r * threads)) % i32(pairs)
            angle_c[r], angle_s[r] = f32(1.0), f32(0.0)
            if turn and i < half:
                angle_c[r], angle_s[r] = load_2f32(
                    angles + u64(u32(position)) * u64(u32(half * i32(8))) + u64(u32(i * i32(8)))
                )
        if turn:
            wait_for_previous()
        q_row = q + u64(u32(token)) * u64(u32(q_stride)) + u64(u32(head * head_dim * i32(4)))
        k_row, v_row = q_row, q_row
        if turn:
            k_row = k + u64(u32(token)) * u64(u32(k_stride)) + u64(u32(kv * head_dim * i32(4)))
            v_row = v + u64(u32(token)) * u64(u32(v_stride)) + u64(u32(kv * head_dim * i32(4)))
        for r in range(n_rounds):
            item = i32(tid + i32(r * threads))
            which, i = item // i32(pairs), item % i32(pairs)
            paired = turn and neox != i32(0) and i < half
            here = i if paired else i32(i * i32(2))
            there = i32(i + half) if paired else i32(here + i32(1))
            one[r], other[r] = f32(0.0), f32(0.0)
            if item < i32(n_items) and (which < i32(group) or mine >= i32(0)):
                row = at(q_row, which * head_dim * i32(4))
                if which >= i32(group):
                    row = k_row if which == i32(group) else v_row
                if here < head_dim:
                    one[r] = load_f32(at(row, here * i32(4)))
                if there < head_dim:
                    other[r] = load_f32(at(row, there * i32(4)))
        if turn and q_norm != u64(0):
            if warp <= i32(group):
                row = k_row if warp == i32(group) else at(q_row, warp * head_dim * i32(4))
                total_ = f32(0.0)
                for c in range(lane, head_dim, i32(32)):
                    x = load_f32(at(row, c * i32(4)))
                    total_ = fma(x, x, total_)
                total_ = warp_sum(total_)
                if lane == i32(0):
                    factor = divide(f32(1.0), root(divide(total_, f32(head_dim)) + eps))
                    shared_store_f32(memory + u32(warp * i32(4)), factor)
            sync_block()
        for r in range(n_rounds):
            item = i32(tid + i32(r * threads))
            which, i = item // i32(pairs), item % i32(pairs)
            paired = turn and neox != i32(0) and i < half
            here = i if paired else i32(i * i32(2))
            there = i32(i + half) if paired else i32(here + i32(1))
            if item < i32(n_items):
                x, y = one[r], other[r]
                if which <= i32(group):
                    if turn and q_norm != u64(0) and not late:
                        norm = k_norm if which == i32(group) else q_norm
                        factor = shared_load_f32(memory + u32(which * i32(4)))
                        if here < head_dim:
                            x *= factor * load_f32(at(norm, here * i32(4)))
                        if there < head_dim:
                            y *= factor * load_f32(at(norm, there * i32(4)))
                    if turn and i < half:
                        x, y = x * angle_c[r] - y * angle_s[r], y * angle_c[r] + x * angle_s[r]
                    if turn and q_norm != u64(0) and late:  # the factor is the same, since rope turns
                        norm = k_norm if which == i32(group) else q_norm
                        factor = shared_load_f32(memory + u32(which * i32(4)))
                        if here < head_dim:
                            x *= factor * load_f32(at(norm, here * i32(4)))
                        if there < head_dim:
                            y *= factor * load_f32(at(norm, there * i32(4)))
                    if which < i32(group):
                        x, y = x * scale, y * scale
                to = queries + u32(which * i32(4 * dims))
                shared_store_f32(to + u32(here * i32(4)), x)
                shared_store_f32(to + u32(there * i32(4)), y)
        sync_block()
        if mine >= i32(0) and divided(mine - begin, i32(reach)) & i32(warps - 1) == warp:
            new = cuda.local.array(8, types.float32)
            for e in range(8):
                new[e] = shared_load_f32(queries + u32((i32(group * dims + e) + d) * i32(4)))
            storing = sub == i32(0) and in_head
            if keep_key(own, lane, keys, first_key, key_head, slot_cells, head_pad, mine, d, new, storing):
                tell_of_cut(header, 0)
            for e in range(8):
                new[e] = shared_load_f32(queries + u32((i32((group + 1) * dims + e) + d) * i32(4)))
            to = own + u32(key_piece)
            if keep_value(to, lane, values, first_value, value_head, slot_cells, head_pad, mine, d, new, storing):
                tell_of_cut(header, 1)

        query = cuda.local.array(held, types.float32)
        acc = cuda.local.array(held, types.float32)
        largest = cuda.local.array(group, types.float32)
        total = cuda.local.array(group, types.float32)
        score = cuda.local.array(n_scores, types.float32)
        slope = cuda.local.array(group, types.float32)
        for g in range(group):
            if alibi:
                slope[g] = load_f32(at(slopes, (head + i32(g)) * i32(4)))
            largest[g], total[g] = f32(HIDDEN), f32(0.0)
            for e in range(8):
                acc[8 * g + e] = f32(0.0)
                query[8 * g + e] = shared_load_f32(queries + u32((i32(g * dims + e) + d) * i32(4)))
        while first < end:
            wait()
            for n in range(at_once):
                p = i32(first + i32(n * subs) + sub)
                from_ = own if p == mine else of + u32(n * both)
                a, b, c, e_, by = take_key(from_, lane, key_scales, head_pad, p)
                k0, k1 = halves_to_f32(a)
                k2, k3 = halves_to_f32(b)
                k4, k5 = halves_to_f32(c)
                k6, k7 = halves_to_f32(e_)
                for g in range(group):
                    s = fma(query[8 * g], k0, fma(query[8 * g + 1], k1, f32(0.0)))
                    s = fma(query[8 * g + 2], k2, fma(query[8 * g + 3], k3, s))
                    s = fma(query[8 * g + 4], k4, fma(query[8 * g + 5], k5, s))
                    score[at_once * g + n] = fma(query[8 * g + 6], k6, fma(query[8 * g + 7], k7, s)) * by
            for g in range(group):
                now = largest[g]
                for n in range(at_once):
                    s = score[at_once * g + n]
                    for mask in (1, 2, 4, 8, 16):
                        if mask < lanes:
                            s += swap_f32(s, u32(mask))
                    if cap:
                        s = f32(cap * LOG2_E) * tanh(s)
                    if alibi:
                        s = fma(slope[g], f32(first + i32(n * subs) + sub - position), s)
                    if first + i32(n * subs) + sub >= end:
                        s = f32(HIDDEN)
                    score[at_once * g + n] = s
                    now = larger(now, s)
                shrink = exp2(largest[g] - now)
                largest[g] = now
                total[g] *= shrink
                for e in range(8):
                    acc[8 * g + e] *= shrink
                for n in range(at_once):
                    weight = exp2(score[at_once * g + n] - now)
                    if first + i32(n * subs) + sub >= end:
                        weight = f32(0.0)
                    total[g] += weight
                    score[at_once * g + n] = weight
            for n in range(at_once):
                p = i32(first + i32(n * subs) + sub)
                from_ = (own if p == mine else of + u32(n * both)) + u32(key_piece)
                a, b, c, e_, by = take_value(from_, lane, value_scales, value_pad, p)
                v0, v1 = halves_to_f32(a)
                v2, v3 = halves_to_f32(b)
                v4, v5 = halves_to_f32(c)
                v6, v7 = halves_to_f32(e_)
                for g in range(group):
                    weight = score[at_once * g + n] * by
                    acc[8 * g], acc[8 * g + 1] = fma(weight, v0, acc[8 * g]), fma(weight, v1, acc[8 * g + 1])
                    acc[8 * g + 2], acc[8 * g + 3] = fma(weight, v2, acc[8 * g + 2]), fma(weight, v3, acc[8 * g + 3])
                    acc[8 * g + 4], acc[8 * g + 5] = fma(weight, v4, acc[8 * g + 4]), fma(weight, v5, acc[8 * g + 5])
                    acc[8 * g + 6], acc[8 * g + 7] = fma(weight, v6, acc[8 * g + 6]), fma(weight, v7, acc[8 * g + 7])
            for n in range(at_once):
                p = i32(far + i32(n * subs) + sub)
                wanted = p < end and p != mine
                to = of + u32(n * both)
                copy_key(to, lane, keys, first_key, key_scales, head_pad, p, in_head and wanted)
                wanted = in_values and wanted
                copy_value(to + u32(key_piece), lane, values, first_value, value_scales, value_pad, p, wanted)
            copy_commit()
            of = of - u32((stages - 1) * stage_bytes) if of == last_stage else of + u32(stage_bytes)
            first, far = i32(first + i32(warps * reach)), i32(far + i32(warps * reach))
        wait_all()
        if piece > i32(0) and lane == i32(0):
            worker = ((token * i32(cuda.gridDim.y) + i32(cuda.blockIdx.y)) * splits + split) * i32(warps) + warp
            bring_near(ahead + u64(u32(worker)) * u64(u32(piece)), u32(piece))
            if ahead_too != u64(0):
                bring_near(ahead_too + u64(u32(worker)) * u64(u32(piece)), u32(piece))
        sync_block()  # the memory of queries and cells is used again
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
        for item in range(tid, i32(group * dims), i32(threads)):  # join the warps
            g, column = item // i32(dims), item % i32(dims)
            of = memory + u32(g * i32(stride * 4))
            peak = f32(HIDDEN)
            for w in range(warps):
                peak = larger(peak, shared_load_f32(of + u32(w * group * stride * 4)))
            sum_, value = f32(0.0), f32(0.0)
            for w in range(warps):
                here = of + u32(w * group * stride * 4)
                factor = exp2(shared_load_f32(here) - peak)
                sum_ = fma(shared_load_f32(here + u32(4)), factor, sum_)
                value = fma(shared_load_f32(here + u32((column + i32(2)) * i32(4))), factor, value)
            part = parts + u64(u32(((token * n_head) + head + g) * splits + split)) * u64(u32(part_bytes))
            if column < value_pad:
                store_f32(at(part, i32(PART_HEAD) + column * i32(4)), value)
            if column == i32(0):
                store_f32(part, peak)
                store_f32(at(part, i32(4)), sum_)

    return Source(attention, SIGNATURE, threads, 2)
