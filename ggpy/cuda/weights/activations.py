"""From rows of float32 to what products read: RMS norm, and 8-bit codes in blocks of 32 columns with their scale. The
work of one block of threads for one row, used by the kernel `activations` and at the head of products for one token."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_sum, divided, f32, i32, inline, normalizing, quotient, u32, u64
from ggpy.cuda.isa.instructions import (
    FLOAT_BASE,
    FLOAT_BASE_BITS,
    dynamic_shared,
    exp2,
    f32_to_bits,
    fma,
    larger,
    load_2f32,
    load_4f32,
    load_f32,
    load_i32,
    magnitude,
    pack_bytes,
    release_next,
    shared_store_4f32,
    shared_store_u32,
    store_4f32,
    store_u32,
    swap_f32,
    swap_i32,
    wait_for_previous,
)
from ggpy.cuda.weights.cache_layout import PART_HEAD, part_bytes
from ggpy.cuda.weights.layout import ROW_THREADS as THREADS


def storage(shared: bool) -> tuple[Any, Any, Any]:
    """Functions for shared or for global memory: (address plus offset, store a word, store four floats)."""
    if not shared:
        return at, store_u32, store_4f32

    @inline
    def shared_at(base, offset):  # type: ignore[no-untyped-def]
        return base + u32(offset)

    return shared_at, shared_store_u32, shared_store_4f32


def row_reader(n_cols: int, threads: int, splits: int = 0, head_dim: int = 0, aligned: bool = True) -> tuple[int, Any]:
    """(n, `read(row, held)`): a row of `n_cols` floats into the registers of a block of threads.

    held[4 * k ..] becomes columns 4 * (threads * k + thread) and the next three, k < n; 0 past the last column. With
    `splits`, `row` is the address of so many parts of attention for each head of `head_dim` columns, joined here.
    aligned: rows begin at multiples of 16 bytes, if their size is one.
    """
    n_items = -(-n_cols // 4)
    n_each = -(-n_items // threads)
    whole = n_cols % 4 == 0 and aligned
    bytes_of_part = part_bytes(head_dim)

    @inline
    def read(row, held):  # type: ignore[no-untyped-def]
        for k in range(n_each):
            i = i32(i32(cuda.threadIdx.x) + i32(k * threads))
            a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            if (k + 1) * threads <= n_items or i < i32(n_items):
                if splits:
                    a, b, c, d = joined(row, i32(i * i32(4)))
                elif whole:
                    a, b, c, d = load_4f32(at(row, i * i32(16)))
                else:
                    a = load_f32(at(row, i * i32(16)))
                    if i * i32(4) + i32(1) < i32(n_cols):
                        b = load_f32(at(row, i * i32(16) + i32(4)))
                    if i * i32(4) + i32(2) < i32(n_cols):
                        c = load_f32(at(row, i * i32(16) + i32(8)))
                    if i * i32(4) + i32(3) < i32(n_cols):
                        d = load_f32(at(row, i * i32(16) + i32(12)))
            held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3] = a, b, c, d

    n_splits, n_values = max(1, splits), max(4, 4 * splits)
    at_once = n_splits <= 8  # more parts would not find room in the registers

    @inline
    def joined(parts, column):  # type: ignore[no-untyped-def]
        """Four columns of attention's result, joined from the parts of their head (`ggpy.cuda.ops.attention`)."""
        factor = cuda.local.array(n_splits, types.float32)
        total = cuda.local.array(n_splits, types.float32)
        value = cuda.local.array(n_values, types.float32)
        head = divided(column, i32(head_dim))
        first = at(parts, head * i32(n_splits * bytes_of_part))
        values = at(first, i32(PART_HEAD) + (column - head * i32(head_dim)) * i32(4))
        for s in range(n_splits):
            factor[s], total[s] = load_2f32(first + u64(s * bytes_of_part))
        if at_once:  # all of them are asked for before any is used
            for s in range(n_splits):
                p, q, r, t = load_4f32(values + u64(s * bytes_of_part))
                value[4 * s], value[4 * s + 1], value[4 * s + 2], value[4 * s + 3] = p, q, r, t
        largest = f32(-1e30)
        for s in range(n_splits):
            largest = larger(largest, factor[s])
        weight = f32(0.0)
        for s in range(n_splits):
            factor[s] = exp2(factor[s] - largest)
            weight = fma(total[s], factor[s], weight)
        weight = quotient(f32(1.0), weight)
        a, b, c, e = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        for s in range(n_splits):
            if at_once:
                p, q, r, t = value[4 * s], value[4 * s + 1], value[4 * s + 2], value[4 * s + 3]
            else:
                p, q, r, t = load_4f32(values + u64(s * bytes_of_part))
            a, b = fma(p, factor[s], a), fma(q, factor[s], b)
            c, e = fma(r, factor[s], c), fma(t, factor[s], e)
        return a * weight, b * weight, c * weight, e * weight

    return n_each, read


def norm_function(n_cols: int, threads: int) -> Any:
    """`norm(held, weights, eps, memory)`: what `row_reader` has read becomes its RMS norm times `weights`, held alike;
    `memory`: SUMS shared bytes."""
    n_each = (n_cols + 4 * threads - 1) // (4 * threads)
    n_held = 4 * n_each

    @inline
    def norm(held, weights, eps, memory):  # type: ignore[no-untyped-def]
        total = f32(0.0)
        for k in range(n_held):
            total = fma(held[k], held[k], total)
        factor = normalizing(fma(block_sum(total, memory, threads // 32), f32(1.0 / n_cols), eps))
        for k in range(n_held):
            held[k] = held[k] * factor * weights[k]

    return norm


def writer(n_cols: int, threads: int, dtype: str, shared: bool, n_blocks: int) -> Any:
    """`write(held, codes, scales)`: what `row_reader` holds as activations of one token, laid out as
    `ggpy.cuda.weights.layout.ActivationLayout` has `n_blocks` blocks of 32 columns, with zeros after the last
    column."""
    place, put, put_floats = storage(shared)
    n_items = 8 * n_blocks
    n_each = (n_cols + 4 * threads - 1) // (4 * threads)
    n_stores = -(-n_items // threads)
    assert threads % 8 == 0

    @inline
    def write_floats(held, codes, scales):  # type: ignore[no-untyped-def]
        first = place(codes, i32(cuda.threadIdx.x) * i32(16))
        for k in range(n_stores):
            a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            if k < n_each:
                a, b, c, d = held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
            if (k + 1) * threads <= n_items or i32(cuda.threadIdx.x) < i32(n_items - k * threads):
                put_floats(place(first, i32(k * threads * 16)), a, b, c, d)

    @inline
    def write_codes(held, codes, scales):  # type: ignore[no-untyped-def]
        """Write codes and scales. Eight lanes side by side share a block: its scale, and the sums of codes of its
        halves as two int16. Shuffles between lanes are issued for all blocks together, so that the lanes wait once and
        not for each block; a loop over the masks around that would not be unrolled."""
        scale = cuda.local.array(n_each, types.float32)
        word = cuda.local.array(n_each, types.uint32)
        sums = cuda.local.array(n_each, types.int32)
        for k in range(n_each):
            a, b, c, d = held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
            scale[k] = larger(larger(magnitude(a), magnitude(b)), larger(magnitude(c), magnitude(d)))
        for k in range(n_each):
            scale[k] = larger(scale[k], swap_f32(scale[k], u32(4)))
        for k in range(n_each):
            scale[k] = larger(scale[k], swap_f32(scale[k], u32(2)))
        for k in range(n_each):
            scale[k] = larger(scale[k], swap_f32(scale[k], u32(1)))
        for k in range(n_each):
            largest = scale[k]
            scale[k] = quotient(largest, f32(127.0))
            inverse = quotient(f32(127.0), largest)
            if not scale[k] > f32(1e-38):
                inverse = f32(0.0)
            p, q = rounded(held[4 * k], inverse), rounded(held[4 * k + 1], inverse)
            r, s = rounded(held[4 * k + 2], inverse), rounded(held[4 * k + 3], inverse)
            word[k] = pack_bytes(p, q, r, s)
            sums[k] = i32(p + q + r + s - i32(4 * FLOAT_BASE_BITS & 0xFFFFFFFF))
        for k in range(n_each):
            sums[k] = i32(sums[k] + swap_i32(sums[k], u32(1)))
        for k in range(n_each):
            sums[k] = i32(sums[k] + swap_i32(sums[k], u32(2)))
        for k in range(n_each):
            sums[k] = (sums[k] & i32(0xFFFF)) | i32(u32(swap_i32(sums[k], u32(4))) << u32(16))
        i = i32(cuda.threadIdx.x)
        block, w = i >> i32(3), i & i32(7)
        first = place(codes, (w >> i32(2)) * i32(16 * n_blocks) + block * i32(16) + (w & i32(3)) * i32(4))
        first_scales = place(scales, block * i32(8))
        for k in range(n_stores):
            if (k + 1) * threads <= n_items or i < i32(n_items - k * threads):
                put(place(first, i32(k * threads * 2)), word[k] if k < n_each else u32(0))
        if w == i32(0):
            for k in range(n_stores):
                if (k + 1) * threads <= n_items or i < i32(n_items - k * threads):
                    here = place(first_scales, i32(k * threads))
                    put(here, f32_to_bits(scale[k]) if k < n_each else u32(0))
                    put(place(here, i32(4)), u32(sums[k]) if k < n_each else u32(0))

    return write_codes if dtype == "q8" else write_floats


@inline
def rounded(x, by):  # type: ignore[no-untyped-def]
    """x * by, of less than 2^21 in magnitude, rounded to the nearest integer (ties to even), plus FLOAT_BASE_BITS: its
    low bytes are right."""
    return i32(f32_to_bits(fma(x, by, f32(FLOAT_BASE))))


def source(dtype: str, n_cols_: str, loads: str = "") -> Source:
    """activations.DTYPE.COLUMNS(src, src_stride, rows, weight, eps, codes, code_stride, scales, scale_stride), or
    activations.DTYPE.COLUMNS.unaligned, for rows that begin at any multiple of 4 bytes.

    Block i makes row rows[i] of src (row i where `rows` is 0) token i of the activations: RMS-normalised where eps is
    not negative, times `weight` then, as "q8" or "f32".
    """
    n_cols = int(n_cols_)
    n_each, read = row_reader(n_cols, THREADS, aligned=loads != "unaligned")
    _, read_weights = row_reader(n_cols, THREADS)
    held_size = 4 * n_each
    norm, write = norm_function(n_cols, THREADS), writer(n_cols, THREADS, dtype, False, -(-n_cols // 32))

    def activations(src, src_stride, rows, weight, eps, codes, code_stride, scales, scale_stride):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        wait_for_previous()
        held = cuda.local.array(held_size, types.float32)
        weights = cuda.local.array(held_size, types.float32)
        i = i32(cuda.blockIdx.x)
        row = i
        if rows != u64(0):
            row = load_i32(at(rows, i * i32(4)))
        read(src + u64(u32(row)) * u64(u32(src_stride)), held)
        if eps >= f32(0.0):
            read_weights(weight, weights)
            norm(held, weights, eps, dynamic_shared())
        write(held, codes + u64(u32(i)) * u64(u32(code_stride)), scales + u64(u32(i)) * u64(u32(scale_stride)))

    return Source(activations, "u64 i32 u64 u64 f32 u64 i32 u64 i32", THREADS)
