"""A model divided over devices that work side by side on every token: tensor parallelism (arXiv 1909.08053).

Each *rank* has some of the heads and some of the columns of every feed-forward: rows of the matrices that make them,
and the columns of those that read them. The latter give *partial* products, whose sum over the ranks is the model's
value; everything between two sums is local to a rank. Norms, embedding and logits are whole on each.

Works on the graph, which shows what belongs together, so architectures know nothing of it. Knows nothing of
devices; `ggpy.cuda.ops.all_reduce` makes the sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.gguf.slices import Range, TensorSlice
from ggpy.graph.language import Graph, Node, Value
from ggpy.graph.operations import GLU, Attention, Linear, Route
from ggpy.quant import by_id

if TYPE_CHECKING:
    from collections.abc import Callable

ALIGN = 32  # columns: what reads the bytes of a matrix's columns begins with a whole block of activations


@dataclass(frozen=True)
class Rank:
    """One of `count` devices that share a model."""

    index: int
    count: int


def shard(graph: Graph, logits: Value, rank: Rank) -> tuple[Graph, Value]:
    """A rank's part of a graph: products that give only a term of a sum over the ranks are `partial`.

    Raises GGPYError where the model cannot be divided like this.
    """
    return _Divider(graph, rank).run(logits)


class _Divider:
    def __init__(self, graph: Graph, rank: Rank) -> None:
        self.graph, self.rank = graph, rank
        self.readers: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                self.readers.setdefault(value.node, []).append(node)
        self.kept: dict[Node, list[Range]] = {}  # of what a linear node gives, the columns that are this rank's
        self.heads: dict[Node, Range] = {}  # key/value heads of an attention node
        self.columns: dict[Node, Range] = {}  # of what a linear node reads, for those that give partial products
        self.made: dict[Node, Node] = {}

    def run(self, logits: Value) -> tuple[Graph, Value]:
        for node in self.graph.nodes:
            if isinstance(node.operation, Linear) and node.operation.n_head:
                raise self._undivided("matrices a head are not divided yet")
            if isinstance(node.operation, Route):
                raise self._undivided("mixtures of experts are not divided by rows yet")
            if isinstance(node.operation, Attention):
                self._attention(node, node.operation)
            elif isinstance(node.operation, GLU):
                self._glu(node)
        graph = Graph(self.graph.file)
        for node in self.graph.nodes:
            self.made[node] = self._copy(node)
            graph.nodes.append(self.made[node])
        return graph, self._value(logits)

    # ---- what is whose

    def _attention(self, node: Node, attention: Attention) -> None:
        head_dim, n_head_kv = attention.head_dim, attention.n_head_kv
        if attention.sinks or attention.alibi or attention.kv_layer is not None or attention.v_head_dim != head_dim:
            raise self._undivided("attention of this kind is not divided by heads")
        q_width = attention.n_head // n_head_kv * head_dim
        first, last = self._own_range(node, n_head_kv, q_width, f"{n_head_kv} key/value heads")
        self.heads[node] = first, last
        for value, width in zip(node.inputs, (q_width, head_dim, head_dim), strict=True):
            self._keep(value, node, (first * width, last * width))
        self._read(node, (first * q_width, last * q_width))

    def _glu(self, node: Node) -> None:
        own = self._own_range(node, node.n_cols, 1, f"a feed-forward of {node.n_cols} columns")
        for value in node.inputs:
            self._keep(value, node, own)
        self._read(node, own)

    def _own_range(self, node: Node, n: int, width: int, what: str) -> Range:
        """This rank's of n units, `width` columns each, of a node's output: about as many as every other rank's, cut
        where blocks of the weights that read them begin."""
        _, product = self._reader(node)
        weight = product.weight
        block = max(ALIGN, by_id(weight.type).block_size)
        places = [unit for unit in range(n + 1) if unit * width % block == 0]
        cuts = [min(places, key=self._distance_from(n * i / self.rank.count)) for i in range(self.rank.count)] + [n]
        if any(a >= b for a, b in pairwise(cuts)):
            blocks = f" of whole blocks of {block} columns ({weight.type_name})" if width * n % block == 0 else ""
            raise self._undivided(f"{what} do not divide into {self.rank.count} shares{blocks}")
        return cuts[self.rank.index], cuts[self.rank.index + 1]

    def _undivided(self, why: str) -> GGPYError:
        return GGPYError(f"{self.graph.file.path}: {why}; split the model by layers (--split-mode layer).")

    @staticmethod
    def _distance_from(ideal: float) -> Callable[[int], float]:
        return lambda place: abs(place - ideal)

    def _reader(self, node: Node) -> tuple[Node, Linear]:
        """The one product that reads a node's output."""
        readers = self.readers.get(node, [])
        operation = readers[0].operation if len(readers) == 1 else None
        if not isinstance(operation, Linear):
            raise self._undivided(f"more than one matrix product reads what {type(node.operation).__name__} gives")
        return readers[0], operation

    def _read(self, node: Node, columns: Range) -> None:
        reader, _ = self._reader(node)
        self.columns[reader] = columns

    def _keep(self, value: Value, reader: Node, own: Range) -> None:
        node = value.node
        if not isinstance(node.operation, Linear) or any(other is not reader for other in self.readers[node]):
            raise self._undivided(f"others read what {type(reader.operation).__name__} reads too")
        self.kept.setdefault(node, []).append((value.first + own[0], value.first + own[1]))
        self.kept[node].sort()

    # ---- the rank's own nodes

    def _value(self, value: Value) -> Value:
        made = self.made[value.node]
        if value.node not in self.kept:
            return Value(made, value.first, made.n_cols if value.n_cols == value.node.n_cols else value.n_cols)
        at = 0
        for first, last in self.kept[value.node]:
            if value.first <= first < value.first + value.n_cols:
                return Value(made, at, last - first)
            at += last - first
        raise AssertionError("nobody said that these columns are read")

    def _copy(self, node: Node) -> Node:
        made, operation = replace(node, inputs=tuple(self._value(value) for value in node.inputs)), node.operation
        if isinstance(operation, Linear) and node in self.kept:
            rows, bias = self.kept[node], operation.bias
            weight = TensorSlice.of(operation.weight, rows)
            made.operation = replace(operation, weight=weight, bias=TensorSlice.of(bias, rows) if bias else None)
            made.n_cols = sum(last - first for first, last in rows)
        elif isinstance(operation, Linear) and node in self.columns:
            weight = TensorSlice.of(operation.weight, columns=self.columns[node])
            bias = operation.bias if self.rank.index == 0 else None  # it is added once
            made.operation = replace(operation, weight=weight, bias=bias, partial=True)
        elif isinstance(operation, Attention):
            first, last = self.heads[node]
            group = operation.n_head // operation.n_head_kv
            made.n_cols = (last - first) * group * operation.head_dim
            made.operation = replace(operation, n_head=(last - first) * group, n_head_kv=last - first)
        elif isinstance(operation, GLU):
            made.n_cols = made.inputs[0].n_cols
        return made
