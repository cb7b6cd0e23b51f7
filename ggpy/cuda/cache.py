"""How kernels write and read the cache of keys and values (`ggpy.cuda.layout.CacheLayout`), by its type: functions that
are compiled into them. `cache` is the address of a layer's keys or values, `head` the offset of one kv head of a slot,
the same for both where they are of one type, and then in one register; `cells` and `head_pad` are the layout's."""

from __future__ import annotations

from typing import Any

from ggpy.cuda.device import f32, i32, inline, u32, u64
from ggpy.cuda.instructions import (
    divide,
    f32_to_half,
    half2_sub,
    half_to_f32,
    larger,
    load_64,
    load_128,
    load_u16,
    magnitude,
    permute,
    prefetch,
    round_to_i32,
    store_u8,
    store_u16,
    swap_f32,
)

HALF_OF_BYTE = 0x64806480  # the halves 1024 + 128


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


def writer(kind: str) -> Any:
    """`store(cache, head, cells, head_pad, position, d, x)`: one dimension of a key or a value. A warp stores 32 of
    them, a multiple of 32 and those after it, a lane each; by the CPU's rounding."""

    @inline
    def store_half(cache, head, cells, head_pad, position, d, x):  # type: ignore[no-untyped-def]
        place = head + u64(u32(position)) * u64(u32(head_pad * i32(2))) + u64(u32(d * i32(2)))
        store_u16(cache + place, f32_to_half(x))

    @inline
    def store_q8(cache, head, cells, head_pad, position, d, x):  # type: ignore[no-untyped-def]
        largest = magnitude(x)
        for mask in (16, 8, 4, 2, 1):
            largest = larger(largest, swap_f32(largest, u32(mask)))
        half = f32_to_half(divide(largest, f32(127.0)))
        scale = half_to_f32(half)  # codes are of the scale as it is kept
        inverse = f32(0.0)
        if scale > f32(0.0):
            inverse = divide(f32(1.0), scale)
        code = round_to_i32(x * inverse)
        code = i32(-127) if code < i32(-127) else (i32(127) if code > i32(127) else code)
        store_u8(cache + (head + u64(u32(position)) * u64(u32(head_pad)) + u64(u32(d))), u32(code))
        if (d & i32(31)) == i32(0):
            store_u16(cache + _scale_at(head, cells, head_pad, position, d), half)

    return store_q8 if kind == "q8_0" else store_half


def reader(kind: str) -> tuple[Any, Any]:
    """(`start(head, cells, head_pad, d)`, `read(cache, first, scales, head_pad, position)`): the offsets, at position
    0, of eight dimensions from d on, a multiple of 8, and of their scale; and what these are at a position: four words
    of two halves, and the number, float32, that they are multiplied by."""
    quantized = kind == "q8_0"

    @inline
    def start(head, cells, head_pad, d):  # type: ignore[no-untyped-def]
        if quantized:
            return head + u64(u32(d)), _scale_at(head, cells, head_pad, i32(0), d)
        return head + u64(u32(d * i32(2))), head

    @inline
    def read_half(cache, first, scales, head_pad, position):  # type: ignore[no-untyped-def]
        a, b, c, e = load_128(cache + (first + u64(u32(position)) * u64(u32(head_pad * i32(2)))))
        return a, b, c, e, f32(1.0)

    @inline
    def read_q8(cache, first, scales, head_pad, position):  # type: ignore[no-untyped-def]
        four, last = load_64(cache + (first + u64(u32(position)) * u64(u32(head_pad))))
        scale = half_to_f32(load_u16(cache + (scales + u64(u32(position * (head_pad >> i32(4)))))))
        four, last, less = four ^ u32(0x80808080), last ^ u32(0x80808080), u32(HALF_OF_BYTE)
        a = half2_sub(permute(four, u32(0x64646464), u32(0x4140)), less)
        b = half2_sub(permute(four, u32(0x64646464), u32(0x4342)), less)
        c = half2_sub(permute(last, u32(0x64646464), u32(0x4140)), less)
        e = half2_sub(permute(last, u32(0x64646464), u32(0x4342)), less)
        return a, b, c, e, scale

    return start, read_q8 if quantized else read_half


def bring_near(kind: str) -> Any:
    """`bring(cache, head, cells, head_pad, position)`: a hint that a cell will be read."""
    quantized = kind == "q8_0"

    @inline
    def bring(cache, head, cells, head_pad, position):  # type: ignore[no-untyped-def]
        size = head_pad if quantized else head_pad * i32(2)
        cell = cache + (head + u64(u32(position)) * u64(u32(size)))
        prefetch(cell)
        if size > i32(128):
            prefetch(cell + u64(128))
        if quantized:
            prefetch(cache + _scale_at(head, cells, head_pad, position, i32(0)))

    return bring
