"""Streams mixed by coefficients of each row, rows brought to the magnitude of others, the largest numbers of a row."""

from __future__ import annotations

import math

from numba import carray, types

from ggpy.codegen.scalars import load_f32, store_f32
from ggpy.cpu.isa.records import as_op, as_step


def mix_streams(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = `flag` runs of n_cols columns: run o modulo n_groups of src, plus the sum over its runs times coefficients
    in src2. Threads divide the columns of each run, so that one row is everyone's work."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = op.n_cols * tid // nth, op.n_cols * (tid + 1) // nth
    for row in range(op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)):
        src, dst = op.src + types.uint64(row * op.src_stride), op.dst + types.uint64(row * op.dst_stride)
        coefficients = op.src2 + types.uint64(row * op.src2_stride)
        for run in range(op.flag):
            own = run % op.n_groups
            for column in range(first, last):
                total = load_f32(src + types.uint64(4 * (own * op.n_cols + column)))
                for i in range(op.n_groups):
                    factor = load_f32(coefficients + types.uint64(4 * (run * op.n_groups + i)))
                    total += factor * load_f32(src + types.uint64(4 * (i * op.n_cols + column)))
                store_f32(dst + types.uint64(4 * (run * op.n_cols + column)), total)


def match_magnitude(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = src times the root mean square of src2 over its own, which counts as the root of eps at least."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src, other = op.src + types.uint64(row * op.src_stride), op.src2 + types.uint64(row * op.src2_stride)
        own, wanted = types.float64(0.0), types.float64(0.0)
        for column in range(op.n_cols):
            at = types.uint64(4 * column)
            x, y = types.float64(load_f32(src + at)), types.float64(load_f32(other + at))
            own += x * x
            wanted += y * y
        factor = types.float32(math.sqrt(wanted / max(own, types.float64(op.eps) * op.n_cols)))
        dst = op.dst + types.uint64(row * op.dst_stride)
        for column in range(op.n_cols):
            at = types.uint64(4 * column)
            store_f32(dst + at, load_f32(src + at) * factor)


def gaussian_topk(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = what src is above its row's mean plus `scale` standard deviations. Squares are summed relative to the
    row's first number, so that a mean far from 0 costs no digits."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src, dst = op.src + types.uint64(row * op.src_stride), op.dst + types.uint64(row * op.dst_stride)
        begin = types.float64(load_f32(src))
        total, squares = types.float64(0.0), types.float64(0.0)
        for column in range(op.n_cols):
            x = types.float64(load_f32(src + types.uint64(4 * column))) - begin
            total += x
            squares += x * x
        mean = total / op.n_cols
        variance = max(squares / op.n_cols - mean * mean, types.float64(0.0))
        cutoff = types.float32(begin + mean + op.scale * math.sqrt(variance))
        for column in range(op.n_cols):
            at = types.uint64(4 * column)
            store_f32(dst + at, max(load_f32(src + at) - cutoff, types.float32(0.0)))
