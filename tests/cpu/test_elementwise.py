"""Operations on single numbers and norms of rows, in every tier, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ggpy.cpu.isa.layout import OP, STEP
from ggpy.cpu.ops.elementwise import FUNCTIONS
from tests.cpu.test_kernels import TIERS, call
from tests.support.evaluate import ACTIVATIONS, sigmoid

C = 2.5
EXPECTED = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "scale": lambda x, y: x * C,
    "scaled_mul": lambda x, y: x * C * y,
    "softcap": lambda x, y: C * np.tanh(x / C),
    "sigmoid_gate": lambda x, y: x * sigmoid(y),
    **{name: lambda x, y, f=f: f(x) for name, f in ACTIVATIONS.items()},
    **{f"{name}_glu": lambda x, y, f=f: f(x) * y for name, f in ACTIVATIONS.items()},
}


@pytest.mark.parametrize("tier", ["plain", *TIERS])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise(name: str, tier: str) -> None:
    """Two rows, on a stride of more than their columns, a thread at a time."""
    rng = np.random.default_rng(0)
    x = np.stack([np.linspace(-100, 100, 160), rng.standard_normal(160) * 3]).astype(np.float32)
    x[0, 144:] = [0, -0.0, 1e4, -1e4] * 4
    y, out = rng.standard_normal((2, 176)).astype(np.float32)[:, :160], np.full((2, 192), np.nan, np.float32)
    op, step = np.zeros(1, OP), np.zeros(1, STEP)
    step["n_tokens"], step["n_outputs"] = 7, 2
    op["src"], op["src_stride"], op["src2"], op["src2_stride"] = (
        x.ctypes.data,
        x.strides[0],
        y.ctypes.data,
        y.strides[0],
    )
    op["dst"], op["dst_stride"], op["scale"], op["n_stripes"] = out.ctypes.data, out.strides[0], C, 10
    op["outputs_only"] = 1
    for thread in range(3):
        call(f"elementwise.{name}", tier, op, step, thread, 3)
    with np.errstate(over="ignore"):
        expected = EXPECTED[name](x.astype(np.float64), y.astype(np.float64))
    assert np.allclose(out[:, :160], expected, rtol=2e-6, atol=5e-7)
    assert np.isnan(out[:, 160:]).all()


@pytest.mark.parametrize("tier", ["plain", *TIERS])
@pytest.mark.parametrize("n_cols", [12, 54, 96, 100])
def test_norm(n_cols: int, tier: str) -> None:
    """Rows of any width, whose padding holds anything."""
    rng = np.random.default_rng(0)
    stride = -(-n_cols // 16) * 16
    x = np.full((5, stride), np.nan, np.float32)
    x[:, :n_cols] = rng.standard_normal((5, n_cols))
    weight, out = np.zeros(stride + 32, np.float32), np.zeros_like(x)
    weight[:n_cols] = rng.standard_normal(n_cols)
    op, step = np.zeros(1, OP), np.zeros(1, STEP)
    step["n_tokens"] = 5
    op["src"], op["src_stride"], op["dst"], op["dst_stride"] = (
        x.ctypes.data,
        x.strides[0],
        out.ctypes.data,
        out.strides[0],
    )
    op["weight"], op["eps"], op["n_cols"] = weight.ctypes.data, 1e-5, n_cols
    for thread in range(2):
        call("norm", tier, op, step, thread, 2)
    exact = x[:, :n_cols].astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * weight[:n_cols]
    assert np.allclose(out[:, :n_cols], expected, rtol=1e-5, atol=1e-6)
