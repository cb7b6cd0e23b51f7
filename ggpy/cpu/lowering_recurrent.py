"""The CPU's side of operations with recurrent state; see `ggpy.cpu.lowering`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu.access import EVERYONE, Access, Lowering, Places, by_columns, dst_of, touch
from ggpy.cpu.sizes import round_up
from ggpy.gguf.slices import read_vector
from ggpy.graph import recurrent as ops
from ggpy.quant.packed import ROWS

if TYPE_CHECKING:
    from ggpy.graph.program import Op


class LowerConvWithState(Lowering[ops.ConvWithState]):
    def kernel(self, operation: ops.ConvWithState, cache_type: str) -> str:
        return f"conv_state.{operation.weight.shape[1]}" + (f".{operation.activation}" if operation.activation else "")

    def record(self, op: Op, operation: ops.ConvWithState, places: Places, r: np.ndarray) -> None:
        memory, (n_cols, width) = places.memory, operation.weight.shape
        weight = np.zeros((width, round_up(n_cols, 16)), np.float32)
        weight[:, :n_cols] = read_vector(memory.file, operation.weight).reshape(n_cols, width).T
        r["weight"], r["bias"] = memory.keep(weight), memory.vector(operation.bias, memory.zeros)
        r["n_stripes"] = -(-n_cols // ROWS)
        r["state"], r["state_stride"] = memory.states.floats(operation.state)

    def accesses(self, op: Op, operation: ops.ConvWithState, small: bool) -> list[Access]:
        return by_columns(op)


class LowerDeltaRule(Lowering[ops.DeltaRule]):
    def kernel(self, operation: ops.DeltaRule, cache_type: str) -> str:
        return "delta_rule"

    def record(self, op: Op, operation: ops.DeltaRule, places: Places, r: np.ndarray) -> None:
        r["n_head"], r["n_head_kv"], r["flag"] = operation.n_v_head, operation.n_k_head, operation.tiled
        r["head_dim"], r["v_dim"] = operation.k_head_dim, operation.v_head_dim
        r["state"], r["state_stride"] = places.memory.states.floats(operation.state)

    def accesses(self, op: Op, operation: ops.DeltaRule, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), *touch(dst_of(op), True, EVERYONE)]


class LowerSSMScan(Lowering[ops.SSMScan]):
    def kernel(self, operation: ops.SSMScan, cache_type: str) -> str:
        return "ssm_scan.channel" if operation.by_channel else "ssm_scan.head"

    def record(self, op: Op, operation: ops.SSMScan, places: Places, r: np.ndarray) -> None:
        memory, state = places.memory, operation.state
        r["n_head"], r["head_dim"], r["v_dim"] = state.n_head, state.n_rows, state.n_cols
        r["n_groups"] = operation.n_groups
        r["state"], r["state_stride"] = memory.states.floats(state)
        a = read_vector(memory.file, operation.a) * np.float32(math.log2(math.e))  # for powers of two
        d = read_vector(memory.file, operation.d) if operation.d else np.zeros(operation.n_head, np.float32)
        if operation.by_channel:  # in the form of the state
            a = a.reshape(state.n_head, state.n_cols, -1).transpose(0, 2, 1)  # [group][row][channel]
            a, d = (_in_runs(values) for values in (a, d.reshape(state.n_head, 1, state.n_cols)))
        r["weight"], r["weight2"] = memory.keep(a), memory.keep(d)

    def accesses(self, op: Op, operation: ops.SSMScan, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), *touch(dst_of(op), True, EVERYONE)]


def _in_runs(matrices: np.ndarray) -> np.ndarray:
    """Matrices [n, rows, columns] as runs of 16 columns, the last one padded: [n, columns / 16, rows, 16]."""
    n, n_rows, n_cols = matrices.shape
    runs = np.zeros((n, n_rows, round_up(n_cols, 16)), np.float32)
    runs[:, :, :n_cols] = matrices
    return np.ascontiguousarray(runs.reshape(n, n_rows, -1, 16).transpose(0, 2, 1, 3))
