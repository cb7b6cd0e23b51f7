"""Norms of rows, or of runs of their columns, as operations of their own; those by the root mean square of whole rows
that only products read are part of `ggpy.cuda.weights.activations`."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_sum, f32, i32, u32, u64
from ggpy.cuda.isa.instructions import (
    divide,
    dynamic_shared,
    fma,
    load_f32,
    release_next,
    root,
    store_f32,
    wait_for_previous,
)


def source(kind: str, threads_: str) -> Source:
    """norm.KIND.THREADS(src, src_stride, weight, bias, run_bytes, width, eps, dst, dst_stride), on a grid (runs, rows):
    float32 rows of runs of `width` columns. weight, bias: the numbers of a run, `run_bytes` after those of the run
    before, or 0. KIND: "rms", "layer" or "l2" (`ggpy.graph.operations.Norm`); shared memory: 8 bytes a warp."""
    threads = int(threads_)
    warps, is_layer, is_l2 = threads // 32, kind == "layer", kind == "l2"

    def norm(src, src_stride, weight, bias, run_bytes, width, eps, dst, dst_stride):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        tid, run, row = i32(cuda.threadIdx.x), i32(cuda.blockIdx.x), u64(cuda.blockIdx.y)
        of = at(src + row * u64(u32(src_stride)), run * width * i32(4))
        to = at(dst + row * u64(u32(dst_stride)), run * width * i32(4))
        memory = dynamic_shared()
        shift, total = f32(0.0), f32(0.0)
        if is_layer:
            for c in range(tid, width, i32(threads)):
                total += load_f32(at(of, c * i32(4)))
            shift = divide(block_sum(total, memory, warps), f32(width))
            total = f32(0.0)
        for c in range(tid, width, i32(threads)):
            x = load_f32(at(of, c * i32(4))) - shift
            total = fma(x, x, total)
        total = block_sum(total, memory + u32(4 * warps), warps)
        if not is_l2:
            total = divide(total, f32(width))
        factor = divide(f32(1.0), root(total + eps))
        for c in range(tid, width, i32(threads)):
            x = (load_f32(at(of, c * i32(4))) - shift) * factor
            place = run * run_bytes + c * i32(4)
            if weight != u64(0):
                x *= load_f32(at(weight, place))
            if bias != u64(0):
                x += load_f32(at(bias, place))
            store_f32(at(to, c * i32(4)), x)

    return Source(norm, "u64 i32 u64 u64 i32 i32 f32 u64 i32", threads)
