"""Q5_0 and Q5_1: 32 weights as 5-bit codes under one fp16 scale.

Q5_0 block: fp16 d, 4 bytes of fifth bits (bit j belongs to weight j), 16 bytes of low nibbles laid out as in Q4_0;
weight = d · (code − 16). Q5_1 block: fp16 d, fp16 m, fifth bits, nibbles; weight = d · code + m.
"""

from __future__ import annotations

import numpy as np

from ggpy.quant.q4 import half, nibbles


def _codes(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 4 + 16] → uint8 codes [n, 32]."""
    fifth = np.unpackbits(packed[:, :4], axis=1, bitorder="little")
    return nibbles(packed[:, 4:]) | (fifth << np.uint8(4))


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, 22 or 24] → float32 [n, 32]."""
    d = half(blocks[:, :2])
    if name == "Q5_0":
        return d * (_codes(blocks[:, 2:]).view(np.int8) - np.int8(16)).astype(np.float32)
    return d * _codes(blocks[:, 4:]).astype(np.float32) + half(blocks[:, 2:4])
