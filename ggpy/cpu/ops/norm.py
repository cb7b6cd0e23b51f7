"""Norms of whole rows as operations of their own; norms that only products read are fused with quantization."""

from __future__ import annotations

import math
from typing import Any

from numba import carray, types

from ggpy.cpu.isa.records import as_op, as_step

sum_squares: Any = None  # these names are set by `specialized`
elementwise_row: Any = None  # of `elementwise`: "scaled_mul"


def norm(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = src / sqrt(mean of its squares + eps) * weight, a row at a time."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = step.n_outputs if op.outputs_only else step.n_tokens
    for row in range(n * tid // nth, n * (tid + 1) // nth):
        src = op.src + types.uint64(row * op.src_stride)
        mean = sum_squares(src, op.n_cols) / types.float32(op.n_cols)
        factor = types.float32(1.0) / types.float32(math.sqrt(mean + op.eps))
        elementwise_row(src, op.weight, factor, op.dst + types.uint64(row * op.dst_stride), (op.n_cols + 15) // 16)
