"""Q4_0 and Q4_1: 32 weights as 4-bit codes under one fp16 scale.

Q4_0 block: fp16 d, 16 bytes of codes; weight = d · (code − 8).
Q4_1 block: fp16 d, fp16 m, 16 bytes of codes; weight = d · code + m.
Byte j holds weight j in its low nibble and weight j + 16 in its high nibble.
"""

from __future__ import annotations

import numpy as np


def nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 16] → uint8 codes [n, 32]: low nibbles first, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def half(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 2] holding an fp16 → float32 [n, 1]."""
    return np.ascontiguousarray(packed).view("<f2").astype(np.float32)


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, 18 or 20] → float32 [n, 32]."""
    d = half(blocks[:, :2])
    if name == "Q4_0":
        return d * (nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8)).astype(np.float32)
    return d * nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks[:, 2:4])
