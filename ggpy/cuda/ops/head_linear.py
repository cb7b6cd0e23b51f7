"""Products of heads' own matrices with their runs of columns, in float32 (`ggpy.graph.operations.Linear.n_head`)."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_values, divided, f32, i32, inline, two_floats, u32, u64
from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    fma,
    load_4f32,
    release_next,
    store_f32,
    stream_128,
    swap_f32,
    wait_for_previous,
)
from ggpy.cuda.weights.layout import HEAD_PRODUCT_THREADS as THREADS
from ggpy.quant.formats import PACKED

SIGNATURE = "u64 u64 u64 u64 i32 i32 i32 i32 i32 i32 u64 i32 u64 i32 i32 i32"


def source(name: str, tokens_: str) -> Source:
    """head_linear.TYPE.TOKENS(codes, high, scales, supers, their strides, n_blocks, lanes, src, src_stride, dst,
    dst_stride, n_rows, n): so many tokens at a time, of n; on a grid (rows of a head, heads, tokens). A row has
    `lanes` lanes, a power of two, which take its blocks of 32 columns in turn; src: rows on multiples of 16 bytes."""
    p, tokens = PACKED[name], int(tokens_)
    values_of = _float_values({"F32": 2, "BF16": 1, "F16": 0}[name]) if p.is_float else block_values(p)
    warps = THREADS // 32

    def head_linear(codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride, n_blocks, lanes,
                    src, src_stride, dst, dst_stride, n_rows, n):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        wait_for_previous()
        lane, warp = i32(cuda.threadIdx.x) & i32(31), i32(cuda.threadIdx.x) >> i32(5)
        sub, own = divided(lane, lanes), lane & (lanes - i32(1))
        head, first = i32(cuda.blockIdx.y), i32(cuda.blockIdx.z) * i32(tokens)
        row = (i32(cuda.blockIdx.x) * i32(warps) + warp) * divided(i32(32), lanes) + sub
        stored = row < n_rows and own == i32(0)
        if row >= n_rows:  # its lanes come along, as others wait for them
            row = n_rows - i32(1)
        of = u64(u32(head * n_rows + row))
        codes_at, high_at = codes + of * u64(u32(code_stride)), high + of * u64(u32(high_stride))
        scales_at, supers_at = scales + of * u64(u32(scale_stride)), supers + of * u64(u32(super_stride))
        x = at(src, head * n_blocks * i32(128))
        w = cuda.local.array(32, types.float32)
        total = cuda.local.array(tokens, types.float32)
        for t in range(tokens):
            total[t] = f32(0.0)
        for block in range(own, n_blocks, lanes):
            values_of(codes_at, high_at, scales_at, supers_at, n_blocks, block, w)
            for t in range(tokens):
                token = i32(first + i32(t))
                if token >= n:
                    token = n - i32(1)
                column = at(x + u64(u32(token)) * u64(u32(src_stride)), block * i32(128))
                for k in range(8):
                    a, b, c, d = load_4f32(column + u64(16 * k))
                    total[t] = fma(w[4 * k], a, fma(w[4 * k + 1], b, total[t]))
                    total[t] = fma(w[4 * k + 2], c, fma(w[4 * k + 3], d, total[t]))
        for t in range(tokens):
            for mask in (16, 8, 4, 2, 1):
                if i32(mask) < lanes:
                    total[t] += swap_f32(total[t], u32(mask))
            if stored and first + i32(t) < n:
                out = dst + u64(u32(first + i32(t))) * u64(u32(dst_stride))
                store_f32(at(out, (head * n_rows + row) * i32(4)), total[t])

    return Source(head_linear, SIGNATURE, THREADS)


def _float_values(kind: int) -> Any:
    """`block_values` for rows of floats."""
    n_loads = 8 if kind == 2 else 4

    @inline
    def values(codes, high, scales, supers, n_blocks, block, out):  # type: ignore[no-untyped-def]
        for k in range(n_loads):
            a, b, c, d = stream_128(at(codes, (block * i32(n_loads) + i32(k)) * i32(16)))
            if kind == 2:
                out[4 * k], out[4 * k + 1] = bits_to_f32(a), bits_to_f32(b)
                out[4 * k + 2], out[4 * k + 3] = bits_to_f32(c), bits_to_f32(d)
            else:
                out[8 * k], out[8 * k + 1] = two_floats(a, kind)
                out[8 * k + 2], out[8 * k + 3] = two_floats(b, kind)
                out[8 * k + 4], out[8 * k + 5] = two_floats(c, kind)
                out[8 * k + 6], out[8 * k + 7] = two_floats(d, kind)

    return values
