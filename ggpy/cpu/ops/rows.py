"""Operations that bring rows to where others read them: attention's parts joined, and the rows of wanted outputs."""

from __future__ import annotations

from typing import Any

from numba import carray, types

from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.scalars import load_f32, load_i32, store_f32

join_parts: Any = None  # set by `specialized`


def join_attention(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = attention's result, of the parts that a small step leaves; a large one has written it there. Work is one
    head of one token."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    if not step.small:
        return
    state = op.scratch + types.uint64(tid * op.scratch_stride)
    n = step.n_tokens * op.n_head
    for item in range(n * tid // nth, n * (tid + 1) // nth):
        token, head = item // op.n_head, item % op.n_head
        position = types.int64(load_i32(step.positions + types.uint64(4 * token)))
        dst = op.dst + types.uint64(token * op.dst_stride + head * op.head_dim * 4)
        join_parts(op, position, token, head, state, dst)


def select_outputs(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = the rows of src whose logits are wanted."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    for i in range(step.n_outputs * tid // nth, step.n_outputs * (tid + 1) // nth):
        token = types.int64(load_i32(step.outputs + types.uint64(4 * i)))
        src, dst = op.src + types.uint64(token * op.src_stride), op.dst + types.uint64(i * op.dst_stride)
        for column in range(op.n_cols):
            store_f32(dst + types.uint64(4 * column), load_f32(src + types.uint64(4 * column)))
