"""Operations that make each number of a row from one or two: sums, products, gates, activations.

Each is one function of vectors in FUNCTIONS and the same of numbers in PLAIN, which the `plain` tier runs and
the others are compared with. x is from the first operand, y from the second (the first again where there is only one),
c a constant of the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, store_f32
from ggpy.cpu.isa.records import as_op, as_step, stripes_of
from ggpy.cpu.isa.vector import Vec

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
# erf to 1.5e-7, absolute: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
ERF_P = 0.3275911
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

elementwise_row: Any = None  # set by `specialized`


def elementwise(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = f(src, src2), over the same stripes of columns that this thread's matrix products wrote: no barrier in
    between."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    if first >= last:
        return
    at = types.uint64(first * 64)
    for row in range(op.n_used * (step.n_outputs if op.outputs_only else step.n_tokens)):
        elementwise_row(
            op.src + types.uint64(row * op.src_stride) + at,
            op.src2 + types.uint64(row * op.src2_stride) + at,
            op.scale,
            op.dst + types.uint64(row * op.dst_stride) + at,
            last - first,
        )


# ---- vectors


def _silu(v: Vec, x: ir.Value) -> ir.Value:
    return v.b.fmul(x, v.sigmoid(x))


def softplus(v: Vec, x: ir.Value) -> ir.Value:
    """log(1 + e^x), which is max(x, 0) + log(1 + t) with t = e^-|x|, by the series of 2 atanh(t / (2 + t))."""
    b = v.b
    t = v.exp(b.fneg(v.abs(x)))
    z = b.fdiv(t, b.fadd(t, v.float(2.0)))
    square, series = b.fmul(z, z), v.float(2 / 17)
    for odd in range(15, 0, -2):
        series = v.fma(series, square, v.float(2 / odd))
    return v.fma(series, z, v.maximum(x, v.float(0.0)))


def _swiglu_oai(v: Vec, gate: ir.Value, up: ir.Value) -> ir.Value:
    b, limit = v.b, v.float(7.0)
    gate = _minimum(v, gate, limit)
    up = _minimum(v, v.maximum(up, v.float(-7.0)), limit)
    sigmoid = v.sigmoid(b.fmul(v.float(1.702), gate))
    return b.fmul(b.fmul(gate, sigmoid), b.fadd(up, v.float(1.0)))


def _minimum(v: Vec, x: ir.Value, most: ir.Value) -> ir.Value:
    return v.b.fneg(v.maximum(v.b.fneg(x), v.b.fneg(most)))


def _erf(v: Vec, x: ir.Value) -> ir.Value:
    b, size = v.b, v.abs(x)
    t = b.fdiv(v.float(1.0), v.fma(v.float(ERF_P), size, v.float(1.0)))
    series = v.float(ERF[0])
    for coefficient in ERF[1:]:
        series = v.fma(series, t, v.float(coefficient))
    tail = b.fmul(b.fmul(series, t), v.exp(b.fneg(b.fmul(x, x))))
    value = b.fsub(v.float(1.0), tail)
    return b.select(b.fcmp_ordered("<", x, v.float(0.0)), b.fneg(value), value)


def _gelu(v: Vec, x: ir.Value, normal: ir.Value) -> ir.Value:
    return v.b.fmul(v.b.fmul(v.float(0.5), x), v.b.fadd(v.float(1.0), normal))


def _gelu_tanh(v: Vec, x: ir.Value) -> ir.Value:
    cubed = v.b.fmul(v.b.fmul(x, x), x)
    return _gelu(v, x, v.tanh(v.b.fmul(v.float(SQRT_2_OVER_PI), v.fma(v.float(0.044715), cubed, x))))


def _gelu_erf(v: Vec, x: ir.Value) -> ir.Value:
    return _gelu(v, x, _erf(v, v.b.fmul(v.float(math.sqrt(0.5)), x)))


def _relu(v: Vec, x: ir.Value) -> ir.Value:
    return v.maximum(x, v.float(0.0))


def _relu2(v: Vec, x: ir.Value) -> ir.Value:
    return v.b.fmul(_relu(v, x), x)


ACTIVATIONS: dict[str, Callable[[Vec, ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "relu": _relu,
    "relu2": _relu2,
    "sigmoid": lambda v, x: v.sigmoid(x),
    "softplus": softplus,
    "tanh": lambda v, x: v.tanh(x),
}

Function = Callable[[Vec, ir.Value, ir.Value, ir.Value], ir.Value]


def _of_one(f: Callable[[Vec, ir.Value], ir.Value]) -> Function:
    return lambda v, x, y, c: f(v, x)


def _gating(f: Callable[[Vec, ir.Value], ir.Value]) -> Function:
    return lambda v, x, y, c: v.b.fmul(f(v, x), y)


FUNCTIONS: dict[str, Function] = {
    "add": lambda v, x, y, c: v.b.fadd(x, y),
    "mul": lambda v, x, y, c: v.b.fmul(x, y),
    "scale": lambda v, x, y, c: v.b.fmul(x, c),
    "scaled_mul": lambda v, x, y, c: v.b.fmul(v.b.fmul(x, c), y),  # of `norm`: the row, its factor, the weight
    "softcap": lambda v, x, y, c: v.b.fmul(c, v.tanh(v.b.fdiv(x, c))),
    "sigmoid_gate": lambda v, x, y, c: v.b.fmul(x, v.sigmoid(y)),
    **{name: _of_one(f) for name, f in ACTIVATIONS.items()},
    **{f"{name}_glu": _gating(f) for name, f in ACTIVATIONS.items()},
    "swiglu_oai_glu": lambda v, x, y, c: _swiglu_oai(v, x, y),
}


def elementwise_row_intrinsic(name: str, isa: str) -> Any:
    """`elementwise_row(x, y, c, dst, n16)`: the operation `name` over 16 * n16 floats."""

    def elementwise_row(typingctx: Any, x: Any, y: Any, c: Any, dst: Any, n16: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            constant = v.splat(args[2])

            def body(i: ir.Value, at: list[ir.Value]) -> list[ir.Value]:
                v.store(FUNCTIONS[name](v, v.load_f32(at[0]), v.load_f32(at[1]), constant), at[2])
                return [v.at(p, 64) for p in at]

            v.loop(args[4], [args[0], args[1], args[3]], body)
            return context.get_dummy_value()

        u = types.uintp
        return types.void(u, u, types.float32, u, types.intp), codegen

    return intrinsic(elementwise_row)


# ---- numbers, in double precision

_PLAIN_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x / (1.0 + math.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + math.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))),
    "gelu_erf": lambda x: 0.5 * x * (1.0 + math.erf(x * math.sqrt(0.5))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) * x,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "tanh": lambda x: math.tanh(x),
}

PLAIN: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda x, y, c: x + y,
    "mul": lambda x, y, c: x * y,
    "scale": lambda x, y, c: x * c,
    "scaled_mul": lambda x, y, c: x * c * y,
    "softcap": lambda x, y, c: c * math.tanh(x / c),
    "sigmoid_gate": lambda x, y, c: x / (1.0 + math.exp(-y)),
    "swiglu_oai_glu": lambda x, y, c: (
        min(x, 7.0) / (1.0 + math.exp(-1.702 * min(x, 7.0))) * (min(max(y, -7.0), 7.0) + 1.0)
    ),
}


def plain_function(name: str) -> Any:
    """The operation `name` of numbers: f(x, y, c)."""
    if name in PLAIN:
        return njit(PLAIN[name])
    activation, gated = njit(_PLAIN_ACTIVATIONS[name.removesuffix("_glu")]), name.endswith("_glu")

    @njit
    def function(x, y, c):  # type: ignore[no-untyped-def]
        return activation(x) * y if gated else activation(x)

    return function


def plain_row_function(name: str) -> Any:
    """`elementwise_row`, a number at a time."""
    function = plain_function(name)

    @njit
    def elementwise_row(x, y, c, dst, n16):  # type: ignore[no-untyped-def]
        for i in range(16 * n16):
            at = types.uint64(4 * i)
            a, b = types.float64(load_f32(x + at)), types.float64(load_f32(y + at))
            store_f32(dst + at, types.float32(function(a, b, types.float64(c))))

    return elementwise_row
