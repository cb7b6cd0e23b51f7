"""Kernels that turn a GGUF tensor's own bytes into the planes that products read (`ggpy.cuda.layout`): a thread a block
of 32 columns, or a column of floats."""

from __future__ import annotations

from typing import Any

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.device import at, inline, u32, u64
from ggpy.cuda.instructions import load_u8, load_u16, store_u8, store_u16, store_u32
from ggpy.cuda.layout import PACKED, bits_above
from ggpy.quant import FORMATS

THREADS = 256


@inline
def _k_scale(scales, sub, minimum):  # type: ignore[no-untyped-def]
    """The 6-bit scale or minimum of one of eight blocks, from the 12 bytes in which K formats keep them."""
    if sub < 4:
        return load_u8(at(scales, sub + 4 * minimum)) & u32(63)
    low = (load_u8(at(scales, sub + 4)) >> u32(4 * minimum)) & u32(15)
    return low | ((load_u8(at(scales, sub - 4 + 4 * minimum)) >> u32(6)) << u32(4))


def _reader(name: str) -> Any:
    """`code(top, block, column)`: one code of the file's block at `top`; `block` counts 32 columns."""
    skip = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8, "Q8_0": 2, "Q4_K": 16, "Q5_K": 48, "Q6_K": 0}[name]
    fifth = {"Q5_0": 2, "Q5_1": 4, "Q5_K": 16}.get(name, 0)

    @inline
    def plain(top, block, column):  # type: ignore[no-untyped-def]
        byte = load_u8(at(top, skip + column % 16))
        value = byte >> u32(4) if column >= 16 else byte & u32(15)
        if fifth:
            value |= ((load_u8(at(top, fifth + column // 8)) >> u32(column % 8)) & u32(1)) << u32(4)
        return value

    @inline
    def byte(top, block, column):  # type: ignore[no-untyped-def]
        return load_u8(at(top, skip + column))

    @inline
    def k_quant(top, block, column):  # type: ignore[no-untyped-def]
        sub = block % 8
        value = (load_u8(at(top, skip + sub // 2 * 32 + column)) >> u32(4 * (sub % 2))) & u32(15)
        if fifth:
            value |= ((load_u8(at(top, fifth + column)) >> u32(sub)) & u32(1)) << u32(4)
        return value

    @inline
    def q6_k(top, block, column):  # type: ignore[no-untyped-def]
        half, quarter = block % 8 // 4, block % 4
        low = load_u8(at(top, 64 * half + 32 * (quarter % 2) + column)) >> u32(4 * (quarter // 2))
        high = load_u8(at(top, 128 + 32 * half + column)) >> u32(2 * quarter)
        return (low & u32(15)) | ((high & u32(3)) << u32(4))

    return {"Q8_0": byte, "Q4_K": k_quant, "Q5_K": k_quant, "Q6_K": q6_k}.get(name, plain)


def source(name: str) -> Source:
    """pack.TYPE(raw, row_bytes, n_rows, n_blocks, codes, high, levels, supers, and the strides of these four)

    raw: `n_rows` rows of the file, `row_bytes` apart; the four addresses are of the first of these rows in its planes.
    pack.F32 and pack.F16 (for every type of two bytes) copy `n_blocks` columns.
    """
    if PACKED[name].is_float:
        return Source(_floats(PACKED[name].bits // 16), "u64 i32 i32 i32 u64 i32", THREADS)
    p, code = PACKED[name], _reader(name)
    size, group, header, minima, bits = FORMATS[name].type_size, 8 if p.header else 1, p.header, p.minima, p.bits
    field = bits_above(p)
    per_word = 8 // field if field else 1

    def pack(raw, row_bytes, n_rows, n_blocks, codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        row, block = item // n_blocks, item % n_blocks
        if row >= n_rows:
            return
        top = raw + u64(row) * u64(row_bytes) + u64(block // group * size)
        out = codes + u64(row) * u64(code_stride) + u64(16 * block)
        for w in range(4):
            first, second = u32(0), u32(0)
            for c in range(4):
                low, high_ = code(top, block, 4 * w + c), code(top, block, 16 + 4 * w + c)
                if bits == 8:
                    first |= low << u32(8 * c)
                    second |= high_ << u32(8 * c)
                else:
                    first |= ((low & u32(15)) | ((high_ & u32(15)) << u32(4))) << u32(8 * c)
            store_u32(at(out, 4 * w), first)
            if bits == 8:
                store_u32(at(out, 16 * n_blocks + 4 * w), second)
        if field:
            out = high + u64(row) * u64(high_stride) + u64(4 * field * block)
            for p_ in range(field):
                word = u32(0)
                for k in range(per_word):
                    for c in range(4):
                        bits_above = code(top, block, 4 * (per_word * p_ + k) + c) >> u32(4)
                        word |= bits_above << u32(8 * c + field * k)
                store_u32(at(out, 4 * p_), word)
        out = levels + u64(row) * u64(level_stride)
        if not header:
            if minima:
                store_u16(at(out, 4 * block), load_u16(top))
                store_u16(at(out, 4 * block + 2), load_u16(at(top, 2)))
            else:
                store_u16(at(out, 2 * block), load_u16(top))
            return
        top_out = supers + u64(row) * u64(super_stride)
        sub = block % 8
        if minima:
            store_u8(at(out, 2 * block), _k_scale(at(top, 4), sub, 0))
            store_u8(at(out, 2 * block + 1), _k_scale(at(top, 4), sub, 1))
            if sub == 0:
                store_u16(at(top_out, block // 8 * 4), load_u16(top))
                store_u16(at(top_out, block // 8 * 4 + 2), load_u16(at(top, 2)))
        else:
            store_u8(at(out, 2 * block), load_u8(at(top, 192 + 2 * sub)))
            store_u8(at(out, 2 * block + 1), load_u8(at(top, 193 + 2 * sub)))
            if sub == 0:
                store_u16(at(top_out, block // 8 * 2), load_u16(at(top, 208)))

    return Source(pack, "u64 i32 i32 i32 u64 u64 u64 u64 i32 i32 i32 i32", THREADS)


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
