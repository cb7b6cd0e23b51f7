"""How kernels write and read the cache of keys and values (`ggpy.cuda.weights.layout.CacheLayout`), by its type:
functions that are compiled into them. `cache` is the address of a layer's keys or values, `head` the offset of one kv
head of a slot, the same for both where they are of one type, and then in one register; `cells` and `head_pad` are the
layout's."""

from __future__ import annotations

import math
from typing import Any

from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64
from ggpy.cuda.isa.instructions import (
    copy_4_or_zero,
    copy_8_or_zero,
    copy_16_or_zero,
    divide,
    f32_to_half,
    half2_sub,
    half_to_f32,
    larger,
    load_64,
    magnitude,
    pack_bytes,
    permute,
    round_to_i32,
    shared_load_64,
    shared_load_128,
    shared_load_u16,
    shared_store_128,
    shared_store_u32,
    store_64,
    store_128,
    store_u8,
    store_u16,
    store_u32,
    swap_f32,
)

HALF_OF_BYTE = 0x64806480  # the halves 1024 + 128
LARGEST_SCALE = 0x6007  # the half 515.5: the largest that is a half when multiplied by 127, too


def head_bytes(kind: str) -> Any:
    """`size(cells, head_pad)`: bytes from one kv head of a slot to the next."""
    quantized = kind == "q8_0"

    @inline
    def size(cells, head_pad):  # type: ignore[no-untyped-def]
        per_cell = head_pad + (head_pad >> i32(4)) if quantized else head_pad * i32(2)
        return u64(u32(cells)) * u64(u32(per_cell))

    return size


@inline
def _scale_at(head, cells, head_pad, position, d):  # type: ignore[no-untyped-def]
    place = (cells + (position >> i32(4))) * head_pad + (position & i32(15)) * (head_pad >> i32(4))
    return head + u64(u32(place)) + u64(u32((d >> i32(5)) * i32(2)))


@inline
def cut_half(x):  # type: ignore[no-untyped-def]
    """The half nearest to x, and a flag: True where x, a finite number, was beyond the largest half and is cut to
    it."""
    half = f32_to_half(x)
    cut = (half & u32(0x7FFF)) == u32(0x7C00) and magnitude(x) < f32(math.inf)
    return half - u32(1) if cut else half, cut


@inline
def tell_of_cut(header, which):  # type: ignore[no-untyped-def]
    """Report to the host that a key (0) or a value (1) was cut; words 4 and 5 of the header are the address to write
    to."""
    low, high = load_64(at(header, 16))
    store_u32((u64(high) << u64(32) | u64(low)) + u64(4 * which), u32(1))


@inline
def size_of(x):  # type: ignore[no-untyped-def]
    """The magnitude of x, infinite for NaN: the infinite scale makes the whole block NaN, so that a NaN is not lost."""
    size = magnitude(x)
    return size if size == size else f32(math.inf)


@inline
def scale_of(largest):  # type: ignore[no-untyped-def]
    """The scale, a half, of 32 numbers up to `largest` in magnitude; the factor that turns these into codes; and True
    where finite numbers must be cut for it, since code times scale must be a half too (`flash`)."""
    half = f32_to_half(divide(largest, f32(127.0)))
    cut = half > u32(LARGEST_SCALE) and largest < f32(math.inf)
    if cut:
        half = u32(LARGEST_SCALE)
    scale = half_to_f32(half)  # codes are of the scale as it is kept
    inverse = f32(0.0)
    if scale > f32(0.0):
        inverse = divide(f32(1.0), scale)
    return half, inverse, cut


@inline
def code_of(x, inverse):  # type: ignore[no-untyped-def]
    code = round_to_i32(x * inverse)
    return i32(-127) if code < i32(-127) else (i32(127) if code > i32(127) else code)


def writer(kind: str) -> Any:
    """`store(cache, head, cells, head_pad, position, d, x)`: one dimension of a key or a value. A warp stores 32 of
    them, a multiple of 32 and those after it, a lane each; by the CPU's rounding. Finite numbers that the cache does
    not hold are cut to the largest; returns whether this one was, or one that shares its scale."""

    @inline
    def store_half(cache, head, cells, head_pad, position, d, x):  # type: ignore[no-untyped-def]
        place = head + u64(u32(position)) * u64(u32(head_pad * i32(2))) + u64(u32(d * i32(2)))
        half, cut = cut_half(x)
        store_u16(cache + place, half)
        return cut

    @inline
    def store_q8(cache, head, cells, head_pad, position, d, x):  # type: ignore[no-untyped-def]
        largest = size_of(x)
        for mask in (16, 8, 4, 2, 1):
            largest = larger(largest, swap_f32(largest, u32(mask)))
        half, inverse, cut = scale_of(largest)
        store_u8(cache + (head + u64(u32(position)) * u64(u32(head_pad)) + u64(u32(d))), u32(code_of(x, inverse)))
        if (d & i32(31)) == i32(0):
            store_u16(cache + _scale_at(head, cells, head_pad, position, d), half)
        return cut

    return store_q8 if kind == "q8_0" else store_half


def pieces(kind: str) -> tuple[Any, Any, Any, Any]:
    """Functions for eight dimensions a lane, from d on, a multiple of 8; a lane reads what it has copied itself.

    start(head, cells, head_pad, d): offsets at position 0, of these dimensions and of their scale
    copy(to, lane, cache, first, scales, head_pad, position, inside): start to bring them to a piece; zeros if not
        `inside`
    take(of, lane, scales, head_pad, position): from a piece, four words of two halves, and the number, float32, that
        they are multiplied by
    keep(to, lane, cache, first, head, cells, head_pad, position, d, x, storing): put x [8] into a piece as the cache
        rounds them, and where `storing` into the cache; by whole warps, lanes side by side having dimensions side by
        side; returns whether any was cut, as `writer` does
    """

    @inline
    def start_halves(head, cells, head_pad, d):  # type: ignore[no-untyped-def]
        return head + u64(u32(d * i32(2))), head

    @inline
    def copy_halves(to, lane, cache, first, scales, head_pad, position, inside):  # type: ignore[no-untyped-def]
        of = cache + (first + u64(u32(position)) * u64(u32(head_pad * i32(2))))
        copy_16_or_zero(to + u32(lane * i32(16)), of, u32(16) if inside else u32(0))

    @inline
    def take_halves(of, lane, scales, head_pad, position):  # type: ignore[no-untyped-def]
        a, b, c, e = shared_load_128(of + u32(lane * i32(16)))
        return a, b, c, e, f32(1.0)

    @inline
    def keep_halves(to, lane, cache, first, head, cells, head_pad, position, d, x, storing):  # type: ignore[no-untyped-def]
        a, cut_a = two_halves(x[0], x[1])
        b, cut_b = two_halves(x[2], x[3])
        c, cut_c = two_halves(x[4], x[5])
        e, cut_e = two_halves(x[6], x[7])
        shared_store_128(to + u32(lane * i32(16)), a, b, c, e)
        if storing:
            store_128(cache + (first + u64(u32(position)) * u64(u32(head_pad * i32(2)))), a, b, c, e)
        return cut_a or cut_b or cut_c or cut_e

    @inline
    def start_codes(head, cells, head_pad, d):  # type: ignore[no-untyped-def]
        return head + u64(u32(d)), _scale_at(head, cells, head_pad, i32(0), d)

    @inline
    def copy_codes(to, lane, cache, first, scales, head_pad, position, inside):  # type: ignore[no-untyped-def]
        of = cache + (first + u64(u32(position)) * u64(u32(head_pad)))
        copy_8_or_zero(to + u32(lane * i32(8)), of, u32(8) if inside else u32(0))
        # a copy has four bytes at least: two scales, of which ours is one
        scale = cache + ((scales + u64(u32(position * (head_pad >> i32(4))))) & ~u64(3))
        copy_4_or_zero(to + u32(256) + u32(lane * i32(4)), scale, u32(4) if inside else u32(0))

    @inline
    def take_codes(of, lane, scales, head_pad, position):  # type: ignore[no-untyped-def]
        four, last = shared_load_64(of + u32(lane * i32(8)))
        which = (u32(scales) + u32(position * (head_pad >> i32(4)))) & u32(2)
        scale = half_to_f32(shared_load_u16(of + u32(256) + u32(lane * i32(4)) + which))
        four, last, less = four ^ u32(0x80808080), last ^ u32(0x80808080), u32(HALF_OF_BYTE)
        a = half2_sub(permute(four, u32(0x64646464), u32(0x4140)), less)
        b = half2_sub(permute(four, u32(0x64646464), u32(0x4342)), less)
        c = half2_sub(permute(last, u32(0x64646464), u32(0x4140)), less)
        e = half2_sub(permute(last, u32(0x64646464), u32(0x4342)), less)
        return a, b, c, e, scale

    @inline
    def keep_codes(to, lane, cache, first, head, cells, head_pad, position, d, x, storing):  # type: ignore[no-untyped-def]
        largest = f32(0.0)
        for k in range(8):
            largest = larger(largest, size_of(x[k]))
        largest = larger(largest, swap_f32(largest, u32(1)))
        largest = larger(largest, swap_f32(largest, u32(2)))
        half, inverse, cut = scale_of(largest)
        a, b, c, e = code_of(x[0], inverse), code_of(x[1], inverse), code_of(x[2], inverse), code_of(x[3], inverse)
        four = pack_bytes(a, b, c, e)
        a, b, c, e = code_of(x[4], inverse), code_of(x[5], inverse), code_of(x[6], inverse), code_of(x[7], inverse)
        last = pack_bytes(a, b, c, e)
        shared_store_u32(to + u32(lane * i32(8)), four)
        shared_store_u32(to + u32(lane * i32(8)) + u32(4), last)
        shared_store_u32(to + u32(256) + u32(lane * i32(4)), half | half << u32(16))
        if storing:
            store_64(cache + (first + u64(u32(position)) * u64(u32(head_pad))), four, last)
            if (d & i32(31)) == i32(0):
                store_u16(cache + _scale_at(head, cells, head_pad, position, d), half)
        return cut

    if kind == "q8_0":
        return start_codes, copy_codes, take_codes, keep_codes
    return start_halves, copy_halves, take_halves, keep_halves


@inline
def two_halves(a, b):  # type: ignore[no-untyped-def]
    low, cut_low = cut_half(a)
    high, cut_high = cut_half(b)
    return low | high << u32(16), cut_low or cut_high
