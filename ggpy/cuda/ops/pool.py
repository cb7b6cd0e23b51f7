"""The rows of a text as one, for each wanted output (`ggpy.graph.operations.Pool`)."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, u32, u64
from ggpy.cuda.isa.instructions import divide, load_f32, load_i32, release_next, store_f32, wait_for_previous
from ggpy.cuda.weights.layout import ELEMENTWISE_THREADS as THREADS


def source(kind: str) -> Source:
    """pool.KIND(src, src_stride, rows, positions, dst, dst_stride, n_cols), on a grid (columns / THREADS, rows): of the
    sequence that ends at row rows[i] of src, float32, which lies there from its position 0 on, the mean or the first
    row ("mean", "cls") becomes row i of dst."""
    mean = kind == "mean"

    def pool(src, src_stride, rows, positions, dst, dst_stride, n_cols):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        column, i = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x), i32(cuda.blockIdx.y)
        if column >= n_cols:
            return
        row = load_i32(at(rows, i * i32(4)))
        before = load_i32(at(positions, row * i32(4)))
        here = at(src + u64(u32(row - before)) * u64(u32(src_stride)), column * i32(4))
        x = load_f32(here)
        if mean:
            for k in range(1, before + i32(1)):
                x += load_f32(here + u64(u32(k)) * u64(u32(src_stride)))
            x = divide(x, f32(before + i32(1)))
        store_f32(at(dst + u64(u32(i)) * u64(u32(dst_stride)), column * i32(4)), x)

    return Source(pool, "u64 i32 u64 u64 u64 i32 i32", THREADS)
