"""Formats that store each weight by itself: floating point and integers."""

from __future__ import annotations

import numpy as np

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, bytes a weight] → float32 [n, 1]. Values beyond float32's range become infinite, as in a cast."""
    if name == "BF16":  # the upper half of a float32
        return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return blocks.view(_DTYPES[name]).astype(np.float32)
