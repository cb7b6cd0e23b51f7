"""A model's forward pass as a graph of values: an architecture file writes it, and `ggpy.graph.plan` turns it into a
program.

A value is a float32 matrix [n_rows, n_cols]; its rows are the tokens of a batch, or, after `select_outputs`, the tokens
whose logits are wanted. Every weight is looked up and its shape checked here, so that a program is only ever planned
from tensors that exist and fit. Knows nothing of kernels, buffers and devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.gguf.slices import read_vector
from ggpy.graph.operations import (
    ACTIVATIONS,
    GLU,
    Activation,
    Add,
    Attention,
    Elementwise,
    Embed,
    Linear,
    Mul,
    Norm,
    Operation,
    Scale,
    SelectOutputs,
    SigmoidGate,
    Softcap,
)

if TYPE_CHECKING:
    import numpy as np

    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.rope import Rope


@dataclass(eq=False)
class Node:
    """An operation on values. `outputs_only`: its rows are the wanted outputs, not the batch."""

    operation: Operation
    inputs: tuple[Value, ...]
    n_cols: int
    outputs_only: bool


@dataclass(frozen=True, eq=False)
class Value:
    """`n_cols` columns, from `first` on, of what `node` computes."""

    node: Node
    first: int
    n_cols: int

    def columns(self, first: int, n_cols: int) -> Value:
        """A view of some columns."""
        assert first >= 0
        assert first + n_cols <= self.n_cols
        return Value(self.node, self.first + first, n_cols)


class Graph:
    """Builder of one model's nodes, in order. Methods return values and check the weights they name in `file`."""

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
        self, operation: Operation, inputs: tuple[Value, ...], n_cols: int, outputs_only: bool | None = None
    ) -> Value:
        if outputs_only is None:
            outputs_only = inputs[0].node.outputs_only
        node = Node(operation, inputs, n_cols, outputs_only)
        self.nodes.append(node)
        return Value(node, 0, n_cols)

    def embed(self, n_embd: int) -> Value:
        """The embedding rows of the batch's tokens: [n_tokens, n_embd]."""
        n_vocab = self.file.tensors["token_embd.weight"].shape[0] if self.has("token_embd.weight") else 0
        return self._add(Embed(self.tensor("token_embd.weight", (n_vocab, n_embd))), (), n_embd, outputs_only=False)

    def norm(self, x: Value, name: str, eps: float) -> Value:
        """Root-mean-square norm over the columns, times the weight `name`."""
        return self._add(Norm(self.tensor(name + ".weight", (x.n_cols,)), eps), (x,), x.n_cols)

    def linear(self, x: Value, name: str, n_rows: int) -> Value:
        """x @ weight.T (+ bias where the file has one): [n, x.n_cols] to [n, n_rows]."""
        weight = self.tensor(name + ".weight", (n_rows, x.n_cols))
        return self._add(Linear(weight, self.optional(name + ".bias", (n_rows,))), (x,), n_rows)

    def _elementwise(self, operation: Elementwise, *values: Value) -> Value:
        assert all(value.n_cols == values[0].n_cols for value in values)
        assert all(value.node.outputs_only == values[0].node.outputs_only for value in values)
        return self._add(operation, values, values[0].n_cols)

    def add(self, a: Value, b: Value) -> Value:
        return self._elementwise(Add(), a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self._elementwise(Mul(), a, b)

    def gate(self, x: Value, gate: Value) -> Value:
        """x * sigmoid(gate)."""
        return self._elementwise(SigmoidGate(), x, gate)

    def scale(self, x: Value, factor: float) -> Value:
        """x * factor; x itself where that is 1."""
        return x if factor == 1.0 else self._elementwise(Scale(factor), x)

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap); x itself where the cap is 0."""
        return self._elementwise(Softcap(cap), x) if cap else x

    def activation(self, x: Value, name: str) -> Value:
        """One of `operations.ACTIVATIONS` of x."""
        assert name in ACTIVATIONS
        return self._elementwise(Activation(name), x)

    def glu(self, gate: Value, up: Value, activation: str) -> Value:
        """activation(gate) * up."""
        assert activation in ACTIVATIONS
        return self._elementwise(GLU(activation), gate, up)

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
        eps: float,
        window: int,
    ) -> Value:
        """Rope on q and k, k and v into the cache of `layer`, then causal softmax attention over each token's slot.

        q [n, n_head * head_dim]; k and v [n, n_head_kv * head_dim]. Heads are normalised first, with `eps`, where the
        file has the `q_norm` and `k_norm` weights; of the positions up to its own a token sees the last `window`, or
        all where that is 0.
        """
        head_dim = q.n_cols // n_head
        assert k.n_cols == v.n_cols == n_head_kv * head_dim
        if head_dim % 2:
            raise GGPYError(f"{self.file.path}: its heads have {head_dim} dimensions; ggpy needs an even number.")
        weights = (self.optional(name + ".weight", (head_dim,)) for name in (q_norm, k_norm))
        q_normed, k_normed = (Norm(weight, eps) if weight else None for weight in weights)
        attention = Attention(layer, n_head, n_head_kv, head_dim, rope, q_normed, k_normed, window)
        return self._add(attention, (q, k, v), q.n_cols)

    def select_outputs(self, x: Value) -> Value:
        """Only the rows whose logits are wanted."""
        return self._add(SelectOutputs(), (x,), x.n_cols, outputs_only=True)

    def output(self, x: Value, n_vocab: int) -> Value:
        """The logits [n_outputs, n_vocab], through `output.weight` or, where embeddings are tied,
        `token_embd.weight`."""
        return self.linear(x, "output" if self.has("output.weight") else "token_embd", n_vocab)
