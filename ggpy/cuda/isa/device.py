"""Device functions that kernels share: sums over a warp and a block, and the unpacking of one block of a packed row
into the operands of dot products. They work on plain numbers and are compiled into every kernel that calls them."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    fma,
    half_to_f32,
    halves_to_f32,
    inverse_root,
    larger,
    load_u8,
    logic_and_or,
    permute,
    reciprocal,
    shared_load_64,
    shared_load_128,
    shared_load_f32,
    shared_load_u8,
    shared_load_u16,
    shared_load_u32,
    shared_store_f32,
    stream_32,
    stream_64,
    stream_128,
    stream_u16,
    swap_f32,
    sync_block,
)
from ggpy.cuda.weights.layout import MatrixLayout, bits_above, low_bits, numbers, table_words
from ggpy.quant.packed import BLOCK, Packed

inline = cuda.jit(device=True, forceinline=True)

u32, i32, u64, f32 = types.uint32, types.int32, types.uint64, types.float32


@inline
def at(base, offset):  # type: ignore[no-untyped-def]
    """A global address `offset` bytes (32 bits, not negative) after `base`."""
    return base + u64(u32(offset))


@inline
def shared_at(base, offset):  # type: ignore[no-untyped-def]
    """A shared address `offset` bytes (32 bits, not negative) after `base`."""
    return base + u32(offset)


@inline
def divided(a, b):  # type: ignore[no-untyped-def]
    """a // b of numbers that are not negative, in 32 bits; Python's operator would divide int32 in 64 bits."""
    return i32(u32(a) // u32(b))


@inline
def quotient(a, b):  # type: ignore[no-untyped-def]
    """a / b rounded as `divide` rounds it, where no step of it leaves the normal numbers: without the branch for the
    others, after which the lanes of a warp must converge again."""
    r = reciprocal(b)
    r = fma(r, fma(-r, b, f32(1.0)), r)
    q = a * r
    return fma(r, fma(-q, b, a), q)


@inline
def normalizing(x):  # type: ignore[no-untyped-def]
    """1 / sqrt(x), both steps rounded, for normal numbers; without branches, as `quotient`."""
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


@inline
def block_max(x, memory, n_warps):  # type: ignore[no-untyped-def]
    """The largest of the block, in every thread; `memory`: as `block_sum` has it."""
    for mask in (16, 8, 4, 2, 1):
        x = larger(x, swap_f32(x, u32(mask)))
    tid = cuda.threadIdx.x
    if tid % 32 == 0:
        shared_store_f32(memory + u32(tid // 32 * 4), x)
    sync_block()
    lane = tid % 32
    if lane < n_warps:
        x = shared_load_f32(memory + u32(lane * 4))
    for mask in (16, 8, 4, 2, 1):
        x = larger(x, swap_f32(x, u32(mask)))
    return x


def unpacker(p: Packed) -> tuple[int, Any]:
    """(n, `unpack(raw, words)`): the n words that a lane reads of 32 columns, made operands of dot products.

    raw [n]: its words of codes, of high, its scales, and its super-scales. words [8] becomes four columns' codes each,
    or the `numbers` they stand for, columns 4w .. 4w + 3 in words[w]. Returns the scales of the first and the last 16
    columns, and the minima to add.
    """
    n_codes, high_bits = low_bits(p), bits_above(p)
    scales_of, codes_of = _scales(p, n_codes + high_bits), _looked_up(p) if numbers(p) else _codes(p)

    @inline
    def unpack(raw, words):  # type: ignore[no-untyped-def]
        codes_of(raw, words)
        return scales_of(raw)

    return n_codes + high_bits + 1 + p.super_scales, unpack


def _codes(p: Packed) -> Any:
    """`codes_of(raw, words)`: unpack codes as they are, one a byte."""
    bits, high_bits, n_codes = p.bits, bits_above(p), low_bits(p)

    @inline
    def codes_of(raw, words):  # type: ignore[no-untyped-def]
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

    return codes_of


def _looked_up(p: Packed) -> Any:
    """`codes_of(raw, words)`: unpack codes, eight of which are the nibbles of a word, into the numbers that they stand
    for."""
    bits, t = p.bits, table_words(numbers(p))
    t0, t1, t2, t3 = (*t, 0, 0, 0)[:4]

    @inline
    def codes_of(raw, words):  # type: ignore[no-untyped-def]
        for w in range(4):
            if bits == 4:
                n = raw[w]
                # the first and the last eight numbers at the places of the lowest three bits; then by the fourth
                places, which = n & u32(0x77777777), logic_and_or(n >> u32(1), u32(0x44444444), u32(0x32103210))
                for half in range(2):
                    first = permute(u32(t0), u32(t1), places >> u32(16 * half))
                    last = permute(u32(t2), u32(t3), places >> u32(16 * half))
                    words[w + 4 * half] = permute(first, last, which >> u32(16 * half))
            else:
                n = (raw[w // 2] >> u32(2 * (w % 2))) & u32(0x33333333)
                if bits == 3:
                    moved = raw[2] << u32(2 - w) if w < 2 else raw[2] >> u32(w - 2)
                    n = logic_and_or(moved, u32(0x44444444), n)
                words[w] = permute(u32(t0), u32(t1), n)
                words[4 + w] = permute(u32(t0), u32(t1), n >> u32(16))

    return codes_of


def _scales(p: Packed, scales_at: int) -> Any:
    """`scales_of(raw)`: scales and minima, from the scales at raw[scales_at] and the super-scales after them."""
    half, power, nibbles, alone = (p.scales == form for form in ("half", "power", "nibbles", "super"))
    minima, two, unit, sign = p.minima, p.n_scales == 2, f32(p.unit), f32(p.minimum_sign)
    scaled, signed = p.unit != 1.0, p.scales == "signed byte"

    @inline
    def scales_of(raw):  # type: ignore[no-untyped-def]
        word = raw[scales_at]
        none = f32(0.0)
        if half:
            if minima:
                scale, minimum = halves_to_f32(word)
                return scale, scale, sign * minimum, sign * minimum
            if two:
                scale, scale2 = halves_to_f32(word)
                return scale, scale2, none, none
            scale = half_to_f32(word)
            return scale, scale, none, none
        if power:  # a float's own exponent, and one less
            scale = bits_to_f32(word << u32(23)) * f32(0.5)
            return scale, scale, none, none
        if minima:
            d, dmin = halves_to_f32(raw[scales_at + 1])
            dmin *= sign
            if nibbles:
                last = word >> u32(8)
                scale, minimum = d * f32(word & u32(15)), dmin * f32((word >> u32(4)) & u32(15))
                return scale, d * f32(last & u32(15)), minimum, dmin * f32(last >> u32(4))
            scale, minimum = d * f32(word & u32(255)), dmin * f32(word >> u32(8))
            return scale, scale, minimum, minimum
        d = half_to_f32(raw[scales_at + 1])
        if scaled:
            d *= unit
        if alone:
            return d, d, none, none
        scale = d * f32(signed_byte(word) if signed else i32(word & u32(255)))
        if two:
            return scale, d * f32(signed_byte(word >> u32(8)) if signed else i32(word >> u32(8))), none, none
        return scale, scale, none, none

    return scales_of


def block_reader(p: Packed, shared: bool) -> Any:
    """`fetch(codes, last, high, scales, supers, block, raw)`: one block of a row into what `unpacker` reads. The row's
    addresses in its planes are given, or where those lie in shared memory; `last`: of the second run of 8-bit codes."""
    bits, n_codes, high_bits, super_scales = p.bits, low_bits(p), bits_above(p), p.super_scales
    layout = MatrixLayout(p, 1, BLOCK)
    scales_at, scale_bytes, super_bytes = n_codes + high_bits, layout.scale_bytes, layout.super_bytes
    loads = (shared_load_u8, shared_load_u16, shared_load_u32, shared_load_64, shared_load_128)
    load_8, load_16, load_32, load_64, load_128 = loads if shared else (load_u8, stream_u16, stream_32, stream_64, stream_128)  # fmt: skip  # noqa: E501
    place = shared_at if shared else at

    @inline
    def fetch(codes, last, high, scales, supers, block, raw):  # type: ignore[no-untyped-def]
        if n_codes == 2:
            raw[0], raw[1] = load_64(place(codes, block * i32(8)))
        else:
            raw[0], raw[1], raw[2], raw[3] = load_128(place(codes, block * i32(16)))
        if bits == 8:
            raw[4], raw[5], raw[6], raw[7] = load_128(place(last, block * i32(16)))
        if high_bits == 1:
            raw[n_codes] = load_32(place(high, block * i32(4)))
        elif high_bits == 2:
            raw[n_codes], raw[n_codes + 1] = load_64(place(high, block * i32(8)))
        if scale_bytes == 4:
            raw[scales_at] = load_32(place(scales, block * i32(4)))
        elif scale_bytes == 2:
            raw[scales_at] = load_16(place(scales, block * i32(2)))
        elif scale_bytes == 1:
            raw[scales_at] = load_8(place(scales, block))
        if super_scales:
            if super_bytes == 4:
                raw[scales_at + 1] = load_32(place(supers, (block >> i32(3)) * i32(4)))
            else:
                raw[scales_at + 1] = load_16(place(supers, (block >> i32(3)) * i32(2)))

    return fetch


def block_values(p: Packed) -> Any:
    """`values(codes, high, scales, supers, n_blocks, block, out)`: one block of a row, whose addresses in its planes
    are given, as out [32] float32."""
    fetch, (size, unpack) = block_reader(p, False), unpacker(p)
    offset, signed = p.offset, p.signed or bool(numbers(p))

    @inline
    def values(codes, high, scales, supers, n_blocks, block, out):  # type: ignore[no-untyped-def]
        raw = cuda.local.array(size, types.uint32)
        w = cuda.local.array(8, types.uint32)
        fetch(codes, at(codes, n_blocks * i32(16)), high, scales, supers, block, raw)
        first, second, minimum, minimum2 = unpack(raw, w)
        for k in range(8):
            scale, add = (first, minimum) if k < 4 else (second, minimum2)
            for c in range(4):
                byte = w[k] >> u32(8 * c)
                code = signed_byte(byte) if signed else i32(byte & u32(255)) - i32(offset)
                out[4 * k + c] = scale * f32(code) + add

    return values


@inline
def signed_byte(x):  # type: ignore[no-untyped-def]
    """The low byte of x as a number from -128 to 127."""
    return i32((x & u32(255)) ^ u32(128)) - i32(128)


@inline
def two_floats(word, kind):  # type: ignore[no-untyped-def]
    """Two half-precision numbers, or two bfloat16 where `kind` is 1."""
    if kind == 1:
        return bits_to_f32(word << u32(16)), bits_to_f32(word & u32(0xFFFF0000))
    return halves_to_f32(word)
