"""Weights into bytes: chunks of any source type become float32 in cache and go through the format's kernel.

Importing this module imports numba; `BlockFormat.quantize` does so on first use. The work releases the GIL.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ggpy.errors import GGPYError
from ggpy.quant import quantize_blocks
from ggpy.quant.formats import BlockFormat
from ggpy.quant.quantize_q6_k import quantize_q6_k

# Weights a chunk: half a megabyte of float32, which stays in a core's own cache between widening and quantizing.
_CHUNK = 1 << 17

_KERNELS: dict[str, Callable[[np.ndarray, np.ndarray], int]] = {
    "Q4_0": quantize_blocks.quantize_q4_0,
    "Q4_1": quantize_blocks.quantize_q4_1,
    "Q5_0": quantize_blocks.quantize_q5_0,
    "Q5_1": quantize_blocks.quantize_q5_1,
    "Q8_0": quantize_blocks.quantize_q8_0,
    "Q6_K": quantize_q6_k,
}

_CASTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], bool], str]] = {
    "F32": (quantize_blocks.copy_finite, "<f4"),
    "F16": (quantize_blocks.narrow_fp16, "<u2"),
    "BF16": (quantize_blocks.narrow_bf16, "<u2"),
}


def quantize_rows(form: BlockFormat, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """[n_rows, n_cols] float32, float16 or bfloat16 bits → uint8 [n_rows, row_bytes]; see BlockFormat.quantize."""
    if x.ndim != 2:
        raise ValueError(f"weights to quantize must be [n_rows, n_cols], not of {x.ndim} dimensions")
    shape = (x.shape[0], form.row_bytes(x.shape[1]))
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"the output must be contiguous uint8 {shape}")
    weights = np.ascontiguousarray(x).reshape(-1)
    stored = out.reshape(-1)
    buffer = np.empty(min(_CHUNK, weights.size), np.float32) if weights.dtype != np.float32 else None
    for start in range(0, weights.size, _CHUNK):
        chunk = _widened(weights[start : start + _CHUNK], buffer)
        begin = start // form.block_size * form.type_size
        _store(form, chunk, stored[begin : begin + chunk.size // form.block_size * form.type_size])
    return out


def _widened(weights: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
    """[n] of a source type → float32 [n], in `buffer` where that takes a conversion."""
    if buffer is None:
        return weights
    values = buffer[: weights.size]
    if weights.dtype == np.float16:
        quantize_blocks.widen_fp16(weights.view(np.uint16), values)
    elif weights.dtype == np.uint16:
        quantize_blocks.widen_bf16(weights, values)
    else:
        raise ValueError(
            f"weights to quantize must be float32, float16 or bfloat16 bits in uint16, not {weights.dtype}"
        )
    return values


def _store(form: BlockFormat, chunk: np.ndarray, stored: np.ndarray) -> None:
    if form.name in _CASTS:
        cast, dtype = _CASTS[form.name]
        fits = cast(chunk, stored.view(dtype))
    else:
        blocks = chunk.reshape(-1, form.block_size)
        out = stored.reshape(-1, form.type_size)
        fits = _KERNELS[form.name](blocks, out) < 0
    if not fits:
        raise GGPYError(_complaint(form, chunk))


def _complaint(form: BlockFormat, chunk: np.ndarray) -> str:
    if np.isnan(chunk).any():
        return "A weight is NaN (not a number); the checkpoint is damaged, so fetch it again."
    if np.isinf(chunk).any():
        return "A weight is infinite; the checkpoint is damaged, so fetch it again."
    return (
        f"A weight of {np.abs(chunk).max():g} is beyond the range of {form.name}, whose numbers are fp16; "
        "choose bf16 or f32."
    )
