"""Random blocks of every tensor type that the gguf package decodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from ggpy.quant import FORMATS
from ggpy.quant.formats import PACKED

# Where a block keeps its half-precision scales: byte → value, chosen so that weights come out near a tenth.
SCALES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 0.02}, "Q4_1": {0: 0.02, 2: -0.15}, "Q5_0": {0: 0.01}, "Q5_1": {0: 0.01, 2: -0.15}, "Q8_0": {0: 0.001},
    "Q2_K": {80: 0.01, 82: 0.015}, "Q3_K": {108: 0.003}, "Q4_K": {0: 0.0005, 2: 0.003}, "Q5_K": {0: 0.0002, 2: 0.003},
    "Q6_K": {208: 0.0001}, "IQ1_S": {0: 0.01}, "IQ2_XXS": {0: 0.002}, "IQ2_XS": {0: 0.002}, "IQ2_S": {0: 0.002},
    "IQ3_XXS": {0: 0.001}, "IQ3_S": {0: 0.001}, "IQ4_NL": {0: 0.001}, "IQ4_XS": {0: 0.0001}, "TQ1_0": {52: 0.1},
    "TQ2_0": {64: 0.1},
}  # fmt: skip
TYPES = (*SCALES, "IQ1_M", "MXFP4", "NVFP4", "F64")


def one_of_each(names: Iterable[str]) -> list[str]:
    """Those of some types whose kernels differ in more than the numbers that codes stand for."""
    forms = {}
    for name in names:
        p = PACKED[name]
        forms.setdefault((p.is_float and name, p.bits, p.group, bool(p.table), p.scales, p.unit == 1, p.minima), name)
    return list(forms.values())


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of a test that runs long: all of them marked as slow but a few, which stand for the others."""
    few, every = list(quick), list(cases)
    assert all(case in every for case in few)
    values = {case: case if isinstance(case, tuple) else (case,) for case in every}
    return [pytest.param(*values[case], marks=() if case in few else pytest.mark.slow) for case in every]


def random_blocks(name: str, n: int, seed: int = 5) -> np.ndarray:
    """uint8 [n, type_size]: any codes, scales as of a model."""
    form, rng = FORMATS[name], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, form.type_size), dtype=np.uint8)
    for at, scale in SCALES.get(name, {}).items():
        halves = (scale * rng.uniform(0.7, 1.3, n)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(n, 2)
    if name == "IQ1_M":  # its scale lies in the high nibbles of the four last words
        words, bits = blocks[:, 48:56].copy().view("<u2"), int(np.float16(0.01).view(np.uint16))
        words = (words & 0x0FFF) | np.array([(bits >> 4 * i & 15) << 12 for i in range(4)], np.uint16)
        blocks[:, 48:56] = words.astype("<u2").view(np.uint8)
    elif name == "MXFP4":  # powers of two
        blocks[:, 0] = rng.integers(120, 124, n)
    elif name == "NVFP4":  # four 8-bit floats
        blocks[:, :4] = rng.integers(0x10, 0x18, (n, 4))
    elif name == "F64":  # a type without a packed form
        blocks = (0.1 * rng.standard_normal((n, 1))).view(np.uint8)
    elif form.block_size == 1:
        blocks = form.quantize((0.1 * rng.standard_normal((n, 1))).astype(np.float32))
    return blocks
