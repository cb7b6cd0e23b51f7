"""Weights into bytes: chunks of any source type become float32 in cache and go through the format's encoder.

Encoders are compiled once and kept on disk, as all kernels are (`ggpy.codegen.native`), so that numba is imported only
where one is missing. They run without the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy.codegen.native import Native, ObjectCode, load
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.quant.block_format import BlockFormat

# Weights a chunk: half a megabyte of float32, which stays in a core's own cache between widening and quantizing.
_CHUNK = 1 << 17

SCRATCH = 512  # bytes of memory that an encoder may work in
_PROTOTYPE = "i:uuiu"  # blocks, output, number of blocks, scratch

_loaded: dict[str, Native] = {}
_loading = threading.Lock()


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
    encode, widen = _kernel(f"quantize.{form.name}", form.encoder).call, _widen(weights.dtype)
    scratch, wide = np.empty(SCRATCH, np.uint8), np.empty(min(_CHUNK, weights.size) if widen else 0, np.float32)
    source, wide_at, target, scratch_at = (array.ctypes.data for array in (weights, wide, out, scratch))
    for start in range(0, weights.size, _CHUNK):
        n = min(_CHUNK, weights.size - start)
        chunk = source + start * weights.itemsize
        if widen:
            widen(chunk, wide_at, n, 0)
            chunk = wide_at
        n_blocks = n // form.block_size
        if encode(chunk, target, n_blocks, scratch_at) >= 0:
            raise GGPYError(_complaint(form, wide[:n] if widen else weights[start : start + n]))
        target += n_blocks * form.type_size
    return out


def _widen(dtype: np.dtype) -> Callable[[int, int, int, int], Any] | None:
    """The kernel that makes numbers of a type float32; None for those that are."""
    if dtype == np.float32:
        return None
    if dtype not in (np.float16, np.uint16):
        raise ValueError(f"weights to quantize must be float32, float16 or bfloat16 bits in uint16, not {dtype}")
    name = "f16" if dtype == np.float16 else "bf16"
    return _kernel(f"widen.{name}", lambda: _widener(name)).call


def _widener(name: str) -> Any:
    from ggpy.quant.encode import widen_bf16, widen_fp16

    return widen_fp16 if name == "f16" else widen_bf16


def _kernel(name: str, body: Callable[[], Any]) -> Native:
    """The machine code of the function that `body` gives, by its name."""

    def compile_it() -> ObjectCode:
        from ggpy.codegen.jit import compiled, object_code, specialized

        return object_code(compiled(specialized(body(), name.replace(".", "_")), _PROTOTYPE))

    if name not in _loaded:
        with _loading:
            if name not in _loaded:
                _loaded[name] = load(name, _PROTOTYPE, compile_it)
    return _loaded[name]


def _complaint(form: BlockFormat, chunk: np.ndarray) -> str:
    if np.isnan(chunk).any():
        return "A weight is NaN (not a number); the checkpoint is damaged, so fetch it again."
    if np.isinf(chunk).any():
        return "A weight is infinite; the checkpoint is damaged, so fetch it again."
    return (
        f"A weight of {np.abs(chunk).max():g} is beyond the range of {form.name}, whose numbers are fp16; "
        "choose bf16 or f32."
    )
