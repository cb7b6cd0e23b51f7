"""Products of a packed matrix with up to 8 tokens: what decoding is made of, bound by how fast weights are read.

A warp (or two or four of them) takes a row, a lane every 32nd block of it; 8-bit dot products for quantized weights. What
the kernel does around the product is chosen when it is compiled:

inputs   "ready": activations as the kernel `activations` made them; "norm": one row of float32, normalised here;
         "plain": the same without a norm; "parts": the parts of attention, joined here. All but "ready" are for one
         token, and every block of threads does it again for itself, which is cheaper than another kernel.
outputs  "rows": dst = product + bias (+ dst); "swiglu": rows r and r + half_rows are gate and up, dst = silu(gate) * up.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.activations import floats_writer, quantizer, row_factor
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
    shared_load_f32,
    shared_store_f32,
    store_f32,
    stream_128,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.layout import SUMS
from ggpy.quant.packed import PACKED, Packed

THREADS = 256
WARPS = THREADS // 32
PARTIAL = 4 * WARPS * 16  # bytes of shared memory for what the warps of a row have summed

SIGNATURE = (
    "u64 u64 u64 u64 i32 i32 i32 i32 "  # codes, high, levels, supers and their strides
    "i32 i32 i32 i32 "  # rows of the result, blocks of a row, columns, half_rows
    "u64 i32 u64 i32 u64 f32 "  # x (codes), its stride; levels of x, their stride; norm weight, eps
    "i32 i32 i32 "  # head_dim, parts of a head, bytes of a part
    "u64 u64 i32 i32"  # bias or 0, dst, dst_stride, accumulate
)


def _shared_or_global(shared: bool) -> tuple[Any, Any, Any]:
    """(address and offset made one, 16 bytes, 8 bytes) of where activations lie."""
    if not shared:
        return at, load_128, load_64

    @inline
    def shared_at(base, offset):  # type: ignore[no-untyped-def]
        return base + u32(offset)

    return shared_at, shared_load_128, shared_load_64


def _quantized_dot(p: Packed, tokens: int, shared: bool, warps: int) -> Any:
    """`dot(codes, high, levels, supers, x, x_stride, xl, xl_stride, n_blocks, first, total, base)`: adds the products
    of the row's blocks first, first + 32 * warps, … with each token t to total[base + t]; addresses are of the row."""
    words, factors = reader(p)
    place, take_128, take_64 = _shared_or_global(shared)
    offset, two_scales, minima = p.offset, p.n_scales == 2, p.minima

    @inline
    def dot(codes, high, levels, supers, x, x_stride, xl, xl_stride, n_blocks, n_cols, first, total, base):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        w = cuda.local.array(8, types.uint32)
        for block in range(first, n_blocks, i32(32 * warps)):
            words(codes, high, block, n_blocks, w)
            scale, scale2, minimum = factors(levels, supers, block)
            for t in range(tokens):
                here = place(place(x, i32(t) * x_stride), block * i32(16))
                a, b, c, d = take_128(here)
                e, f, g, h = take_128(place(here, n_blocks * i32(16)))
                x_scale_bits, sums = take_64(place(place(xl, i32(t) * xl_stride), block * i32(8)))
                x_scale = bits_to_f32(x_scale_bits)
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
                total[base + t] = fma(part, x_scale, total[base + t])

    return dot


@inline
def low_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x & u32(0xFFFF))))


@inline
def high_i16(x):  # type: ignore[no-untyped-def]
    return i32(types.int16(types.uint16(x >> u32(16))))


def _floats_dot(p: Packed, tokens: int, shared: bool, warps: int) -> Any:
    """The same for a matrix of floats; 16 bytes a lane."""
    place, take_128, _ = _shared_or_global(shared)
    kind = {"F32": 2, "BF16": 1, "F16": 0}[p.name]
    per = 4 if kind == 2 else 8

    @inline
    def dot(codes, high, levels, supers, x, x_stride, xl, xl_stride, n_blocks, n_cols, first, total, base):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        for item in range(first, n_blocks * i32(32 // per), i32(32 * warps)):
            a, b, c, d = stream_128(at(codes, item * i32(16)))
            for t in range(tokens):
                here = place(place(x, i32(t) * x_stride), item * i32(4 * per))
                e, f, g, h = take_128(here)
                part = total[base + t]
                if kind == 2:
                    part = fma(bits_to_f32(a), bits_to_f32(e), fma(bits_to_f32(b), bits_to_f32(f), part))
                    part = fma(bits_to_f32(c), bits_to_f32(g), fma(bits_to_f32(d), bits_to_f32(h), part))
                else:
                    a0, a1 = two_floats(a, kind)
                    b0, b1 = two_floats(b, kind)
                    c0, c1 = two_floats(c, kind)
                    d0, d1 = two_floats(d, kind)
                    part = fma(a0, bits_to_f32(e), fma(a1, bits_to_f32(f), part))
                    part = fma(b0, bits_to_f32(g), fma(b1, bits_to_f32(h), part))
                    e, f, g, h = take_128(place(here, i32(16)))
                    part = fma(c0, bits_to_f32(e), fma(c1, bits_to_f32(f), part))
                    part = fma(d0, bits_to_f32(g), fma(d1, bits_to_f32(h), part))
                total[base + t] = part

    return dot


def source(name: str, tokens_: str, inputs: str, outputs: str, warps_: str) -> Source:
    """matvec.TYPE.TOKENS.INPUTS.OUTPUTS.WARPS: see the module; WARPS share a row. Dynamic shared memory: SUMS bytes, and
    for all inputs but "ready" one token's activations after them; with several warps a row, PARTIAL more at the end of
    SUMS."""
    p, tokens, warps = PACKED[name], int(tokens_), int(warps_)
    fused, parts, norm = inputs != "ready", inputs == "parts", inputs == "norm"
    pair = outputs == "swiglu"
    per_row = 2 if pair else 1
    n_totals = tokens * per_row
    dot = (_floats_dot if p.is_float else _quantized_dot)(p, tokens, fused, warps)
    is_float = p.is_float
    code_bytes = 32 * p.bits // 8 if p.is_float or p.bits == 8 else 16
    at_x = SUMS + (PARTIAL if warps > 1 else 0)
    rows_at_once = WARPS // warps
    quantize, write = quantizer(True, THREADS, parts), floats_writer(True, THREADS, parts)

    def matvec(codes, high, levels, supers, code_stride, high_stride, level_stride, super_stride,
               n_rows, n_blocks, n_cols, half_rows, x, x_stride, xl, xl_stride, norm_weight, eps,
               head_dim, splits, part_bytes, bias, dst, dst_stride, accumulate):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        first_row = i32(cuda.blockIdx.x) * i32(rows_at_once) + warp // i32(warps)
        # Weights depend on no kernel before: have them under way while that one ends.
        if first_row < n_rows:
            line = (warp % i32(warps)) * i32(32) + lane
            if line * i32(128) < n_blocks * i32(code_bytes):
                prefetch(codes + u64(u32(first_row)) * u64(u32(code_stride)) + u64(u32(line * i32(128))))
                if pair:
                    prefetch(codes + u64(u32(first_row + half_rows)) * u64(u32(code_stride)) + u64(u32(line * i32(128))))
            if level_stride > i32(0) and line * i32(128) < level_stride:
                prefetch(levels + u64(u32(first_row)) * u64(u32(level_stride)) + u64(u32(line * i32(128))))
        wait_for_previous()
        memory = dynamic_shared()
        if fused:
            factor = f32(1.0)
            if norm:
                factor = row_factor(x, n_cols, eps, memory, THREADS)
            here = memory + u32(at_x)
            here_levels = here + u32(n_blocks * i32(32))
            if is_float:
                write(x, norm_weight, factor, n_cols, n_blocks, here, head_dim, splits, part_bytes)
            else:
                quantize(x, norm_weight, factor, n_blocks, here, here_levels, head_dim, splits, part_bytes)
            sync_block()
        else:
            here, here_levels = x, xl
        step = i32(cuda.gridDim.x) * i32(rows_at_once)
        for row_of_block in range(i32(cuda.blockIdx.x) * i32(rows_at_once), n_rows, step):
            row = row_of_block + warp // i32(warps)
            total = cuda.local.array(n_totals, types.float32)
            for k in range(n_totals):
                total[k] = f32(0.0)
            if row < n_rows:
                for k in range(per_row):
                    r = u64(u32(row + i32(k) * half_rows))
                    dot(
                        codes + r * u64(u32(code_stride)), high + r * u64(u32(high_stride)),
                        levels + r * u64(u32(level_stride)), supers + r * u64(u32(super_stride)),
                        here, x_stride, here_levels, xl_stride, n_blocks, n_cols,
                        (warp % i32(warps)) * i32(32) + lane, total, k * tokens,
                    )  # fmt: skip
            for k in range(n_totals):
                total[k] = warp_sum(total[k])
            if warps > 1:
                sync_block()
                for k in range(n_totals):
                    if lane == i32(k):
                        shared_store_f32(memory + u32(SUMS) + u32((warp * i32(16) + i32(k)) * i32(4)), total[k])
                sync_block()
                for k in range(n_totals):
                    total[k] = f32(0.0)
                    for v in range(warps):
                        other = warp // i32(warps) * i32(warps) + i32(v)
                        total[k] += shared_load_f32(memory + u32(SUMS) + u32((other * i32(16) + i32(k)) * i32(4)))
            if row < n_rows and lane < i32(tokens) and (warps == 1 or warp % i32(warps) == i32(0)):
                value, second = f32(0.0), f32(0.0)
                for t in range(tokens):
                    if lane == i32(t):
                        value = total[t]
                        if pair:
                            second = total[tokens + t]
                if bias != u64(0):
                    value += load_f32(at(bias, row * i32(4)))
                    if pair:
                        second += load_f32(at(bias, (row + half_rows) * i32(4)))
                if pair:
                    value = value * reciprocal(f32(1.0) + exp2(value * f32(-1.4426950408889634))) * second
                out = dst + u64(u32(lane)) * u64(u32(dst_stride)) + u64(u32(row * i32(4)))
                if accumulate != i32(0):
                    value += load_f32(out)
                store_f32(out, value)

    # 64 registers a thread where one token is at work: four blocks hide what memory takes to answer
    return Source(matvec, SIGNATURE, THREADS, 4 if tokens == 1 else 2)
