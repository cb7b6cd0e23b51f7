"""The value of a graph, node by node, in numpy's float64: what fused and placed programs are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ggpy.gguf.file import GGUFFile, TensorInfo
from ggpy.gguf.slices import raw_rows, read_vector
from ggpy.graph import operations as ops
from ggpy.graph.language import Graph, Node, Value
from ggpy.graph.rope import Rope
from ggpy.quant import by_id

ERF = np.vectorize(math.erf)


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "silu": lambda x: x * sigmoid(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + ERF(x * math.sqrt(0.5))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def evaluate(graph: Graph, logits: Value, tokens: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """`logits` of one sequence from position 0: float64 [n_outputs, columns]."""
    made: dict[Node, np.ndarray] = {}

    def value(v: Value) -> np.ndarray:
        return made[v.node][:, v.first : v.first + v.n_cols]

    for node in graph.nodes:
        made[node] = _node(graph.file, node.operation, [value(v) for v in node.inputs], tokens, outputs)
    return value(logits)


def _matrix(file: GGUFFile, info: TensorInfo) -> np.ndarray:
    return by_id(info.type).dequantize(raw_rows(file, info)).reshape(info.shape).astype(np.float64)


def _norm(file: GGUFFile, norm: ops.Norm, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) * read_vector(file, norm.weight)


def _turn(x: np.ndarray, rope: Rope) -> np.ndarray:
    """x [n, heads, head_dim]."""
    table = rope.table(0, len(x)).astype(np.float64)
    c, s = table[:, None, :, 0], table[:, None, :, 1]
    out, half = x.copy(), rope.n_rot // 2
    if rope.style == "interleaved":
        first, second = np.s_[..., 0 : rope.n_rot : 2], np.s_[..., 1 : rope.n_rot : 2]
    else:
        first, second = np.s_[..., :half], np.s_[..., half : rope.n_rot]
    out[first], out[second] = x[first] * c - x[second] * s, x[first] * s + x[second] * c
    return out


def _attention(file: GGUFFile, a: ops.Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    n = len(q)
    q, k, v = (x.reshape(n, -1, a.head_dim) for x in (q, k, v))
    if a.q_norm:
        q = _norm(file, a.q_norm, q)
    if a.k_norm:
        k = _norm(file, a.k_norm, k)
    group = a.n_head // a.n_head_kv
    q, k, v = _turn(q, a.rope), _turn(k, a.rope).repeat(group, 1), v.repeat(group, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) * a.scale
    back = np.arange(n)[:, None] - np.arange(n)
    scores = np.where((back >= 0) & ((back < a.window) | (a.window == 0)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1)


def _elementwise(operation: ops.Elementwise, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if isinstance(operation, ops.Activation):
        return ACTIVATIONS[operation.activation](x)
    if isinstance(operation, ops.GLU):
        return ACTIVATIONS[operation.activation](x) * y
    known: Mapping[type, np.ndarray] = {
        ops.Add: x + y,
        ops.Mul: x * y,
        ops.SigmoidGate: x * sigmoid(y),
        ops.Scale: x * operation.constant,
        ops.Softcap: operation.constant * np.tanh(x / (operation.constant or 1)),
    }
    return known[type(operation)]


def _node(
    file: GGUFFile, operation: ops.Operation, x: list[np.ndarray], tokens: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
    if isinstance(operation, ops.Embed):
        return _matrix(file, operation.table)[tokens]
    if isinstance(operation, ops.Norm):
        return _norm(file, operation, x[0])
    if isinstance(operation, ops.Linear):
        bias = read_vector(file, operation.bias) if operation.bias else 0.0
        return x[0] @ _matrix(file, operation.weight).T + bias
    if isinstance(operation, ops.SelectOutputs):
        return x[0][outputs]
    if isinstance(operation, ops.Attention):
        return _attention(file, operation, *x)
    assert isinstance(operation, ops.Elementwise)
    return _elementwise(operation, x[0], x[-1])
