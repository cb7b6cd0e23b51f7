"""Functions of one number that kernels share, float32, accurate to a few roundings of results that are not tiny."""

from __future__ import annotations

from ggpy.cuda.isa.device import f32, inline
from ggpy.cuda.isa.instructions import divide, exp2, fma, larger, magnitude, reciprocal
from ggpy.cuda.weights.layout import LOG2_E

# erf to 1.5e-7, absolute: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
ERF_P = 0.3275911
ERF_1, ERF_2, ERF_3, ERF_4, ERF_5 = 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429


@inline
def sigmoid(x):  # type: ignore[no-untyped-def]
    return reciprocal(f32(1.0) + exp2(x * f32(-LOG2_E)))


@inline
def tanh(x):  # type: ignore[no-untyped-def]
    """By its series near 0, where the difference from 1 would leave few digits."""
    square = x * x
    series = fma(square, f32(-17 / 315), f32(2 / 15))
    near = x * fma(square, fma(square, series, f32(-1 / 3)), f32(1.0))
    far = f32(1.0) - f32(2.0) * reciprocal(f32(1.0) + exp2(x * f32(2.0 * LOG2_E)))
    return near if magnitude(x) < f32(0.25) else far


@inline
def erf(x):  # type: ignore[no-untyped-def]
    size = magnitude(x)
    t = divide(f32(1.0), fma(f32(ERF_P), size, f32(1.0)))
    series = fma(fma(f32(ERF_5), t, f32(ERF_4)), t, f32(ERF_3))
    series = fma(fma(series, t, f32(ERF_2)), t, f32(ERF_1))
    value = f32(1.0) - series * t * exp2(x * x * f32(-LOG2_E))
    return -value if x < f32(0.0) else value


@inline
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x): max(x, 0) + log(1 + t), t = e^-|x|, by the series of 2 atanh(t / (2 + t)), which loses no digits of
    a small t."""
    t = exp2(magnitude(x) * f32(-LOG2_E))
    z = divide(t, f32(2.0) + t)
    square = z * z
    series = fma(f32(2 / 17), square, f32(2 / 15))
    series = fma(fma(series, square, f32(2 / 13)), square, f32(2 / 11))
    series = fma(fma(series, square, f32(2 / 9)), square, f32(2 / 7))
    series = fma(fma(series, square, f32(2 / 5)), square, f32(2 / 3))
    return fma(fma(series, square, f32(2.0)), z, larger(x, f32(0.0)))
