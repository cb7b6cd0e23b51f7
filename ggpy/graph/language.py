"""A model's forward pass as a graph of values: an architecture file writes it, and `ggpy.graph.plan` turns it into a
program.

A value is a float32 matrix [n_rows, n_cols]; its rows are the tokens of a batch, or, after `select_outputs` and `pool`,
the tokens whose logits are wanted. Every weight is looked up and its shape checked here, so that a program is only ever
planned from tensors that exist and fit. Knows nothing of kernels, buffers and devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.graph.operations import (
    ACTIVATIONS,
    GATINGS,
    GLU,
    POOLINGS,
    Activation,
    Add,
    Attention,
    Combine,
    Concat,
    Elementwise,
    Embed,
    Hidden,
    Linear,
    Mul,
    Norm,
    Operation,
    Pool,
    Route,
    Scale,
    ScaleColumns,
    SelectColumns,
    SelectOutputs,
    ShiftColumns,
    SigmoidGate,
    Softcap,
    Temperature,
    Weigh,
)
from ggpy.graph.recurrent import ConvWithState, DeltaRule, SSMScan
from ggpy.graph.streams import GaussianTopK, MatchMagnitude, MixStreams
from ggpy.graph.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.rope import Rope


@dataclass(eq=False)
class Node:
    """An operation on values. Its rows are those of the batch, or of the wanted outputs (`outputs_only`): one each, or
    one for each expert that `route` chose, in its order. `layer`: the layer it is part of, if any."""

    operation: Operation
    inputs: tuple[Value, ...]
    n_cols: int
    outputs_only: bool
    route: Node | None = None
    layer: int | None = None

    @property
    def n_used(self) -> int:
        """Rows for each row of the batch or of the outputs."""
        return self.route.operation.n_used if self.route and isinstance(self.route.operation, Route) else 1


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


class Graph(Weights):
    """Builder of one model's nodes, in order. Methods return values and check the weights they name in `file`."""

    def __init__(self, file: GGUFFile) -> None:
        super().__init__(file)
        self.nodes: list[Node] = []
        self._layer: int | None = None

    def layers(self, n_layer: int) -> Iterator[int]:
        """The numbers of the layers, one after the other; what is added meanwhile is part of that layer."""
        for self._layer in range(n_layer):
            yield self._layer
        self._layer = None

    # ---- operations

    def _add(
        self,
        operation: Operation,
        inputs: tuple[Value, ...],
        n_cols: int,
        outputs_only: bool | None = None,
        route: Node | None = None,
    ) -> Value:
        """A node whose rows are those of its first input, or of the outputs, or in the order of `route`."""
        first = inputs[0].node if inputs else None
        if outputs_only is None:
            outputs_only = bool(first and first.outputs_only)
        if isinstance(operation, (Elementwise, Norm, ScaleColumns, ShiftColumns, SelectColumns, Concat)):
            route = first.route if first else None
        else:
            assert isinstance(operation, (Linear, Combine)) or first is None or first.route is None
        node = Node(operation, inputs, n_cols, outputs_only, route, self._layer)
        self.nodes.append(node)
        return Value(node, 0, n_cols)

    def embed(self, n_embd: int, name: str = "token_embd") -> Value:
        """Rows of the table `name` by the batch's tokens: [n_tokens, n_embd]."""
        return self._embed(name, n_embd, "token")

    def hidden(self, n_embd: int) -> Value:
        """Rows of another program, one for each of the batch's tokens: [n_tokens, n_embd]. The first operation of a
        graph that reads any."""
        assert not self.nodes
        return self._add(Hidden(), (), n_embd)

    def embed_positions(self, name: str, n_embd: int) -> Value:
        """Rows of the table `name` by the tokens' positions: [n_tokens, n_embd]."""
        return self._embed(name, n_embd, "position")

    def embed_types(self, name: str, n_embd: int) -> Value:
        """Rows of the table `name` by the tokens' types, of which a step may say nothing: [n_tokens, n_embd]."""
        return self._embed(name, n_embd, "type")

    def _embed(self, name: str, n_embd: int, index: str) -> Value:
        name += ".weight"
        n_rows = self.file.tensors[name].shape[0] if self.has(name) else 0
        return self._add(Embed(self.tensor(name, (n_rows, n_embd)), index), (), n_embd)

    def norm(self, x: Value, name: str | None, eps: float, kind: str = "rms", width: int = 0) -> Value:
        """A norm over the columns, or over each run of `width` columns, times the weight `name`, if any, which has as
        many entries as the row, as a vector or a row for each run, or as the run; plus its bias where the file has one.
        See `operations.Norm`."""
        assert kind in ("rms", "layer", "l2")
        assert not width or x.n_cols % width == 0
        weight = bias = None
        if name is not None:
            found = tuple(self.file.tensors[name + ".weight"].shape) if self.has(name + ".weight") else ()
            shape = found if width and found in ((width,), (x.n_cols // width, width)) else (x.n_cols,)
            weight, bias = self.tensor(name + ".weight", shape), self.optional(name + ".bias", shape)
        return self._add(Norm(weight, eps, kind, bias, 0 if width == x.n_cols else width), (x,), x.n_cols)

    def linear(self, x: Value, name: str, n_rows: int) -> Value:
        """x @ weight.T (+ bias where the file has one): [n, x.n_cols] to [n, n_rows]. A file may have a matrix of one
        row as a vector."""
        weight = self.stack(name + ".weight", (n_rows, x.n_cols))
        return self._add(Linear(weight, self.optional(name + ".bias", (n_rows,))), (x,), n_rows)

    def head_linear(self, x: Value, name: str, n_head: int, n_rows: int) -> Value:
        """For each of `n_head` equal runs of x's columns, run @ that head's weight.T: the matrices `name`
        [n_head, n_rows, x.n_cols / n_head], to [n, n_head * n_rows]. Raises GGPYError where the sizes of a matrix are
        no multiples of 32."""
        n_cols = x.n_cols // n_head
        assert x.n_cols == n_head * n_cols
        if n_rows % 32 or n_cols % 32:
            raise GGPYError(
                f"{self.file.path}: the matrices {name!r} are {n_rows} x {n_cols} a head; ggpy needs multiples of 32."
            )
        weight = self.stack(name + ".weight", (n_head, n_rows, n_cols))
        return self._add(Linear(weight, n_head=n_head), (x,), n_head * n_rows)

    def _elementwise(self, operation: Elementwise, *values: Value) -> Value:
        assert all(value.n_cols == values[0].n_cols for value in values)
        rows = {(value.node.outputs_only, value.node.route) for value in values}
        assert len(rows) == 1
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
        """activation(gate) * up; `activation` is one of `operations.ACTIVATIONS` or "swiglu_oai"."""
        assert activation in (*ACTIVATIONS, "swiglu_oai")
        return self._elementwise(GLU(activation), gate, up)

    def scale_columns(self, x: Value, name: str) -> Value:
        """x * the vector `name`, which has a number for each column, or one for all."""
        alike = self.has(name) and self.file.tensors[name].shape == (1,)
        return self._add(ScaleColumns(self.tensor(name, (1 if alike else x.n_cols,))), (x,), x.n_cols)

    def shift_columns(self, x: Value, name: str) -> Value:
        """x + the vector `name`, which has a number for each column."""
        return self._add(ShiftColumns(self.tensor(name, (x.n_cols,))), (x,), x.n_cols)

    def concat(self, a: Value, b: Value, n_groups: int = 1) -> Value:
        """The columns of a and b side by side, or, where they are `n_groups` equal runs each (heads), the runs of both
        in turn: [rows, a.n_cols + b.n_cols]."""
        assert a.n_cols % n_groups == b.n_cols % n_groups == 0
        assert (a.node.outputs_only, a.node.route) == (b.node.outputs_only, b.node.route)
        return self._add(Concat(n_groups), (a, b), a.n_cols + b.n_cols)

    def select_columns(self, x: Value, n_groups: int, first: int, n: int) -> Value:
        """From each of `n_groups` equal runs of x's columns, n from `first` on: [rows, n_groups * n]."""
        assert x.n_cols % n_groups == 0
        assert 0 <= first < first + n <= x.n_cols // n_groups
        return self._add(SelectColumns(n_groups, first), (x,), n_groups * n)

    def mix_streams(self, x: Value, coefficients: Value, n: int) -> Value:
        """x's n equal runs of columns mixed, each row by its own coefficients: [rows, coefficients.n_cols / n runs];
        see `streams.MixStreams`."""
        assert x.n_cols % n == coefficients.n_cols % n == 0
        return self._add(MixStreams(n), (x, coefficients), coefficients.n_cols // n * (x.n_cols // n))

    def match_magnitude(self, x: Value, other: Value, least: float) -> Value:
        """x's rows scaled to the root mean square of the other's; their own counts as `least` at least."""
        assert x.n_cols == other.n_cols
        return self._add(MatchMagnitude(least), (x, other), x.n_cols)

    def gaussian_topk(self, x: Value, deviations: float) -> Value:
        """The part of x above its row's mean plus so many standard deviations, 0 elsewhere."""
        return self._add(GaussianTopK(deviations), (x,), x.n_cols)

    def attention(
        self,
        q: Value,
        k: Value | None,
        v: Value | None,
        *,
        layer: int,
        n_head: int,
        n_head_kv: int,
        rope: Rope | None,
        q_norm: str | None = None,
        k_norm: str | None = None,
        eps: float = 0.0,
        scale: float | None = None,
        softcap: float = 0.0,
        window: int = 0,
        chunk: int = 0,
        causal: bool = True,
        sinks: str | None = None,
        norm_after_rope: bool = False,
        alibi: float = 0.0,
        kv_layer: int | None = None,
        rope_first: int = 0,
        temperature: Temperature | None = None,
        v_of_k: int = 0,
    ) -> Value:
        """Rope on q and k, k and v into the cache of `layer`, then softmax attention over each token's slot; see
        `operations.Attention`.

        q [n, n_head * head_dim]; k and v [n, n_head_kv * their head's dimensions], or None where those of `kv_layer`
        are read. Without v, values are the first `v_of_k` dimensions of each key, as they are after norm and rope, and
        keys are all that is kept (a latent cache). Heads are normalised, with `eps`, where the file has the `q_norm`
        and `k_norm` weights. scale: of scores, 1 / sqrt(head_dim) where None. sinks: the name of a tensor [n_head].
        rope_first: the first dimension of a head that rope rotates.
        """
        head_dim = q.n_cols // n_head
        stored = next((node.operation for node in self.nodes if self._stores(node, kv_layer)), None)
        if kv_layer is None:
            assert k is not None
            assert k.n_cols == n_head_kv * head_dim
            assert (v is None) == (v_of_k > 0)
            assert v_of_k <= head_dim
            v_head_dim, latent = v.n_cols // n_head_kv if v is not None else v_of_k, v is None
        else:
            assert isinstance(stored, Attention)
            assert (stored.n_head_kv, stored.head_dim) == (n_head_kv, head_dim)
            v_head_dim, latent = stored.v_head_dim, stored.latent
        assert rope is None or rope_first + rope.n_rot <= head_dim
        if head_dim % 2:
            raise GGPYError(f"{self.file.path}: its heads have {head_dim} dimensions; ggpy needs an even number.")
        names = (name and self.optional(name + ".weight", (head_dim,)) for name in (q_norm, k_norm))
        q_normed, k_normed = (Norm(weight, eps) if weight else None for weight in names)
        attention = Attention(
            layer, n_head, n_head_kv, head_dim, rope, q_normed, k_normed, window, scale or 0.0, v_head_dim, softcap,
            chunk, causal, self.tensor(sinks, (n_head,)) if sinks else None, norm_after_rope, alibi, kv_layer,
            rope_first, temperature, latent,
        )  # fmt: skip
        inputs = (q, *(value for value in (k, v) if value is not None))
        return self._add(attention, inputs, n_head * v_head_dim)

    @staticmethod
    def _stores(node: Node, layer: int | None) -> bool:
        return isinstance(node.operation, Attention) and node.operation.layer == layer

    def conv_state(self, x: Value, name: str, width: int, layer: int, activation: str | None = None) -> Value:
        """A causal convolution of each column over `width` tokens of its sequence, with the weight `name`
        [n_cols, width] and its bias where the file has one; then silu where `activation` says so."""
        assert activation in (None, "silu")
        weight = self.tensor(name + ".weight", (x.n_cols, width))
        bias = self.optional(name + ".bias", (x.n_cols,))
        return self._add(ConvWithState(weight, bias, layer, activation), (x,), x.n_cols)

    def delta_rule(
        self,
        q: Value,
        k: Value,
        v: Value,
        decay: Value,
        beta: Value,
        *,
        layer: int,
        n_k_head: int,
        n_v_head: int,
        tiled: bool = True,
    ) -> Value:
        """The gated delta rule over each token's slot: q and k [n, n_k_head * d_k], v [n, n_v_head * d_v], decay (a
        logarithm) and beta [n, n_v_head] to [n, n_v_head * d_v]; see `recurrent.DeltaRule`."""
        assert q.n_cols == k.n_cols
        assert decay.n_cols == beta.n_cols == n_v_head
        if n_v_head % n_k_head:
            raise GGPYError(f"{self.file.path}: {n_v_head} value heads are no multiple of {n_k_head} key heads.")
        operation = DeltaRule(layer, n_k_head, n_v_head, k.n_cols // n_k_head, v.n_cols // n_v_head, tiled)
        return self._add(operation, (q, k, v, decay, beta), v.n_cols)

    def ssm_scan(
        self,
        x: Value,
        dt: Value,
        b: Value,
        c: Value,
        *,
        layer: int,
        n_head: int,
        n_groups: int,
        a: str,
        d: str | None = None,
    ) -> Value:
        """The selective scan of Mamba and Mamba-2 over each token's slot: x [n, n_head * head_dim], dt [n, n_head] with
        its bias, before softplus, which the scan takes itself, b and c [n, n_groups * d_state] to [n, x.n_cols]; see
        `recurrent.SSMScan`.

        a, d: full names of tensors, -exp(A_log) and D of the papers: a [n_head, d_state] (Mamba, whose heads are single
        channels) or [n_head] or [n_head, 1] (Mamba-2), d [n_head] or [n_head, 1]."""
        assert x.n_cols % n_head == 0
        assert dt.n_cols == n_head
        assert b.n_cols == c.n_cols
        if n_head % n_groups or b.n_cols % n_groups:
            raise GGPYError(f"{self.file.path}: {n_groups} groups do not divide {n_head} heads of a state-space model.")
        head_dim, d_state = x.n_cols // n_head, b.n_cols // n_groups

        def tensor(name: str, also: tuple[int, ...] = ()) -> TensorInfo:
            """One of the forms that a number a head has in files, or `also`."""
            shape = self.file.tensors[name].shape if self.has(name) else ()
            return self.tensor(name, shape if shape in ((n_head,), also) and shape else (n_head, 1))

        decays = tensor(a, (n_head, d_state) if head_dim == 1 else ())
        operation = SSMScan(layer, n_head, n_groups, head_dim, d_state, decays, tensor(d) if d else None)
        return self._add(operation, (x, dt, b, c), x.n_cols)

    def route(
        self,
        logits: Value,
        n_used: int,
        *,
        gating: str = "softmax",
        bias: str | None = None,
        normalize: bool = False,
        scale: float = 1.0,
        n_groups: int = 0,
        n_groups_used: int = 0,
        expert_scale: str | None = None,
        group_best: int = 2,
    ) -> Value:
        """The choice of `n_used` experts for each token, from logits [n, n_experts]: what `expert_linear` and `combine`
        take. bias, expert_scale: full names of tensors; see `operations.Route`."""
        n_experts = logits.n_cols
        assert gating in GATINGS
        groups_fit = not n_groups or (n_experts % n_groups == 0 and 0 < n_groups_used <= n_groups)
        room = n_experts // n_groups * n_groups_used if n_groups and groups_fit else n_experts
        if not groups_fit or not 0 < n_used <= room:
            raise GGPYError(
                f"{self.file.path}: {n_used} of {n_experts} experts in {n_groups_used} of {n_groups} groups cannot be"
                " chosen; the file's metadata is wrong."
            )
        chosen_by = self.tensor(bias, (n_experts,)) if bias else None
        each = self.tensor(expert_scale, (n_experts,)) if expert_scale else None
        operation = Route(
            n_experts, n_used, gating, chosen_by, normalize, scale, n_groups, n_groups_used, each, group_best
        )
        return self._add(operation, (logits,), 2 * n_used)

    def expert_linear(self, x: Value, name: str, n_rows: int, route: Value) -> Value:
        """For each token and each of its experts, x @ that expert's weight.T (+ bias where the file has one). x has a
        row for each token, or one for each of its experts, as this gives: [n * n_used, n_rows]. A file may have a
        single expert as a plain matrix."""
        operation = route.node.operation
        assert isinstance(operation, Route)
        assert x.node.route in (None, route.node)
        n_experts, bias = operation.n_experts, None
        weight = self.stack(name + ".weight", (n_experts, n_rows, x.n_cols))
        if self.has(name + ".bias"):
            bias = self.stack(name + ".bias", (n_experts, n_rows))
        linear = Linear(weight, bias, route=operation)
        return self._add(linear, (x, route), n_rows, route=route.node)

    def weigh(self, x: Value, route: Value) -> Value:
        """Each token's row times the weight of each of its experts: [n, n_cols] to [n * n_used, n_cols]."""
        assert x.node.route is None
        return self._add(Weigh(), (x, route), x.n_cols, route=route.node)

    def combine(self, y: Value, route: Value, *, weighted: bool = True) -> Value:
        """The sum of what a token's experts gave, each times its weight unless they were given weighed rows:
        [n * n_used, n_cols] to [n, n_cols]."""
        assert y.node.route is route.node
        return self._add(Combine(weighted), (y, route), y.n_cols)

    def select_outputs(self, x: Value) -> Value:
        """Only the rows whose logits are wanted."""
        return self._add(SelectOutputs(), (x,), x.n_cols, outputs_only=True)

    def pool(self, x: Value, kind: str) -> Value:
        """One row for each wanted output, of the sequence that it ends; `kind` is one of `operations.POOLINGS`. A step
        may ask for rows as they are instead: those of the wanted outputs."""
        assert kind in POOLINGS
        return self._add(Pool(kind), (x,), x.n_cols, outputs_only=True)

    def output(self, x: Value, n_vocab: int) -> Value:
        """The logits [n_outputs, n_vocab], through `output.weight` or, where embeddings are tied,
        `token_embd.weight`."""
        return self.linear(x, "output" if self.has("output.weight") else "token_embd", n_vocab)
