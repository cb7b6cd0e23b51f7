"""Rows of a packed matrix on their way to shared memory, and their products with activations: what the kernels of
decoding (`ggpy.cuda.ops.matvec`, `ggpy.cuda.ops.expert_matvec`) have in common."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.isa.device import at, block_reader, f32, i32, inline, shared_at, two_floats, u32, unpacker
from ggpy.cuda.isa.instructions import (
    FLOAT_BASE,
    FLOAT_BASE_BITS,
    bits_to_f32,
    copy_4_or_zero,
    copy_16,
    copy_16_or_zero,
    dp4a,
    fma,
    half_to_f32,
    i32_to_f32,
    load_64,
    load_128,
    logic_xor_and,
    shared_load_64,
    shared_load_128,
)
from ggpy.cuda.weights.layout import MatvecShape, bits_above, numbers


def _where(shared: bool) -> tuple[Any, Any, Any]:
    """Functions for the memory that holds activations: (address plus offset, load 16 bytes, load 8 bytes)."""
    return (shared_at, shared_load_128, shared_load_64) if shared else (at, load_128, load_64)


def row_product(shape: MatvecShape, shared: bool, x_blocks: int) -> tuple[Any, Any]:
    """(`copy(to, codes, high, scales, supers, unit, lane)`, `dot(of, chunk, item, lane, on, x, x_stride, xl, xl_stride,
    total)`): what a warp does with a row of a matrix. shared: activations lie in shared memory; x_blocks: from a run of
    their codes to the other.

    copy: start to copy a unit of a row, given by its addresses in the planes, to shared memory. dot: add the
    products of one item with token t to total[t]; `of` is the unit's shared address.
    """
    return _floats(shape, shared) if shape.packed.is_float else _quantized(shape, shared, x_blocks)


def _quantized(shape: MatvecShape, shared: bool, x_blocks: int) -> tuple[Any, Any]:
    """`row_product` for packed codes."""
    p, tokens, n_blocks, chunks = shape.packed, shape.n_tokens, shape.layout.n_blocks, shape.chunks
    (size, unpack), fetch = unpacker(p), block_reader(p, True)
    place, take_128, take_64 = _where(shared)
    offset, two_scales, minima, super_scales, bits = (
        0 if numbers(p) else p.offset,
        p.n_scales == 2,
        p.minima,
        p.super_scales,
        p.bits,
    )
    high_bits, high_at, scales_at, supers_at = bits_above(p), shape.high_at, shape.scales_at, shape.supers_at
    scale_bytes, super_bytes = shape.layout.scale_bytes, shape.layout.super_bytes
    run_bytes = min(16, shape.layout.code_bytes)  # of a block's codes
    whole = shape.n_items % (32 * chunks) == 0
    signed_nibbles = bits == 4 and offset == 8  # as 16 * (code - 8) in a byte: no sums of activations are needed
    half = 512 * chunks  # bytes from the first run of an 8-bit unit's codes to the second

    @inline
    def pieces(to, of, lane, unit, block_bytes):  # type: ignore[no-untyped-def]
        """Start to copy a unit's 16-byte pieces of a plane of `block_bytes` bytes a block; zeros past the row's end."""
        per = 16 // block_bytes  # blocks of a piece
        n_unit, n_row = 32 * chunks // per, -(-n_blocks // per)
        first = unit * i32(n_unit)
        for k in range(-(-n_unit // 32)):
            piece = i32(32 * k) + lane
            if n_unit % 32 == 0 or piece < i32(n_unit):
                if whole:
                    copy_16(to + u32(piece * i32(16)), at(of, (first + piece) * i32(16)))
                else:
                    inside = first + piece < i32(n_row)
                    size = u32(16) if inside else u32(0)
                    source = first + piece if inside else i32(0)
                    copy_16_or_zero(to + u32(piece * i32(16)), at(of, source * i32(16)), size)

    @inline
    def copy(to, codes, high, scales, supers, unit, lane):  # type: ignore[no-untyped-def]
        pieces(to, codes, lane, unit, run_bytes)
        if bits == 8:
            pieces(to + u32(half), at(codes, i32(16 * n_blocks)), lane, unit, run_bytes)
        if high_bits:
            pieces(to + u32(high_at), high, lane, unit, 4 * high_bits)
        if scale_bytes:
            pieces(to + u32(scales_at), scales, lane, unit, scale_bytes)
        if super_scales:  # pieces of 4 bytes
            n_words, first_word = chunks * super_bytes, unit * i32(chunks * super_bytes)
            if lane < i32(n_words):
                inside = (first_word + lane) * i32(4) < i32(-(-n_blocks // 8) * super_bytes)
                source = (first_word + lane) * i32(4) if inside else i32(0)
                to_word = to + u32(supers_at) + u32(lane * i32(4))
                copy_4_or_zero(to_word, at(supers, source), u32(4) if inside else u32(0))

    @inline
    def dot(of, chunk, item, lane, on, x, x_stride, xl, xl_stride, total):  # type: ignore[no-untyped-def]
        raw = cuda.local.array(size, types.uint32)
        w = cuda.local.array(8, types.uint32)
        b = i32(32 * chunk) + lane  # of the unit
        fetch(of, of + u32(half), of + u32(high_at), of + u32(scales_at), of + u32(supers_at), b, raw)
        scale, scale2, minimum, minimum2 = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        if signed_nibbles:
            for k in range(4):
                w[k] = logic_xor_and(raw[k] << u32(4), u32(0x80808080), u32(0xF0F0F0F0))
                w[4 + k] = logic_xor_and(raw[k], u32(0x80808080), u32(0xF0F0F0F0))
            scale = half_to_f32(raw[4]) * f32(0.0625)
        else:
            scale, scale2, minimum, minimum2 = unpack(raw, w)
        for t in range(tokens):
            here = place(place(x, i32(t) * x_stride), item * i32(16))
            a, b_, c, d = take_128(here)
            e, f, g, h = take_128(place(here, i32(16 * x_blocks)))
            x_scale_bits, sums = take_64(place(place(xl, i32(t) * xl_stride), item * i32(8)))
            start1, start2 = i32(FLOAT_BASE_BITS), i32(0)
            if two_scales:
                start2 = i32(FLOAT_BASE_BITS)
            if offset and not signed_nibbles:
                if two_scales:
                    start1 -= i32(offset) * low_i16(sums)
                    start2 -= i32(offset) * high_i16(sums)
                else:
                    start1 -= i32(offset) * (low_i16(sums) + high_i16(sums))
            one = dp4a(w[0], a, dp4a(w[1], b_, dp4a(w[2], c, dp4a(w[3], d, start1))))
            two = dp4a(w[4], e, dp4a(w[5], f, dp4a(w[6], g, dp4a(w[7], h, start2))))
            if two_scales:
                part = fma(small_to_f32(one), scale, small_to_f32(two) * scale2)
            else:
                part = small_to_f32(one + two) * scale
            if minima:
                if two_scales:
                    part = fma(minimum, i32_to_f32(low_i16(sums)), part)
                    part = fma(minimum2, i32_to_f32(high_i16(sums)), part)
                else:
                    part = fma(minimum, i32_to_f32(low_i16(sums) + high_i16(sums)), part)
            part = fma(part, bits_to_f32(x_scale_bits), total[t])
            total[t] = part if on else total[t]

    return copy, dot


@inline
def small_to_f32(x):  # type: ignore[no-untyped-def]
    """The float value of a sum that started at FLOAT_BASE_BITS, less than 2^22 in magnitude."""
    return bits_to_f32(u32(x)) - f32(FLOAT_BASE)


@inline
def low_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x & u32(0xFFFF))))


@inline
def high_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x >> u32(16))))


def _floats(shape: MatvecShape, shared: bool) -> tuple[Any, Any]:
    """`row_product` for a matrix of floats."""
    p, tokens, n_items, chunks = shape.packed, shape.n_tokens, shape.n_items, shape.chunks
    place, take_128, _ = _where(shared)
    kind = {"F32": 2, "BF16": 1, "F16": 0}[p.name]
    per = 4 if kind == 2 else 8

    @inline
    def copy(to, codes, high, scales, supers, unit, lane):  # type: ignore[no-untyped-def]
        for k in range(chunks):
            item = (unit * i32(chunks) + i32(k)) * i32(32) + lane
            if item < i32(n_items):
                copy_16(to + u32((i32(32 * k) + lane) * i32(16)), at(codes, item * i32(16)))

    @inline
    def dot(of, chunk, item, lane, on, x, x_stride, xl, xl_stride, total):  # type: ignore[no-untyped-def]
        a, b, c, d = shared_load_128(of + u32((i32(32 * chunk) + lane) * i32(16)))
        for t in range(tokens):
            here = place(place(x, i32(t) * x_stride), item * i32(4 * per))
            e, f, g, h = take_128(here)
            part = total[t]
            if kind == 2:
                part = fma(bits_to_f32(a), bits_to_f32(e), fma(bits_to_f32(b), bits_to_f32(f), part))
                part = fma(bits_to_f32(c), bits_to_f32(g), fma(bits_to_f32(d), bits_to_f32(h), part))
            else:
                a0, a1 = two_floats(a, kind)
                b0, b1 = two_floats(b, kind)
                part = fma(a0, bits_to_f32(e), fma(a1, bits_to_f32(f), part))
                part = fma(b0, bits_to_f32(g), fma(b1, bits_to_f32(h), part))
                e, f, g, h = take_128(place(here, i32(16)))
                a0, a1 = two_floats(c, kind)
                b0, b1 = two_floats(d, kind)
                part = fma(a0, bits_to_f32(e), fma(a1, bits_to_f32(f), part))
                part = fma(b0, bits_to_f32(g), fma(b1, bits_to_f32(h), part))
            total[t] = part if on else total[t]

    return copy, dot
