"""Operations that make each number of a row from one or two: sums, products, gates, activations.

Each is one function in FUNCTIONS, or in ACTIVATIONS where it also gates. x is from the first operand, y from the second
(the first again where there is only one), c a constant of the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64
from ggpy.cuda.isa.functions import erf, sigmoid, softplus, tanh
from ggpy.cuda.isa.instructions import larger, load_f32, release_next, smaller, store_f32, wait_for_previous
from ggpy.cuda.weights.layout import ELEMENTWISE_THREADS as THREADS


@inline
def gelu_tanh(x):  # type: ignore[no-untyped-def]
    # (1 + tanh(z)) / 2 is sigmoid(2 z); 2 sqrt(2 / pi)
    return x * sigmoid(f32(1.5957691216057308) * (x + f32(0.044715) * (x * x * x)))


@inline
def swiglu_oai(gate, up):  # type: ignore[no-untyped-def]
    gate = smaller(gate, f32(7.0))
    up = smaller(larger(up, f32(-7.0)), f32(7.0))
    return gate * sigmoid(f32(1.702) * gate) * (up + f32(1.0))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu_tanh": gelu_tanh,
    "gelu_erf": lambda x: f32(0.5) * x * (f32(1.0) + erf(x * f32(0.7071067811865476))),
    "relu": lambda x: larger(x, f32(0.0)),
    "relu2": lambda x: larger(x, f32(0.0)) * x,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "tanh": tanh,
}

FUNCTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda x, y, c: x + y,
    "mul": lambda x, y, c: x * y,
    "scale": lambda x, y, c: x * c,
    "softcap": lambda x, y, c: c * tanh(x / c),
    "sigmoid_gate": lambda x, y, c: x * sigmoid(y),
    "swiglu_oai_glu": lambda x, y, c: swiglu_oai(x, y),
}


def function_of(name: str) -> Any:
    """The device function f(x, y, c) of the operation `name`."""
    if name in FUNCTIONS:
        return inline(FUNCTIONS[name])
    activation, gated = ACTIVATIONS[name.removesuffix("_glu")], name.endswith("_glu")
    of_one = activation if hasattr(activation, "py_func") else inline(activation)

    @inline
    def function(x, y, c):  # type: ignore[no-untyped-def]
        return of_one(x) * y if gated else of_one(x)

    return function


def source(name: str) -> Source:
    """elementwise.FUNCTION(x, x_stride, y, y_stride, c, dst, dst_stride, n_cols): float32 rows, so many bytes apart;
    on a grid (columns / THREADS, rows)."""
    function = function_of(name)

    def elementwise(x, x_stride, y, y_stride, c, dst, dst_stride, n_cols):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        column, row = i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x), u64(cuda.blockIdx.y)
        if column >= n_cols:
            return
        one = load_f32(at(x + row * u64(u32(x_stride)), column * i32(4)))
        other = load_f32(at(y + row * u64(u32(y_stride)), column * i32(4)))
        store_f32(at(dst + row * u64(u32(dst_stride)), column * i32(4)), function(one, other, c))

    return Source(elementwise, "u64 i32 u64 i32 f32 u64 i32 i32", THREADS)
