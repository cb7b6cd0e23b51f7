"""Formats that ggpy reads through the gguf package: the codebook, ternary, microscaling and low-bit K formats."""

from __future__ import annotations

import gguf
import numpy as np

from ggpy.errors import GGPYError

_BLOCKS_AT_ONCE = 4096  # as one row: the package goes through an array 16 rows at a time, in Python


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, type_size] → float32 [n, block_size]. GGPYError when the installed gguf package cannot read it."""
    try:
        kind = gguf.GGMLQuantizationType[name]
        pieces = [blocks[i : i + _BLOCKS_AT_ONCE].reshape(1, -1) for i in range(0, len(blocks), _BLOCKS_AT_ONCE)]
        weights: np.ndarray = np.concatenate([gguf.quants.dequantize(piece, kind)[0] for piece in pieces])
    except (KeyError, NotImplementedError) as error:
        raise GGPYError(
            f"Tensors of the type {name} cannot be read: the installed gguf package does not decode it; "
            "update gguf, or use a model of another type."
        ) from error
    return weights.reshape(len(blocks), -1)
