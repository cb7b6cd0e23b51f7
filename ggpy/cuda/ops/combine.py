"""The weighted sum of what a token's experts gave (`ggpy.graph.operations.Combine`)."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, u32, u64
from ggpy.cuda.isa.instructions import load_f32, release_next, store_f32, wait_for_previous
from ggpy.cuda.weights.layout import ELEMENTWISE_THREADS as THREADS


def source() -> Source:
    """combine(src, src_stride, route, route_stride, n_used, plus, plus_stride, dst, dst_stride, n_cols), on a grid
    (columns / THREADS, tokens): dst[i] = the sum of the rows i * n_used + j of src, each times the weight j of row i of
    `route`, the best first; added to row i of `plus` where that is not 0."""

    def combine(src, src_stride, route, route_stride, n_used, plus, plus_stride, dst, dst_stride, n_cols):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        wait_for_previous()
        column, token = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x), i32(cuda.blockIdx.y)
        if column >= n_cols:
            return
        weights = at(route + u64(u32(token)) * u64(u32(route_stride)), n_used * i32(4))
        total = f32(0.0)
        for j in range(n_used):
            row = src + u64(u32(token * n_used + i32(j))) * u64(u32(src_stride))
            total += load_f32(at(row, column * i32(4))) * load_f32(at(weights, i32(j) * i32(4)))
        if plus != u64(0):
            total += load_f32(at(plus + u64(u32(token)) * u64(u32(plus_stride)), column * i32(4)))
        store_f32(at(dst + u64(u32(token)) * u64(u32(dst_stride)), column * i32(4)), total)

    return Source(combine, "u64 i32 u64 i32 i32 u64 i32 u64 i32 i32", THREADS)
