"""From a program's operations to the steps that the GPU runs: products of the same activations become one, and a
product absorbs the operations before and after it. Independent of addresses and devices.

Steps read later than the operations that they stand for: products make their activations themselves, and the results
of several lie side by side until they are read. A plan is right for operations in order, so what is written in between
is looked up here (`_Uses`), and where it matters steps stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ggpy.cuda import recurrent
from ggpy.cuda.recurrent import Recurrent, recurrent_step
from ggpy.cuda.weights.cache_layout import MOST_HEAD_DIM, WARP_HEAD
from ggpy.cuda.weights.weights import layout_of
from ggpy.graph import operations as ops
from ggpy.quant.formats import packed_format

if TYPE_CHECKING:
    from ggpy.cuda.weights.layout import MatrixLayout
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.program import Buffer, Op, Program, Region


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
    def place(self) -> tuple[int, ...]:
        """The key of the place for its results side by side: their widths, and which of several for such widths."""
        return (*(info.shape[0] for info in self.infos), self.wide)

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
    known = isinstance(operation, (*fused, *alone))
    if known and not (isinstance(operation, ops.Linear) and operation.route):
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


class _Uses:
    """Where a program's operations read what others wrote, as the GPU runs them."""

    def __init__(self, program: Program) -> None:
        self._ops, self._result = program.ops, program.result.buffer
        self._end = len(program.ops)
        self.reads_until = [*range(self._end), self._end]  # of each operation, the last one with which it still reads
        activations = 0
        for index, op in enumerate(program.ops):
            if isinstance(op.operation, ops.QuantizeActivations):
                activations = index
            elif isinstance(op.operation, ops.Linear):
                self.reads_until[activations] = index
            elif isinstance(op.operation, ops.RopeStore):  # a small step's attention reads keys and values itself
                self.reads_until[index] = index + 1

    def readers(self, index: int) -> list[int]:
        """The operations that read what this one writes, or add to it; after them the number of operations, where it is
        the program's result."""
        dst, found = self._ops[index].dst, []
        assert dst is not None
        for later in range(index + 1, self._end):
            op = self._ops[later]
            same = op.dst is not None and op.dst.buffer == dst.buffer
            if (same and op.accumulates) or any(src.buffer == dst.buffer for src in op.srcs):
                found.append(later)
            if same and not op.accumulates and not isinstance(op.operation, ops.JoinAttention):
                return found
        return [*found, self._end] if dst.buffer == self._result else found

    def last_read(self, index: int) -> int:
        return max((self.reads_until[reader] for reader in self.readers(index)), default=index)

    def source_is_overwritten(self, activations: int) -> bool:
        """True where the source of activations is written to before the last product that reads them has ended, or the
        SwiGLU that it may absorb; they are made at that operation."""
        (source,), last = self._ops[activations].srcs, self.reads_until[activations]
        following = self._ops[last + 1 : last + 2]
        span = self._ops[activations + 1 : last + 1] + tuple(
            op for op in following if isinstance(op.operation, ops.GLU)
        )
        return any(op.dst and op.dst.buffer == source.buffer for op in span)

    def activations_of(self, index: int) -> list[tuple[int, ops.QuantizeActivations]] | None:
        """The operations that read what this one writes, if all make activations of all its columns."""
        found = []
        for reader in self.readers(index):
            op = self._ops[reader] if reader < self._end else None
            if not op or not isinstance(op.operation, ops.QuantizeActivations) or op.srcs != (self._ops[index].dst,):
                return None
            found.append((reader, op.operation))
        return found

    def read_in_parts(self, index: int) -> bool:
        """True where products that can join the parts of the attention at `index` are all that read it."""
        following = (i for i in range(index + 1, self._end) if isinstance(self._ops[i].operation, ops.Attend))
        end, readers = next(following, self._end), self.activations_of(index)
        return readers is not None and all(q.joins and self.reads_until[reader] < end for reader, q in readers)

    def left_to_activations(self, index: int) -> bool:
        """True where only products read what the operation at `index` writes, and read it as it is."""
        readers = self.activations_of(index)
        return readers is not None and not any(q.norm or q.select for _, q in readers)


class _Lowering:
    """The steps of one program, made in the order of its operations."""

    def __init__(self, program: Program) -> None:
        self.steps: list[Step] = []
        self._ops, self._result, self._uses = program.ops, program.result.buffer, _Uses(program)
        self._by_heads = any(_of_heads(op.operation) for op in program.ops)
        self._activations, self._made = 0, False  # the operation that makes them, and whether a product has read them
        self._attention: dict[Buffer, Attention] = {}  # whose result a buffer holds
        self._offset: dict[Buffer, int] = {}  # columns before a result, of those side by side
        self._busy: dict[tuple[int, ...], int] = {}  # until which operation a place is read (`Product.place`)
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
        absorbs = self._absorbs_swiglu(linears, index, end)
        (source,), quantize = activations.srcs, activations.operation
        assert isinstance(quantize, ops.QuantizeActivations)
        attention = self._attention.get(source.buffer)
        made = Product(
            activations, quantize, linears, self._made,
            swiglu=self._ops[end].dst if absorbs else None,
            separate=self._uses.source_is_overwritten(self._activations),
            aligned=source.n_cols % 4 != 0 or (self._offset.get(source.buffer, 0) + source.first) % 4 == 0,
            joins=attention if attention and attention.in_parts and quantize.joins else None,
        )  # fmt: skip
        self._made = True
        self.steps.append(made)
        if len(linears) > 1:
            read = [self._uses.last_read(i) for i in range(index, end + absorbs)]
            while self._busy.get(made.place, -1) >= index:
                made.wide += 1
            self._busy[made.place] = max(read)
        offset = 0
        for op, info in zip(linears, made.infos, strict=True):
            assert op.dst is not None
            if not made.accumulate:
                self._written(op.dst.buffer, offset)
            offset += info.shape[0]
        if absorbs and made.swiglu:
            self._written(made.swiglu.buffer)
        return end + absorbs

    def _alike(self, first: Op, following: Op) -> bool:
        """True where two products, whose activations are the same, can be one."""
        one, other = first.operation, following.operation
        if not isinstance(one, ops.Linear) or not isinstance(other, ops.Linear):
            return False
        same_type = packed_format(one.weight) is packed_format(other.weight)
        lasting = any(op.dst and op.dst.buffer == self._result for op in (first, following))
        return same_type and not one.accumulate and not other.accumulate and not lasting

    def _absorbs_swiglu(self, linears: list[Op], index: int, end: int) -> bool:
        """True where the operation at `end` is the SwiGLU of these two products, which nothing else reads."""
        op = self._ops[end] if end < len(self._ops) else None
        if op is None or op.operation != ops.GLU("silu") or [linear.dst for linear in linears] != list(op.srcs):
            return False
        alone = all(self._uses.readers(i) == [end] for i in range(index, end))
        return alone and self._uses.left_to_activations(end)
