"""A model divided over devices that work side by side on every token: tensor parallelism (arXiv 1909.08053).

Each *rank* has some of the heads and some of the columns of every feed-forward: rows of the matrices that make them,
and the columns of those that read them. What the latter give is a *partial* product; the sum over the ranks is what the
model asks for, and everything between two sums is every rank's own. Norms, embedding and logits are whole on each.

Works on the graph, which tells by itself what belongs together, so architectures know nothing of it. Knows nothing of
devices; `ggpy.cuda.all_reduce` makes the sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ggpy.errors import GGPYError
from ggpy.gguf_file import TensorInfo
from ggpy.graph import Graph, Node, Value, read_vector
from ggpy.quant import by_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ggpy.gguf_file import GGUFFile

ALIGN = 32  # columns: what reads the bytes of a matrix's columns begins with a whole block of activations

Range = tuple[int, int]  # first, one past the last


@dataclass(frozen=True)
class Rank:
    """One of `count` devices that share a model."""

    index: int
    count: int


@dataclass(frozen=True)
class TensorSlice(TensorInfo):
    """Some rows and columns of a tensor of the file; `shape` and `nbytes` are those of the slice."""

    rows: tuple[Range, ...]
    columns: Range | None = None


def divided(graph: Graph, logits: Value, rank: Rank) -> tuple[Graph, Value]:
    """A rank's part of a graph: linear nodes that give partial products have the parameter "partial".

    Raises GGPYError where the model cannot be divided so.
    """
    return _Divider(graph, rank).run(logits)


def raw_rows(file: GGUFFile, info: TensorInfo, first: int = 0, last: int | None = None) -> np.ndarray:
    """Rows first .. last of a matrix, or of a slice of one, as they are stored: uint8 [rows, bytes of a row]."""
    stored = file.tensors[info.name]
    row_bytes = stored.nbytes // stored.shape[0]
    last = info.shape[0] if last is None else last

    def read(first: int, last: int) -> np.ndarray:
        return file.read(info.name, first * row_bytes, (last - first) * row_bytes).reshape(-1, row_bytes)

    if not isinstance(info, TensorSlice):
        return read(first, last)
    parts, place = [], 0  # the slice's row that the next range begins with
    for begin, end in info.rows:
        low, high = max(first, place), min(last, place + end - begin)
        if low < high:
            parts.append(read(begin + low - place, begin + high - place))
        place += end - begin
    rows = np.concatenate(parts)
    if info.columns:
        left, right = (by_id(info.type).row_bytes(column) for column in info.columns)
        rows = np.ascontiguousarray(rows[:, left:right])
    return rows


def vector(file: GGUFFile, info: TensorInfo) -> np.ndarray:
    """A small tensor, or a slice of one, as float32."""
    values = read_vector(file, info)
    if isinstance(info, TensorSlice):
        values = np.concatenate([values[first:last] for first, last in info.rows])
    return values


def _slice(info: TensorInfo | None, rows: Sequence[Range] | None = None, columns: Range | None = None) -> TensorInfo:
    assert info is not None
    n_rows = sum(last - first for first, last in rows) if rows else info.shape[0]
    n_cols = columns[1] - columns[0] if columns else info.shape[-1]
    shape = (n_rows, n_cols) if len(info.shape) == 2 else (n_rows,)
    n_bytes = n_rows * by_id(info.type).row_bytes(n_cols) if len(shape) == 2 else info.nbytes // info.shape[0] * n_rows
    return TensorSlice(
        info.name, info.type, info.type_name, shape, info.offset, n_bytes, tuple(rows or [(0, n_rows)]), columns
    )


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
            if node.kind == "attention":
                self._attention(node)
            elif node.kind == "swiglu":
                self._swiglu(node)
        graph = Graph(self.graph.file)
        for node in self.graph.nodes:
            self.made[node] = self._copy(node)
            graph.nodes.append(self.made[node])
        return graph, self._value(logits)

    # ---- what is whose

    def _attention(self, node: Node) -> None:
        p, q_width = node.params, node.params["n_head"] // node.params["n_head_kv"] * node.params["head_dim"]
        first, last = self._own_range(node, p["n_head_kv"], q_width, f"{p['n_head_kv']} key/value heads")
        self.heads[node] = first, last
        for value, width in zip(node.inputs, (q_width, p["head_dim"], p["head_dim"]), strict=True):
            self._keep(value, node, (first * width, last * width))
        self._read(node, (first * q_width, last * q_width))

    def _swiglu(self, node: Node) -> None:
        own = self._own_range(node, node.n_cols, 1, f"a feed-forward of {node.n_cols} columns")
        for value in node.inputs:
            self._keep(value, node, own)
        self._read(node, own)

    def _own_range(self, node: Node, n: int, width: int, what: str) -> Range:
        """This rank's of n units, `width` columns each, of what a node gives: about as many as every other's, cut where
        blocks of the weights that read them begin."""
        weight = self._reader(node).weights["weight"]
        assert weight is not None
        block = max(ALIGN, by_id(weight.type).block_size)
        places = [unit for unit in range(n + 1) if unit * width % block == 0]
        cuts = [min(places, key=self._distance_from(n * i / self.rank.count)) for i in range(self.rank.count)] + [n]
        if any(a >= b for a, b in pairwise(cuts)):
            raise GGPYError(
                f"{self.graph.file.path}: {what} do not divide into {self.rank.count} shares"
                + (f" of whole blocks of {block} columns ({weight.type_name})" if width * n % block == 0 else "")
                + "; split the model by layers (--split-mode layer)."
            )
        return cuts[self.rank.index], cuts[self.rank.index + 1]

    @staticmethod
    def _distance_from(ideal: float) -> Callable[[int], float]:
        return lambda place: abs(place - ideal)

    def _reader(self, node: Node) -> Node:
        """The product that alone reads what a node gives."""
        readers = self.readers.get(node, [])
        if len(readers) != 1 or readers[0].kind != "linear":
            raise NotImplementedError(f"what {node.kind} gives must be read by one matrix product")
        return readers[0]

    def _read(self, node: Node, columns: Range) -> None:
        self.columns[self._reader(node)] = columns

    def _keep(self, value: Value, reader: Node, own: Range) -> None:
        node = value.node
        if node.kind != "linear" or any(other is not reader for other in self.readers[node]):
            raise NotImplementedError(f"what {reader.kind} reads must come from matrix products of its own")
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
        made = replace(node, inputs=tuple(self._value(value) for value in node.inputs))
        weight, bias = node.weights.get("weight"), node.weights.get("bias")
        if node in self.kept:
            rows = self.kept[node]
            made.weights = {"weight": _slice(weight, rows), "bias": _slice(bias, rows) if bias else None}
            made.n_cols = sum(last - first for first, last in rows)
        elif node in self.columns:
            own_bias = bias if self.rank.index == 0 else None  # it is added once
            made.weights = {"weight": _slice(weight, columns=self.columns[node]), "bias": own_bias}
            made.params = {**node.params, "partial": True}
        elif node in self.heads:
            first, last = self.heads[node]
            group = node.params["n_head"] // node.params["n_head_kv"]
            made.n_cols = (last - first) * group * node.params["head_dim"]
            made.params = {**node.params, "n_head": (last - first) * group, "n_head_kv": last - first}
        elif node.kind == "swiglu":
            made.n_cols = made.inputs[0].n_cols
        return made
