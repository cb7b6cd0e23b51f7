"""Formats that ggpy reads through the gguf package: the codebook, ternary, microscaling and low-bit K formats."""

from __future__ import annotations

import gguf
import numpy as np

from ggpy.errors import GGPYError


def dequantize_blocks(name: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, type_size] → float32 [n, block_size]. GGPYError when the installed gguf package cannot read it."""
    try:
        weights: np.ndarray = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    except (KeyError, NotImplementedError) as error:
        raise GGPYError(
            f"Tensors of the type {name} cannot be read: the installed gguf package does not decode it; "
            "update gguf, or use a model of another type."
        ) from error
    return weights
