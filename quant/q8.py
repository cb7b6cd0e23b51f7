"""Q8_0: 32 weights as signed bytes under one fp16 scale. Block: fp16 d, 32 codes; weight = d · code."""

from __future__ import annotations

import numpy as np

from ggpy.quant.q4 import half


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, 34] → float32 [n, 32]."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half(blocks[:, :2])
