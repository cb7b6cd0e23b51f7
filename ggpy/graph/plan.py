"""From a graph to a program, in passes: what runs together, where values lie, and whether the result is right.

`fuse` finds what need not run by itself: a norm that only products read is done where their activations are made, and a
product that only a sum reads adds to what the sum's other term left. It never refuses: whatever cannot be fused runs by
itself. `place` gives every value a buffer, reusing those whose last reader has passed. `verify` runs the program on
names instead of numbers and compares every operand with what the graph asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggpy.graph.language import Graph, Node, Value
from ggpy.graph.operations import (
    Add,
    Attend,
    Attention,
    Combine,
    GroupExperts,
    Hidden,
    JoinAttention,
    Linear,
    Norm,
    Operation,
    QuantizeActivations,
    RopeStore,
    Route,
    SelectOutputs,
)
from ggpy.graph.program import Buffer, Op, Program, Region

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo


#: As what a device's product with a weight reads activations, given whether it gives logits.
ActivationDtype = Callable[["TensorInfo", bool], str]


def plan(graph: Graph, logits: Value, activation_dtype: ActivationDtype) -> Program:
    """The program that computes `logits`. `activation_dtype(weight, gives_logits)`: the dtype in which a device's
    product with a weight reads activations."""
    steps = fuse(graph.nodes, logits, activation_dtype)
    hidden = next((node for node in graph.nodes if isinstance(node.operation, Hidden)), None)
    selected = [node.inputs[0].node for node in graph.nodes if isinstance(node.operation, SelectOutputs)]
    program = place(steps, logits, hidden, selected[-1] if selected else None)
    verify(program, steps, hidden)
    return program


@dataclass(frozen=True)
class Step:
    """An operation on values: `reads` them, and leaves `node`'s value, if any."""

    operation: Operation
    reads: tuple[Value, ...]
    node: Node | None
    reader: Node  # whose part it is
    into: Value | None = None  # the value that it adds to, whose place its own then is

    @property
    def outputs_only(self) -> bool:
        return self.reader.outputs_only


# ---- fuse


def fuse(nodes: list[Node], logits: Value, activation_dtype: ActivationDtype) -> list[Step]:
    """The graph as steps in order, fused where possible."""
    readers = _readers(nodes)
    inside = _done_by_products(nodes, readers, logits)
    sums = _sums_into_products(nodes, readers, inside, logits)
    taken_in = {product: total for total, (product, _) in sums.items()}
    joined = {
        node
        for node in nodes
        if isinstance(node.operation, Attention)
        and (node is logits.node or not all(map(_is_dense, readers[node])) or not _is_read_whole(node, readers[node]))
    }
    steps: list[Step] = []
    prepared: tuple[object, ...] | None = None  # what the buffer of activations holds

    def activations(value: Value, reader: Node, dtype: str) -> None:
        """Fill the buffer of activations with `value` in that form."""
        nonlocal prepared
        wanted = (value.node, value.first, value.n_cols, dtype, reader.route)
        if prepared == wanted:
            return
        prepared = wanted
        route = reader.route.operation if reader.route else None
        assert route is None or isinstance(route, Route)
        spread = route is not None and value.node.route is None
        norm, select = None, False
        if value.node in inside and isinstance(value.node.operation, Norm):
            norm, value = value.node.operation, value.node.inputs[0]
        if value.node in inside and isinstance(value.node.operation, SelectOutputs):
            select, value = True, value.node.inputs[0]
        source = value.node.operation
        joins = source if isinstance(source, Attention) and value.node not in joined else None
        steps.append(Step(QuantizeActivations(dtype, norm, select, joins, route, spread), (value,), None, reader))

    def product(node: Node, result: Node, into: Value | None) -> None:
        assert isinstance(node.operation, Linear)
        dtype = activation_dtype(node.operation.weight, node.outputs_only)
        activations(node.inputs[0], node, dtype)
        operation = replace(node.operation, dtype=dtype, accumulate=into is not None)
        steps.append(Step(operation, (), result, node, into))

    for node in nodes:
        operation = node.operation
        if node in inside or node in taken_in or isinstance(operation, Hidden):
            continue
        if node in sums:
            made, into = sums[node]
            product(made, node, into)
        elif isinstance(operation, Linear):
            product(node, node, None)
        elif isinstance(operation, Attention):
            steps.append(Step(RopeStore(operation), node.inputs, None, node))
            steps.append(Step(Attend(operation), node.inputs[:1], node, node))
            if node in joined:
                whole = Value(node, 0, node.n_cols)
                steps.append(Step(JoinAttention(operation), (whole,), node, node, whole))
        else:
            steps.append(Step(operation, node.inputs, node, node))
            if isinstance(operation, Route):
                steps.append(Step(GroupExperts(operation), (Value(node, 0, node.n_cols),), None, node))
    return steps


def _readers(nodes: list[Node]) -> Mapping[Node, list[Node]]:
    readers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for value in node.inputs:
            readers[value.node].append(node)
    return readers


def _is_dense(node: Node) -> bool:
    """True for a product that is not of chosen experts."""
    return isinstance(node.operation, Linear) and node.route is None


def _is_read_whole(node: Node, readers: list[Node]) -> bool:
    """True where no reader reads columns of a node alone, which are no value by themselves before it is complete."""
    return all(value.n_cols == node.n_cols for reader in readers for value in reader.inputs if value.node is node)


def _done_by_products(nodes: list[Node], readers: Mapping[Node, list[Node]], logits: Value) -> set[Node]:
    """Norms that only products read, whole, and selections of rows that only products or such norms read: they are
    fused into the step that makes the products' activations."""
    inside: set[Node] = set()
    for node in reversed(nodes):
        operation, reading = node.operation, readers[node]
        if node is logits.node or not _is_read_whole(node, reading):
            continue
        if isinstance(operation, Norm) and operation.plain:
            if all(isinstance(reader.operation, Linear) for reader in reading):
                inside.add(node)
        elif isinstance(operation, SelectOutputs):
            norms = [reader for reader in reading if reader in inside]
            after = [reader for norm in norms for reader in readers[norm]]
            if all(reader in inside or _is_dense(reader) for reader in (*reading, *after)):
                inside.add(node)
    return inside


def _sums_into_products(
    nodes: list[Node], readers: Mapping[Node, list[Node]], inside: set[Node], logits: Value
) -> dict[Node, tuple[Node, Value]]:
    """Sums of a product that nothing else reads and a term that nothing reads later: for each, the product and the term
    that it adds to."""
    place = {node: index for index, node in enumerate(nodes)}

    def runs_at(reader: Node) -> int:
        """The latest place where a reader may read: a norm fused into a product reads with it, that with its sum."""
        if reader in inside:
            return last_read(reader)
        if isinstance(reader.operation, Linear) and len(readers[reader]) == 1:
            (after,) = readers[reader]
            return place[after] if isinstance(after.operation, Add) else place[reader]
        return place[reader]

    def last_read(node: Node) -> int:
        return max((runs_at(reader) for reader in readers[node]), default=place[node])

    found: dict[Node, tuple[Node, Value]] = {}
    for node in nodes:
        if not isinstance(node.operation, Add):
            continue
        for term, made in (node.inputs, reversed(node.inputs)):
            whole = made.n_cols == made.node.n_cols and term.n_cols == term.node.n_cols
            product = isinstance(made.node.operation, Linear) and readers[made.node] == [node]
            free = last_read(term.node) <= place[node] and term.node is not logits.node and term.node not in inside
            same_rows = (term.node.outputs_only, term.node.route) == (made.node.outputs_only, made.node.route)
            if whole and product and free and same_rows:
                found[node] = made.node, term
                break
    return found


# ---- place


def place(steps: list[Step], logits: Value, hidden: Node | None = None, residual: Node | None = None) -> Program:
    """Give every value a buffer, reusing those that nothing reads any more. hidden: rows that are there before the
    program runs; residual: those of all tokens that logits are made from, which stay."""
    last_use: dict[Node, int] = {}
    for index, step in enumerate(steps):
        for value in (*step.reads, *((step.into,) if step.into else ())):
            last_use[value.node] = index
        if step.node:
            last_use.setdefault(step.node, index)
    last_use[logits.node] = len(steps)
    if residual is not None and residual in last_use:
        last_use[residual] = len(steps)

    buffers: list[Buffer] = []
    free: list[Buffer] = []
    home: dict[Node, Region] = {}
    ops: list[Op] = []

    def region(value: Value) -> Region:
        whole = home[value.node]
        return Region(whole.buffer, whole.first + value.first, value.n_cols)

    def new(node: Node) -> Region:
        for buffer in free:
            if (buffer.n_cols, buffer.outputs_only, buffer.n_used) == (node.n_cols, node.outputs_only, node.n_used):
                free.remove(buffer)
                break
        else:
            buffer = Buffer(len(buffers), node.n_cols, node.outputs_only, node.n_used)
            buffers.append(buffer)
        return Region(buffer, 0, node.n_cols)

    if hidden is not None:
        home[hidden] = new(hidden)
    hidden_in = home.get(hidden) if hidden else None
    for index, step in enumerate(steps):
        srcs = tuple(region(value) for value in step.reads)
        dst = None
        if step.node:
            dst = home[step.node] = region(step.into) if step.into else new(step.node)
        reader = step.reader
        ops.append(Op(step.operation, dst, srcs, step.outputs_only, reader.n_used, reader.layer))
        for node in [node for node in home if last_use[node] == index]:
            buffer = home.pop(node).buffer
            if all(other.buffer is not buffer for other in home.values()) and buffer not in free:
                free.append(buffer)
    kept = home.get(residual) if residual else None
    return Program(tuple(ops), tuple(buffers), region(logits), hidden_in, residual=kept)


# ---- verify


def verify(program: Program, steps: list[Step], hidden: Node | None = None) -> None:
    """Run the program on names: every operand must hold the value that its step reads. Raises AssertionError."""
    holds: dict[Buffer, Node] = {}
    if hidden is not None and program.hidden_in is not None:
        holds[program.hidden_in.buffer] = hidden
    order: Node | None = None  # the route in whose order rows for chosen experts stand
    for op, step in zip(program.ops, steps, strict=True):
        if isinstance(op.operation, GroupExperts):
            order = step.reader
        elif isinstance(op.operation, Combine):
            assert step.reads[1].node is order, f"{op} sums rows that stand in another order"
        assert step.reader.route in (None, order), f"{op} reads rows in another order"
        for region, value in zip(op.srcs, step.reads, strict=True):
            assert holds.get(region.buffer) is value.node, f"{op} reads a buffer that holds another value"
            assert (region.first, region.n_cols) == (value.first, value.n_cols)
            assert region.first + region.n_cols <= region.buffer.n_cols
        if step.into:
            assert op.dst is not None
            assert op.accumulates or isinstance(op.operation, JoinAttention)
            assert holds.get(op.dst.buffer) is step.into.node, f"{op} adds to a buffer that holds another value"
        if op.dst:
            assert step.node is not None
            assert (op.dst.first, op.dst.n_cols) == (0, op.dst.buffer.n_cols)
            assert op.dst.buffer.outputs_only == step.node.outputs_only
            holds[op.dst.buffer] = step.node
    assert program.logits is not None
