"""A model's forward pass as a graph of values: what an architecture file writes and `ggpy.program` plans.

A value is a float32 matrix [n_rows, n_cols]; its rows are the tokens of a batch, or, after `outputs_of`, the tokens
whose logits are wanted. Every weight is looked up and its shape checked here, so that a program is only ever planned
from tensors that exist and fit. Knows nothing of kernels, buffers and devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf_file import GGUFFile, TensorInfo
    from ggpy.models.base import Rope


@dataclass(eq=False)
class Node:
    """One operation: `kind` with its input values, named weights, and parameters."""

    kind: str
    inputs: tuple[Value, ...]
    n_cols: int
    outputs_only: bool  # rows are the wanted outputs, not the batch
    weights: Mapping[str, TensorInfo | None] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Value:
    """`n_cols` columns, from `first` on, of what `node` computes."""

    node: Node
    first: int
    n_cols: int

    def columns(self, first: int, n_cols: int) -> Value:
        """A view of some of the columns."""
        assert first >= 0
        assert first + n_cols <= self.n_cols
        return Value(self.node, self.first + first, n_cols)


class Graph:
    """Builds the nodes of one model in order. Methods return values and check the weights they name in `file`."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.nodes: list[Node] = []

    # ---- weights

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def tensor(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The tensor `name`, which must be there in exactly this shape (rows first)."""
        info = self.file.tensors.get(name)
        if info is None:
            raise GGPYError(
                f"{self.file.path}: the tensor {name!r} is missing; the file is incomplete or of another architecture."
            )
        if tuple(info.shape) != shape:
            found, needed = (" x ".join(map(str, s)) for s in (info.shape, shape))
            raise GGPYError(f"{self.file.path}: the tensor {name!r} is {found}; this model needs {needed}.")
        return info

    def optional(self, name: str, shape: tuple[int, ...]) -> TensorInfo | None:
        return self.tensor(name, shape) if self.has(name) else None

    def vector(self, name: str) -> np.ndarray | None:
        """The one-dimensional tensor `name` as float32, or None where the file has none."""
        if not self.has(name):
            return None
        info = self.file.tensors[name]
        if len(info.shape) != 1:
            raise GGPYError(f"{self.file.path}: the tensor {name!r} must have one dimension; it has {len(info.shape)}.")
        return read_vector(self.file, info)

    # ---- operations

    def _add(
        self, kind: str, inputs: tuple[Value, ...], n_cols: int, *, outputs_only: bool | None = None, **rest: Any
    ) -> Value:
        if outputs_only is None:
            outputs_only = inputs[0].node.outputs_only
        node = Node(kind, inputs, n_cols, outputs_only, **rest)
        self.nodes.append(node)
        return Value(node, 0, n_cols)

    def embed(self, n_embd: int) -> Value:
        """The embedding rows of the batch's tokens: [n_tokens, n_embd]."""
        n_vocab = self.file.tensors["token_embd.weight"].shape[0] if self.has("token_embd.weight") else 0
        weight = self.tensor("token_embd.weight", (n_vocab, n_embd))
        return self._add("embed", (), n_embd, outputs_only=False, weights={"weight": weight})

    def norm(self, x: Value, name: str) -> Value:
        """Root-mean-square norm (arXiv 1910.07467) over the columns, times the weight `name`."""
        weight = self.tensor(name + ".weight", (x.n_cols,))
        return self._add("norm", (x,), x.n_cols, weights={"weight": weight})

    def linear(self, x: Value, name: str, n_rows: int) -> Value:
        """x @ weight.T (+ bias where the file has one): [n, x.n_cols] to [n, n_rows]."""
        weight = self.tensor(name + ".weight", (n_rows, x.n_cols))
        bias = self.optional(name + ".bias", (n_rows,))
        return self._add("linear", (x,), n_rows, weights={"weight": weight, "bias": bias})

    def add(self, a: Value, b: Value) -> Value:
        assert a.n_cols == b.n_cols
        return self._add("add", (a, b), a.n_cols)

    def swiglu(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up, element by element."""
        assert gate.n_cols == up.n_cols
        return self._add("swiglu", (gate, up), gate.n_cols)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        layer: int,
        n_head: int,
        n_head_kv: int,
        rope: Rope,
        q_norm: str,
        k_norm: str,
        window: int,
    ) -> Value:
        """Rope on q and k, k and v into the cache of `layer`, then causal softmax attention over each token's slot.

        q [n, n_head * head_dim]; k and v [n, n_head_kv * head_dim]. Heads are normalised first where the file has the
        `q_norm` and `k_norm` weights; of the positions up to its own a token sees the last `window`, or all where that
        is 0.
        """
        head_dim = q.n_cols // n_head
        assert k.n_cols == v.n_cols == n_head_kv * head_dim
        if head_dim % 2:
            raise GGPYError(f"{self.file.path}: its heads have {head_dim} dimensions; ggpy needs an even number.")
        norms = {
            "q_norm": self.optional(q_norm + ".weight", (head_dim,)),
            "k_norm": self.optional(k_norm + ".weight", (head_dim,)),
        }
        params = {
            "layer": layer,
            "n_head": n_head,
            "n_head_kv": n_head_kv,
            "head_dim": head_dim,
            "rope": rope,
            "window": window,
        }
        return self._add("attention", (q, k, v), q.n_cols, weights=norms, params=params)

    def outputs_of(self, x: Value) -> Value:
        """Only the rows whose logits are wanted."""
        return self._add("outputs_of", (x,), x.n_cols, outputs_only=True)

    def output(self, x: Value, n_vocab: int) -> Value:
        """The logits [n_outputs, n_vocab], through `output.weight` or, where
        embeddings are tied, `token_embd.weight`."""
        return self.linear(x, "output" if self.has("output.weight") else "token_embd", n_vocab)


def read_vector(file: GGUFFile, info: TensorInfo) -> np.ndarray:
    """A small tensor as float32, flattened."""
    from ggpy.quant import by_id

    raw = np.asarray(file.data(info.name)).reshape(1, -1)
    return by_id(info.type).dequantize(raw).reshape(-1).astype(np.float32)


def read_halves(file: GGUFFile, info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """Rows of a matrix, uint8 [n, bytes of a row], in half precision: what types without a packed form run in.

    Raises GGPYError where a finite weight is beyond its range.
    """
    from ggpy.quant import by_id

    weights = by_id(info.type).dequantize(rows)
    with np.errstate(all="ignore"):
        halves = weights.astype(np.float16)
        if (np.isinf(halves) & np.isfinite(weights)).any():
            raise GGPYError(
                f"{file.path}: the tensor {info.name!r} has weights beyond 65504, the most that half precision holds, "
                f"in which ggpy runs the type {info.type_name}; convert the model to bf16 or f32."
            )
    return halves
