"""Launches of operations that carry a slot's state on from token to token (`ggpy.graph.recurrent`). Imports no
numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.cuda import rowwise
from ggpy.cuda.rowwise import Launch
from ggpy.cuda.weights.layout import CONV_THREADS, CONV_TOKENS, STATE_LANES, STATE_THREADS
from ggpy.graph import operations as ops
from ggpy.graph.recurrent import ConvWithState, DeltaRule, SSMScan

if TYPE_CHECKING:
    from ggpy.cuda.working_memory import Place
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Op, Region

CARRYING = (ConvWithState, DeltaRule, SSMScan)
MOST_WIDTH = 32  # tokens of a convolution, whose weights and inputs are in a thread's registers
MOST_ROWS = 256  # of a matrix, a column of which is in the registers of STATE_LANES threads


@dataclass
class Recurrent:
    """An operation that carries state.

    absorbed: operations on rows before it whose results it alone reads: those that lead to the rates of a delta rule,
    the norms of its queries and keys, the bias of a scan's dt. In small steps, where each launch counts, its kernel
    makes these results by itself; else they run by themselves, as each block would make them again. srcs: its sources
    before them.
    """

    op: Op
    absorbed: tuple[Op, ...]
    srcs: tuple[Region, ...]

    @property
    def outputs_only(self) -> bool:
        return self.op.outputs_only


def recurrent_step(program: Sequence[Op], index: int, readers: Callable[[int], list[int]]) -> Recurrent:
    """The step of the operation at `index`, which carries state. readers: gives the operations that read what one
    writes."""
    op, srcs, found = program[index], [], set()
    for region, chain in zip(op.srcs, _chains(op), strict=True):
        at = index
        for fits in chain:
            before = (i for i in range(at - 1, -1, -1) if (dst := program[i].dst) and dst.buffer == region.buffer)
            at = next(before, -1)
            if at < 0 or program[at].dst != region or not fits(program[at]):
                return Recurrent(op, (), op.srcs)
            found.add(at)
            (region,) = program[at].srcs
        srcs.append(region)
    absorbed = tuple(program[i] for i in sorted(found))
    side_by_side = found == set(range(index - len(found), index))
    read_by_others = any(not set(readers(i)) <= {*found, index} for i in found)
    n_eps = len({each.operation.eps for each in absorbed if isinstance(each.operation, ops.Norm)})
    # A plan lets the result take the place of what absorbed operations have read. The threads of a column may do so, as
    # a scan's with their dt; of the delta rule, threads of other columns still read the same queries and keys.
    dst = op.dst
    overwrites = isinstance(op.operation, DeltaRule) and any(dst and src.buffer == dst.buffer for src in srcs)
    if not side_by_side or read_by_others or n_eps > 1 or overwrites:
        return Recurrent(op, (), op.srcs)
    return Recurrent(op, absorbed, tuple(srcs))


Fits = Callable[["Op"], bool]


def _chains(op: Op) -> list[tuple[Fits, ...]]:
    """For each source, the operations that its kernel can make by itself, the last one first."""

    def of(made_by: type[ops.Operation], **values: object) -> Fits:
        return lambda other: (
            isinstance(other.operation, made_by)
            and all(getattr(other.operation, name) == value for name, value in values.items())
        )

    if isinstance(op.operation, SSMScan):
        return [(), (of(ops.ShiftColumns),), (), ()]
    if not isinstance(op.operation, DeltaRule):
        return [() for _ in op.srcs]
    width, n_cols = op.operation.k_head_dim, op.srcs[0].n_cols
    norm = of(ops.Norm, kind="l2", weight=None, bias=None, width=0 if width == n_cols else width)
    decay = of(ops.ScaleColumns), of(ops.Activation, activation="softplus"), of(ops.ShiftColumns)
    return [(of(ops.Scale), norm), (norm,), (), decay, (of(ops.Activation, activation="sigmoid"),)]


def unsupported(operation: ops.Operation) -> str | None:
    """Why the GPU has no kernel for an operation of `CARRYING`, in a few words; None where it has."""
    if isinstance(operation, ConvWithState):
        width = operation.weight.shape[1]
        return f"convolutions of {width} tokens" if width > MOST_WIDTH else None
    assert isinstance(operation, (DeltaRule, SSMScan))
    n_rows = operation.state.n_rows
    return f"matrices of {n_rows} rows in recurrent layers" if n_rows > MOST_ROWS else None


@dataclass(frozen=True)
class Runs:
    """A step's runs of tokens in one slot: the address of their description, how many there are at most, and how many
    tokens the longest has at most."""

    address: int
    n: int
    max_tokens: int


def launch_of(
    step: Recurrent,
    whole: bool,
    srcs: list[Place],
    dst: Place,
    state: tuple[int, int],
    runs: Runs,
    vector: Callable[[TensorInfo | None, int], int],
) -> Launch:
    """The launch that computes a step's result and carries its state on.

    whole: whether it makes by itself what it has absorbed, of `Recurrent.srcs`, whose places `srcs` then are; state:
    address of the first slot's, and bytes from place to place (`SlotStates`); vector: gives the address of a small
    tensor of so many entries, float32, one number standing for all; 0 for None.
    """
    operation = step.op.operation
    assert step.op.dst is not None
    n_cols, given = step.op.dst.n_cols, [number for place in srcs for number in place]
    after = (*state, runs.address, *dst)
    if isinstance(operation, ConvWithState):
        name = f"conv_state.{operation.weight.shape[1]}" + (f".{operation.activation}" if operation.activation else "")
        weights = vector(operation.weight, 0), vector(operation.bias, 0)
        blocks = -(-n_cols // CONV_THREADS), runs.n, -(-runs.max_tokens // CONV_TOKENS)
        return Launch(name, blocks, (*given, *weights, *after, n_cols))
    grid = -(-n_cols * STATE_LANES // STATE_THREADS), runs.n
    made = [op.operation for op in step.absorbed] if whole else []
    if isinstance(operation, DeltaRule):
        sizes = operation.n_v_head, operation.n_k_head, int(operation.tiled), operation.v_head_dim
        shift, factors = (
            next((vector(o.weight, operation.n_v_head) for o in made if isinstance(o, kind)), 0)
            for kind in (ops.ShiftColumns, ops.ScaleColumns)
        )
        eps = next((o.eps for o in made if isinstance(o, ops.Norm)), 0.0)
        scale = next((o.factor for o in made if isinstance(o, ops.Scale)), 1.0)
        name = f"delta_rule.{operation.k_head_dim}" + (".whole" if made else "")
        return Launch(name, grid, (*given, shift, factors, eps, scale, *sizes, *after))
    assert isinstance(operation, SSMScan)
    kind = "channel" if operation.by_channel else "head"
    shift = next((vector(o.weight, operation.n_head) for o in made if isinstance(o, ops.ShiftColumns)), 0)
    numbers = shift, vector(operation.a, 0), vector(operation.d, 0)
    widths = n_cols, operation.head_dim, n_cols // operation.n_groups
    return Launch(f"ssm_scan.{operation.d_state}.{kind}", grid, (*given, *numbers, *widths, *after))


def vectors_of(step: Recurrent) -> list[tuple[TensorInfo | None, int]]:
    """The small tensors that a step reads, as its launches ask for them."""
    found: list[tuple[TensorInfo | None, int]] = []

    def note(info: TensorInfo | None, size: int) -> int:
        found.append((info, size))
        return 0

    launch_of(step, True, [(0, 0)] * len(step.srcs), (0, 0), (0, 0), Runs(0, 1, 1), note)
    return found + [vector for op in step.absorbed for vector in rowwise.vectors_of(op)]
