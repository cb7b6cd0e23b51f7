"""Rope on queries and keys, and the store of keys and values into the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import (
    f16_to_f32,
    f32_to_bf16,
    f32_to_f16,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i8,
    store_i64,
    store_u16,
)
from ggpy.cpu.isa.layout import CACHE_LIMITS, STEP
from ggpy.cpu.isa.records import as_op, as_step

store_key: Any = None  # these names are set by `specialized`
store_value: Any = None
key_bytes: Any = None
value_bytes: Any = None
CUT_KEYS, CUT_VALUES = (STEP.fields[name][1] for name in ("cut_keys", "cut_values"))  # type: ignore[index]


def rope_store(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """Normalise and rotate query heads (src) in place, and key heads (src2), which go
    into the cache with the value heads (src3). A latent cache, of keys alone, holds them as values lie.

    Work is one head of one token; query heads come first, then each key head with its value head.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    heads = op.n_head + (op.n_head_kv if op.src2 else 0)
    n = step.n_tokens * heads
    half = op.n_rot // 2
    for item in range(n * tid // nth, n * (tid + 1) // nth):
        token, head = item // heads, item % heads
        is_key = head >= op.n_head
        if is_key:
            head -= op.n_head
            at = op.src2 + types.uint64(token * op.src2_stride + head * op.head_dim * 4)
            norm = op.weight2
        else:
            at = op.src + types.uint64(token * op.src_stride + head * op.head_dim * 4)
            norm = op.weight
        if op.norm == 1:
            normalize(at, norm, op.head_dim, op.eps)
        position = types.int64(load_i32(step.positions + types.uint64(4 * token)))
        angle = op.angles + types.uint64(position * half * 8)
        apart = 4 * half if op.neox else 4
        stride = 4 if op.neox else 8
        for i in range(half):
            c, s = load_f32(angle + types.uint64(8 * i)), load_f32(angle + types.uint64(8 * i + 4))
            first = at + types.uint64(4 * op.rope_first + stride * i)
            second = first + types.uint64(apart)
            x, y = load_f32(first), load_f32(second)
            store_f32(first, x * c - y * s)
            store_f32(second, x * s + y * c)
        if op.norm == 2:
            normalize(at, norm, op.head_dim, op.eps)
        if is_key:
            slot = types.int64(load_i32(step.slots + types.uint64(4 * token)))
            start = load_i64(op.starts + types.uint64(8 * slot))
            own = position - position // op.n_ctx * op.n_ctx
            cell, lane = head * op.head_cells + start + (own & ~15), own & 15
            block = op.cache_k + types.uint64(cell * key_bytes(op.key_pad))
            if store_key(block, lane, at, op.head_dim, op.key_pad):
                store_i64(step_at + types.uint64(CUT_KEYS), 1)
            if not op.src3:  # a latent cache: the key is the value too
                continue
            value = op.src3 + types.uint64(token * op.src3_stride + head * op.v_dim * 4)
            block = op.cache_v + types.uint64(cell * value_bytes(op.head_pad))
            if store_value(block, lane, value, op.v_dim, op.head_pad):
                store_i64(step_at + types.uint64(CUT_VALUES), 1)


@njit
def normalize(at, weight, n, eps):  # type: ignore[no-untyped-def]
    """Divide n floats by their root mean square, times a weight; nothing where the weight's address is 0."""
    if not weight:
        return
    total = types.float32(0.0)
    for d in range(n):
        x = load_f32(at + types.uint64(4 * d))
        total += x * x
    factor = types.float32(1.0) / types.float32(math.sqrt(total / types.float32(n) + eps))
    for d in range(n):
        x = load_f32(at + types.uint64(4 * d))
        store_f32(at + types.uint64(4 * d), x * factor * load_f32(weight + types.uint64(4 * d)))


def store_function(cache: str, store_half: Any, is_key: bool) -> Any:
    """`store(block, lane, src, head_dim, n_dims)`: a head's keys or values, float32 [head_dim], as position `lane` of
    the 16 in a block of the cache, whose rows have n_dims; see `ggpy.cpu.ops.attention` for the layout. Finite numbers
    beyond what the cache holds are cut to the largest; returns whether any was."""
    if cache == "q8_0":
        return _store_q8(is_key)
    store_cell, size = {"f32": (store_f32, 4), "f16": (store_half, 2), "bf16": (store_bf16, 2)}[cache]
    largest, limit = CACHE_LIMITS.get(cache, (math.inf, math.inf))
    largest, limit = np.float32(largest), np.float32(limit)

    @njit
    def store(block, lane, src, head_dim, n_dims):  # type: ignore[no-untyped-def]
        first, step, cut = (lane, 16, False) if is_key else (lane * n_dims, 1, False)
        for d in range(head_dim):
            x = load_f32(src + types.uint64(4 * d))
            if limit <= abs(x) < types.float32(math.inf):
                x, cut = largest if x > types.float32(0.0) else -largest, True
            store_cell(block + types.uint64(size * (first + step * d)), x)
        return cut

    return store


@njit
def store_bf16(address, x):  # type: ignore[no-untyped-def]
    store_u16(address, f32_to_bf16(x))


def _store_q8(is_key: bool) -> Any:
    most, limit = (np.float32(x) for x in CACHE_LIMITS["q8_0"])

    @njit
    def store(block, lane, src, head_dim, n_dims):  # type: ignore[no-untyped-def]
        first, step, cut = (lane, 16, False) if is_key else (lane * n_dims, 1, False)
        scales = block + types.uint64(16 * n_dims)
        for start in range(0, head_dim, 32):
            largest = types.float32(0.0)
            for d in range(start, start + 32):
                size = abs(load_f32(src + types.uint64(4 * d)))
                # an infinite scale makes NaN of the whole block, which then is not lost
                largest = max(largest, size if size == size else types.float32(math.inf))
            wanted = largest / types.float32(127.0)
            if limit <= wanted < types.float32(math.inf):
                wanted, cut = most, True
            half = f32_to_f16(wanted)
            store_u16(scales + types.uint64(start + 2 * lane), half)
            scale = f16_to_f32(half)  # codes are of the scale as it is kept
            inverse = types.float32(1.0) / scale if scale > types.float32(0.0) else types.float32(0.0)
            for d in range(start, start + 32):
                code = round(load_f32(src + types.uint64(4 * d)) * inverse)
                code = min(max(code, types.float32(-127.0)), types.float32(127.0))
                store_i8(block + types.uint64(first + step * d), types.int8(types.int32(code)))
        return cut

    return store


def store_half_intrinsic() -> Any:
    """`store_half(address, x)`: a float32 as half precision, rounded in one instruction where the CPU has it."""

    def store_half(typingctx: Any, address: Any, x: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            b.store(b.fptrunc(args[1], ir.HalfType()), b.inttoptr(args[0], ir.HalfType().as_pointer()), align=2)
            return context.get_dummy_value()

        return types.void(types.uintp, types.float32), codegen

    return intrinsic(store_half)
