"""The types in which keys and values are cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggpy.cpu.isa.layout import CACHE_TYPES, cache_name
from ggpy.errors import GGPYError, quoted
from ggpy.graph.state import KVState, LatentState, State
from ggpy.quant.packed import BLOCK

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile

GPU_CACHE_TYPES = ("f16", "q8_0")


def cache_type(
    file: GGUFFile,
    states: Sequence[State],
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    device: str = "cpu",
) -> str:
    """The types of cached keys and values, as one name that their kernels carry. states: those of the file's program.

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
    if any(isinstance(state, LatentState) for state in states):
        if cache_type_v not in (None, chosen[0]):
            raise GGPYError(
                f"{file.path}: this model's values are a part of its keys, and cached as {chosen[0]} with them; leave"
                " cache_type_v out."
            )
        chosen[1] = chosen[0]
    widths = {width for state in states if isinstance(state, KVState) for width in (state.head_dim, state.v_head_dim)}
    if device != "cpu":
        from ggpy.cuda.weights.cache_layout import MOST_HEAD_DIM

        wide = next((name for name in chosen if name not in GPU_CACHE_TYPES), None)
        if wide:
            raise GGPYError(
                f"On a GPU the cache holds {' or '.join(GPU_CACHE_TYPES)}, not {wide}; choose one of them, leave its "
                "type out, or run the model on the CPU (--device cpu)."
            )
        if max(widths, default=0) > MOST_HEAD_DIM:
            raise GGPYError(
                f"{file.path}: heads of {max(widths)} dimensions are more than the {MOST_HEAD_DIM} that ggpy's kernels"
                " for GPUs hold; run the model on the CPU (--device cpu)."
            )
    odd = [width for width in sorted(widths) if width % BLOCK]
    if "q8_0" in chosen and odd:
        raise GGPYError(
            f"{file.path}: heads of {odd[0]} dimensions do not divide into the blocks of {BLOCK} that a q8_0 cache "
            "has; take f16 for this model's cache."
        )
    return cache_name(*chosen)
