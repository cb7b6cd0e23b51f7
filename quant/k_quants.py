"""Q4_K, Q5_K and Q6_K: super-blocks of 256 weights, whose sub-blocks' scales are themselves quantized.

Q4_K block: fp16 d, fp16 dmin, 12 bytes of eight 6-bit (scale, min) pairs, 128 bytes of nibbles.
Q5_K block: the same, with 32 bytes of fifth bits before the nibbles (bit s of byte j: weight j of sub-block s).
In both, weight = d · scale · code − dmin · min, over eight sub-blocks of 32; each 32 bytes of nibbles hold one in their
low halves and the next in their high halves.
Q6_K block: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales (sub-blocks of 16), fp16 d;
weight = d · scale · (code − 32).
"""

from __future__ import annotations

import numpy as np

from ggpy.quant.q4 import half


def _scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 12] → float32 scales and mins, each [n, 8].

    Bytes 0–3 and 4–7 hold scales and mins 0–3 in their low six bits; their top two bits complete scales and mins 4–7,
    whose low nibbles share bytes 8–11.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _dequantize_q6_k(blocks: np.ndarray) -> np.ndarray:
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(n, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(n, 2, 1, 32) >> shifts) & 3
    codes = (low | (high << 4)).view(np.int8) - np.int8(32)
    d = half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)  # [n, 16]
    return (d[:, :, None] * codes.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, 144, 176 or 210] → float32 [n, 256]."""
    if name == "Q6_K":
        return _dequantize_q6_k(blocks)
    n = len(blocks)
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scales, mins = half(blocks[:, :2]) * scales, half(blocks[:, 2:4]) * mins  # [n, 8]
    packed = blocks[:, -128:].reshape(n, 4, 1, 32)
    codes = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(n, 8, 32)
    if name == "Q5_K":
        shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
        codes |= ((blocks[:, 16:48].reshape(n, 1, 32) >> shifts) & 1) << 4
    return (scales[:, :, None] * codes.astype(np.float32) - mins[:, :, None]).reshape(n, 256)
