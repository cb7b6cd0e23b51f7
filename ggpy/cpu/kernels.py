"""The kernels by name: each is compiled when a program first names it, kept on disk, and called by address.

A kernel is one of the operation bodies in this folder with the tier's primitives put in; its signature is (op, step,
thread, threads).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cfunc, types

from ggpy.cpu import activations, attention, elementwise, linear, memory, plain
from ggpy.jit import cached, isa, specialized
from ggpy.quant.packed import PACKED

SIGNATURE = types.void(types.uintp, types.uintp, types.intp, types.intp)

_compiled: dict[str, Any] = {}


def _linear(tier: str, format_name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    packed = PACKED[format_name]
    tile = plain.tile_function(packed) if tier == "plain" else linear.tile_intrinsic(packed, tier)
    return linear.linear, {"tile": tile, "WIDEST": linear.WIDEST_TILE[tier]}


def _prepare(tier: str, form: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    if tier == "plain":
        row, squares = (plain.quantize_row if form == "q8" else plain.scale_row), plain.sum_squares
    else:
        row = activations.quantize_row_intrinsic(tier) if form == "q8" else activations.scale_row_intrinsic(tier)
        squares = activations.sum_squares_intrinsic(tier)
    names = {
        "write_row": row,
        "sum_squares": squares,
        "combine_head": activations.combine_parts,
        "PER_STEP": 32 if form == "q8" else 8,
        "WIDEST": linear.WIDEST_TILE[tier],
    }
    return activations.prepare, names


def _attention(tier: str, cache: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    attend = plain.attend_function(cache) if tier == "plain" else attention.attend_intrinsic(tier, cache)
    return attention.attention, {
        "attend": attend,
        "WIDEST": attention.WIDEST_ROWS[tier],
        "ELEMENT": attention.CACHE_BYTES[cache],
    }


def _rope_store(tier: str, cache: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    if cache == "f32":
        store = memory.store_f32
    else:
        store = plain.store_half if tier == "plain" else elementwise.store_half_intrinsic()
    return elementwise.rope_store, {"store_cell": store, "ELEMENT": attention.CACHE_BYTES[cache]}


def _swiglu(tier: str, _: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    return elementwise.swiglu, {
        "swiglu_row": plain.swiglu_row if tier == "plain" else elementwise.swiglu_row_intrinsic(tier)
    }


_KINDS: dict[str, Callable[[str, str], tuple[Callable[..., Any], dict[str, Any]]]] = {
    "linear": _linear,
    "prepare": _prepare,
    "attention": _attention,
    "rope_store": _rope_store,
    "swiglu": _swiglu,
}


def kernel(name: str, tier: str | None = None) -> Any:
    """The numba `cfunc` called `name`: a kind, with its format behind a dot where it has one ("linear.Q4_0",
    "prepare.q8", "attention.f16")."""
    tier = tier or isa()
    key = f"{name}.{tier}"
    if key not in _compiled:
        kind, _, variant = name.partition(".")
        template, names = _KINDS[kind](tier, variant)
        function = specialized(template, key.replace(".", "_"), **names)
        with cached():
            _compiled[key] = cfunc(SIGNATURE, cache=True, error_model="numpy")(function)
    return _compiled[key]


def was_cached(name: str) -> bool:
    """Whether the kernel, compiled by now, came from the disk."""
    return bool(_compiled[f"{name}.{isa()}"].cache_hits)
