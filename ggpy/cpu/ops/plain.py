"""The plain tier: every SIMD primitive as a loop over scalars. It runs on any CPU,
and is the reference for the other tiers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

from ggpy.codegen.scalars import (
    bf16_to_f32,
    f16_to_f32,
    f32_to_f16,
    load_f32,
    load_i8,
    load_i32,
    load_u8,
    load_u16,
    store_f32,
    store_i8,
    store_i32,
    store_u16,
)
from ggpy.cpu.isa.layout import FROM_BIAS, FROM_DST, ROW_STATE_BYTES, SUM_STARTS, TOKEN_BLOCK_BYTES
from ggpy.cpu.ops.attend import CAPPED, SLOPED
from ggpy.cpu.ops.sample import RUN
from ggpy.cpu.weights.blocks import number_of, scale_of
from ggpy.quant.packed import Packed, Plane


def code_reader(p: Packed) -> Any:
    """`code(block, row, column)`: a code assembled from its planes."""

    def plane_reader(plane: Plane | None) -> Any:
        if plane is None:
            return njit(lambda block, row, column: 0)
        places = np.array([plane.place(g) for g in range(8)])
        at, mask, shift = plane.at, (1 << plane.bits) - 1, plane.shift

        @njit
        def part(block, row, column):  # type: ignore[no-untyped-def]
            vector, bit = places[column // 4]
            byte = types.int64(load_u8(block + types.uint64(at + 64 * vector + 4 * row + column % 4)))
            return ((byte >> bit) & mask) << shift

        return part

    low, high = (plane_reader(plane) for plane in (*p.planes, None)[:2])

    @njit
    def code(block, row, column):  # type: ignore[no-untyped-def]
        return low(block, row, column) | high(block, row, column)

    return code


def tile_function(p: Packed) -> Any:
    """`tile`, as in `ggpy.cpu.ops.linear`, one token wide."""
    if p.is_float:
        row_bytes, name = 16 * p.bits // 8, p.name

        @njit
        def weight_at(at):  # type: ignore[no-untyped-def]
            if name == "F32":
                return load_f32(at)
            if name == "F16":
                return f16_to_f32(load_u16(at))
            return bf16_to_f32(load_u16(at))

        @njit
        def product(weight, x, n_cols, row):  # type: ignore[no-untyped-def]
            total = types.float64(0.0)
            for c in range(n_cols):
                size = row_bytes // 16
                total += weight_at(weight + types.uint64(c * row_bytes + row * size)) * load_f32(
                    x + types.uint64(4 * c)
                )
            return total

    else:
        code, number, scale_value = code_reader(p), number_of(p), scale_of(p)
        group, n_scales, super_scales, minima, minima_at = p.group, p.n_scales, p.super_scales, p.minima, p.minima_at
        super_bytes, block_bytes, sign, unit = p.super_bytes, p.block_bytes, p.minimum_sign, p.unit
        scale_bytes, nibbles = p.scale_bytes, p.scales == "nibbles"

        @njit
        def stored_scale(at):  # type: ignore[no-untyped-def]
            return types.int64(load_u16(at)) if scale_bytes == 2 else types.int64(load_u8(at))

        @njit
        def product(weight, x, n_cols, row):  # type: ignore[no-untyped-def]
            total = types.float64(0.0)
            block = weight
            for i in range(n_cols // 32):
                top, top_minimum = types.float32(1.0), types.float32(1.0)
                if super_scales:
                    at = weight + types.uint64(i // 8 * (super_bytes + 8 * block_bytes))
                    top = f16_to_f32(load_u16(at + types.uint64(2 * row))) * types.float32(unit)
                    if minima:
                        top_minimum = f16_to_f32(load_u16(at + types.uint64(32 + 2 * row)))
                    block = at + types.uint64(super_bytes + i % 8 * block_bytes)
                else:
                    block = weight + types.uint64(i * block_bytes)
                x_at = x + types.uint64(i * TOKEN_BLOCK_BYTES)
                x_scale = load_f32(x_at + types.uint64(32))
                for s in range(n_scales):
                    dot, x_sum = types.int64(0), types.int64(0)
                    for c in range(s * group, (s + 1) * group):
                        x_code = types.int64(load_i8(x_at + types.uint64(c)))
                        dot += number(code(block, row, c)) * x_code
                        x_sum += x_code
                    at = block + types.uint64(scale_bytes * (16 * s + row))
                    stored = stored_scale(at)
                    scale = scale_value(top, stored & 15 if nibbles else stored)
                    total += types.float64(scale * x_scale) * dot
                    if minima:
                        stored = stored >> 4 if nibbles else stored_scale(at + types.uint64(minima_at))
                        minimum = scale_value(top_minimum, stored)
                        x_total = load_f32(x_at + types.uint64(36)) if n_scales == 1 else x_scale * types.float32(x_sum)
                        total += types.float64(sign) * minimum * x_total
            return total

    @njit
    def tile(width, weight, apart, ahead, x, n_cols, bias, dst, stride, start):  # type: ignore[no-untyped-def]
        for row in range(16):
            at = dst + types.uint64(4 * row)
            total = product(weight, x, n_cols, row)
            if start != FROM_DST:
                total += load_f32(bias + types.uint64(4 * row))
            if start != FROM_BIAS:
                total += load_f32(at)
            store_f32(at, types.float32(total))

    return tile


@njit
def sum_squares(row, n):  # type: ignore[no-untyped-def]
    total = types.float64(0.0)
    for i in range(n):
        x = types.float64(load_f32(row + types.uint64(4 * i)))
        total += x * x
    return types.float32(total)


def quantize_function(n_planes: int) -> Any:
    """`quantize_row`, as in `ggpy.cpu.weights.activations`; tiles are one token wide, and a second plane is the next
    tile."""

    @njit
    def left(row, weight, factor, column, scale, inverse):  # type: ignore[no-untyped-def]
        """A column less the value of its code in the plane before."""
        at = types.uint64(4 * column)
        x = load_f32(row + at) * factor * load_f32(weight + at)
        return types.float32(types.float64(x) - types.float64(scale) * round(x * inverse))

    @njit
    def quantize_row(row, weight, factor, n_blocks, dst, width, lane):  # type: ignore[no-untyped-def]
        for i in range(n_blocks):
            before, inverse_before = types.float32(0.0), types.float32(0.0)
            for plane in range(n_planes):
                largest = types.float32(0.0)
                for c in range(32):
                    largest = max(largest, abs(left(row, weight, factor, 32 * i + c, before, inverse_before)))
                scale = largest / types.float32(127.0)
                inverse = types.float32(127.0) / largest if scale > types.float32(1e-38) else types.float32(0.0)
                out = dst + types.uint64((plane * n_blocks + i) * TOKEN_BLOCK_BYTES * width)
                first, second = types.int64(0), types.int64(0)
                for c in range(32):
                    value = left(row, weight, factor, 32 * i + c, before, inverse_before) * inverse
                    rounded = types.int64(round(value))
                    store_i8(out + types.uint64(4 * (c // 4 * width + lane) + c % 4), types.int8(rounded))
                    if c < 16:
                        first += rounded
                    else:
                        second += rounded
                tail = out + types.uint64(32 * width + 4 * lane)
                store_f32(tail, scale)
                store_f32(tail + types.uint64(4 * width), scale * types.float32(first + second))
                for k in range(len(SUM_STARTS)):
                    offset, part = SUM_STARTS[k]
                    total = (first + second) if part == 0 else first if part == 1 else second
                    store_i32(tail + types.uint64((8 + 4 * k) * width), types.int32(-offset * total))
                before, inverse_before = scale, inverse

    return quantize_row


@njit
def scale_row(row, weight, factor, n, dst, width, lane):  # type: ignore[no-untyped-def]
    for c in range((n + 7) // 8 * 8):
        at = types.uint64(4 * c)
        value = load_f32(row + at) * factor * load_f32(weight + at) if c < n else types.float32(0.0)
        store_f32(dst + types.uint64(4 * (c * width + lane)), value)


@njit
def any_from(at, least, allowed):  # type: ignore[no-untyped-def]
    found = False
    for i in range(RUN):
        if (allowed >> types.uint64(i)) & types.uint64(1):
            found |= not load_f32(at + types.uint64(4 * i)) < least
    return found


@njit
def largest_of(at, allowed):  # type: ignore[no-untyped-def]
    largest = types.float32(-math.inf)
    for i in range(RUN):
        if (allowed >> types.uint64(i)) & types.uint64(1):
            largest = max(largest, load_f32(at + types.uint64(4 * i)))
    return largest


@njit
def store_half(address, x):  # type: ignore[no-untyped-def]
    store_u16(address, f32_to_f16(x))


def _cell_reader(cache: str, is_key: bool) -> Any:
    """`cell(start, position, d, n_dims)`: one number of the cache, as `ggpy.cpu.ops.attention` lays it out."""

    @njit
    def cell(start, position, d, n_dims):  # type: ignore[no-untyped-def]
        block, lane = position >> 4, position & 15
        at = d * 16 + lane if is_key else lane * n_dims + d
        if cache == "f32":
            return load_f32(start + types.uint64(4 * (16 * n_dims * block + at)))
        if cache == "f16":
            return f16_to_f32(load_u16(start + types.uint64(2 * (16 * n_dims * block + at))))
        if cache == "bf16":
            return bf16_to_f32(load_u16(start + types.uint64(2 * (16 * n_dims * block + at))))
        codes = start + types.uint64(block * (16 * n_dims + n_dims))
        scale = f16_to_f32(load_u16(codes + types.uint64(16 * n_dims + 32 * (d // 32) + 2 * lane)))
        return scale * types.float32(load_i8(codes + types.uint64(at)))

    return cell


def dequantize_kv_function(cache: str, is_key: bool) -> Any:
    """`dequantize`, as in `ggpy.cpu.ops.dequantize_kv`."""
    cell = _cell_reader(cache, is_key)

    @njit
    def dequantize(dst, src, n_dims, n):  # type: ignore[no-untyped-def]
        for p in range(n):
            for d in range(n_dims):
                at = ((p >> 4) * n_dims + d) * 16 + (p & 15) if is_key else p * n_dims + d
                store_f32(dst + types.uint64(4 * at), cell(src, p, d, n_dims))

    return dequantize


def attend_function(cache_k: str, cache_v: str, latent: bool = False) -> Any:
    """`attend`, as in `ggpy.cpu.ops.attend`, for a cache of those types; `latent`: of keys that are values as well."""
    key, value = _cell_reader(cache_k, not latent), _cell_reader(cache_v, False)

    @njit
    def attend(rows, q, k, v, head_dim, head_pad, begin, end, special, scratch):  # type: ignore[no-untyped-def]
        for m in range(rows):
            values = scratch + types.uint64(ROW_STATE_BYTES * rows + 4 * m * head_pad)
            first_seen = load_i32(scratch + types.uint64(4 * m))
            last_seen = load_i32(scratch + types.uint64(4 * (rows + m)))
            cap = types.float64(load_f32(scratch + types.uint64(4 * (4 * rows + m))))
            slope = types.float64(load_f32(scratch + types.uint64(4 * (5 * rows + m))))
            own = load_i32(scratch + types.uint64(4 * (6 * rows + m)))
            largest = types.float64(-1e30)
            total = types.float64(0.0)
            for d in range(head_pad):
                store_f32(values + types.uint64(4 * d), types.float32(0.0))
            for p in range(max(begin, first_seen), min(end, last_seen + 1)):
                score = types.float64(0.0)
                for d in range(head_dim):
                    place = (d // 16 * rows + m) * 16 + d % 16 if latent else d * rows + m
                    score += key(k, p, d, head_dim) * load_f32(q + types.uint64(4 * place))
                if special & CAPPED:
                    score = cap * math.tanh(score / cap)
                if special & SLOPED:
                    score -= slope * abs(p - own)
                if score > largest:
                    shrink = 2.0 ** (largest - score)
                    largest = score
                    total *= shrink
                    for d in range(head_pad):
                        at = values + types.uint64(4 * d)
                        store_f32(at, types.float32(load_f32(at) * shrink))
                weight = 2.0 ** (score - largest)
                total += weight
                for d in range(head_pad):
                    at = values + types.uint64(4 * d)
                    store_f32(
                        at, types.float32(load_f32(at) + weight * value(v, p, d, head_dim if latent else head_pad))
                    )
            store_f32(scratch + types.uint64(4 * (2 * rows + m)), types.float32(largest))
            store_f32(scratch + types.uint64(4 * (3 * rows + m)), types.float32(total))

    return attend
