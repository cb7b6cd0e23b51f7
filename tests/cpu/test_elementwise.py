"""Operations on single numbers and norms of rows, in every tier, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ggpy.cpu.ops.elementwise import FUNCTIONS
from tests.cpu.test_kernels import TIERS, call, records
from tests.support.evaluate import ACTIVATIONS, sigmoid, swiglu_oai

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
    "swiglu_oai_glu": swiglu_oai,
}


@pytest.mark.matrix(strength=1)
@pytest.mark.parametrize("tier", ["plain", *TIERS])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise(name: str, tier: str) -> None:
    """Two rows, on a stride of more than their columns, a thread at a time."""
    rng = np.random.default_rng(0)
    x = np.stack([np.linspace(-100, 100, 160), rng.standard_normal(160) * 3]).astype(np.float32)
    x[0, 144:] = [0, -0.0, 1e4, -1e4] * 4
    y, out = rng.standard_normal((2, 176)).astype(np.float32)[:, :160], np.full((2, 192), np.nan, np.float32)
    op, step = records()
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


@pytest.mark.matrix
@pytest.mark.parametrize("tier", ["plain", *TIERS])
@pytest.mark.parametrize("n_cols", [12, 54, 96, 100])
@pytest.mark.parametrize(
    ("kind", "n_groups", "alike"), [("rms", 1, False), ("rms", 3, True), ("layer", 1, False), ("l2", 3, False)]
)
def test_norm(kind: str, n_groups: int, alike: bool, n_cols: int, tier: str) -> None:  # fmt: skip
    """Rows of any width, whose padding holds anything; runs of columns, with one weight for all or each its own."""
    rng = np.random.default_rng(0)
    whole = n_groups * n_cols
    x = np.full((5, -(-whole // 16) * 16), np.nan, np.float32)
    x[:, :whole] = rng.standard_normal((5, whole))
    out = np.zeros_like(x)
    weight, bias = rng.standard_normal((2, n_cols if alike else whole)).astype(np.float32)
    bias = bias if kind == "layer" else np.zeros_like(bias)
    op, step = records()
    step["n_tokens"] = 5
    op["src"], op["src_stride"], op["dst"], op["dst_stride"] = (
        x.ctypes.data,
        x.strides[0],
        out.ctypes.data,
        out.strides[0],
    )
    op["weight"], op["bias"], op["eps"], op["n_cols"] = weight.ctypes.data, bias.ctypes.data, 1e-5, n_cols
    op["n_groups"], op["weight_stride"] = n_groups, 0 if alike else 4 * n_cols
    for thread in range(2):
        call(f"norm.{kind}", tier, op, step, thread, 2)
    exact = x[:, :whole].astype(np.float64).reshape(5, n_groups, n_cols)
    if kind == "layer":
        exact -= exact.mean(-1, keepdims=True)
    size = (exact**2).sum(-1, keepdims=True) if kind == "l2" else (exact**2).mean(-1, keepdims=True)
    expected = exact / np.sqrt(size + 1e-5) * weight.reshape(-1, n_cols) + bias.reshape(-1, n_cols)
    assert np.allclose(out[:, :whole], expected.reshape(5, -1), rtol=1e-5, atol=1e-6)
    assert not out[:, whole:].any()
