"""Embedding rows of the batch's tokens, from the packed matrix."""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_values, i32, inline, two_floats, u64
from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    load_i32,
    release_next,
    store_f32,
    stream_64,
    stream_128,
    wait_for_previous,
)
from ggpy.quant.formats import PACKED

THREADS = 128


@inline
def token_of(tokens, chosen, i):  # type: ignore[no-untyped-def]
    token = load_i32(at(tokens, 4 * i))
    if token < i32(0):
        token = load_i32(at(chosen, 4 * (-1 - token)))
    return token


def source(name: str) -> Source:
    """embed.TYPE(tokens, chosen, codes, high, scales, supers, their strides, n_blocks, n_cols, dst, dst_stride): a
    block of threads a token; dst float32 rows. A token below 0 is the one chosen for slot -1 - token."""
    p = PACKED[name]
    if p.is_float:
        kind = {"F32": 2, "BF16": 1, "F16": 0}[name]

        def embed_floats(tokens, chosen, codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride, n_blocks, n_cols, dst, dst_stride):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
            wait_for_previous()
            release_next()
            i = cuda.blockIdx.x
            row = codes + u64(token_of(tokens, chosen, i)) * u64(code_stride)
            out = dst + u64(i) * u64(dst_stride)
            for c in range(cuda.threadIdx.x * 4, n_cols, THREADS * 4):  # four columns, of which the last may be padding
                if kind == 2:
                    a, b, d, e = stream_128(at(row, 4 * c))
                    v0, v1, v2, v3 = bits_to_f32(a), bits_to_f32(b), bits_to_f32(d), bits_to_f32(e)
                else:
                    a, b = stream_64(at(row, 2 * c))
                    v0, v1 = two_floats(a, kind)
                    v2, v3 = two_floats(b, kind)
                store_f32(at(out, 4 * c), v0)
                if c + 1 < n_cols:
                    store_f32(at(out, 4 * c + 4), v1)
                if c + 2 < n_cols:
                    store_f32(at(out, 4 * c + 8), v2)
                if c + 3 < n_cols:
                    store_f32(at(out, 4 * c + 12), v3)

        return Source(embed_floats, _SIGNATURE, THREADS)
    values_of = block_values(p)

    def embed_blocks(tokens, chosen, codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride, n_blocks, n_cols, dst, dst_stride):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        wait_for_previous()
        release_next()
        i = cuda.blockIdx.x
        row = u64(token_of(tokens, chosen, i))
        codes_at, high_at = codes + row * u64(code_stride), high + row * u64(high_stride)
        scales_at, supers_at = scales + row * u64(scale_stride), supers + row * u64(super_stride)
        out = dst + u64(i) * u64(dst_stride)
        values = cuda.local.array(32, types.float32)
        for block in range(cuda.threadIdx.x, n_blocks, THREADS):
            values_of(codes_at, high_at, scales_at, supers_at, n_blocks, i32(block), values)
            for c in range(32):
                store_f32(at(out, 4 * (32 * block + c)), values[c])

    return Source(embed_blocks, _SIGNATURE, THREADS)


_SIGNATURE = "u64 u64 u64 u64 u64 u64 i32 i32 i32 i32 i32 i32 u64 i32"
