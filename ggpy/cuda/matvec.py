"""Products of a packed matrix with up to 8 tokens: what decoding is made of, bound by how fast weights are read.

A warp takes a row, a lane every 32nd block of it, a few blocks at a time: while these are multiplied the next ones, of
this row or of the warp's next, are on their way. The first are asked for before the kernel waits for the one before it,
and hints bring further rows into the cache: memory stays busy while activations are made.

inputs   "ready": activations as the kernel `activations` made them; "norm": one row of float32, normalised here;
         "plain": the same without a norm; "partsN": N parts of attention a head, joined here. All but "ready" are for
         one token, and every block of threads does it again for itself, which is cheaper than another kernel.
outputs  "rows": dst = product + bias (+ dst); "swiglu": rows r and r + half_rows are gate and up, dst = silu(gate) * up.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.activations import norm_function, row_reader, writer
from ggpy.cuda.compile import Source
from ggpy.cuda.device import at, f32, i32, inline, reader, two_floats, u32, u64, warp_sum
from ggpy.cuda.instructions import (
    bits_to_f32,
    dp4a,
    dynamic_shared,
    exp2,
    fma,
    i32_to_f32,
    load_64,
    load_128,
    load_f32,
    prefetch,
    reciprocal,
    release_next,
    shared_load_64,
    shared_load_128,
    store_f32,
    stream_128,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.layout import SUMS, matvec_threads
from ggpy.quant.packed import PACKED, Packed

HELD = 16  # words of weights that a lane holds while others are on their way
AHEAD = 4  # rows of a warp that are hinted at before the kernel waits

SIGNATURE = (
    "u64 u64 u64 u64 i32 i32 i32 i32 "  # codes, high, levels, supers and their strides
    "i32 i32 "  # rows of the result, half_rows
    "u64 i32 u64 i32 u64 f32 "  # x (codes), its stride; levels of x, their stride; norm weight, eps
    "i32 i32 "  # head_dim, bytes of a part
    "u64 u64 i32 i32"  # bias or 0, dst, dst_stride, accumulate
)


def _where(shared: bool) -> tuple[Any, Any, Any]:
    """(address and offset made one, 16 bytes, 8 bytes) of where activations lie."""
    if not shared:
        return at, load_128, load_64

    @inline
    def shared_at(base, offset):  # type: ignore[no-untyped-def]
        return base + u32(offset)

    return shared_at, shared_load_128, shared_load_64


def _quantized(p: Packed, tokens: int, n_blocks: int, shared: bool) -> tuple[int, int, Any, Any]:
    """(items of a row, words of an item, `fetch`, `dot(raw, base, item, on, x, x_stride, xl, xl_stride, total)`): an
    item is what a lane multiplies at a time, here a block; its products with token t are added to total[t]."""
    read = reader(p)
    fetch, unpack = read.fetch, read.unpack
    place, take_128, take_64 = _where(shared)
    offset, two_scales, minima = p.offset, p.n_scales == 2, p.minima

    @inline
    def dot(raw, base, block, on, x, x_stride, xl, xl_stride, total):  # type: ignore[no-untyped-def]
        w = cuda.local.array(8, types.uint32)
        scale, scale2, minimum = unpack(raw, base, w)
        for t in range(tokens):
            here = place(place(x, i32(t) * x_stride), block * i32(16))
            a, b, c, d = take_128(here)
            e, f, g, h = take_128(place(here, i32(16 * n_blocks)))
            x_scale_bits, sums = take_64(place(place(xl, i32(t) * xl_stride), block * i32(8)))
            x_scale = bits_to_f32(x_scale_bits)
            if not on:
                x_scale = f32(0.0)
            sum1, sum2 = low_i16(sums), high_i16(sums)
            start1, start2 = i32(0), i32(0)
            if offset:
                start1, start2 = i32(-offset) * sum1, i32(-offset) * sum2
            one = dp4a(w[0], a, dp4a(w[1], b, dp4a(w[2], c, dp4a(w[3], d, start1))))
            two = dp4a(w[4], e, dp4a(w[5], f, dp4a(w[6], g, dp4a(w[7], h, start2))))
            if two_scales:
                part = fma(i32_to_f32(one), scale, i32_to_f32(two) * scale2)
            else:
                part = i32_to_f32(one + two) * scale
            if minima:
                part = fma(minimum, i32_to_f32(sum1 + sum2), part)
            total[t] = fma(part, x_scale, total[t])

    return n_blocks, read.size, fetch, dot


@inline
def low_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x & u32(0xFFFF))))


@inline
def high_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x >> u32(16))))


def _floats(p: Packed, tokens: int, n_blocks: int, shared: bool) -> tuple[int, int, Any, Any]:
    """The same for a matrix of floats, whose items are 16 bytes."""
    place, take_128, _ = _where(shared)
    kind = {"F32": 2, "BF16": 1, "F16": 0}[p.name]
    per = 4 if kind == 2 else 8

    @inline
    def fetch(codes, high, levels, supers, item, n_blocks, raw, base):  # type: ignore[no-untyped-def]
        raw[base], raw[base + 1], raw[base + 2], raw[base + 3] = stream_128(at(codes, item * i32(16)))

    @inline
    def dot(raw, base, item, on, x, x_stride, xl, xl_stride, total):  # type: ignore[no-untyped-def]
        if not on:
            raw[base], raw[base + 1], raw[base + 2], raw[base + 3] = u32(0), u32(0), u32(0), u32(0)
        for t in range(tokens):
            here = place(place(x, i32(t) * x_stride), item * i32(4 * per))
            e, f, g, h = take_128(here)
            part = total[t]
            if kind == 2:
                part = fma(bits_to_f32(raw[base]), bits_to_f32(e), part)
                part = fma(bits_to_f32(raw[base + 1]), bits_to_f32(f), part)
                part = fma(bits_to_f32(raw[base + 2]), bits_to_f32(g), part)
                part = fma(bits_to_f32(raw[base + 3]), bits_to_f32(h), part)
            else:
                a0, a1 = two_floats(raw[base], kind)
                b0, b1 = two_floats(raw[base + 1], kind)
                part = fma(a0, bits_to_f32(e), fma(a1, bits_to_f32(f), part))
                part = fma(b0, bits_to_f32(g), fma(b1, bits_to_f32(h), part))
                e, f, g, h = take_128(place(here, i32(16)))
                a0, a1 = two_floats(raw[base + 2], kind)
                b0, b1 = two_floats(raw[base + 3], kind)
                part = fma(a0, bits_to_f32(e), fma(a1, bits_to_f32(f), part))
                part = fma(b0, bits_to_f32(g), fma(b1, bits_to_f32(h), part))
            total[t] = part

    return n_blocks * 32 // per, 4, fetch, dot


def source(name: str, n_cols_: str, tokens_: str, inputs: str, outputs: str) -> Source:
    """matvec.TYPE.COLUMNS.TOKENS.INPUTS.OUTPUTS: see the module. Dynamic shared memory: SUMS bytes and, for all inputs
    but "ready", one token's activations."""
    p, n_cols, tokens = PACKED[name], int(n_cols_), int(tokens_)
    fused, norm_here = inputs != "ready", inputs == "norm"
    pair = outputs == "swiglu"
    n_blocks = -(-n_cols // 32)
    n_items, size, fetch, dot = (_floats if p.is_float else _quantized)(p, tokens, n_blocks, fused)
    per_unit = max(1, min(-(-n_items // 32), HELD // size if tokens < 4 else 1))  # items that a lane takes at a time
    n_units = -(-n_items // (32 * per_unit))
    n_raw = per_unit * size
    row_lines = -(-n_blocks * (32 * p.bits // 8 if p.bits >= 8 else 16) // 128)
    threads = matvec_threads(tokens)
    warps = threads // 32
    splits = int(inputs[5:]) if inputs.startswith("parts") else 0
    n_each, read_row = row_reader(n_cols, threads, splits)
    n_held = 4 * n_each
    _, read_weights = row_reader(n_cols, threads)
    norm = norm_function(n_cols, threads)
    write = writer(n_cols, threads, "f32" if p.is_float else "q8", True)
    n_totals = tokens

    def matvec(codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride,
               n_rows, half_rows, x, x_stride, xl, xl_stride, norm_weight, eps,
               head_dim, part_bytes, bias, dst, dst_stride, accumulate):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        row = i32(cuda.blockIdx.x) * i32(warps) + warp
        step = i32(cuda.gridDim.x) * i32(warps)
        raw = cuda.local.array(n_raw, types.uint32)
        following = cuda.local.array(n_raw, types.uint32)
        total = cuda.local.array(n_totals, types.float32)
        gate = cuda.local.array(n_totals, types.float32)
        for t in range(n_totals):
            total[t], gate[t] = f32(0.0), f32(0.0)

        # Weights depend on no kernel before: have them under way while that one ends.
        if row < n_rows:
            fetch_unit(codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride, row, i32(0), lane, raw)  # fmt: skip  # noqa: E501
        ahead = row
        for _ in range(AHEAD):
            if ahead < n_rows:
                for line in range(lane, i32(row_lines), i32(32)):
                    prefetch(codes + u64(u32(ahead)) * u64(u32(code_stride)) + u64(u32(line * i32(128))))
                    if pair:
                        prefetch(codes + u64(u32(ahead + half_rows)) * u64(u32(code_stride)) + u64(u32(line * i32(128))))  # fmt: skip  # noqa: E501
            ahead += step
        if fused:
            held = cuda.local.array(n_held, types.float32)
            weights = cuda.local.array(n_held, types.float32)
            if norm_here:
                read_weights(norm_weight, i32(1), i32(0), weights)
            wait_for_previous()
            memory = dynamic_shared()
            read_row(x, head_dim, part_bytes, held)
            if norm_here:
                norm(held, weights, eps, memory)
            here = memory + u32(SUMS)
            here_levels = here + u32(n_blocks * 32)
            write(held, here, here_levels)
            sync_block()
        else:
            wait_for_previous()
            here, here_levels = x, xl

        unit, second = i32(0), False
        while row < n_rows:
            # the next unit: of this row, of its other half, of the warp's next row
            next_row, next_unit, next_second = row, unit + i32(1), second
            ends = next_unit == i32(n_units)
            if ends:
                next_unit = i32(0)
                if pair and not second:
                    next_second = True
                else:
                    next_second = False
                    next_row = row + step
            if next_row < n_rows:
                of = next_row + half_rows if next_second else next_row
                fetch_unit(codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride, of, next_unit, lane, following)  # fmt: skip  # noqa: E501
            for k in range(per_unit):
                item = (unit * i32(per_unit) + i32(k)) * i32(32) + lane
                on = item < i32(n_items)
                if not on:
                    item = i32(n_items - 1)
                dot(raw, k * size, item, on, here, x_stride, here_levels, xl_stride, total)
            if ends:
                if pair and not second:
                    for t in range(n_totals):
                        gate[t], total[t] = total[t], f32(0.0)
                else:
                    value, gated = f32(0.0), f32(0.0)
                    for t in range(n_totals):
                        summed = warp_sum(total[t])
                        if pair:
                            other = warp_sum(gate[t])
                            if lane == i32(t):
                                gated = other
                        if lane == i32(t):
                            value = summed
                        total[t] = f32(0.0)
                    if lane < i32(tokens):
                        if pair:
                            if bias != u64(0):
                                gated += load_f32(at(bias, row * i32(4)))
                                value += load_f32(at(bias, (row + half_rows) * i32(4)))
                            value *= gated * reciprocal(f32(1.0) + exp2(gated * f32(-1.4426950408889634)))
                        elif bias != u64(0):
                            value += load_f32(at(bias, row * i32(4)))
                        out = dst + u64(u32(lane)) * u64(u32(dst_stride)) + u64(u32(row * i32(4)))
                        if accumulate != i32(0):
                            value += load_f32(out)
                        store_f32(out, value)
            for k in range(n_raw):
                raw[k] = following[k]
            row, unit, second = next_row, next_unit, next_second

    @inline
    def fetch_unit(codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride, row, unit, lane, raw):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        r = u64(u32(row))
        codes_at, high_at = codes + r * u64(u32(code_stride)), high + r * u64(u32(high_stride))
        levels_at, supers_at = levels + r * u64(u32(level_stride)), supers + r * u64(u32(super_stride))
        for k in range(per_unit):
            item = (unit * i32(per_unit) + i32(k)) * i32(32) + lane
            if item >= i32(n_items):
                item = i32(n_items - 1)  # read again, and not counted
            fetch(codes_at, high_at, levels_at, supers_at, item, i32(n_blocks), raw, k * size)

    return Source(matvec, SIGNATURE, threads, 2)
