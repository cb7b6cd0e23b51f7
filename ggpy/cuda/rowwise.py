"""Launches of operations that run by themselves, each number or row of their result apart. Imports no numba."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.cuda.weights.layout import ELEMENTWISE_THREADS, route_bytes
from ggpy.graph import operations as ops

if TYPE_CHECKING:
    from ggpy.cuda.working_memory import Place
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Op

NARROW, WIDE = 32, 256  # threads that share a run of columns whose norm is taken
NARROW_COLUMNS = 256  # for which the fewer of them are enough


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, ...]
    arguments: tuple[float, ...]
    shared: int = 0


def launches_of(
    op: Op,
    n: int,
    srcs: list[Place],
    dst: Place,
    outputs: int,
    vector: Callable[[TensorInfo | None, int], int],
    positions: int | None = None,
) -> list[Launch]:
    """The launches that compute n rows of an operation's result.

    srcs, dst: places of its operands; outputs: the address of the rows that are wanted; vector: gives the address of a
    small tensor of so many entries, float32, one number standing for all; 0 for None. positions: their address, where
    the rows of a sequence are pooled; None: rows stand for themselves.
    """
    operation = op.operation
    assert op.dst is not None
    n_cols, (src, *_) = op.dst.n_cols, srcs
    if isinstance(operation, ops.Elementwise):
        return [elementwise(op, n, src, srcs[-1], dst)]
    if isinstance(operation, ops.Route):
        return [_route(operation, n, src, dst, vector)]
    if isinstance(operation, ops.Combine):
        return [combine(op, n, src, srcs[-1], (0, 0), dst)]
    if isinstance(operation, (ops.ScaleColumns, ops.ShiftColumns)):  # the same numbers for every row
        name = "mul" if isinstance(operation, ops.ScaleColumns) else "add"
        return [_elementwise(name, n_cols, n, src, (vector(operation.weight, n_cols), 0), dst)]
    if isinstance(operation, ops.Norm):
        return [_norm(operation, n_cols, n, src, dst, vector)]
    if isinstance(operation, ops.SelectColumns):
        run, width = op.srcs[0].n_cols // operation.n_groups, n_cols // operation.n_groups
        return [select(n_cols, n, src, dst, run=run, first=operation.first, width=width, dst_run=width)]
    if isinstance(operation, ops.Concat):
        launches, at = [], 0
        for place, region in zip(srcs, op.srcs, strict=True):
            width, to = region.n_cols // operation.n_groups, (dst[0] + 4 * at, dst[1])
            dst_run = n_cols // operation.n_groups
            launches.append(select(region.n_cols, n, place, to, run=width, width=width, dst_run=dst_run))
            at += width
        return launches
    assert isinstance(operation, (ops.SelectOutputs, ops.Pool))
    if isinstance(operation, ops.Pool) and operation.kind != "last" and positions is not None:
        arguments = (*src, outputs, positions, *dst, n_cols)
        return [Launch(f"pool.{operation.kind}", _grid(n_cols, n), arguments)]
    return [select(n_cols, n, src, dst, rows=outputs, run=n_cols, width=n_cols, dst_run=n_cols)]


def elementwise(op: Op, n: int, x: Place, y: Place, dst: Place) -> Launch:
    """The launch of an `ops.Elementwise` on n rows."""
    assert isinstance(op.operation, ops.Elementwise)
    assert op.dst is not None
    return _elementwise(op.operation.function, op.dst.n_cols, n, x, y, dst, op.operation.constant)


def combine(op: Op, n: int, y: Place, route: Place, plus: Place, dst: Place) -> Launch:
    """The launch of an `ops.Combine` for n tokens, added to the rows at `plus`, where these are not at 0."""
    assert op.dst is not None
    n_used = op.srcs[1].n_cols // 2
    return Launch("combine", _grid(op.dst.n_cols, n), (*y, *route, n_used, *plus, *dst, op.dst.n_cols))


def _route(
    route: ops.Route, n: int, logits: Place, dst: Place, vector: Callable[[TensorInfo | None, int], int]
) -> Launch:
    groups = f"{route.n_groups}.{route.n_groups_used}.{route.group_best if route.n_groups else 0}"
    name = f"route.{route.n_experts}.{route.n_used}.{route.gating}.{groups}.{int(route.normalize)}"
    numbers = vector(route.bias, route.n_experts), vector(route.expert_scale, route.n_experts)
    shared = route_bytes(route.n_experts, route.n_used, route.n_groups)
    return Launch(name, (n, 1), (*logits, *numbers, route.scale, *dst), shared)


def _elementwise(name: str, n_cols: int, n: int, x: Place, y: Place, dst: Place, constant: float = 0.0) -> Launch:
    return Launch(f"elementwise.{name}", _grid(n_cols, n), (*x, *y, constant, *dst, n_cols))


def select(
    n_cols: int, n: int, src: Place, dst: Place, *, run: int, width: int, dst_run: int, first: int = 0, rows: int = 0
) -> Launch:
    """The launch that copies n_cols columns of n rows: of each run of `run` columns `width` from `first` on, to runs of
    `dst_run`. rows: the address of which rows, or 0 for all in order."""
    return Launch("select", _grid(n_cols, n), (*src, rows, run, first, width, *dst, dst_run, n_cols))


def _grid(n_cols: int, n: int) -> tuple[int, int]:
    return -(-n_cols // ELEMENTWISE_THREADS), n


def _norm(
    norm: ops.Norm, n_cols: int, n: int, src: Place, dst: Place, vector: Callable[[TensorInfo | None, int], int]
) -> Launch:
    width = norm.width or n_cols
    threads = NARROW if width <= NARROW_COLUMNS else WIDE
    alike = norm.weight is None or norm.weight.shape[0] == width  # one weight for all runs
    weights = vector(norm.weight, 0), vector(norm.bias, 0), 0 if alike else 4 * width
    arguments = (*src, *weights, width, norm.eps, *dst)
    return Launch(f"norm.{norm.kind}.{threads}", (n_cols // width, n), arguments, shared=threads // 4)


def vectors_of(op: Op) -> list[tuple[TensorInfo | None, int]]:
    """The small tensors that an operation reads, as `launches_of` asks for them."""
    found: list[tuple[TensorInfo | None, int]] = []

    def note(info: TensorInfo | None, size: int) -> int:
        found.append((info, size))
        return 0

    launches_of(op, 1, [(0, 0)] * len(op.srcs), (0, 0), 0, note)
    return found
