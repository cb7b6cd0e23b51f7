"""Products of a packed matrix with up to 8 tokens: what decoding is made of, bound by how fast weights are read.

A warp takes a row, a lane every 32nd block of it. Weights come through shared memory, some units ahead of the one being
multiplied (`ggpy.cuda.weights.layout.MatvecShape`). Half of the first ones are asked for before the kernel waits for
the one before it, the others once that one has ended: memory stays busy while activations are made.

A warp that has asked for its last weights prefetches a piece of those that the next kernel reads into the L2 cache
(`ggpy.cuda.l2_prefetch`).

inputs   "ready": activations as the kernel `activations` made them; "norm": one row of float32, normalised here;
         "plain": the same without a norm; "partsNxD": N parts of attention for each head of D columns, joined here. All
         but "ready" are for one token, and every block of threads does it again for itself, which is cheaper than
         another kernel.
outputs  "rows": dst = product + bias (+ dst); "swiglu": rows r and r + half_rows are gate and up, dst silu(gate) * up;
         "pushN": a partial product, sent to N ranks (`ggpy.cuda.ops.all_reduce`): dst is the table of their addresses,
         and `accumulate` the number of the sum.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_reader, f32, i32, inline, shared_at, two_floats, u32, u64, unpacker, warp_sum
from ggpy.cuda.isa.instructions import (
    FLOAT_BASE,
    FLOAT_BASE_BITS,
    bits_to_f32,
    bring_near,
    copy_4_or_zero,
    copy_16,
    copy_16_or_zero,
    copy_commit,
    copy_wait,
    dp4a,
    dynamic_shared,
    exp2,
    fma,
    half_to_f32,
    i32_to_f32,
    load_64,
    load_128,
    load_f32,
    logic_xor_and,
    reciprocal,
    release_next,
    shared_load_64,
    shared_load_128,
    store_f32,
    sync_block,
    sync_warp,
    wait_for_previous,
)
from ggpy.cuda.ops.all_reduce import epoch, sender
from ggpy.cuda.weights.activations import norm_function, row_reader, writer
from ggpy.cuda.weights.layout import SUMS, MatvecShape, bits_above, numbers
from ggpy.quant.formats import PACKED

SIGNATURE = (
    "u64 u64 u64 u64 i32 i32 i32 i32 "  # codes, high, scales, supers and their strides
    "i32 i32 "  # rows of the result, half_rows
    "u64 i32 u64 i32 u64 f32 "  # x (codes), its stride; scales of x, their stride; norm weight, eps
    "u64 u64 i32 i32 u64 "  # bias or 0, dst, dst_stride, accumulate, epochs
    "u64 u64 i32"  # what will be read next, in one place or two (or 0), and how much of each is a warp's to ask for
)


def _where(shared: bool) -> tuple[Any, Any, Any]:
    """Functions for the memory that holds activations: (address plus offset, load 16 bytes, load 8 bytes)."""
    return (shared_at, shared_load_128, shared_load_64) if shared else (at, load_128, load_64)


def _quantized(shape: MatvecShape, shared: bool) -> tuple[Any, Any]:
    """(`copy(to, codes, high, scales, supers, unit, lane)`, `dot(of, chunk, item, lane, on, x, x_stride, xl, xl_stride,
    total)`).

    copy: start to copy a unit of a row, given by its addresses in the planes, to shared memory. dot: add the
    products of one item with token t to total[t]; `of` is the unit's shared address.
    """
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
    x_blocks = shape.padded_blocks if shared else n_blocks
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
    """(`copy`, `dot`) as in `_quantized`, for a matrix of floats."""
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


def source(name: str, n_cols_: str, tokens_: str, inputs: str, outputs: str, ring: str) -> Source:
    """matvec.TYPE.COLUMNS.TOKENS.INPUTS.OUTPUTS.RING: see the module; MatvecShape has its threads and memory."""
    p, n_cols, tokens = PACKED[name], int(n_cols_), int(tokens_)
    shape = MatvecShape(p, n_cols, tokens, int(ring))
    fused, norm_here = inputs != "ready", inputs == "norm"
    pair = outputs == "swiglu"
    ranks = int(outputs[4:]) if outputs.startswith("push") else 0
    copy, dot = (_floats if p.is_float else _quantized)(shape, fused)
    n_items, chunks, n_units = shape.n_items, shape.chunks, shape.n_units
    slots, unit_bytes, activations_at = shape.slots, shape.unit_bytes, shape.activations_at
    threads, warps = shape.threads, shape.threads // 32
    # Units that are asked for while the kernel ahead is at work; the others when it has ended, as the memory would else
    # have nothing to do until activations are made.
    early = slots // 2
    # A single token's activations lie in shared memory with zeros after them, as far as the last unit reaches.
    padded = n_items % (32 * chunks) == 0 or (fused and not p.is_float)
    wait = copy_wait(slots - 1)
    splits, head_dim = map(int, inputs[5:].split("x")) if inputs.startswith("parts") else (0, 0)
    n_each, read_row = row_reader(n_cols, threads, splits, head_dim)
    n_held = 4 * n_each
    _, read_weights = row_reader(n_cols, threads)
    norm = norm_function(n_cols, threads)
    write = writer(n_cols, threads, "f32" if p.is_float else "q8", True, shape.padded_blocks)
    scales_after = 32 * shape.padded_blocks
    send = sender(ranks)

    @inline
    def after(row, second, unit, step):  # type: ignore[no-untyped-def]
        """The unit that follows: of this row, of its other half, or of the warp's next row."""
        unit = i32(unit + i32(1))
        if unit == i32(n_units):
            unit = i32(0)
            if pair:
                second = not second
            if not second:
                row = i32(row + step)
        return row, second, unit

    @inline
    def ask(planes, strides, half_rows, n_rows, far, step, lane, to):  # type: ignore[no-untyped-def]
        """Start to copy the unit `far`; past the last one, commit an empty group to keep the count. Returns the unit
        that follows."""
        row, second, unit = far
        if row < n_rows:
            r = u64(u32(row + half_rows)) if second else u64(u32(row))
            copy(
                to, planes[0] + r * u64(u32(strides[0])), planes[1] + r * u64(u32(strides[1])),
                planes[2] + r * u64(u32(strides[2])), planes[3] + r * u64(u32(strides[3])), unit, lane,
            )  # fmt: skip
        copy_commit()
        return after(row, second, unit, step)

    def matvec(codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride,
               n_rows, half_rows, x, x_stride, xl, xl_stride, norm_weight, eps,
               bias, dst, dst_stride, accumulate, epochs, ahead, ahead_too, piece):  # type: ignore[no-untyped-def]  # fmt: skip
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        # Rows are dealt out block by block, so that every block has as many, and all read near each other.
        row = i32(i32(cuda.blockIdx.x) + i32(cuda.gridDim.x) * warp)
        step = i32(i32(cuda.gridDim.x) * i32(warps))
        memory = dynamic_shared()
        ring = memory + u32(SUMS) + u32(warp * i32(slots * unit_bytes))
        planes, strides = (codes, high, scales, supers), (code_stride, high_stride, scale_stride, super_stride)
        # Weights depend on no kernel before: have some under way while that one ends.
        far = row, False, i32(0)
        for s in range(early):
            far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
        if fused:
            held = cuda.local.array(n_held, types.float32)
            weights = cuda.local.array(n_held, types.float32)
            if norm_here:
                read_weights(norm_weight, weights)
            wait_for_previous()
            release_next()  # not sooner: the weights of the kernel after this one would be in the way of this one's
            read_row(x, held)
            for s in range(early, slots):  # while activations are made
                far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
            if norm_here:
                norm(held, weights, eps, memory)
            here = memory + u32(activations_at)
            here_scales = here + u32(scales_after)
            write(held, here, here_scales)
            sync_block()
        else:
            wait_for_previous()
            release_next()
            for s in range(early, slots):
                far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
            here, here_scales = x, xl

        total = cuda.local.array(tokens, types.float32)
        gate = cuda.local.array(tokens, types.float32)
        for t in range(tokens):
            total[t], gate[t] = f32(0.0), f32(0.0)
        second, unit, of, left = False, i32(0), ring, piece
        while row < n_rows:
            wait()
            sync_warp()
            out = dst + u64(u32(lane)) * u64(u32(dst_stride)) + u64(u32(row * i32(4)))
            first_bias, second_bias, old = f32(0.0), f32(0.0), f32(0.0)
            if unit == i32(n_units - 1) and second == pair and lane < i32(tokens):  # on their way while we multiply
                if bias != u64(0):
                    first_bias = load_f32(at(bias, row * i32(4)))
                    if pair:
                        second_bias = load_f32(at(bias, (row + half_rows) * i32(4)))
                if not ranks and accumulate != i32(0):
                    old = load_f32(out)
            for k in range(chunks):
                item = i32((unit * i32(chunks) + i32(k)) * i32(32) + lane)
                if padded:
                    dot(of, k, item, lane, True, here, x_stride, here_scales, xl_stride, total)
                else:
                    on = item < i32(n_items)
                    dot(
                        of, k, item if on else i32(n_items - 1), lane, on, here, x_stride, here_scales, xl_stride, total
                    )
            sync_warp()  # before another unit takes this one's place
            far = ask(planes, strides, half_rows, n_rows, far, step, lane, of)
            if far[0] >= n_rows and left > i32(0):
                if lane == i32(0):
                    share = u64(u32(i32(cuda.blockIdx.x) + i32(cuda.gridDim.x) * warp)) * u64(u32(left))
                    bring_near(ahead + share, u32(left))
                    if ahead_too != u64(0):
                        bring_near(ahead_too + share, u32(left))
                left = i32(0)
            if unit == i32(n_units - 1):
                if pair and not second:
                    for t in range(tokens):
                        gate[t], total[t] = total[t], f32(0.0)
                else:
                    value, gated = f32(0.0), f32(0.0)
                    for t in range(tokens):
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
                            gated += first_bias
                            value += second_bias
                            value *= gated * reciprocal(f32(1.0) + exp2(gated * f32(-1.4426950408889634)))
                        else:
                            value += first_bias
                        if ranks:
                            send(dst, lane * dst_stride + row * i32(8), value, epoch(epochs, accumulate))
                        else:
                            store_f32(out, value + old)
            row, second, unit = after(row, second, unit, step)
            of = ring if of == ring + u32((slots - 1) * unit_bytes) else of + u32(unit_bytes)

    return Source(matvec, SIGNATURE, threads, 2)
