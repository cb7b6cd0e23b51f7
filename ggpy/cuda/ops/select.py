"""Some rows, and of each some columns, copied."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, i32, u32, u64
from ggpy.cuda.isa.instructions import load_f32, load_i32, release_next, store_f32, wait_for_previous
from ggpy.cuda.weights.layout import ELEMENTWISE_THREADS as THREADS


def source() -> Source:
    """select(src, src_stride, rows, run, first, n, dst, dst_stride, dst_run, n_cols), on a grid (columns / THREADS,
    rows): of row rows[i] of src (i where `rows` is 0), n columns of each run of `run`, from its column `first` on,
    n_cols in all, become the first n columns of each run of `dst_run` in row i of dst."""

    def select(src, src_stride, rows, run, first, n, dst, dst_stride, dst_run, n_cols):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        column, i = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x), i32(cuda.blockIdx.y)
        if column >= n_cols:
            return
        row = i
        if rows != u64(0):
            row = load_i32(at(rows, i * i32(4)))
        of_run = divided(column, n)
        within = column - of_run * n
        x = load_f32(at(src + u64(u32(row)) * u64(u32(src_stride)), (of_run * run + first + within) * i32(4)))
        store_f32(at(dst + u64(u32(i)) * u64(u32(dst_stride)), (of_run * dst_run + within) * i32(4)), x)

    return Source(select, "u64 i32 u64 i32 i32 i32 u64 i32 i32 i32", THREADS)
