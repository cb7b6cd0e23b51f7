"""From the bytes of a GGUF tensor to the packed stripes that kernels read (`ggpy.quant.packed`).

One loop per format, compiled on first use and run by several Python threads, each over its own stripes. The destination
is zeroed memory, so rows past the last one stay zero.
"""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types

from ggpy.cpu.blocks import CODES, k_scale
from ggpy.cpu.memory import load_i8, load_i32, load_u16, store_i8, store_i32, store_u8, store_u16
from ggpy.cpu.records import as_bytes
from ggpy.quant import FORMATS
from ggpy.quant.packed import PACKED, Packed

# ---- scales


@njit
def _scales_plain(raw, i, size, n_minima, row, block, header):  # type: ignore[no-untyped-def]
    at = raw + types.uint64(i * size)
    store_u16(block + types.uint64(2 * row), load_u16(at))
    if n_minima:
        store_u16(block + types.uint64(32 + 2 * row), load_u16(at + types.uint64(2)))


@njit
def _scales_k(raw, i, size, n_minima, row, block, header):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    store_u16(header + types.uint64(2 * row), load_u16(top))
    store_u16(header + types.uint64(32 + 2 * row), load_u16(top + types.uint64(2)))
    store_u8(block + types.uint64(row), k_scale(top + types.uint64(4), i % 8, 0))
    store_u8(block + types.uint64(16 + row), k_scale(top + types.uint64(4), i % 8, 1))


@njit
def _scales_q6_k(raw, i, size, n_minima, row, block, header):  # type: ignore[no-untyped-def]
    top = raw + types.uint64(i // 8 * size)
    store_u16(header + types.uint64(2 * row), load_u16(top + types.uint64(208)))
    for s in range(2):
        store_i8(block + types.uint64(16 * s + row), load_i8(top + types.uint64(192 + 2 * (i % 8) + s)))


_K_SCALES = {"Q4_K": _scales_k, "Q5_K": _scales_k, "Q6_K": _scales_q6_k}

read_codes: Any = None  # these names are set by `specialized`
read_scales: Any = None
SKIP = SIZE = HEADER_BYTES = BLOCK_BYTES = CODES_AT = HIGH_AT = BITS = FIELD = MINIMA = ELEMENT = WORDS = 0


def pack_blocks(raw, out, n_rows, n_cols, row_bytes, stripe_bytes, first, last, scratch):  # type: ignore[no-untyped-def]
    """Stripes first..last of a quantized matrix: `raw` is its GGUF bytes, `out` the packed matrix; both addresses."""
    codes = carray(as_bytes(scratch), 32)
    for s in range(first, last):
        for row in range(min(16, n_rows - 16 * s)):
            source = raw + types.uint64((16 * s + row) * row_bytes)
            stripe = out + types.uint64(s * stripe_bytes)
            for i in range(n_cols // 32):
                header = stripe
                block = stripe + types.uint64(i * BLOCK_BYTES)
                if HEADER_BYTES:
                    header = stripe + types.uint64(i // 8 * (HEADER_BYTES + 8 * BLOCK_BYTES))
                    block = header + types.uint64(HEADER_BYTES + i % 8 * BLOCK_BYTES)
                read_scales(source, i, SIZE, MINIMA, row, block, header)
                base = block + types.uint64(CODES_AT + 4 * row)
                if WORDS:  # the file keeps a row's codes in the very order of the lanes
                    at = source + types.uint64(i * SIZE + SKIP)
                    for j in range(WORDS):
                        store_i32(base + types.uint64(64 * j), load_i32(at + types.uint64(4 * j)))
                    continue
                read_codes(source, i, SKIP, SIZE, codes)
                if BITS == 8:
                    for g in range(8):
                        for c in range(4):
                            store_u8(base + types.uint64(64 * g + c), codes[4 * g + c])
                else:
                    for j in range(4):
                        for c in range(4):
                            low, high = codes[4 * j + c] & 15, codes[16 + 4 * j + c] & 15
                            store_u8(base + types.uint64(64 * j + c), types.uint8(low | (high << 4)))
                if FIELD:
                    per_vector = 8 // FIELD
                    plane = block + types.uint64(HIGH_AT + 4 * row)
                    for p in range(8 // per_vector):
                        for c in range(4):
                            byte = types.uint8(0)
                            for k in range(per_vector):
                                byte |= types.uint8((codes[4 * (p * per_vector + k) + c] >> 4) << (k * FIELD))
                            store_u8(plane + types.uint64(64 * p + c), byte)


def pack_floats(raw, out, n_rows, n_cols, row_bytes, stripe_bytes, first, last, scratch):  # type: ignore[no-untyped-def]
    """Stripes first..last of a matrix of 2- or 4-byte floats, transposed to
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
    """What `specialized` puts into the pack loop of a format."""
    if p.is_float:
        return {"ELEMENT": p.bits // 8}
    codes, skip = CODES[p.name]
    return {
        "read_codes": codes,
        "read_scales": _K_SCALES.get(p.name, _scales_plain),
        "SKIP": skip,
        "SIZE": FORMATS[p.name].type_size,
        "HEADER_BYTES": p.header_bytes,
        "BLOCK_BYTES": p.block_bytes,
        "CODES_AT": p.codes_at,
        "HIGH_AT": p.high_at,
        "BITS": p.bits,
        "FIELD": p.high_bits,
        "MINIMA": int(p.minima),
        "WORDS": {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}.get(p.name, 0),
    }


assert set(CODES) | {"F32", "F16", "BF16"} == set(PACKED)
