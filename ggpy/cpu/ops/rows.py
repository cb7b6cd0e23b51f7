"""Operations that bring rows to where others read them: attention's parts joined, some columns, the rows of wanted
outputs, and one row for all of a sequence."""

from __future__ import annotations

from typing import Any

from numba import carray, types

from ggpy.codegen.scalars import load_f32, load_i32, store_f32
from ggpy.cpu.isa.records import as_op, as_step

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
        dst = op.dst + types.uint64(token * op.dst_stride + head * op.v_dim * 4)
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


def select_columns(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = of each of n_groups runs of src's columns (`flag` of them), the first n_cols."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src, dst = op.src + types.uint64(row * op.src_stride), op.dst + types.uint64(row * op.dst_stride)
        for group in range(op.n_groups):
            for column in range(op.n_cols):
                x = load_f32(src + types.uint64(4 * (group * op.flag + column)))
                store_f32(dst + types.uint64(4 * (group * op.n_cols + column)), x)


def concat(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = n_groups times n_cols columns of src, then v_dim of src2."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src, src2 = op.src + types.uint64(row * op.src_stride), op.src2 + types.uint64(row * op.src2_stride)
        dst = op.dst + types.uint64(row * op.dst_stride)
        for group in range(op.n_groups):
            for column in range(op.n_cols):
                x = load_f32(src + types.uint64(4 * (group * op.n_cols + column)))
                store_f32(dst + types.uint64(4 * column), x)
            dst += types.uint64(4 * op.n_cols)
            for column in range(op.v_dim):
                x = load_f32(src2 + types.uint64(4 * (group * op.v_dim + column)))
                store_f32(dst + types.uint64(4 * column), x)
            dst += types.uint64(4 * op.v_dim)


def pool(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = for each wanted output the sequence up to it as one row: the mean of its rows where `flag` is 0, the first
    where it is 1, else the last; in an unpooled step the last too. A sequence's rows lie side by side, the first at
    position 0."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    for i in range(step.n_outputs * tid // nth, step.n_outputs * (tid + 1) // nth):
        last = types.int64(load_i32(step.outputs + types.uint64(4 * i)))
        first = last - types.int64(load_i32(step.positions + types.uint64(4 * last)))
        if step.unpooled or op.flag == 2:
            first = last
        elif op.flag == 1:
            last = first
        dst = op.dst + types.uint64(i * op.dst_stride)
        for column in range(op.n_cols):
            total = types.float64(0.0)
            for token in range(first, last + 1):
                total += load_f32(op.src + types.uint64(token * op.src_stride + 4 * column))
            store_f32(dst + types.uint64(4 * column), types.float32(total / (last - first + 1)))
