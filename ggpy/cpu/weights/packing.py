"""From the bytes of a GGUF tensor to the packed stripes that kernels read (`ggpy.quant.packed`).

One loop per format, compiled on first use and run by several Python threads, each over its own stripes. The destination
is zeroed memory, so rows past the last one stay zero.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from ggpy.codegen.scalars import load_i32, load_u16, load_u32, store_i32, store_u8, store_u16
from ggpy.cpu.weights.blocks import readers
from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Numbers
from ggpy.quant.formats import FORMATS
from ggpy.quant.packed import BLOCK, Packed, Plane


def _words_in_order(form: BlockFormat) -> tuple[int, int]:
    """(bytes before a block's codes, their number of 32-bit words) where 32 codes lie in the very order of the lanes;
    else (0, 0)."""
    p, codes = form.packed, form.codes
    assert p is not None
    if form.block_size != BLOCK or not isinstance(codes, Numbers) or len(codes.parts) > 1 or len(p.planes) > 1:
        return 0, 0
    (part,), (plane,) = codes.parts, p.planes
    fours = [plane.place(group) for group in range(8)]
    in_order = [part.place(c) == (part.at + 4 * fours[c // 4][0] + c % 4, fours[c // 4][1]) for c in range(BLOCK)]
    return (part.at, part.bits) if all(in_order) else (0, 0)


def _plane_writer(plane: Plane | None) -> Any:
    """`write(codes, block, row)`: store the bits that a plane keeps of a row's 32 codes, at address `codes`."""
    if plane is None:
        return njit(lambda codes, block, row: None)
    bits, shift, at = plane.bits, plane.shift, plane.at
    per_byte, mask = 8 // bits, 0x01010101 * ((1 << bits) - 1)  # four codes at a time, a byte each
    groups = {plane.place(g): g for g in range(8)}  # they lie at regular steps, between vectors and within one
    between, within = groups.get((1, 0), 0), groups.get((0, bits), 0)

    @njit
    def write(codes, block, row):  # type: ignore[no-untyped-def]
        for vector in range(bits):
            word = types.int64(0)
            for k in range(per_byte):
                four = types.int64(load_u32(codes + types.uint64(4 * (vector * between + k * within))))
                word |= ((four >> shift) & mask) << (k * bits)
            store_i32(block + types.uint64(at + 64 * vector + 4 * row), types.int32(word))

    return write


read_codes: Any = None  # these names are set by `specialized`
read_scales: Any = None
write_low: Any = None
write_high: Any = None
SKIP = SIZE = SUPER_BYTES = BLOCK_BYTES = CODES_AT = MINIMA = MINIMA_AT = N_SCALES = SCALE_BYTES = ELEMENT = WORDS = 0


def pack_blocks(raw, out, n_rows, n_cols, row_bytes, stripe_bytes, first, last, scratch):  # type: ignore[no-untyped-def]
    """Pack stripes first..last of a quantized matrix, from its GGUF bytes at `raw` to the packed matrix at `out`."""
    for s in range(first, last):
        for row in range(min(16, n_rows - 16 * s)):
            source = raw + types.uint64((16 * s + row) * row_bytes)
            stripe = out + types.uint64(s * stripe_bytes)
            for i in range(n_cols // 32):
                supers = stripe
                block = stripe + types.uint64(i * BLOCK_BYTES)
                if SUPER_BYTES:
                    supers = stripe + types.uint64(i // 8 * (SUPER_BYTES + 8 * BLOCK_BYTES))
                    block = supers + types.uint64(SUPER_BYTES + i % 8 * BLOCK_BYTES)
                found = read_scales(source, i)
                if SUPER_BYTES:
                    store_u16(supers + types.uint64(2 * row), types.uint16(found[0]))
                    if MINIMA:
                        store_u16(supers + types.uint64(32 + 2 * row), types.uint16(found[1]))
                for k in range(N_SCALES):
                    at = block + types.uint64(SCALE_BYTES * (16 * k + row))
                    scale, minimum = found[2 + k], found[4 + k]
                    if SCALE_BYTES == 2:
                        store_u16(at, types.uint16(scale))
                        if MINIMA:
                            store_u16(at + types.uint64(MINIMA_AT), types.uint16(minimum))
                    elif SCALE_BYTES == 1 and MINIMA and MINIMA_AT == 0:
                        store_u8(at, types.uint8(scale | (minimum << 4)))
                    elif SCALE_BYTES == 1:
                        store_u8(at, types.uint8(scale))
                        if MINIMA:
                            store_u8(at + types.uint64(MINIMA_AT), types.uint8(minimum))
                if WORDS:  # the file keeps a row's codes in the very order of the lanes
                    base = block + types.uint64(CODES_AT + 4 * row)
                    at = source + types.uint64(i * SIZE + SKIP)
                    for j in range(WORDS):
                        store_i32(base + types.uint64(64 * j), load_i32(at + types.uint64(4 * j)))
                else:
                    read_codes(source, i, scratch)
                    write_low(scratch, block, row)
                    write_high(scratch, block, row)


def pack_floats(raw, out, n_rows, n_cols, row_bytes, stripe_bytes, first, last, scratch):  # type: ignore[no-untyped-def]
    """Pack stripes first..last of a matrix of 2- or 4-byte floats, transposed to
    [n_cols][16]; eight columns at a time keep both sides in cache."""
    for s in range(first, last):
        rows = min(16, n_rows - 16 * s)
        for c0 in range(0, n_cols, 32):
            for row in range(rows):
                source = raw + types.uint64((16 * s + row) * row_bytes)
                target = out + types.uint64(s * stripe_bytes + row * ELEMENT)
                for c in range(c0, min(n_cols, c0 + 32)):
                    for k in range(ELEMENT // 2):
                        half = load_u16(source + types.uint64(c * ELEMENT + 2 * k))
                        store_u16(target + types.uint64(c * ELEMENT * 16 + 2 * k), half)


def pack_names(p: Packed) -> dict[str, Any]:
    """Global names that `specialized` replaces in the pack loop of a format."""
    if p.is_float:
        return {"ELEMENT": p.bits // 8}
    form = FORMATS[p.name]
    read_codes, read_scales = readers(form)
    skip, words = _words_in_order(form)
    low, high = (*p.planes, None)[:2]
    return {
        "read_codes": read_codes,
        "read_scales": read_scales,
        "write_low": _plane_writer(low),
        "write_high": _plane_writer(high),
        "SKIP": skip,
        "SIZE": form.type_size,
        "SUPER_BYTES": p.super_bytes,
        "BLOCK_BYTES": p.block_bytes,
        "CODES_AT": p.codes_at,
        "MINIMA": int(p.minima),
        "MINIMA_AT": p.minima_at,
        "N_SCALES": p.n_scales,
        "SCALE_BYTES": p.scale_bytes,
        "WORDS": words,
    }
