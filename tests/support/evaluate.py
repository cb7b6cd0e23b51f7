"""The value of a graph, node by node, in numpy's float64: what fused and placed programs are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ggpy.gguf.file import GGUFFile, TensorInfo
from ggpy.gguf.slices import raw_rows, read_vector
from ggpy.graph import operations as ops
from ggpy.graph import recurrent, streams
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
    "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(x, 0),
    "tanh": np.tanh,
}


def swiglu_oai(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate * sigmoid(1.702 * gate) * (up + 1)


def evaluate(
    graph: Graph, logits: Value, tokens: np.ndarray, outputs: np.ndarray, types: np.ndarray | None = None
) -> np.ndarray:
    """`logits` of one sequence from position 0: float64 [n_outputs, columns]. types: of the tokens, 0 for all where
    None."""
    indices = {"token": tokens, "position": np.arange(len(tokens)), "type": np.zeros(len(tokens), int)}
    if types is not None:
        indices["type"] = types
    made: dict[Node, np.ndarray] = {}

    def value(v: Value) -> np.ndarray:
        return made[v.node][..., v.first : v.first + v.n_cols]

    for node in graph.nodes:
        inputs = [value(v) for v in node.inputs]
        if isinstance(node.operation, ops.Attention) and node.operation.kv_layer is not None:
            stored = next(n for n in graph.nodes if _stores(n, node.operation.kv_layer))
            assert isinstance(stored.operation, ops.Attention)
            inputs += [_keys(graph.file, stored.operation, value(stored.inputs[1]))]
            inputs += [value(v) for v in stored.inputs[2:]]
        made[node] = _node(graph.file, node, inputs, indices, outputs)
    return value(logits)


def _stores(node: Node, layer: int) -> bool:
    return isinstance(node.operation, ops.Attention) and node.operation.layer == layer


def _matrix(file: GGUFFile, info: TensorInfo) -> np.ndarray:
    return by_id(info.type).dequantize(raw_rows(file, info)).reshape(info.shape).astype(np.float64)


def _norm(file: GGUFFile, norm: ops.Norm, x: np.ndarray) -> np.ndarray:
    runs = x.reshape(len(x), -1, norm.width or x.shape[1])
    if norm.kind == "layer":
        runs = runs - runs.mean(-1, keepdims=True)
    size = (runs * runs).sum(-1, keepdims=True) if norm.kind == "l2" else (runs * runs).mean(-1, keepdims=True)
    runs = runs / np.sqrt(size + norm.eps)
    for info, join in ((norm.weight, np.multiply), (norm.bias, np.add)):
        if info:
            values = read_vector(file, info)
            runs = join(runs, values.reshape(-1, runs.shape[2]))
    return runs.reshape(x.shape)


def _turn(whole: np.ndarray, rope: Rope, begin: int) -> np.ndarray:
    """Heads [n, heads, head_dim], rotated from the dimension `begin` on."""
    x = whole[..., begin:]
    table = rope.table(0, len(x), len(x)).astype(np.float64)
    c, s = table[:, None, :, 0], table[:, None, :, 1]
    out, half = x.copy(), rope.n_rot // 2
    if rope.style == "interleaved":
        first, second = np.s_[..., 0 : rope.n_rot : 2], np.s_[..., 1 : rope.n_rot : 2]
    else:
        first, second = np.s_[..., :half], np.s_[..., half : rope.n_rot]
    out[first], out[second] = x[first] * c - x[second] * s, x[first] * s + x[second] * c
    return np.concatenate([whole[..., :begin], out], -1)


def _heads(file: GGUFFile, a: ops.Attention, norm: ops.Norm | None, x: np.ndarray) -> np.ndarray:
    """Heads [n, heads, head_dim], normalised and turned."""
    x = x.reshape(len(x), -1, a.head_dim)

    def normed(x: np.ndarray) -> np.ndarray:
        return np.stack([_norm(file, norm, row) for row in x]) if norm else x

    if not a.norm_after_rope:
        x = normed(x)
    if a.rope:
        x = _turn(x, a.rope, a.rope_first)
    return normed(x) if a.norm_after_rope else x


def _keys(file: GGUFFile, a: ops.Attention, k: np.ndarray) -> np.ndarray:
    """The keys that an attention stores, for one that reads them: turned already."""
    return _heads(file, a, a.k_norm, k).reshape(len(k), -1)


def _attention(
    file: GGUFFile, a: ops.Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray | None = None
) -> np.ndarray:
    n, group = len(q), a.n_head // a.n_head_kv
    q = _heads(file, a, a.q_norm, q)
    k = k.reshape(n, -1, a.head_dim) if a.kv_layer is not None else _heads(file, a, a.k_norm, k)
    v = k[..., : a.v_head_dim] if v is None else v
    if t := a.temperature:
        q = q * (1 + t.beta * np.log(1 + (np.arange(n) + t.offset) // t.length))[:, None, None]
    k, v = k.repeat(group, 1), v.reshape(n, -1, a.v_head_dim).repeat(group, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) * a.scale
    if a.softcap:
        scores = a.softcap * np.tanh(scores / a.softcap)
    back = np.arange(n)[:, None] - np.arange(n)
    if a.alibi:
        scores = scores - np.array(a.slopes)[:, None, None] * np.abs(back)
    seen = back >= 0 if a.causal else np.ones((n, n), bool)
    if a.window:
        seen = seen & (back < a.window if a.causal else np.abs(back) <= a.window)
    if a.chunk:
        seen = seen & (np.arange(n)[:, None] // a.chunk == np.arange(n) // a.chunk)
    scores = np.where(seen, scores, -np.inf)
    if a.sinks:
        sinks = np.broadcast_to(read_vector(file, a.sinks)[:, None, None], (a.n_head, n, 1))
        scores = np.concatenate([scores, sinks], 2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights[:, :, :n], v).reshape(n, -1)


def _route(file: GGUFFile, r: ops.Route, logits: np.ndarray) -> np.ndarray:
    """[n, 2 * n_used]: experts, then their weights."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = exponentials / exponentials.sum(-1, keepdims=True)
    weights = {"softmax": softmax, "sigmoid": sigmoid(logits), "softmax_topk": logits}[r.gating]
    scores = weights + (read_vector(file, r.bias) if r.bias else 0.0)
    if r.n_groups:
        groups = scores.reshape(len(scores), r.n_groups, -1)
        best = np.sort(groups, -1)[..., -r.group_best :].sum(-1)
        kept = np.argsort(-best, -1, kind="stable")[:, : r.n_groups_used]
        mask = np.full(groups.shape, -np.inf)
        np.put_along_axis(mask, kept[..., None], 0.0, 1)
        scores = (groups + mask).reshape(scores.shape)
    chosen = np.argsort(-scores, -1, kind="stable")[:, : r.n_used]
    shares = np.take_along_axis(weights, chosen, -1)
    if r.gating == "softmax_topk":
        shares = np.exp(shares - shares.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
    elif r.normalize:
        shares = shares / shares.sum(-1, keepdims=True)
    each = read_vector(file, r.expert_scale)[chosen] if r.expert_scale else 1.0
    return np.concatenate([chosen, shares * r.scale * each], 1)


def _expert_linear(file: GGUFFile, linear: ops.Linear, x: np.ndarray, route: np.ndarray) -> np.ndarray:
    """[n, n_used, rows] of x [n, columns] or [n, n_used, columns]."""
    assert linear.route
    stack = by_id(linear.weight.type).dequantize(
        np.asarray(file.data(linear.weight.name)).reshape(int(np.prod(linear.weight.shape[:2])), -1)
    )
    weights = stack.reshape(linear.weight.shape).astype(np.float64)
    chosen = route[:, : linear.route.n_used].astype(int)
    if x.ndim == 2:
        x = np.broadcast_to(x[:, None], (len(x), linear.route.n_used, x.shape[1]))
    result = np.einsum("tkrc,tkc->tkr", weights[chosen], x)
    return result + read_vector(file, linear.bias).reshape(len(weights), -1)[chosen] if linear.bias else result


def _convolve(file: GGUFFile, conv: recurrent.ConvWithState, x: np.ndarray) -> np.ndarray:
    n_cols, width = conv.weight.shape
    weight = read_vector(file, conv.weight).reshape(n_cols, width)
    padded = np.concatenate([np.zeros((width - 1, n_cols)), x])
    y = sum(weight[:, j] * padded[j : j + len(x)] for j in range(width))
    y = y + (read_vector(file, conv.bias) if conv.bias else 0.0)
    return ACTIVATIONS[conv.activation](y) if conv.activation else y


def _delta_rule(
    d: recurrent.DeltaRule, q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray
) -> np.ndarray:
    n = len(q)
    q, k, v = q.reshape(n, d.n_k_head, -1), k.reshape(n, d.n_k_head, -1), v.reshape(n, d.n_v_head, -1)
    heads = np.arange(d.n_v_head)
    of = heads % d.n_k_head if d.tiled else heads // (d.n_v_head // d.n_k_head)
    state, out = np.zeros((d.n_v_head, d.k_head_dim, d.v_head_dim)), []
    for t in range(n):
        state = state * np.exp(decay[t])[:, None, None]
        change = (v[t] - np.einsum("hkv,hk->hv", state, k[t, of])) * beta[t][:, None]
        state = state + k[t, of][:, :, None] * change[:, None]
        out.append(np.einsum("hkv,hk->hv", state, q[t, of]).reshape(-1))
    return np.stack(out)


def _ssm_scan(
    file: GGUFFile, s: recurrent.SSMScan, x: np.ndarray, dt: np.ndarray, b: np.ndarray, c: np.ndarray
) -> np.ndarray:
    n = len(x)
    x, dt = x.reshape(n, s.n_head, -1), np.logaddexp(dt, 0)
    b, c = (v.reshape(n, s.n_groups, -1).repeat(s.n_head // s.n_groups, 1) for v in (b, c))
    a = read_vector(file, s.a).astype(np.float64).reshape(s.n_head, -1)
    d = read_vector(file, s.d).astype(np.float64).reshape(-1, 1) if s.d else 0.0
    state, out = np.zeros((s.n_head, s.head_dim, s.d_state)), []
    for t in range(n):
        state = state * np.exp(dt[t][:, None] * a)[:, None, :]
        state = state + (dt[t][:, None] * x[t])[:, :, None] * b[t][:, None, :]
        out.append((np.einsum("hpn,hn->hp", state, c[t]) + d * x[t]).reshape(-1))
    return np.stack(out)


def elementwise(operation: ops.Elementwise, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if isinstance(operation, ops.Activation):
        return ACTIVATIONS[operation.activation](x)
    if operation == ops.GLU("swiglu_oai"):
        return swiglu_oai(x, y)
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
    file: GGUFFile, node: Node, x: list[np.ndarray], indices: Mapping[str, np.ndarray], outputs: np.ndarray
) -> np.ndarray:
    operation = node.operation
    if isinstance(operation, ops.Embed):
        return _matrix(file, operation.table)[indices[operation.index]]
    if isinstance(operation, ops.Norm):
        rows = x[0].reshape(-1, x[0].shape[-1])
        return _norm(file, operation, rows).reshape(x[0].shape)
    if isinstance(operation, ops.Linear):
        if operation.n_head:
            runs = x[0].reshape(len(x[0]), operation.n_head, -1)
            weight = _matrix(file, operation.weight)
            return np.einsum("thc,hrc->thr", runs, weight).reshape(len(runs), -1)
        if operation.route:
            return _expert_linear(file, operation, *x)
        bias = read_vector(file, operation.bias) if operation.bias else 0.0
        return x[0] @ _matrix(file, operation.weight).T + bias
    if isinstance(operation, ops.ScaleColumns):
        return x[0] * read_vector(file, operation.weight)
    if isinstance(operation, ops.ShiftColumns):
        return x[0] + read_vector(file, operation.weight)
    if isinstance(operation, ops.Concat):
        runs = [v.reshape(*v.shape[:-1], operation.n_groups, -1) for v in x]
        return np.concatenate(runs, -1).reshape(*x[0].shape[:-1], -1)
    if isinstance(operation, ops.SelectColumns):
        runs = x[0].reshape(len(x[0]), operation.n_groups, -1)
        n = node.n_cols // operation.n_groups
        return runs[:, :, operation.first : operation.first + n].reshape(len(x[0]), -1)
    if isinstance(operation, ops.SelectOutputs):
        return x[0][outputs]
    if isinstance(operation, ops.Pool):
        pick = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}
        return np.stack([pick[operation.kind](x[0][: last + 1]) for last in outputs])
    if isinstance(operation, ops.Attention):
        return _attention(file, operation, *x)
    if isinstance(operation, ops.Route):
        return _route(file, operation, *x)
    if isinstance(operation, ops.Weigh):
        return x[0][:, None] * x[1][:, x[1].shape[1] // 2 :, None]
    if isinstance(operation, ops.Combine):
        if not operation.weighted:
            return x[0].sum(1)
        n_used = x[1].shape[1] // 2
        return np.einsum("tkc,tk->tc", x[0], x[1][:, n_used:])
    if isinstance(operation, streams.MixStreams):
        runs, coefficients = x[0].reshape(len(x[0]), operation.n, -1), x[1].reshape(len(x[1]), -1, operation.n)
        own = runs[:, np.arange(coefficients.shape[1]) % operation.n]
        return (own + np.einsum("toi,tic->toc", coefficients, runs)).reshape(len(runs), -1)
    if isinstance(operation, streams.MatchMagnitude):
        own, other = (np.sqrt((v * v).mean(-1, keepdims=True)) for v in x)
        return x[0] * other / np.maximum(own, operation.least)
    if isinstance(operation, streams.GaussianTopK):
        cutoff = x[0].mean(-1, keepdims=True) + operation.deviations * x[0].std(-1, keepdims=True)
        return np.maximum(x[0] - cutoff, 0)
    if isinstance(operation, recurrent.ConvWithState):
        return _convolve(file, operation, *x)
    if isinstance(operation, recurrent.DeltaRule):
        return _delta_rule(operation, *x)
    if isinstance(operation, recurrent.SSMScan):
        return _ssm_scan(file, operation, *x)
    assert isinstance(operation, ops.Elementwise)
    return elementwise(operation, x[0], x[-1])
