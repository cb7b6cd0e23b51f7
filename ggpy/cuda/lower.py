"""From a program's operations to the steps that the GPU runs: products of the same activations become one, and one
takes in what stands before and after it. Knows nothing of addresses and devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ggpy.cuda.weights import layout_of, packed_format

if TYPE_CHECKING:
    from ggpy.cuda.layout import MatrixLayout
    from ggpy.gguf_file import TensorInfo
    from ggpy.program import Op, Program, Region


@dataclass
class Embed:
    weight: TensorInfo
    dst: Region


@dataclass
class Product:
    """One or several products of the same activations with weights of one type. `prepare` says what the activations
    are made of; with `swiglu` its two products are gate and up, and only silu(gate) * up is wanted, there."""

    prepare: Op
    linears: list[Op]
    shares_activations: bool  # with the product before: they need not be made again
    swiglu: Region | None = None

    @cached_property
    def infos(self) -> list[TensorInfo]:
        found = [op.weights["weight"] for op in self.linears]
        assert all(found)
        return found  # type: ignore[return-value]

    @cached_property
    def layout(self) -> MatrixLayout:
        """Of the one matrix that their weights are."""
        return layout_of(self.infos)

    @property
    def accumulate(self) -> bool:
        return bool(self.linears[0].params["accumulate"])

    @property
    def partial(self) -> bool:
        """Whether the sum over all ranks is wanted (`ggpy.tensor_parallel`)."""
        return bool(self.linears[0].params["partial"])

    @property
    def outputs_only(self) -> bool:
        return bool(self.linears[0].outputs_only)


@dataclass
class RopeStore:
    op: Op


@dataclass
class Attention:
    op: Op
    stored: Op  # the operation that turned its queries and stored its keys and values
    params: Any = field(init=False)

    def __post_init__(self) -> None:
        self.params = self.op.params


@dataclass
class SwiGLU:
    op: Op


Step = Embed | Product | RopeStore | Attention | SwiGLU


def lower(program: Program) -> list[Step]:
    steps: list[Step] = []
    prepare: Op | None = None
    for op in program.ops:
        last = steps[-1] if steps else None
        if op.kind == "prepare":
            prepare = op
        elif op.kind == "linear":
            assert prepare is not None
            if isinstance(last, Product) and last.prepare is prepare and _alike(last.linears[-1], op):
                last.linears.append(op)
            else:
                shares = isinstance(last, Product) and last.prepare is prepare
                steps.append(Product(prepare, [op], shares))
        elif op.kind == "embed":
            weight = op.weights["weight"]
            assert weight is not None
            assert op.dst is not None
            steps.append(Embed(weight, op.dst))
        elif op.kind == "rope_store":
            steps.append(RopeStore(op))
        elif op.kind == "attention":
            assert isinstance(last, RopeStore)
            steps.append(Attention(op, last.op))
        elif isinstance(last, Product) and [linear.dst for linear in last.linears] == list(op.srcs):
            last.swiglu = op.dst
        else:
            steps.append(SwiGLU(op))
    return steps


def _alike(one: Op, other: Op) -> bool:
    """Whether two products can be one."""
    a, b = one.weights["weight"], other.weights["weight"]
    assert a is not None
    assert b is not None
    same_type = packed_format(a) is packed_format(b)
    return same_type and not one.params["accumulate"] and not other.params["accumulate"]


def weight_groups(steps: list[Step]) -> list[list[TensorInfo]]:
    """The tensors that become one matrix each. The embedding is one of its own, or that of the output where they are
    tied."""
    groups = [step.infos for step in steps if isinstance(step, Product)]
    alone = {group[0].name for group in groups if len(group) == 1}
    return [[step.weight] for step in steps if isinstance(step, Embed) and step.weight.name not in alone] + groups
