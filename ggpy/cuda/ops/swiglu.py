"""SwiGLU: silu(gate) * up, element by element, in rows of float32."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, u32, u64
from ggpy.cuda.isa.instructions import exp2, load_f32, reciprocal, release_next, store_f32, wait_for_previous

THREADS = 256


def source() -> Source:
    """swiglu(gate, gate_stride, up, up_stride, dst, dst_stride, n_cols), on a grid (columns / THREADS, tokens)."""

    def swiglu(gate, gate_stride, up, up_stride, dst, dst_stride, n_cols):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        column, token = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x), u64(cuda.blockIdx.y)
        if column >= n_cols:
            return
        g = load_f32(at(gate + token * u64(u32(gate_stride)), column * i32(4)))
        u = load_f32(at(up + token * u64(u32(up_stride)), column * i32(4)))
        silu = g * reciprocal(f32(1.0) + exp2(g * f32(-1.4426950408889634)))
        store_f32(at(dst + token * u64(u32(dst_stride)), column * i32(4)), silu * u)

    return Source(swiglu, "u64 i32 u64 i32 u64 i32 i32", THREADS)
