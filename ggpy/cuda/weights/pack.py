"""Kernels that turn a GGUF tensor's own bytes into the planes that products read (`ggpy.cuda.weights.layout`): a thread
a block of 32 columns, or a column of floats."""

from __future__ import annotations

from typing import Any

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, inline, u32, u64
from ggpy.cuda.isa.instructions import load_u16, store_u8, store_u16, store_u32
from ggpy.cuda.weights.blocks import readers
from ggpy.cuda.weights.layout import MatrixLayout, bits_above, numbers
from ggpy.quant import FORMATS
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import BLOCK, Packed

THREADS = 256


def source(name: str) -> Source:
    """pack.TYPE(raw, row_bytes, n_rows, n_blocks, codes, high, scales, supers, and the strides of these four)

    raw: `n_rows` rows of the file, `row_bytes` apart; the four addresses are of the first of these rows in its planes.
    pack.F32 and pack.F16 (for every type of two bytes) copy `n_blocks` columns.
    """
    p = PACKED[name]
    if p.is_float:
        return Source(_floats(p.bits // 16), "u64 i32 i32 i32 u64 i32", THREADS)
    form = FORMATS[name]
    four, read_scales = readers(form)
    store_codes, store_scales = (_looked_up if numbers(p) else _codes)(p, four), _scales(p)
    size, group = form.type_size, form.block_size // BLOCK
    layout = MatrixLayout(p, 1, BLOCK)
    code_bytes, high_bytes = min(16, layout.code_bytes), layout.high_bytes

    def pack(raw, row_bytes, n_rows, n_blocks, codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        row, block = item // n_blocks, item % n_blocks
        if row >= n_rows:
            return
        top, sub = raw + u64(row) * u64(row_bytes) + u64(block // group * size), block % group
        to = codes + u64(row) * u64(code_stride) + u64(code_bytes * block)
        to_high = high + u64(row) * u64(high_stride) + u64(high_bytes * block)
        store_codes(top, sub, to, at(to, 16 * n_blocks), to_high)
        to_scales, to_supers = scales + u64(row) * u64(scale_stride), supers + u64(row) * u64(super_stride)
        store_scales(read_scales(top, sub), to_scales, to_supers, block)

    return Source(pack, "u64 i32 i32 i32 u64 u64 u64 u64 i32 i32 i32 i32", THREADS)


def _codes(p: Packed, four: Any) -> Any:
    """`store(top, sub, codes, last, high)`: store the codes of one block; `last`: the address of the second run of
    8-bit ones."""
    field, bits = bits_above(p), p.bits
    per_word = 8 // field if field else 1

    @inline
    def store(top, sub, codes, last, high):  # type: ignore[no-untyped-def]
        for w in range(4):
            one, other = four(top, sub, w), four(top, sub, 4 + w)
            if bits == 8:
                store_u32(at(codes, 4 * w), one)
                store_u32(at(last, 4 * w), other)
            else:
                store_u32(at(codes, 4 * w), (one & u32(0x0F0F0F0F)) | ((other & u32(0x0F0F0F0F)) << u32(4)))
        if field:
            for p_ in range(field):
                word = u32(0)
                for k in range(per_word):
                    above = (four(top, sub, per_word * p_ + k) >> u32(4)) & u32(0x0F0F0F0F)
                    word |= above << u32(field * k)
                store_u32(at(high, 4 * p_), word)

    return store


@inline
def _nibbles(word):  # type: ignore[no-untyped-def]
    """Four bytes below 16 as four nibbles."""
    word = (word | (word >> u32(4))) & u32(0x00FF00FF)
    return (word | (word >> u32(8))) & u32(0xFFFF)


def _looked_up(p: Packed, four: Any) -> Any:
    """`store` as in `_codes`, for codes that are looked up."""
    bits = p.bits

    @inline
    def store(top, sub, codes, last, high):  # type: ignore[no-untyped-def]
        third, pair = u32(0), u32(0)
        for w in range(4):
            nibbles = _nibbles(four(top, sub, w)) | (_nibbles(four(top, sub, 4 + w)) << u32(16))
            if bits == 4:
                store_u32(at(codes, 4 * w), nibbles)
            else:
                third |= ((nibbles & u32(0x44444444)) >> u32(2)) << u32(w)
                low = nibbles & u32(0x33333333)
                if w % 2 == 0:
                    pair = low
                else:
                    store_u32(at(codes, w // 2 * 4), pair | (low << u32(2)))
        if bits == 3:
            store_u32(high, third)

    return store


def _scales(p: Packed) -> Any:
    """`store(found, scales, supers, block)`: store the scales that a reader found in the row's planes."""
    layout = MatrixLayout(p, 1, BLOCK)
    each, super_bytes, size = layout.scale_bytes, layout.super_bytes, p.scale_bytes
    super_scales, minima, two, nibbles = p.super_scales, p.minima, p.n_scales == 2, p.scales == "nibbles"
    put = store_u16 if size == 2 else store_u8

    @inline
    def store(found, scales, supers, block):  # type: ignore[no-untyped-def]
        d, dmin, first, last, minimum, minimum2 = found
        if nibbles:
            first |= minimum << u32(4)
            last |= minimum2 << u32(4)
        to = at(scales, each * block)
        if each:
            put(to, first)
            if two:
                put(at(to, size), last)
            elif minima:
                put(at(to, size), minimum)
        if super_scales and block % 8 == 0:
            store_u16(at(supers, block // 8 * super_bytes), d)
            if minima:
                store_u16(at(supers, block // 8 * super_bytes + 2), dmin)

    return store


def _floats(words: int) -> Any:
    def pack_floats(raw, row_bytes, n_rows, n_cols, codes, code_stride):  # type: ignore[no-untyped-def]
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        row, column = item // n_cols, item % n_cols
        if row >= n_rows:
            return
        of = raw + u64(row) * u64(row_bytes) + u64(2 * words * column)
        to = codes + u64(row) * u64(code_stride) + u64(2 * words * column)
        for k in range(words):
            store_u16(at(to, 2 * k), load_u16(at(of, 2 * k)))

    return pack_floats
