"""From rows of float32 to what products read: RMS norm, and 8-bit codes in blocks of 32 columns with their scale. The
work of one block of threads for one row, used by the kernel `activations` and at the head of products for one token."""

from __future__ import annotations

from typing import Any

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.device import at, block_sum, f32, i32, inline, u32, u64
from ggpy.cuda.instructions import (
    divide,
    dynamic_shared,
    exp2,
    f32_to_bits,
    fma,
    larger,
    load_4f32,
    load_f32,
    load_i32,
    magnitude,
    pack_bytes,
    release_next,
    root,
    round_to_i32,
    shared_store_f32,
    shared_store_u32,
    store_f32,
    store_u32,
    swap_f32,
    swap_i32,
    wait_for_previous,
)
from ggpy.cuda.layout import PART_HEAD

THREADS = 256


def storage(shared: bool) -> tuple[Any, Any, Any]:
    """(an address and an offset made one, store a word, store a float) for shared or for global memory."""
    if not shared:
        return at, store_u32, store_f32

    @inline
    def shared_at(base, offset):  # type: ignore[no-untyped-def]
        return base + u32(offset)

    return shared_at, shared_store_u32, shared_store_f32


@inline
def row_factor(row, n_cols, eps, memory, threads):  # type: ignore[no-untyped-def]
    """1 / the root of the mean square of a row, plus eps; by the whole block."""
    total = f32(0.0)
    for c in range(i32(cuda.threadIdx.x * 4), n_cols - i32(3), i32(threads * 4)):
        a, b, d, e = load_4f32(at(row, c * i32(4)))
        total = fma(a, a, fma(b, b, fma(d, d, fma(e, e, total))))
    rest = n_cols // i32(4) * i32(4) + i32(cuda.threadIdx.x)
    if rest < n_cols:
        x = load_f32(at(row, rest * i32(4)))
        total = fma(x, x, total)
    mean = divide(block_sum(total, memory, threads // 32), f32(n_cols))
    return divide(f32(1.0), root(mean + eps))


@inline
def joined(parts, splits, part_bytes, head, d):  # type: ignore[no-untyped-def]
    """Columns d .. d + 3 of a head's attention, from its parts (`ggpy.cuda.attention`)."""
    first = parts + u64(u32(head * splits)) * u64(u32(part_bytes))
    largest, part = f32(-1e30), first
    for _ in range(splits):
        largest = larger(largest, load_f32(part))
        part += u64(u32(part_bytes))
    weight, a, b, c, e = f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0)
    part = first
    for _ in range(splits):
        factor = exp2(load_f32(part) - largest)
        weight = fma(load_f32(at(part, i32(4))), factor, weight)
        p, q, r, s = load_4f32(at(part, i32(PART_HEAD) + d * i32(4)))
        a, b, c, e = fma(p, factor, a), fma(q, factor, b), fma(r, factor, c), fma(s, factor, e)
        part += u64(u32(part_bytes))
    weight = divide(f32(1.0), weight)
    return a * weight, b * weight, c * weight, e * weight


def quantizer(shared: bool, threads: int, parts: bool = False) -> Any:
    """`quantize(row, weight, factor, n_blocks, codes, levels, head_dim, splits, part_bytes)`: a row as 8-bit codes.

    row * factor (* weight where that is not 0), by the whole block; `codes` and `levels` are laid out as a token of
    `ggpy.cuda.layout.ActivationLayout`. With `parts`, row is the address of attention's parts.
    """
    place, put, put_float = storage(shared)

    @inline
    def quantize(row, weight, factor, n_blocks, codes, levels, head_dim, splits, part_bytes):  # type: ignore[no-untyped-def]
        n = n_blocks * i32(8)
        for base in range(i32(0), n, i32(threads)):
            i = base + i32(cuda.threadIdx.x)
            a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            if i < n:
                if parts:
                    a, b, c, d = joined(row, splits, part_bytes, i * i32(4) // head_dim, i * i32(4) % head_dim)
                else:
                    a, b, c, d = load_4f32(at(row, i * i32(16)))
                if weight != u64(0):
                    p, q, r, s = load_4f32(at(weight, i * i32(16)))
                    a, b, c, d = a * factor * p, b * factor * q, c * factor * r, d * factor * s
            largest = larger(larger(magnitude(a), magnitude(b)), larger(magnitude(c), magnitude(d)))
            for mask in (4, 2, 1):
                largest = larger(largest, swap_f32(largest, u32(mask)))
            scale = divide(largest, f32(127.0))
            inverse = f32(0.0)
            if scale > f32(1e-38):
                inverse = divide(f32(127.0), largest)
            k, l, m, o = round_to_i32(a * inverse), round_to_i32(b * inverse), round_to_i32(c * inverse), round_to_i32(d * inverse)  # fmt: skip  # noqa: E501, E741
            total = k + l + m + o
            total += swap_i32(total, u32(1))
            total += swap_i32(total, u32(2))
            other = swap_i32(total, u32(4))
            if i < n:
                block, w = i >> i32(3), i & i32(7)
                put(place(codes, (w >> i32(2)) * n_blocks * i32(16) + block * i32(16) + (w & i32(3)) * i32(4)), pack_bytes(k, l, m, o))  # fmt: skip  # noqa: E501
                if w == i32(0):
                    put(place(levels, block * i32(8)), f32_to_bits(scale))
                    put(place(levels, block * i32(8) + i32(4)), u32(total & i32(0xFFFF)) | (u32(other) << u32(16)))

    return quantize


def floats_writer(shared: bool, threads: int, parts: bool = False) -> Any:
    """`write(row, weight, factor, n_cols, n_blocks, out, head_dim, splits, part_bytes)`: a row as float32, padded with
    zeros to whole blocks of 32."""
    place, _, put = storage(shared)

    @inline
    def write(row, weight, factor, n_cols, n_blocks, out, head_dim, splits, part_bytes):  # type: ignore[no-untyped-def]
        if parts:
            for i in range(i32(cuda.threadIdx.x), n_blocks * i32(8), i32(threads)):
                a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
                if i * i32(4) < n_cols:
                    a, b, c, d = joined(row, splits, part_bytes, i * i32(4) // head_dim, i * i32(4) % head_dim)
                put(place(out, i * i32(16)), a)
                put(place(out, i * i32(16) + i32(4)), b)
                put(place(out, i * i32(16) + i32(8)), c)
                put(place(out, i * i32(16) + i32(12)), d)
        else:
            for i in range(i32(cuda.threadIdx.x), n_blocks * i32(32), i32(threads)):
                x = f32(0.0)
                if i < n_cols:
                    x = load_f32(at(row, i * i32(4)))
                    if weight != u64(0):
                        x = x * factor * load_f32(at(weight, i * i32(4)))
                put(place(out, i * i32(4)), x)

    return write


def source(form: str) -> Source:
    """activations.FORM(src, src_stride, rows, weight, eps, n_cols, n_blocks, codes, code_stride, levels, level_stride)

    Block i makes row rows[i] of src (row i where `rows` is 0) token i of the activations: RMS-normalised where eps is
    not negative, times `weight` (0: none), as "q8" or "f32".
    """
    quantize, write = quantizer(False, THREADS), floats_writer(False, THREADS)
    is_q8 = form == "q8"

    def activations(src, src_stride, rows, weight, eps, n_cols, n_blocks, codes, code_stride, levels, level_stride):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        release_next()
        wait_for_previous()
        i = i32(cuda.blockIdx.x)
        row = i
        if rows != u64(0):
            row = load_i32(at(rows, i * i32(4)))
        row_at = src + u64(u32(row)) * u64(u32(src_stride))
        factor = f32(1.0)
        if eps >= f32(0.0):
            factor = row_factor(row_at, n_cols, eps, dynamic_shared(), THREADS)
        out = codes + u64(u32(i)) * u64(u32(code_stride))
        if is_q8:
            out2 = levels + u64(u32(i)) * u64(u32(level_stride))
            quantize(row_at, weight, factor, n_blocks, out, out2, i32(1), i32(0), i32(0))
        else:
            write(row_at, weight, factor, n_cols, n_blocks, out, i32(1), i32(0), i32(0))

    return Source(activations, "u64 i32 u64 u64 f32 i32 i32 u64 i32 u64 i32", THREADS)
