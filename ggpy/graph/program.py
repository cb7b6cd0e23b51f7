"""A program: the flat list of operations that an executor runs for every batch, and the buffers between them. Knows
nothing of addresses, threads and devices; `ggpy.graph.plan` makes it from a graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ggpy.graph.operations import Attend, Attention, Embed, Linear, Operation, Pool, QuantizeActivations

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.state import State


@dataclass(frozen=True)
class Buffer:
    """float32 [n_rows, n_cols] of working memory, n_rows being the batch or the outputs, `n_used` times."""

    index: int
    n_cols: int
    outputs_only: bool
    n_used: int = 1


@dataclass(frozen=True)
class Region:
    """Columns first .. first + n_cols of a buffer."""

    buffer: Buffer
    first: int
    n_cols: int


@dataclass(frozen=True)
class Op:
    """An operation on regions of buffers.

    A `QuantizeActivations` has no destination: the buffer of activations is implicit, also as the source
    of a `Linear`. So is the order of rows for chosen experts, which a `GroupExperts` makes. A `RopeStore` rotates its
    first source in place and stores the others. `layer`: the layer it is part of, if any.
    """

    operation: Operation
    dst: Region | None
    srcs: tuple[Region, ...]
    outputs_only: bool
    n_used: int = 1
    layer: int | None = None

    @property
    def accumulates(self) -> bool:
        """True where the operation adds to what its destination holds."""
        return isinstance(self.operation, Linear) and self.operation.accumulate


@dataclass(frozen=True)
class Program:
    """The operations in order, the buffers they use, and where logits end up.

    A `stage` of a program begins with `hidden_in`, the rows of all tokens that the stage before it leaves as its
    `hidden_out`; the first has none, and the last gives logits instead. `residual`: the rows of all tokens that logits
    are made from, before their norm, where the program has one for each token.
    """

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    logits: Region | None
    hidden_in: Region | None = None
    hidden_out: Region | None = None
    residual: Region | None = None

    @property
    def result(self) -> Region:
        """The region of the result: logits, or the hidden states that the next stage begins with."""
        result = self.logits or self.hidden_out
        assert result is not None
        return result

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer that has one, in the layers' order."""
        return [op.operation.attention for op in self.ops if isinstance(op.operation, Attend)]

    @property
    def states(self) -> list[State]:
        """The state of a slot between steps, in the order of the operations."""
        operations = (op.operation.attention if isinstance(op.operation, Attend) else op.operation for op in self.ops)
        return [operation.state for operation in operations if operation.state]

    @property
    def whole_sequences(self) -> bool:
        """True where a sequence has to be in one step: some token sees those after it, or all are pooled."""
        return any(isinstance(op.operation, Pool) for op in self.ops) or self.two_way

    @property
    def two_way(self) -> bool:
        """True where some token sees those after it."""
        return not all(attention.causal for attention in self.attentions)

    @property
    def n_types(self) -> int:
        """The types of tokens that the model tells apart; 0 for one that knows none."""
        tables = [op.operation for op in self.ops if isinstance(op.operation, Embed)]
        return max((table.table.shape[0] for table in tables if table.index == "type"), default=0)

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers in the program."""
        return sorted({op.layer for op in self.ops if op.layer is not None})

    @property
    def products(self) -> list[Linear]:
        """The matrix products of the program."""
        return [op.operation for op in self.ops if isinstance(op.operation, Linear)]

    @cached_property
    def _cuts(self) -> dict[int, tuple[int, Region]]:
        """For each layer that a stage can begin with, its first index in `ops` and the one value that crosses there:
        the residual stream. Where more than one value crosses, or a layer reads another's cache, nothing is cut."""
        cuts: dict[int, tuple[int, Region]] = {}
        live: set[Buffer] = set()  # read from here on, before it is written again
        needed = len(self.ops)  # the lowest layer whose cache is read from here on
        for index in reversed(range(len(self.ops))):
            op = self.ops[index]
            if op.dst and not op.accumulates:
                live.discard(op.dst.buffer)
            live |= {region.buffer for region in op.srcs}
            if op.dst and op.accumulates:
                live.add(op.dst.buffer)
            if isinstance(op.operation, Attend):
                needed = min(needed, op.operation.attention.cache_layer)
            first = op.layer is not None and (not index or self.ops[index - 1].layer != op.layer)
            if first and op.layer is not None and len(live) == 1 and needed >= op.layer and not self._prepared(index):
                (buffer,) = live
                cuts[op.layer] = (index, Region(buffer, 0, buffer.n_cols))
        return cuts

    def _prepared(self, index: int) -> bool:
        """True where the operation at `index`, or one soon after it, reads activations that were made before it."""
        for op in self.ops[index:]:
            if isinstance(op.operation, (QuantizeActivations, Linear)):
                return isinstance(op.operation, Linear)
        return False

    @property
    def cut_layers(self) -> list[int]:
        """The layers that a stage can begin with, beside the first."""
        return sorted(layer for layer in self._cuts if layer != self.layers[0])

    def stage(self, first: int, last: int) -> Program:
        """Layers first .. last - 1, with the embedding if they are the first ones, with the logits if they are the
        last. Run one after the other, each with the rows that the one before leaves, stages do what the whole does.
        """
        n = len(self.layers)
        assert 0 <= first < last <= n
        begin, hidden_in = self._cuts[first] if first else (0, None)
        end, hidden_out = self._cuts[last] if last < n else (len(self.ops), None)
        ops = self.ops[begin:end]
        used = {region.buffer for op in ops for region in (*op.srcs, op.dst) if region}
        buffers = tuple(buffer for buffer in self.buffers if buffer in used)
        logits, residual = (None, None) if hidden_out else (self.logits, self.residual)
        return Program(ops, buffers, logits, hidden_in, hidden_out, residual)

    def matrices(self) -> list[TensorInfo]:
        """The weights of matrix products, each once, in the order of first use."""
        return list({product.weight.name: product.weight for product in self.products}.values())
