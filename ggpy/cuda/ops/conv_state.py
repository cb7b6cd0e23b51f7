"""Causal convolutions of single columns, each over the last few tokens of its sequence, whose inputs a slot keeps.

A thread has a column, with its weights and last inputs in registers, and goes through some of a run's tokens one after
the other; what several bring is asked for at once, since each load takes hundreds of cycles.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, u32, u64
from ggpy.cuda.isa.functions import sigmoid
from ggpy.cuda.isa.instructions import fma, fresh_f32, load_f32, release_next, store_f32, wait_for_previous
from ggpy.cuda.ops.carried import place_of, segment_of
from ggpy.cuda.weights.layout import CONV_THREADS as THREADS
from ggpy.cuda.weights.layout import CONV_TOKENS

TOGETHER = 8  # tokens


def source(width_: str, *options: str) -> Source:
    """conv_state.WIDTH(src, src_stride, weight, bias, state, place_bytes, segments, dst, dst_stride, n_cols), on a grid
    (columns / THREADS, runs, tokens of the longest run / CONV_TOKENS): weight [n_cols][WIDTH], the last one a token's
    own; bias [n_cols] or 0; a slot's state are the inputs before its next token, [WIDTH - 1][n_cols]; a sequence begins
    with zeros. conv_state.WIDTH.silu: silu of that."""
    width, silu = int(width_), "silu" in options
    n_kept = width - 1

    def conv_state(src, src_stride, weight, bias, state, place_bytes, segments, dst, dst_stride, n_cols):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        column = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x)
        slot, first, count, position = segment_of(segments, cuda.blockIdx.y)
        begin = i32(cuda.blockIdx.z) * i32(CONV_TOKENS)
        owned = column < n_cols and begin < count
        weights = cuda.local.array(width, types.float32)
        before = cuda.local.array(n_kept, types.float32)
        shift = f32(0.0)
        for j in range(n_kept):
            before[j] = f32(0.0)
        if owned:  # what is there before this step
            kept = at(place_of(state, place_bytes, slot, position), column * i32(4))
            for j in range(width):
                weights[j] = load_f32(at(weight, (column * i32(width) + i32(j)) * i32(4)))
            if bias != u64(0):
                shift = load_f32(at(bias, column * i32(4)))
            if position != i32(0) and begin == i32(0):
                for j in range(n_kept):
                    before[j] = fresh_f32(at(kept, i32(j) * n_cols * i32(4)))
        wait_for_previous()
        if not owned:
            return
        row = first + u64(u32(begin))
        of = at(src + row * u64(u32(src_stride)), column * i32(4))
        to = at(dst + row * u64(u32(dst_stride)), column * i32(4))
        if begin != i32(0):
            for j in range(n_kept):
                before[j] = load_f32(of - u64(n_kept - j) * u64(u32(src_stride)))
        given = cuda.local.array(TOGETHER, types.float32)
        end = count
        if begin + i32(CONV_TOKENS) < count:
            end = begin + i32(CONV_TOKENS)
        for start in range(begin, end, i32(TOGETHER)):
            for i in range(TOGETHER):
                if start + i32(i) < end:
                    given[i] = load_f32(of + u64(u32(i)) * u64(u32(src_stride)))
            for i in range(TOGETHER):
                if start + i32(i) < end:
                    total = shift
                    for j in range(n_kept):
                        total = fma(weights[j], before[j], total)
                    total = fma(weights[n_kept], given[i], total)
                    if silu:
                        total = total * sigmoid(total)
                    store_f32(to + u64(u32(i)) * u64(u32(dst_stride)), total)
                    for j in range(n_kept - 1):
                        before[j] = before[j + 1]
                    before[n_kept - 1] = given[i]
            of += u64(u32(TOGETHER)) * u64(u32(src_stride))
            to += u64(u32(TOGETHER)) * u64(u32(dst_stride))
        if begin != i32(0):
            return
        if end < count:  # who has read the state writes it, as its place may be the same
            last = at(src + (first + u64(u32(count))) * u64(u32(src_stride)), column * i32(4))
            for j in range(n_kept):
                before[j] = load_f32(last - u64(n_kept - j) * u64(u32(src_stride)))
        kept = at(place_of(state, place_bytes, slot, position + count), column * i32(4))
        for j in range(n_kept):
            store_f32(at(kept, i32(j) * n_cols * i32(4)), before[j])

    return Source(conv_state, "u64 i32 u64 u64 u64 u64 u64 u64 i32 i32", THREADS)
