"""What kernels share: sums over a warp and a block, and how one block of a packed row becomes the operands of dot
products. Functions of numbers that are compiled into every kernel that calls them."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.instructions import (
    bits_to_f32,
    half_to_f32,
    halves_to_f32,
    larger,
    logic_and_or,
    shared_load_f32,
    shared_store_f32,
    stream_32,
    stream_64,
    stream_128,
    stream_u16,
    swap_f32,
    sync_block,
)
from ggpy.quant.packed import Packed

inline = cuda.jit(device=True, forceinline=True)

u32, i32, u64, f32 = types.uint32, types.int32, types.uint64, types.float32


@inline
def at(base, offset):  # type: ignore[no-untyped-def]
    """A global address `offset` bytes (32 bits, not negative) after `base`."""
    return base + u64(u32(offset))


@inline
def at64(base, index, stride):  # type: ignore[no-untyped-def]
    """The address of element `index` of an array whose elements are `stride` bytes apart."""
    return base + u64(u32(index)) * u64(u32(stride))


@inline
def warp_sum(x):  # type: ignore[no-untyped-def]
    for mask in (16, 8, 4, 2, 1):
        x += swap_f32(x, u32(mask))
    return x


@inline
def warp_max(x):  # type: ignore[no-untyped-def]
    for mask in (16, 8, 4, 2, 1):
        x = larger(x, swap_f32(x, u32(mask)))
    return x


@inline
def block_sum(x, memory, n_warps):  # type: ignore[no-untyped-def]
    """The sum over the block, in every thread; `memory`: 4 shared bytes a warp, free again after the next barrier."""
    x = warp_sum(x)
    tid = cuda.threadIdx.x
    if tid % 32 == 0:
        shared_store_f32(memory + u32(tid // 32 * 4), x)
    sync_block()
    lane = tid % 32
    x = f32(0.0)
    if lane < n_warps:
        x = shared_load_f32(memory + u32(lane * 4))
    return warp_sum(x)


def reader(p: Packed) -> tuple[Any, Any]:
    """Two functions for a quantized format, of one block of 32 columns of a row:

    words(codes, high, block, n_blocks, out): `out` [8] becomes its codes, four columns a word; the addresses are of the
        row in its planes.
    factors(levels, supers, block) -> scale of the first 16 columns, of the last 16, and the minimum to be added.
    """
    bits, high_bits, header, minima = p.bits, p.high_bits, p.header, p.minima
    sign = f32(p.minimum_sign)

    @inline
    def words(codes, high, block, n_blocks, out):  # type: ignore[no-untyped-def]
        first = at(codes, block * i32(16))
        a, b, c, d = stream_128(first)
        if bits == 8:
            e, f, g, h = stream_128(at(first, n_blocks * i32(16)))
            out[0], out[1], out[2], out[3] = a, b, c, d
            out[4], out[5], out[6], out[7] = e, f, g, h
        else:
            mask = u32(0x0F0F0F0F)
            out[0], out[1], out[2], out[3] = a & mask, b & mask, c & mask, d & mask
            four = u32(4)
            out[4], out[5], out[6], out[7] = (
                (a >> four) & mask,
                (b >> four) & mask,
                (c >> four) & mask,
                (d >> four) & mask,
            )
        if high_bits == 1:
            plane = stream_32(at(high, block * i32(4)))
            for w in range(8):
                moved = plane << u32(4 - w) if w < 4 else plane >> u32(w - 4)
                out[w] = logic_and_or(moved, u32(0x10101010), out[w])
        elif high_bits == 2:
            low_plane, high_plane = stream_64(at(high, block * i32(8)))
            for w in range(8):
                plane = low_plane if w < 4 else high_plane
                k = w % 4
                moved = plane << u32(4 - 2 * k) if k < 2 else plane >> u32(2 * k - 4)
                out[w] = logic_and_or(moved, u32(0x30303030), out[w])

    @inline
    def factors(levels, supers, block):  # type: ignore[no-untyped-def]
        if not header:
            if minima:
                scale, minimum = halves_to_f32(stream_32(at(levels, block * i32(4))))
                return scale, scale, sign * minimum
            scale = half_to_f32(stream_u16(at(levels, block * i32(2))))
            return scale, scale, f32(0.0)
        pair = stream_u16(at(levels, block * i32(2)))
        top = block >> i32(3)
        if minima:
            d, dmin = halves_to_f32(stream_32(at(supers, top * i32(4))))
            scale = d * f32(pair & u32(255))
            return scale, scale, sign * (dmin * f32(pair >> u32(8)))
        d = half_to_f32(stream_u16(at(supers, top * i32(2))))
        return d * f32(signed_byte(pair)), d * f32(signed_byte(pair >> u32(8))), f32(0.0)

    return words, factors


@inline
def signed_byte(x):  # type: ignore[no-untyped-def]
    """The low byte of x as a number from -128 to 127."""
    return i32((x & u32(255)) ^ u32(128)) - i32(128)


@inline
def two_floats(word, kind):  # type: ignore[no-untyped-def]
    """Two half precision numbers, or two bfloat16 where `kind` is 1."""
    if kind == 1:
        return bits_to_f32(word << u32(16)), bits_to_f32(word & u32(0xFFFF0000))
    return halves_to_f32(word)
