"""The operations that graphs and programs are made of, each with its weights and numbers.

The first part holds the operations that architectures use (those with recurrent state are in `ggpy.graph.recurrent`);
passes replace some by those of the second part, which a device runs as one. Operands are not here: a graph has values
(`ggpy.graph.language`), a program regions of buffers (`ggpy.graph.program`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.graph.state import KVState, LatentState, State

if TYPE_CHECKING:
    import numpy as np

    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.rope import Rope

ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "sigmoid", "softplus", "tanh")
GATINGS = ("softmax", "sigmoid", "softmax_topk")  # of experts: before the choice, or of the chosen logits alone
POOLINGS = ("mean", "cls", "last")


@dataclass(frozen=True)
class Operation:
    """One kind of computation with what it needs beside its operands."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The weights that the operation reads."""
        return ()

    @property
    def state(self) -> State | None:
        """The state that the operation keeps between steps."""
        return None


@dataclass(frozen=True)
class Embed(Operation):
    """Rows of a table: by "token", by "position", or by the token's "type", which is 0 where a step does not say."""

    table: TensorInfo
    index: str = "token"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.table,)


class Hidden(Operation):
    """Rows that another program made, one for each token, and that are there before this one runs."""


@dataclass(frozen=True)
class Norm(Operation):
    """A norm over the columns of a row, or, where `width` is not 0, over each run of `width` columns; times a weight of
    as many entries as the row or the run has, plus a bias.

    kind: "rms", by the root mean square (arXiv 1910.07467); "layer", by mean and variance (arXiv 1607.06450); "l2", by
    the length of the vector, at least `eps`."""

    weight: TensorInfo | None
    eps: float
    kind: str = "rms"
    bias: TensorInfo | None = None
    width: int = 0

    @property
    def plain(self) -> bool:
        """True for the norm that products take in: by the root mean square of the whole row, without a bias."""
        return self.kind == "rms" and not self.bias and not self.width

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(info for info in (self.weight, self.bias) if info)


@dataclass(frozen=True)
class Linear(Operation):
    """x @ weight.T + bias. `partial`: a term of a sum over all ranks that share a model
    (`ggpy.graph.tensor_parallel`). With a `route` it is a product for each chosen expert, with that one's part of
    weight [n_experts, n_rows, n_cols] and bias [n_experts, n_rows]. With `n_head` it is one for each of so many equal
    runs of columns, with that one's part of weight [n_head, n_rows, n_cols]. Set by passes: `dtype`, the form in which
    it reads activations, and `accumulate`, where it is added to what the destination holds."""

    weight: TensorInfo
    bias: TensorInfo | None = None
    partial: bool = False
    route: Route | None = None
    dtype: str = ""
    accumulate: bool = False
    n_head: int = 0

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)


@dataclass(frozen=True)
class Elementwise(Operation):
    """Each number computed from the numbers at its place in one or two values of the same shape."""

    @property
    def function(self) -> str:
        """The name by which executors know what is computed."""
        raise NotImplementedError

    @property
    def constant(self) -> float:
        """The number that the function takes beside its operands."""
        return 0.0


class Add(Elementwise):
    """x + y."""

    function = "add"


class Mul(Elementwise):
    """x * y."""

    function = "mul"


class SigmoidGate(Elementwise):
    """x * sigmoid(y)."""

    function = "sigmoid_gate"


@dataclass(frozen=True)
class Scale(Elementwise):
    """x * factor."""

    factor: float
    function = "scale"

    @property
    def constant(self) -> float:
        return self.factor


@dataclass(frozen=True)
class Softcap(Elementwise):
    """cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118)."""

    cap: float
    function = "softcap"

    @property
    def constant(self) -> float:
        return self.cap


@dataclass(frozen=True)
class Activation(Elementwise):
    """An activation of x: one of ACTIVATIONS."""

    activation: str

    @property
    def function(self) -> str:
        return self.activation


@dataclass(frozen=True)
class GLU(Elementwise):
    """A gated linear unit: activation(gate) * up (arXiv 2002.05202), SwiGLU where the activation is "silu". Besides
    ACTIVATIONS there is "swiglu_oai", gpt-oss's: g * sigmoid(1.702 g) * (u + 1), where g = min(gate, 7) and u is up
    within -7 .. 7."""

    activation: str

    @property
    def function(self) -> str:
        return f"{self.activation}_glu"


@dataclass(frozen=True)
class ScaleColumns(Operation):
    """x * a weight: one number a column, or one for all."""

    weight: TensorInfo

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class ShiftColumns(Operation):
    """x + a weight: one number a column."""

    weight: TensorInfo

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class Concat(Operation):
    """Columns of two values in `n_groups` equal runs each: the first run of one, the first of the other, and so on."""

    n_groups: int


@dataclass(frozen=True)
class SelectColumns(Operation):
    """Some columns of each of `n_groups` equal runs: from `first` on, as many as the result has a run."""

    n_groups: int
    first: int


class SelectOutputs(Operation):
    """Only the rows whose logits are wanted."""


@dataclass(frozen=True)
class Pool(Operation):
    """One row for each wanted output, of the sequence from position 0 up to that token: the "mean" of its rows, the
    first ("cls") or the "last". In a step without pooling (`Runtime.embed`) it is the last whatever the kind."""

    kind: str


@dataclass(frozen=True)
class Temperature:
    """A factor of queries that grows with the position: 1 + beta * log(1 + floor((position + offset) / length)) (Llama
    4, whose offset is 1, and Mistral 3, whose offset is 0; arXiv 2501.19399)."""

    beta: float
    length: int
    offset: int = 0

    def factors(self, n: int) -> np.ndarray:
        """The factors of positions 0 .. n - 1: float32 [n]."""
        import numpy as np

        return np.float32(1 + self.beta * np.log1p((np.arange(n) + self.offset) // self.length))


@dataclass(frozen=True)
class Attention(Operation):
    """Rope on queries and keys, keys and values into the cache of `layer`, then softmax attention over each token's
    slot. Heads are normalised where `q_norm` and `k_norm` are given, before rope or after it.

    A token sees the positions up to its own (`causal`) or the whole sequence, which then is in the batch: of these the
    last `window` (without causality those no further than `window` away), or those of its own run of `chunk`
    positions, or all where both are 0. Scores are scaled, capped (cap * tanh(score / cap), where `softcap` is not 0)
    and, by ALiBi (arXiv 2108.12409), lowered with the distance, by slopes up to `alibi`. `sinks` are scores, one a
    head, that take part in the softmax without a value. With `kv_layer`, keys and values are those that this earlier
    layer has stored. Rope rotates dimensions of a head from `rope_first` on. Where `latent`, values are the first
    dimensions of the keys, and are not stored."""

    layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rope: Rope | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int = 0
    scale: float = 0.0
    v_head_dim: int = 0  # 0: as the keys'
    softcap: float = 0.0
    chunk: int = 0
    causal: bool = True
    sinks: TensorInfo | None = None
    norm_after_rope: bool = False
    alibi: float = 0.0
    kv_layer: int | None = None
    rope_first: int = 0
    temperature: Temperature | None = None
    latent: bool = False

    def __post_init__(self) -> None:
        if not self.scale:
            object.__setattr__(self, "scale", float(self.head_dim**-0.5))
        if not self.v_head_dim:
            object.__setattr__(self, "v_head_dim", self.head_dim)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        norms = tuple(norm.weight for norm in (self.q_norm, self.k_norm) if norm and norm.weight)
        return (*norms, self.sinks) if self.sinks else norms

    @property
    def cache_layer(self) -> int:
        """The layer whose keys and values it reads."""
        return self.layer if self.kv_layer is None else self.kv_layer

    @property
    def state(self) -> KVState | None:
        if self.kv_layer is not None:
            return None
        reach = self.window or self.chunk
        kind = LatentState if self.latent else KVState
        return kind(self.layer, self.n_head_kv, self.head_dim, self.v_head_dim, reach, self.causal)

    @property
    def slopes(self) -> tuple[float, ...]:
        """ALiBi's slope of each head: a geometric series from 2 ** (-alibi / n) down, for n heads, a power of two;
        further heads take every other term of the series for 2n."""
        n = 1 << (self.n_head.bit_length() - 1)
        series = [2.0 ** (-self.alibi * (i + 1) / n) for i in range(n)]
        return tuple(series + [2.0 ** (-self.alibi * (2 * i + 1) / (2 * n)) for i in range(self.n_head - n)])


@dataclass(frozen=True)
class Route(Operation):
    """The choice of `n_used` of the experts for each token, from logits, one an expert: weights by softmax or sigmoid,
    before the choice or ("softmax_topk") of the chosen logits alone. `bias` is added for the choice and leaves the
    weights as they are. With `n_groups`, only experts of the `n_groups_used` groups are chosen whose `group_best` best
    sum up to most. Weights are then divided by their sum where `normalize`, and multiplied by `scale` and, where it is
    given, by the expert's number in `expert_scale`."""

    n_experts: int
    n_used: int
    gating: str
    bias: TensorInfo | None = None
    normalize: bool = False
    scale: float = 1.0
    n_groups: int = 0
    n_groups_used: int = 0
    expert_scale: TensorInfo | None = None
    group_best: int = 2  # 1 or 2

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(info for info in (self.bias, self.expert_scale) if info)


class Weigh(Operation):
    """A row for each of a token's experts: the token's, times the expert's weight."""


@dataclass(frozen=True)
class Combine(Operation):
    """The sum of what the chosen experts gave for a token, each times its weight, or, where they were given weighed
    rows, as it is."""

    weighted: bool = True


# ---- what passes make


@dataclass(frozen=True)
class GroupExperts(Operation):
    """Rows for chosen experts put in order, those of one expert side by side: the second part of a `Route`."""

    route: Route


@dataclass(frozen=True)
class QuantizeActivations(Operation):
    """Rows as products read them, in `dtype`, after a norm where there is one. They go to the buffer of activations.

    `select`: only the rows whose logits are wanted. `joins`: the attention whose parts are still to be joined.
    `route`: a row for each chosen expert, in groups; it is the token's where `spread`, and one of such rows else."""

    dtype: str
    norm: Norm | None = None
    select: bool = False
    joins: Attention | None = None
    route: Route | None = None
    spread: bool = False

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return self.norm.tensors if self.norm else ()


@dataclass(frozen=True)
class RopeStore(Operation):
    """The first part of an attention: queries rotated in place, keys rotated and stored with the values."""

    attention: Attention

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return self.attention.tensors


@dataclass(frozen=True)
class Attend(Operation):
    """The second part of an attention: what the queries find in the cache, in parts where a step is small."""

    attention: Attention


@dataclass(frozen=True)
class JoinAttention(Operation):
    """The parts of an attention joined, for readers that are no products, which join them by themselves."""

    attention: Attention
