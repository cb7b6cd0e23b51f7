"""Rope on queries and keys, and the store of keys and values into the cache; a warp for each head of each token."""

from __future__ import annotations

from numba import cuda

from ggpy.cpu.isa.layout import cache_types
from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64, warp_sum
from ggpy.cuda.isa.instructions import (
    divide,
    fma,
    load_2f32,
    load_f32,
    load_i32,
    release_next,
    root,
    store_f32,
    sync_warp,
    wait_for_previous,
)
from ggpy.cuda.ops.kv_cache import head_bytes, tell_of_cut, writer

THREADS = 128
WARPS = THREADS // 32


def source(cache: str, *options: str) -> Source:
    """rope_store.CACHE, on a grid (heads of queries and keys / WARPS, tokens): query heads are normalised (where q_norm
    is not 0) and turned in place; key heads too, and go to the cache with the value heads. Tokens from `header`[0] on
    are left alone. own_cells: int32 [token], the cells of the slots that keys and values go to; angles: float32
    [position][half][cosine, sine], of dimensions from rope_first on; factors: of queries, float32 [position], or 0. v
    is 0 where keys are all that is stored. rope_store.CACHE.late: turned, then normalised, by the same factor, since
    what is turned is as long as before."""
    late = "late" in options
    key_type, value_type = cache_types(cache)
    key_head_bytes, store_key, halves = head_bytes(key_type), writer(key_type), key_type == "f16"
    value_head_bytes, store_value = head_bytes(value_type), writer(value_type)

    def rope_store(q, k, v, q_stride, k_stride, v_stride, q_norm, k_norm, q_eps, k_eps, angles, half, neox, rope_first,
                   factors, n_head, n_head_kv, head_dim, v_dim, header, slots, positions, own_cells,
                   keys, values, cells, head_pad, value_pad):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        wait_for_previous()
        lane = i32(cuda.threadIdx.x) & i32(31)
        head = i32(cuda.blockIdx.x) * i32(WARPS) + (i32(cuda.threadIdx.x) >> i32(5))
        token = i32(cuda.blockIdx.y)
        if head >= n_head + n_head_kv or token >= load_i32(header):
            return
        is_key = head >= n_head
        if is_key:
            head -= n_head
            row, norm, eps = k + u64(u32(token)) * u64(u32(k_stride)), k_norm, k_eps
        else:
            row, norm, eps = q + u64(u32(token)) * u64(u32(q_stride)), q_norm, q_eps
        row += u64(u32(head * head_dim * i32(4)))
        factor = f32(1.0)
        if norm != u64(0):
            total = f32(0.0)
            for d in range(lane, head_dim, i32(32)):
                x = load_f32(at(row, d * i32(4)))
                total = fma(x, x, total)
            factor = divide(f32(1.0), root(divide(warp_sum(total), f32(head_dim)) + eps))
        slot, position = load_i32(at(slots, token * i32(4))), load_i32(at(positions, token * i32(4)))
        cell, slot_head = load_i32(at(own_cells, token * i32(4))), u64(u32(slot * n_head_kv + head))
        key_head = slot_head * key_head_bytes(cells, head_pad)
        grown = f32(1.0)
        if not is_key and factors != u64(0):
            grown = load_f32(at(factors, position * i32(4)))
        cut = False  # whether any number of this lane was
        angle = angles + u64(u32(position)) * u64(u32(half * i32(8)))
        for i in range(lane, head_dim >> i32(1), i32(32)):
            first, second = i * i32(2), i * i32(2) + i32(1)  # columns that rope leaves alone, or an interleaved pair
            if neox != i32(0) and i < half:
                first, second = i, i + half
            first, second = wrapped(first + rope_first, head_dim), wrapped(second + rope_first, head_dim)
            x, y = load_f32(at(row, first * i32(4))), load_f32(at(row, second * i32(4)))
            if norm != u64(0) and not late:
                x = x * factor * load_f32(at(norm, first * i32(4)))
                y = y * factor * load_f32(at(norm, second * i32(4)))
            if i < half:
                c, s = load_2f32(at(angle, i * i32(8)))
                x, y = x * c - y * s, x * s + y * c
            if norm != u64(0) and late:
                x = x * factor * load_f32(at(norm, first * i32(4)))
                y = y * factor * load_f32(at(norm, second * i32(4)))
            if is_key and halves:
                if store_key(keys, key_head, cells, head_pad, cell, first, x):
                    cut = True
                if store_key(keys, key_head, cells, head_pad, cell, second, y):
                    cut = True
            else:
                store_f32(at(row, first * i32(4)), x * grown)
                store_f32(at(row, second * i32(4)), y * grown)
        if is_key:
            if not halves:  # what shares a scale is other lanes' work
                sync_warp()
                for d in range(lane, head_dim, i32(32)):
                    if store_key(keys, key_head, cells, head_pad, cell, d, load_f32(at(row, d * i32(4)))):
                        cut = True
            if cut:
                tell_of_cut(header, 0)
            cut = False
            if v == u64(0):
                return
            row = v + u64(u32(token)) * u64(u32(v_stride)) + u64(u32(head * v_dim * i32(4)))
            value_head = slot_head * value_head_bytes(cells, value_pad)
            for d in range(lane, v_dim, i32(32)):
                if store_value(values, value_head, cells, value_pad, cell, d, load_f32(at(row, d * i32(4)))):
                    cut = True
            if cut:
                tell_of_cut(header, 1)

    signature = "u64 u64 u64 i32 i32 i32 u64 u64 f32 f32 u64 i32 i32 i32 u64 i32 i32 i32 i32"
    return Source(rope_store, signature + " u64 u64 u64 u64 u64 u64 i32 i32 i32", THREADS)


@inline
def wrapped(d, n):  # type: ignore[no-untyped-def]
    """A dimension of n, counted on from the first one after the last."""
    return d - n if d >= n else d
