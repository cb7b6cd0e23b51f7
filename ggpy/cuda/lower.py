"""From a program's operations to the steps that the GPU runs: products of the same activations become one, and a
product absorbs the operations before and after it. Independent of addresses and devices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ggpy.cuda.weights.weights import layout_of
from ggpy.graph import operations as ops
from ggpy.quant.formats import packed_format

if TYPE_CHECKING:
    from ggpy.cuda.weights.layout import MatrixLayout
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Op, Program, Region


@dataclass
class Embed:
    weight: TensorInfo
    dst: Region


@dataclass
class Product:
    """One or several products of the same activations with weights of one type. `prepare` says what the activations
    are made of; with `swiglu` its two products are gate and up, and only silu(gate) * up is written, there."""

    prepare: Op
    quantize: ops.QuantizeActivations  # the operation of `prepare`
    linears: list[Op]
    shares_activations: bool  # with the product before: they need not be made again
    swiglu: Region | None = None

    @cached_property
    def infos(self) -> list[TensorInfo]:
        return [linear.weight for linear in self.operations]

    @cached_property
    def operations(self) -> list[ops.Linear]:
        """The operations of `linears`."""
        return [op.operation for op in self.linears if isinstance(op.operation, ops.Linear)]

    @cached_property
    def layout(self) -> MatrixLayout:
        """Layout of the one matrix that the weights of these products form."""
        return layout_of(self.infos)

    @property
    def accumulate(self) -> bool:
        return self.operations[0].accumulate

    @property
    def partial(self) -> bool:
        """True where the product is to be summed over all ranks (`ggpy.graph.tensor_parallel`)."""
        return self.operations[0].partial

    @property
    def eps(self) -> float:
        """Epsilon of the norm before it; -1 where there is none."""
        return self.quantize.norm.eps if self.quantize.norm else -1.0

    @property
    def outputs_only(self) -> bool:
        return self.linears[0].outputs_only


@dataclass
class RopeStore:
    op: Op
    attention: ops.Attention


@dataclass
class Attention:
    op: Op
    attention: ops.Attention
    stored: Op  # the operation that turned its queries and stored its keys and values


@dataclass
class SwiGLU:
    op: Op


Step = Embed | Product | RopeStore | Attention | SwiGLU


def unsupported(program: Program) -> str | None:
    """Why the GPU cannot run a program, in a few words; None where it can."""
    for attention in program.attentions:
        plain = ops.Attention(
            attention.layer, attention.n_head, attention.n_head_kv, attention.head_dim, attention.rope,
            attention.q_norm, attention.k_norm, attention.window,
        )  # fmt: skip
        if not attention.rope or attention != plain:
            return "this kind of attention"
    shapes = {(a.rope, a.n_head, a.n_head_kv, a.head_dim) for a in program.attentions}
    if len(shapes) != 1:
        return "attention that differs by layer" if shapes else "a model without attention"
    kinds = (ops.Embed, ops.QuantizeActivations, ops.Linear, ops.RopeStore, ops.Attend, ops.JoinAttention)
    for op in program.ops:
        operation = op.operation
        known = isinstance(operation, kinds) or operation == ops.GLU("silu")
        if isinstance(operation, ops.Embed) and operation.index != "token":
            known = False
        if not known or (isinstance(operation, ops.Linear) and (operation.route or operation.n_head)):
            return f"the operation {type(operation).__name__}"
    return None


def lower(program: Program) -> list[Step]:
    """The steps of a program that the GPU can run (`unsupported`)."""
    steps: list[Step] = []
    prepare: Op | None = None
    for op in program.ops:
        last, operation = steps[-1] if steps else None, op.operation
        if isinstance(operation, ops.QuantizeActivations):
            prepare, quantize = op, operation
        elif isinstance(operation, ops.Linear):
            assert prepare is not None
            if isinstance(last, Product) and last.prepare is prepare and _alike(last.operations[-1], operation):
                last.linears.append(op)
                last.operations.append(operation)
            else:
                shares = isinstance(last, Product) and last.prepare is prepare
                steps.append(Product(prepare, quantize, [op], shares))
        elif isinstance(operation, ops.Embed):
            assert op.dst is not None
            steps.append(Embed(operation.table, op.dst))
        elif isinstance(operation, ops.RopeStore):
            steps.append(RopeStore(op, operation.attention))
        elif isinstance(operation, ops.JoinAttention):
            continue  # the attention before it does so by itself where what follows does not
        elif isinstance(operation, ops.Attend):
            assert isinstance(last, RopeStore)
            steps.append(Attention(op, operation.attention, last.op))
        elif isinstance(last, Product) and [linear.dst for linear in last.linears] == list(op.srcs):
            last.swiglu = op.dst
        else:
            steps.append(SwiGLU(op))
    return steps


def _alike(one: ops.Linear, other: ops.Linear) -> bool:
    """True where two products can be one."""
    same_type = packed_format(one.weight) is packed_format(other.weight)
    return same_type and not one.accumulate and not other.accumulate


def weight_groups(steps: list[Step]) -> list[list[TensorInfo]]:
    """Groups of tensors that become one matrix each. The embedding is a group of its own, or that of the output where
    they are tied."""
    groups = [step.infos for step in steps if isinstance(step, Product)]
    alone = {group[0].name for group in groups if len(group) == 1}
    return [[step.weight] for step in steps if isinstance(step, Embed) and step.weight.name not in alone] + groups
