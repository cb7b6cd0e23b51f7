"""The operations that graphs and programs are made of, each with its weights and numbers.

The first part holds the operations that architectures use; passes replace some by those of the second part, which a
device runs as one. Operands are not here: a graph has values (`ggpy.graph.language`), a program regions of buffers
(`ggpy.graph.program`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo
    from ggpy.graph.rope import Rope

ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf", "relu", "relu2")


@dataclass(frozen=True)
class Operation:
    """One kind of computation with what it needs beside its operands."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The weights that the operation reads."""
        return ()


@dataclass(frozen=True)
class Embed(Operation):
    """Rows of a table, those of the batch's tokens."""

    table: TensorInfo

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.table,)


@dataclass(frozen=True)
class Norm(Operation):
    """Root-mean-square norm (arXiv 1910.07467) over the columns of a row, times a weight."""

    weight: TensorInfo
    eps: float

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class Linear(Operation):
    """x @ weight.T + bias. `partial`: a term of a sum over all ranks that share a model
    (`ggpy.graph.tensor_parallel`). Set by passes: `dtype`, the form in which it reads activations, and `accumulate`,
    where it is added to what the destination holds."""

    weight: TensorInfo
    bias: TensorInfo | None = None
    partial: bool = False
    dtype: str = ""
    accumulate: bool = False

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


@dataclass(frozen=True)
class Add(Elementwise):
    """x + y."""

    function = "add"


@dataclass(frozen=True)
class Mul(Elementwise):
    """x * y."""

    function = "mul"


@dataclass(frozen=True)
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
    """A gated linear unit: activation(gate) * up (arXiv 2002.05202), SwiGLU where the activation is "silu"."""

    activation: str

    @property
    def function(self) -> str:
        return f"{self.activation}_glu"


@dataclass(frozen=True)
class SelectOutputs(Operation):
    """Only the rows whose logits are wanted."""


@dataclass(frozen=True)
class Attention(Operation):
    """Rope on queries and keys, keys and values into the cache of `layer`, then causal softmax attention over each
    token's slot. Heads are normalised first where `q_norm` and `k_norm` are given. Of the positions up to its own a
    token sees the last `window`, or all where that is 0."""

    layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rope: Rope
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int = 0

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(norm.weight for norm in (self.q_norm, self.k_norm) if norm)

    @property
    def scale(self) -> float:
        """The factor of scores: 1 / sqrt(head_dim)."""
        return float(self.head_dim**-0.5)


# ---- what passes make


@dataclass(frozen=True)
class QuantizeActivations(Operation):
    """Rows as products read them, in `dtype`, after a norm where there is one. They go to the buffer of activations.

    `select`: only the rows whose logits are wanted. `joins`: the attention whose parts are still to be joined."""

    dtype: str
    norm: Norm | None = None
    select: bool = False
    joins: Attention | None = None

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
