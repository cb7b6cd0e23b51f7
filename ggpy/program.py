"""From a graph to a program: the flat list of operations that an executor runs for every batch.

Planning fuses what belongs together (a norm into the preparation of the product that reads it, a residual sum into the
product before it) and gives every value a buffer, reusing those whose last reader has passed. Knows nothing of
addresses, threads and devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ggpy.graph import Graph, Node, Value

if TYPE_CHECKING:
    from ggpy.gguf_file import TensorInfo


@dataclass(frozen=True)
class Buffer:
    """float32 [n_rows, n_cols] of working memory, n_rows being the batch or the outputs."""

    index: int
    n_cols: int
    outputs_only: bool


@dataclass(frozen=True)
class Region:
    """Columns first .. first + n_cols of a buffer."""

    buffer: Buffer
    first: int
    n_cols: int


@dataclass(frozen=True)
class Op:
    """One operation. Kinds, with what they read and write:

    embed       -> dst                         embedding rows of the batch's tokens
    prepare     srcs[0] -> activations         norm (if `eps` >= 0), conversion to `form`; that buffer is implicit
    linear      activations -> dst             products of `form` with `weight`, plus `bias`; with `accumulate`, added
                                               to dst; with `partial`, what counts is the sum over all ranks that share
                                               a model (`ggpy.tensor_parallel`)
    rope_store  srcs q, k, v -> q, cache       turn q in place and k; k and v into the cache of `layer`
    attention   srcs[0] q, cache -> dst
    swiglu      srcs gate, up -> dst
    """

    kind: str
    dst: Region | None
    srcs: tuple[Region, ...]
    outputs_only: bool
    weights: Mapping[str, TensorInfo | None] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """The operations in order, the buffers they use, and where logits end up.

    Of a `part` of a program, `taken` is what it begins with, rows of all tokens that the part before it has `given`;
    the first takes nothing, and the last gives logits instead.
    """

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    logits: Region | None
    taken: Region | None = None
    given: Region | None = None

    @property
    def result(self) -> Region:
        """What is left at the end: logits, or what the next part begins with."""
        result = self.logits or self.given
        assert result is not None
        return result

    @property
    def n_head_kv(self) -> int:
        """Key/value heads of a layer."""
        return next(op.params["n_head_kv"] for op in self.ops if op.kind == "attention")

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers whose attention is in it."""
        return [op.params["layer"] for op in self.ops if op.kind == "attention"]

    @cached_property
    def _cuts(self) -> dict[int, tuple[int, Region]]:
        """By layer, where it begins in `ops`, and the one value that crosses there: the residual stream."""
        cuts: dict[int, tuple[int, Region]] = {}
        live: set[Buffer] = set()  # read from here on, before it is written anew
        waiting: list[int] = []  # layers whose beginning is further ahead
        for index in reversed(range(len(self.ops))):
            op = self.ops[index]
            live |= {region.buffer for region in op.srcs}
            if op.dst and not op.params.get("accumulate"):
                live.discard(op.dst.buffer)
            elif op.dst:
                live.add(op.dst.buffer)
            if op.kind == "rope_store":
                waiting.append(op.params["layer"])
            if op.kind == "prepare" and len(live) == 1:  # it makes activations anew, so none cross
                (buffer,) = live
                cuts |= {layer: (index, Region(buffer, 0, buffer.n_cols)) for layer in waiting}
                waiting = []
        return cuts

    def part(self, first: int, last: int) -> Program:
        """Layers first .. last - 1, with the embedding if they are the first ones, with the logits if they are the
        last. Run one after the other, each with the rows that the one before has given, parts do what the whole does.
        """
        n = len(self.layers)
        assert 0 <= first < last <= n
        begin, taken = self._cuts[first] if first else (0, None)
        end, given = self._cuts[last] if last < n else (len(self.ops), None)
        ops = self.ops[begin:end]
        used = {region.buffer for op in ops for region in (*op.srcs, op.dst) if region}
        buffers = tuple(buffer for buffer in self.buffers if buffer in used)
        return Program(ops, buffers, None if given else self.logits, taken, given)

    def matrices(self) -> list[TensorInfo]:
        """The weights of matrix products, each once, in the order of first use."""
        found = {info.name: info for op in self.ops if op.kind == "linear" and (info := op.weights["weight"])}
        return list(found.values())


def plan(graph: Graph, logits: Value, norm_eps: float, form_of: Callable[[TensorInfo, bool], str]) -> Program:
    """`form_of(weight, gives_logits)` names the form of activations that the executor's product wants for a weight."""
    return _Planner(graph, logits, norm_eps, form_of).run()


class _Planner:
    def __init__(
        self, graph: Graph, logits: Value, norm_eps: float, form_of: Callable[[TensorInfo, bool], str]
    ) -> None:
        self.nodes, self.logits, self.norm_eps, self.form_of = graph.nodes, logits, norm_eps, form_of
        self.ops: list[Op] = []
        self.buffers: list[Buffer] = []
        self.free: list[Buffer] = []
        self.home: dict[Node, Region] = {}
        self.prepared: tuple[Any, ...] | None = None  # what the activation buffer holds
        self.fused = self._sums_into_products()
        self.last_use = self._last_uses()

    def run(self) -> Program:
        for index, node in enumerate(self.nodes):
            getattr(self, "_" + node.kind)(node)
            fused = node.inputs[1].node.inputs if node.kind == "add" else ()  # of the product that runs here
            for source in {self._stored(v) for v in (*node.inputs, *fused)}:
                if self.last_use[source] == index and source in self.home:
                    buffer = self.home[source].buffer
                    if not any(r.buffer is buffer and self.last_use[n] > index for n, r in self.home.items()):
                        self.free.append(buffer)
        return Program(tuple(self.ops), tuple(self.buffers), self._region(self.logits))

    # ---- what can be fused, and how long values live

    def _stored(self, value: Value) -> Node:
        """The node in whose buffer a value lies: norms and row selections are done by whoever reads them."""
        node = value.node
        while node.kind in ("norm", "outputs_of"):
            node = node.inputs[0].node
        return node

    def _sums_into_products(self) -> dict[Node, Node]:
        """Products that a residual sum alone reads, each with that sum."""
        readers: dict[Node, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                readers.setdefault(value.node, []).append(node)
        found = {}
        for node in self.nodes:
            if node.kind == "add":
                product = node.inputs[1].node
                if product.kind != "linear" or readers[product] != [node]:
                    raise NotImplementedError("a sum must end in a matrix product that nothing else reads")
                found[product] = node
        return found

    def _last_uses(self) -> dict[Node, int]:
        last: dict[Node, int] = {}
        for index, node in enumerate(self.nodes):
            last[node] = max(last.get(node, 0), index)
            for value in node.inputs:
                last[self._stored(value)] = index
                if value.node in self.fused:  # the product runs when its sum does, and reads its input then
                    last[self._stored(value.node.inputs[0])] = index
        last[self.nodes[-1]] = len(self.nodes)
        return last

    # ---- buffers

    def _new(self, node: Node) -> Region:
        for buffer in self.free:
            if (buffer.n_cols, buffer.outputs_only) == (node.n_cols, node.outputs_only):
                self.free.remove(buffer)
                break
        else:
            buffer = Buffer(len(self.buffers), node.n_cols, node.outputs_only)
            self.buffers.append(buffer)
        self.home[node] = Region(buffer, 0, node.n_cols)
        return self.home[node]

    def _region(self, value: Value) -> Region:
        whole = self.home[value.node]
        return Region(whole.buffer, whole.first + value.first, value.n_cols)

    def _emit(self, kind: str, node: Node, dst: Region | None, srcs: tuple[Region, ...], **rest: Any) -> None:
        self.ops.append(Op(kind, dst, srcs, node.outputs_only, **rest))

    # ---- one method a node kind

    def _embed(self, node: Node) -> None:
        self._emit("embed", node, self._new(node), (), weights=node.weights)

    def _norm(self, node: Node) -> None:
        pass

    def _outputs_of(self, node: Node) -> None:
        pass

    def _prepare(self, value: Value, node: Node, form: str) -> None:
        """Have the activation buffer hold `value` in that form."""
        wanted = (value.node, value.first, value.n_cols, form)
        if self.prepared == wanted:
            return
        self.prepared = wanted
        norm, source = (value.node, value.node.inputs[0]) if value.node.kind == "norm" else (None, value)
        select = source.node.kind == "outputs_of"
        if select:
            source = source.node.inputs[0]
        params = {
            "form": form,
            "eps": self.norm_eps if norm else -1.0,
            "select": select,
            "attention": source.node.params if source.node.kind == "attention" else None,
        }
        self._emit("prepare", node, None, (self._region(source),), weights=norm.weights if norm else {}, params=params)

    def _linear(self, node: Node) -> None:
        if node not in self.fused:
            self._product(node, self._new(node), accumulate=False)

    def _product(self, node: Node, dst: Region, accumulate: bool) -> None:
        weight = node.weights["weight"]
        assert weight is not None
        form = self.form_of(weight, node is self.logits.node)
        self._prepare(node.inputs[0], node, form)
        params = {"form": form, "accumulate": accumulate, "partial": node.params.get("partial", False)}
        self._emit("linear", node, dst, (), weights=node.weights, params=params)

    def _add(self, node: Node) -> None:
        total, product = node.inputs
        if self.last_use[total.node] > self.nodes.index(node):
            raise NotImplementedError("a sum must be the last reader of its first term")
        self.home[node] = self._region(total)
        self._product(product.node, self.home[node], accumulate=True)

    def _swiglu(self, node: Node) -> None:
        gate, up = (self._region(v) for v in node.inputs)
        self._emit("swiglu", node, self._new(node), (gate, up))

    def _attention(self, node: Node) -> None:
        q, k, v = (self._region(value) for value in node.inputs)
        self._emit(
            "rope_store", node, None, (q, k, v), weights=node.weights, params={**node.params, "eps": self.norm_eps}
        )
        self._emit("attention", node, self._new(node), (q,), params=node.params)
