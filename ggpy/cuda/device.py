"""What kernels share: sums over a warp and a block, and how one block of a packed row becomes the operands of dot
products. Functions of numbers that are compiled into every kernel that calls them."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.instructions import (
    bits_to_f32,
    fma,
    half_to_f32,
    halves_to_f32,
    inverse_root,
    logic_and_or,
    reciprocal,
    shared_load_f32,
    shared_store_f32,
    stream_32,
    stream_64,
    stream_128,
    stream_u16,
    swap_f32,
    sync_block,
)
from ggpy.cuda.layout import bits_above
from ggpy.quant.packed import Packed

inline = cuda.jit(device=True, forceinline=True)

u32, i32, u64, f32 = types.uint32, types.int32, types.uint64, types.float32


@inline
def at(base, offset):  # type: ignore[no-untyped-def]
    """A global address `offset` bytes (32 bits, not negative) after `base`."""
    return base + u64(u32(offset))


@inline
def divided(a, b):  # type: ignore[no-untyped-def]
    """a // b of numbers that are not negative, in 32 bits: between int32, Python's operator divides 64."""
    return i32(u32(a) // u32(b))


@inline
def quotient(a, b):  # type: ignore[no-untyped-def]
    """a / b rounded as `divide` rounds it, where no step of it leaves the normal numbers: without the branch for the
    others, after which the lanes of a warp must find together again."""
    r = reciprocal(b)
    r = fma(r, fma(-r, b, f32(1.0)), r)
    q = a * r
    return fma(r, fma(-q, b, a), q)


@inline
def normalizing(x):  # type: ignore[no-untyped-def]
    """1 / sqrt(x), each rounded, for normal numbers; without branches likewise."""
    r = inverse_root(x)
    s = x * r
    s = fma(fma(-s, s, x), f32(0.5) * r, s)
    return quotient(f32(1.0), s)


@inline
def warp_sum(x):  # type: ignore[no-untyped-def]
    for mask in (16, 8, 4, 2, 1):
        x += swap_f32(x, u32(mask))
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


def unpacker(p: Packed) -> tuple[int, Any]:
    """(n, `unpack(raw, words)`): what a lane reads of one block of 32 columns as the operands of dot products.

    raw [n]: its words of codes, of high, its level, and its super-scales. words [8] becomes four columns' codes each,
    columns 4w .. 4w + 3 in words[w]. Returns the scales of the first and the last 16 columns, and the minimum to add.
    """
    bits, high_bits, header, minima = p.bits, bits_above(p), p.header, p.minima
    sign = f32(p.minimum_sign)
    n_codes = 8 if bits == 8 else 4
    level_at = n_codes + high_bits

    @inline
    def unpack(raw, words):  # type: ignore[no-untyped-def]
        if bits == 8:
            for w in range(8):
                words[w] = raw[w]
        else:
            for w in range(4):
                words[w] = raw[w] & u32(0x0F0F0F0F)
                words[4 + w] = (raw[w] >> u32(4)) & u32(0x0F0F0F0F)
        if high_bits == 1:
            for w in range(8):
                plane = raw[n_codes]
                moved = plane << u32(4 - w) if w < 4 else plane >> u32(w - 4)
                words[w] = logic_and_or(moved, u32(0x10101010), words[w])
        elif high_bits == 2:
            for w in range(8):
                plane = raw[n_codes] if w < 4 else raw[n_codes + 1]
                moved = plane << u32(4 - 2 * (w % 4)) if w % 4 < 2 else plane >> u32(2 * (w % 4) - 4)
                words[w] = logic_and_or(moved, u32(0x30303030), words[w])
        level = raw[level_at]
        if not header:
            if minima:
                scale, minimum = halves_to_f32(level)
                return scale, scale, sign * minimum
            scale = half_to_f32(level)
            return scale, scale, f32(0.0)
        if minima:
            d, dmin = halves_to_f32(raw[level_at + 1])
            scale = d * f32(level & u32(255))
            return scale, scale, sign * (dmin * f32(level >> u32(8)))
        d = half_to_f32(raw[level_at + 1])
        return d * f32(signed_byte(level)), d * f32(signed_byte(level >> u32(8))), f32(0.0)

    return level_at + 1 + header, unpack


def block_reader(p: Packed) -> Any:
    """`fetch(codes, high, levels, supers, block, n_blocks, raw)`: one block of a row, whose addresses in its planes are
    given, into what `unpacker` reads."""
    bits, high_bits, header, minima = p.bits, bits_above(p), p.header, p.minima
    n_codes = 8 if bits == 8 else 4
    level_at = n_codes + high_bits

    @inline
    def fetch(codes, high, levels, supers, block, n_blocks, raw):  # type: ignore[no-untyped-def]
        first = at(codes, block * i32(16))
        raw[0], raw[1], raw[2], raw[3] = stream_128(first)
        if bits == 8:
            raw[4], raw[5], raw[6], raw[7] = stream_128(at(first, n_blocks * i32(16)))
        if high_bits == 1:
            raw[n_codes] = stream_32(at(high, block * i32(4)))
        elif high_bits == 2:
            raw[n_codes], raw[n_codes + 1] = stream_64(at(high, block * i32(8)))
        if minima and not header:
            raw[level_at] = stream_32(at(levels, block * i32(4)))
        else:
            raw[level_at] = stream_u16(at(levels, block * i32(2)))
        if header:
            if minima:
                raw[level_at + 1] = stream_32(at(supers, (block >> i32(3)) * i32(4)))
            else:
                raw[level_at + 1] = stream_u16(at(supers, (block >> i32(3)) * i32(2)))

    return fetch


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
