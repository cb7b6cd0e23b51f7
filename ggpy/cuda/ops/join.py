"""The parts of attention joined into rows of float32 (`ggpy.cuda.ops.attention`)."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, quotient, u32, u64
from ggpy.cuda.isa.instructions import exp2, fma, larger, load_f32, release_next, store_f32, wait_for_previous
from ggpy.cuda.weights.cache_layout import PART_HEAD
from ggpy.cuda.weights.layout import LOG2_E

THREADS = 128


def source() -> Source:
    """join(parts, splits, part_bytes, head_dim, sinks, dst, dst_stride), on a grid (n_head, tokens). sinks: float32
    [n_head], scores that have no value, or 0."""

    def join(parts, splits, part_bytes, head_dim, sinks, dst, dst_stride):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        head, token = i32(cuda.blockIdx.x), i32(cuda.blockIdx.y)
        first = parts + u64(u32((token * i32(cuda.gridDim.x) + head) * splits)) * u64(u32(part_bytes))
        peak = f32(-1e30)
        for s in range(splits):
            peak = larger(peak, load_f32(first + u64(u32(s)) * u64(u32(part_bytes))))
        sunk = f32(0.0)
        if sinks != u64(0):
            sink = load_f32(at(sinks, head * i32(4))) * f32(LOG2_E)
            peak = larger(peak, sink)
            sunk = exp2(sink - peak)
        out = dst + u64(u32(token)) * u64(u32(dst_stride)) + u64(u32(head * head_dim * i32(4)))
        for d in range(i32(cuda.threadIdx.x), head_dim, i32(THREADS)):
            total, value = sunk, f32(0.0)
            for s in range(splits):
                part = first + u64(u32(s)) * u64(u32(part_bytes))
                factor = exp2(load_f32(part) - peak)
                total = fma(load_f32(at(part, i32(4))), factor, total)
                value = fma(load_f32(at(part, i32(PART_HEAD) + d * i32(4))), factor, value)
            store_f32(at(out, d * i32(4)), value * quotient(f32(1.0), total))  # as `row_reader` joins them

    return Source(join, "u64 i32 i32 i32 u64 u64 i32", THREADS)
