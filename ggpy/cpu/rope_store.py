"""Rope on queries and keys, and the store of keys and values into the cache."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.memory import load_f32, load_i32, store_f32
from ggpy.cpu.records import as_op, as_step

store_cell: Any = None  # these names are set by `specialized`
ELEMENT = 2


def rope_store(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """Query heads (src) are normalised and turned in place; key heads (src2) too,
    and go into the cache with the value heads (src3).

    Work is one head of one token; query heads come first, then each key head with its value head.
    """
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    heads = op.n_head + op.n_head_kv
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
        if norm:
            total = types.float32(0.0)
            for d in range(op.head_dim):
                x = load_f32(at + types.uint64(4 * d))
                total += x * x
            factor = types.float32(1.0) / types.float32(math.sqrt(total / types.float32(op.head_dim) + op.eps))
            for d in range(op.head_dim):
                x = load_f32(at + types.uint64(4 * d))
                store_f32(at + types.uint64(4 * d), x * factor * load_f32(norm + types.uint64(4 * d)))
        angle = step.angles + types.uint64(token * half * 8)
        apart = 4 * half if op.neox else 4
        stride = 4 if op.neox else 8
        for i in range(half):
            c, s = load_f32(angle + types.uint64(8 * i)), load_f32(angle + types.uint64(8 * i + 4))
            first = at + types.uint64(stride * i)
            second = first + types.uint64(apart)
            x, y = load_f32(first), load_f32(second)
            store_f32(first, x * c - y * s)
            store_f32(second, x * s + y * c)
        if is_key:
            slot = types.int64(load_i32(step.slots + types.uint64(4 * token)))
            position = types.int64(load_i32(step.positions + types.uint64(4 * token)))
            slot_head = slot * op.n_head_kv + head
            key = op.cache_k + types.uint64(
                ((slot_head * op.n_ctx + (position & ~15)) * op.head_dim + (position & 15)) * ELEMENT
            )
            for d in range(op.head_dim):
                store_cell(key + types.uint64(16 * ELEMENT * d), load_f32(at + types.uint64(4 * d)))
            source = op.src3 + types.uint64(token * op.src3_stride + head * op.head_dim * 4)
            value = op.cache_v + types.uint64((slot_head * op.n_ctx + position) * op.head_pad * ELEMENT)
            for d in range(op.head_dim):
                store_cell(value + types.uint64(ELEMENT * d), load_f32(source + types.uint64(4 * d)))


def store_half_intrinsic() -> Any:
    """`store_half(address, x)`: a float32 as half precision, rounded in one instruction where the CPU has it."""

    def store_half(typingctx: Any, address: Any, x: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            b.store(b.fptrunc(args[1], ir.HalfType()), b.inttoptr(args[0], ir.HalfType().as_pointer()), align=2)
            return context.get_dummy_value()

        return types.void(types.uintp, types.float32), codegen

    return intrinsic(store_half)
