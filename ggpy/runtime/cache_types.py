"""The types in which keys and values are cached, and their size in memory."""

from __future__ import annotations

from ggpy.cpu.isa.layout import CACHE_TYPES, SPAN, cache_name, cache_types, cell_bytes
from ggpy.errors import GGPYError, quoted
from ggpy.gguf.file import GGUFFile
from ggpy.models import architecture_of
from ggpy.quant.packed import BLOCK

GPU_CACHE_TYPES = ("f16", "q8_0")
GPU_HEAD_DIM = 256  # the widest heads: a warp holds 8 dimensions a lane


def cache_type(
    file: GGUFFile, cache_type_k: str | None = None, cache_type_v: str | None = None, device: str = "cpu"
) -> str:
    """The types of cached keys and values, as one name that their kernels carry.

    Without a choice "f16", as everywhere in the field, but on the CPU "f32" for a model kept in float32: whoever keeps
    that wants its precision. Raises GGPYError where a type is unknown, or does not suit the model or the device.
    """
    matrices = (info.type_name for info in file.tensors.values() if len(info.shape) == 2)
    default = "f32" if device == "cpu" and all(name == "F32" for name in matrices) else "f16"
    chosen = [cache_type_k or default, cache_type_v or default]
    for option, name in zip(("cache_type_k", "cache_type_v"), chosen, strict=True):
        if name not in CACHE_TYPES:
            known = ", ".join(CACHE_TYPES)
            raise GGPYError(f"{option} is {quoted(name)}, but the cache holds only {known}; choose one.")
    head_dim = architecture_of(file).hparams.head_dim
    if device != "cpu":
        wide = next((name for name in chosen if name not in GPU_CACHE_TYPES), None)
        if wide:
            raise GGPYError(
                f"On a GPU the cache holds {' or '.join(GPU_CACHE_TYPES)}, not {wide}; choose one of them, leave its "
                "type out, or run the model on the CPU (--device cpu)."
            )
        if head_dim > GPU_HEAD_DIM:
            raise GGPYError(
                f"{file.path}: heads of {head_dim} dimensions are more than the {GPU_HEAD_DIM} that ggpy's kernels for "
                "GPUs hold; run the model on the CPU (--device cpu)."
            )
    if "q8_0" in chosen and head_dim % BLOCK:
        raise GGPYError(
            f"{file.path}: heads of {head_dim} dimensions do not divide into the blocks of {BLOCK} that a q8_0 cache "
            "has; take f16 for this model's cache."
        )
    return cache_name(*chosen)


def kv_bytes(
    file: GGUFFile,
    n_ctx: int,
    n_slots: int = 1,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    device: str = "cpu",
) -> int:
    """Bytes that the key/value cache of `n_slots` sequences of `n_ctx` tokens takes on the CPU when full. device:
    where another one runs the last layers, its types hold for all."""
    hp = architecture_of(file).hparams
    cells = n_slots * (-(-n_ctx // SPAN) * SPAN)
    k, v = cache_types(cache_type(file, cache_type_k, cache_type_v, device))
    per_cell = cell_bytes(k, hp.head_dim) + cell_bytes(v, -(-hp.head_dim // 16) * 16)
    return hp.n_layer * hp.n_head_kv * cells * per_cell
