"""From a program's operations to the steps that the GPU runs: products of the same activations become one, and a
product absorbs the operations before and after it. Independent of addresses and devices.

Steps read later than the operations that they stand for: products make their activations themselves, and the results
of several lie side by side until they are read. A plan is right for operations in order, so what is written in between
is looked up here (`ggpy.cuda.uses`), and where it matters steps stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ggpy.cuda import recurrent
from ggpy.cuda.recurrent import Recurrent, recurrent_step
from ggpy.cuda.uses import Uses
from ggpy.cuda.weights.cache_layout import MOST_HEAD_DIM, WARP_HEAD
from ggpy.cuda.weights.weights import layout_of
from ggpy.graph import operations as ops
from ggpy.graph.program import Region
from ggpy.quant.formats import packed_format

if TYPE_CHECKING:
    from ggpy.cuda.weights.layout import MatrixLayout
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Buffer, Op, Program

MOST_EXPERTS = 1024  # that a block of threads chooses from


@dataclass
class Embed:
    weight: TensorInfo
    dst: Region
    index: str = "token"  # as `ops.Embed` has it


@dataclass
class RopeStore:
    op: Op
    attention: ops.Attention


@dataclass
class Attention:
    """`stored`: the operation that turned its queries and stored its keys and values. `in_parts`: only products read
    it, each before the next attention, so that for a single token they join its parts themselves."""

    op: Op
    attention: ops.Attention
    stored: Op
    in_parts: bool


@dataclass
class Product:
    """One or several products of the same activations, which the operation `activations` makes, with weights of one
    type. With `swiglu` its two products are gate and up, and only silu(gate) * up is written, there.

    shares_activations: with a product before, so that they need not be made again. separate: their source may be
    overwritten while threads of a product still read it, so that a kernel of its own makes them even for one token.
    aligned: the source's rows may be read 16 bytes at a time. joins: the attention whose parts it reads. wide: of the
    places for results of these widths side by side, which one it writes to.
    """

    activations: Op
    quantize: ops.QuantizeActivations  # the operation of `activations`
    linears: list[Op]
    shares_activations: bool = False
    swiglu: Region | None = None
    separate: bool = False
    aligned: bool = True
    joins: Attention | None = None
    wide: int = 0

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
    def widths(self) -> list[int]:
        """Columns of each product."""
        return [info.shape[-2] for info in self.infos]

    @property
    def n_used(self) -> int:
        """Rows of a token."""
        return self.linears[0].n_used

    @property
    def rows_read(self) -> int:
        """Rows of activations that it reads of a token."""
        return self.n_used if self.quantize.route and not self.quantize.spread else 1

    @property
    def place(self) -> tuple[int, ...]:
        """The key of the place for its results side by side: rows of a token, widths, and which of several of these."""
        return (self.n_used, *self.widths, self.wide)

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
class ExpertProduct(Product):
    """A product for each expert that a token chose; `n_used` rows a token, those of its best expert first.

    routed: what put the chosen in order; its source is the choice. glu: the gated unit that reads its two halves, gate
    and up. left: only activations read that, which products of many tokens make from the halves. joined: the source's
    rows lie one after the other. combine: the sum over a token's experts, and `plus` what that is added to: of few
    tokens `summed` is all that is written.
    """

    route: ops.Route | None = None
    routed: Op | None = None
    glu: Op | None = None
    left: bool = False
    joined: bool = False
    combine: Op | None = None
    plus: Region | None = None
    summed: Region | None = None


@dataclass
class Rowwise:
    """An operation by itself on rows (`ggpy.cuda.rowwise`)."""

    op: Op

    @property
    def outputs_only(self) -> bool:
        return self.op.outputs_only


@dataclass
class HeadProduct:
    """A product of each head's own matrix with its columns of the source."""

    op: Op
    source: Region

    @cached_property
    def info(self) -> TensorInfo:
        """The matrices of all heads as one, row after row."""
        assert isinstance(self.op.operation, ops.Linear)
        n_head, n_rows, n_cols = self.op.operation.weight.shape
        return replace(self.op.operation.weight, shape=(n_head * n_rows, n_cols))

    @property
    def outputs_only(self) -> bool:
        return self.op.outputs_only


Step = HeadProduct | Embed | Product | RopeStore | Attention | Rowwise | Recurrent


# ---- what the GPU can run


def unsupported(program: Program) -> str | None:
    """Why the GPU cannot run a program, in a few words; None where it can."""
    reasons = [_unsupported_attention(attention) for attention in program.attentions]
    if len({attention.causal for attention in program.attentions}) > 1:
        reasons.append("attention to later tokens in some layers")
    reasons += [_unsupported_operation(op.operation) for op in program.ops]
    if any(_is_normed(op.operation) and _of_heads(after.operation) for op, after in pairwise(program.ops)):
        reasons.append("norms that heads' own matrices read")
    return next((reason for reason in reasons if reason), None)


def last_supported(program: Program) -> tuple[int, str | None]:
    """How many of a whole program's last layers the GPU can run, and what it has no kernel for in the one before them,
    in a few words; None where it can run all."""
    n, reason = len(program.layers), unsupported(program)
    if reason is None:
        return n, None
    able = 0
    for first in reversed(program.cut_layers):
        found = unsupported(program.stage(first, n))
        if found:
            return able, found
        able = n - first
    return able, reason


def _unsupported_attention(a: ops.Attention) -> str | None:
    if max(a.head_dim, a.v_head_dim) > MOST_HEAD_DIM:
        return f"heads of {max(a.head_dim, a.v_head_dim)} dimensions"
    if a.v_head_dim % 2:
        return "values of an odd number of dimensions"
    if a.norm_after_rope and a.rope and a.rope.magnitude != 1.0:
        return "norms after a rope that scales"
    return None


def _is_normed(operation: ops.Operation) -> bool:
    return isinstance(operation, ops.QuantizeActivations) and bool(operation.norm or operation.select)


def _of_heads(operation: ops.Operation) -> bool:
    return isinstance(operation, ops.Linear) and operation.n_head > 0


def _unsupported_operation(operation: ops.Operation) -> str | None:
    if isinstance(operation, recurrent.CARRYING):
        return recurrent.unsupported(operation)
    fused = (ops.QuantizeActivations, ops.Linear, ops.RopeStore, ops.Attend, ops.JoinAttention)
    columns = (ops.ScaleColumns, ops.ShiftColumns, ops.SelectColumns, ops.Concat)
    alone = (ops.Embed, ops.Elementwise, ops.Norm, *columns, ops.SelectOutputs, ops.Pool)
    experts = (ops.Route, ops.GroupExperts, ops.Combine)
    if isinstance(operation, ops.Route) and operation.n_experts > MOST_EXPERTS:
        return f"a choice among {operation.n_experts} experts"
    if isinstance(operation, ops.Weigh):  # `Combine` would multiply by the weights a second time
        return "experts of weighed rows"
    if isinstance(operation, (*fused, *alone, *experts)):
        return None
    return f"the operation {type(operation).__name__}"


# ---- lowering


def lower(program: Program) -> list[Step]:
    """The steps of a program that the GPU can run (`unsupported`)."""
    return _Lowering(program).steps


def weight_groups(steps: list[Step]) -> list[list[TensorInfo]]:
    """Groups of tensors that become one matrix each. An embedding is a group of its own, or that of the output where
    they are tied."""
    groups = [step.infos for step in steps if isinstance(step, Product)]
    groups += [[step.info] for step in steps if isinstance(step, HeadProduct)]
    alone = {group[0].name for group in groups if len(group) == 1}
    tables = [[step.weight] for step in steps if isinstance(step, Embed) and step.weight.name not in alone]
    return list({tuple(info.name for info in group): group for group in (*tables, *groups)}.values())


class _Lowering:
    """The steps of one program, made in the order of its operations."""

    def __init__(self, program: Program) -> None:
        self.steps: list[Step] = []
        self._ops, self._result, self._uses = program.ops, program.result.buffer, Uses(program)
        self._by_heads = any(_of_heads(op.operation) for op in program.ops)
        self._activations, self._made = 0, False  # the operation that makes them, and whether a product has read them
        self._attention: dict[Buffer, Attention] = {}  # whose result a buffer holds
        self._offset: dict[Buffer, int] = {}  # columns before a result, of those side by side
        self._busy: dict[tuple[int, ...], int] = {}  # until which operation a place is read (`Product.place`)
        self._side_by_side: set[Buffer] = set()  # whose values lie there
        self._routed: Op | None = None  # what put the experts chosen last in order
        index = 0
        while index < len(program.ops):
            index = self._add(index)

    def _add(self, index: int) -> int:
        """Add the step of an operation, and of those after it that become part of the step; returns the next one."""
        op, operation = self._ops[index], self._ops[index].operation
        if isinstance(operation, ops.Linear) and operation.n_head:
            (source,) = self._ops[self._activations].srcs
            assert op.dst is not None
            self._written(op.dst.buffer)
            self.steps.append(HeadProduct(op, source))
            self._made = False  # its source may take their place
            return index + 1
        if isinstance(operation, ops.Linear):
            return self._product(index)
        if isinstance(operation, ops.QuantizeActivations):
            self._activations, self._made = index, False
        elif isinstance(operation, ops.RopeStore):
            self.steps.append(RopeStore(op, operation.attention))
        elif isinstance(operation, ops.GroupExperts):  # done where tiles of many tokens need it
            self._routed = op
        elif not isinstance(operation, ops.JoinAttention):  # an attention that is not read in parts is joined anyway
            assert op.dst is not None
            self._written(op.dst.buffer)
            if isinstance(operation, ops.Embed):
                self.steps.append(Embed(operation.table, op.dst, operation.index))
            elif isinstance(operation, ops.Attend):
                self._attend(index, operation.attention)
            elif isinstance(operation, recurrent.CARRYING):
                step = recurrent_step(self._ops, index, self._uses.readers)
                del self.steps[len(self.steps) - len(step.absorbed) :]
                self.steps.append(step)
            else:
                self.steps.append(Rowwise(op))
        return index + 1

    def _written(self, buffer: Buffer, offset: int = 0) -> None:
        """Note that a buffer holds another value, so many columns after the start of its place."""
        self._attention.pop(buffer, None)
        self._side_by_side.discard(buffer)
        self._offset[buffer] = offset

    def _attend(self, index: int, attention: ops.Attention) -> None:
        op, stored = self._ops[index], self._ops[index - 1]
        assert isinstance(stored.operation, ops.RopeStore)
        assert op.dst is not None
        wide = attention.latent or max(attention.head_dim, attention.v_head_dim) > WARP_HEAD
        joined = wide or attention.sinks is not None or self._by_heads  # by a kernel of its own
        in_parts = not joined and self._uses.read_in_parts(index)
        step = self._attention[op.dst.buffer] = Attention(op, attention, stored, in_parts)
        self.steps.append(step)

    def _product(self, index: int) -> int:
        activations, end = self._ops[self._activations], index + 1
        while end < len(self._ops) and self._alike(self._ops[index], self._ops[end]):
            end += 1
        linears = list(self._ops[index:end])
        (source,), quantize = activations.srcs, activations.operation
        assert isinstance(quantize, ops.QuantizeActivations)
        attention = self._attention.get(source.buffer)
        made = (ExpertProduct if quantize.route else Product)(
            activations, quantize, linears, self._made,
            separate=self._uses.source_is_overwritten(self._activations),
            aligned=source.n_cols % 4 != 0 or (self._offset.get(source.buffer, 0) + source.first) % 4 == 0,
            joins=attention if attention and attention.in_parts and quantize.joins else None,
        )  # fmt: skip
        self._made = True
        self.steps.append(made)
        after = end
        if isinstance(made, ExpertProduct):
            after = self._of_experts(made, index, end)
        elif self._absorbs_swiglu(linears, index, end):
            made.swiglu, after = self._ops[end].dst, end + 1
        if len(linears) > 1:
            read = [self._uses.last_read(i) for i in range(index, after)]
            while self._busy.get(made.place, -1) >= index:
                made.wide += 1
            self._busy[made.place] = max(read)
        offset = 0
        for op, width in zip(linears, made.widths, strict=True):
            assert op.dst is not None
            if not made.accumulate:
                self._written(op.dst.buffer, offset)
            if len(linears) > 1:
                self._side_by_side.add(op.dst.buffer)
            offset += width
        for op in self._ops[end:after]:
            assert op.dst is not None
            self._written(op.dst.buffer)
        return after

    def _of_experts(self, made: ExpertProduct, index: int, end: int) -> int:
        """Complete a product of experts, whose operations are those from `index` on, with what it absorbs from `end`
        on; returns the next operation."""
        quantize, (source,) = made.quantize, made.activations.srcs
        made.route, made.routed = quantize.route, self._routed
        made.joined = (
            not quantize.spread and source.buffer not in self._side_by_side and source.n_cols == source.buffer.n_cols
        )
        if self._absorbs_glu(made, index, end):
            made.glu = self._ops[end]
            made.left = made.glu.operation == ops.GLU("silu") and self._uses.left_to_activations(end)
            return end + 1
        combine = self._ops[end] if end < len(self._ops) else None
        alone = combine is not None and end == index + 1 and self._uses.readers(index) == [end]
        if not alone or not combine or not isinstance(combine.operation, ops.Combine) or made.accumulate:
            return end
        busy = {source.buffer, *(region.buffer for region in combine.srcs)}  # read by other threads meanwhile
        if combine.dst is None or combine.dst.buffer in busy:
            return end
        made.combine, made.summed = combine, combine.dst
        add = self._ops[end + 1] if end + 1 < len(self._ops) else None
        if add is None or add.operation != ops.Add() or add.dst is None or add.dst.buffer in busy:
            return end + 1
        terms = [region for region in add.srcs if region != combine.dst]
        if len(terms) != 1 or self._uses.readers(end) != [end + 1]:
            return end + 1
        made.plus, made.summed = terms[0], add.dst
        return end + 2

    def _alike(self, first: Op, following: Op) -> bool:
        """True where two products, whose activations are the same, can be one."""
        one, other = first.operation, following.operation
        if not isinstance(one, ops.Linear) or not isinstance(other, ops.Linear):
            return False
        same_type = packed_format(one.weight) is packed_format(other.weight) and one.route == other.route
        lasting = any(op.dst and op.dst.buffer == self._result for op in (first, following))
        return same_type and not one.accumulate and not other.accumulate and not lasting

    def _absorbs_swiglu(self, linears: list[Op], index: int, end: int) -> bool:
        """True where the operation at `end` is the SwiGLU of these two products, which nothing else reads."""
        op = self._ops[end] if end < len(self._ops) else None
        if op is None or op.operation != ops.GLU("silu") or [linear.dst for linear in linears] != list(op.srcs):
            return False
        alone = all(self._uses.readers(i) == [end] for i in range(index, end))
        return alone and self._uses.left_to_activations(end)

    def _absorbs_glu(self, made: ExpertProduct, index: int, end: int) -> bool:
        """True where the operation at `end` is a gated unit of two halves, which nothing else reads: two products, or
        the columns of one."""
        op = self._ops[end] if end < len(self._ops) else None
        if op is None or not isinstance(op.operation, ops.GLU) or made.accumulate:
            return False
        regions = [linear.dst for linear in made.linears if linear.dst]
        if len(regions) == 1:
            whole, half = regions[0], regions[0].n_cols // 2
            regions = [Region(whole.buffer, whole.first + first, half) for first in (0, half)]
        return list(op.srcs) == regions and all(self._uses.readers(i) == [end] for i in range(index, end))
