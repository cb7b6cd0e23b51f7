"""Builds of kernels: an operation's body from `ggpy.cpu.ops`, with the tier's primitives put in, compiled by numba.

Imported only when something has to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit

from ggpy.codegen.jit import compiled, specialized
from ggpy.cpu import run_program
from ggpy.cpu.isa.layout import ROW_WIDTHS, WIDE_ROWS, cache_types, cell_bytes, planes, tile_widths
from ggpy.cpu.ops import (
    attend,
    attend_latent,
    attention,
    conv_state,
    delta_rule,
    dequantize_kv,
    elementwise,
    embed,
    experts,
    linear,
    norm,
    plain,
    read,
    rope_store,
    rows,
    sample,
    ssm_scan,
    streams,
)
from ggpy.cpu.weights import activations, packing
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import BLOCK

Build = tuple[Callable[..., Any], dict[str, Any]]  # a body, and the names to put into it


def _quantize_activations(tier: str, form: str) -> Build:
    if tier == "plain":
        row = plain.scale_row if form == "f32" else plain.quantize_function(planes(form))
        squares = plain.sum_squares
    else:
        row = activations.scale_row_intrinsic(tier)
        if form != "f32":
            row = activations.quantize_row_intrinsic(tier, planes(form))
        squares = activations.sum_squares_intrinsic(tier)
    names = {
        "write_row": row,
        "sum_squares": squares,
        "join_parts": attention.join_parts,
        "PER_STEP": 1 if form == "f32" else BLOCK,
        "widest_tile": linear.widest_tile_function(tier, form),
        "WIDEST": tile_widths(tier, form == "f32")[0],
        "PLANES": planes(form),
    }
    return activations.quantize_activations, names


def _attention(tier: str, cache: str, latent: bool = False) -> Build:
    widths, wide = ROW_WIDTHS[tier], WIDE_ROWS[tier]

    @njit(inline="always")
    def rows_for(n):  # type: ignore[no-untyped-def]
        """The narrowest tile that holds n rows."""
        rows = wide
        for w in widths:
            if w >= n:
                rows = min(rows, w)
        return rows

    k, v = (cache, cache) if latent else cache_types(cache)
    names = {"rows_for": rows_for, "WIDEST": widths[0], "WIDE": wide, "LATENT": latent}
    names |= {"key_bytes": _cell_bytes(k), "value_bytes": _cell_bytes(v)}
    if tier == "plain":
        names["attend"] = plain.attend_function(k, v, latent)
        names["attend_wide"] = plain.attend_function("f32", "f32", latent)
        names["dequantize_keys"] = plain.dequantize_kv_function(k, True)
        names["dequantize_values"] = plain.dequantize_kv_function(v, False)
    else:
        kind = attend_latent.AttendLatent if latent else attend.Attend
        names["attend"] = attend.attend_intrinsic(tier, k, v, widths, kind)
        names["attend_wide"] = attend.attend_intrinsic(tier, "f32", "f32", (wide,), kind)
        names["dequantize_keys"] = dequantize_kv.dequantize_kv_intrinsic(tier, k, is_key=True)
        names["dequantize_values"] = dequantize_kv.dequantize_kv_intrinsic(tier, v, is_key=False)
    return attention.attention, names


def _cell_bytes(cache: str) -> Any:
    per_block = cell_bytes(cache, BLOCK)

    @njit(inline="always")
    def bytes_of(n_dims):  # type: ignore[no-untyped-def]
        """`layout.cell_bytes`"""
        return n_dims * per_block // BLOCK

    return bytes_of


def _rope_store(tier: str, cache: str, latent: bool = False) -> Build:
    k, v = (cache, cache) if latent else cache_types(cache)
    if tier == "plain":
        half = plain.store_half
    else:
        half = rope_store.store_half_intrinsic()
    names = {"key_bytes": _cell_bytes(k), "value_bytes": _cell_bytes(v)}
    names |= {"store_key": rope_store.store_function(k, half, not latent)}
    names |= {"store_value": rope_store.store_function(v, half, False)}
    return rope_store.rope_store, names


def _elementwise_row(tier: str, name: str) -> Any:
    if tier == "plain":
        return elementwise.plain_row_function(name)
    return elementwise.elementwise_row_intrinsic(name, tier)


def _elementwise(tier: str, name: str) -> Build:
    return elementwise.elementwise, {"elementwise_row": _elementwise_row(tier, name)}


def _embed(tier: str, format_name: str) -> Build:
    packed = PACKED[format_name]
    return embed.embed_floats if packed.is_float else embed.embed_blocks, embed.embed_names(packed)


def _pack(tier: str, format_name: str) -> Build:
    packed = PACKED[format_name]
    return packing.pack_floats if packed.is_float else packing.pack_blocks, packing.pack_names(packed)


def _read(tier: str, _: str) -> Build:
    return read.read, {"sum_range": read.sum_range_intrinsic(tier)}


def _sample(tier: str, _: str) -> Build:
    if tier == "plain":
        return sample.sample, {"any_from": plain.any_from, "largest_of": plain.largest_of}
    names = {"any_from": sample.any_from_intrinsic(tier), "largest_of": sample.largest_of_intrinsic(tier)}
    return sample.sample, names


_KINDS: dict[str, Callable[[str, str], Build]] = {
    "embed": _embed,
    "linear": partial(linear.build, linear.linear),
    "expert_linear": partial(linear.build, linear.expert_linear),
    "head_linear": partial(linear.build, linear.head_linear),
    "quantize_activations": _quantize_activations,
    "attention": _attention,
    "rope_store": _rope_store,
    "latent_attention": partial(_attention, latent=True),
    "latent_rope_store": partial(_rope_store, latent=True),
    "elementwise": _elementwise,
    "norm": norm.build,
    "join_attention": lambda *_: (rows.join_attention, {"join_parts": attention.join_parts}),
    "select_outputs": lambda *_: (rows.select_outputs, {}),
    "concat": lambda *_: (rows.concat, {}),
    "select_columns": lambda *_: (rows.select_columns, {}),
    "pool": lambda *_: (rows.pool, {}),
    "route": lambda *_: (experts.route, {}),
    "group_experts": lambda *_: (experts.group_experts, {}),
    "weigh": lambda *_: (experts.weigh_rows, {}),
    "combine": lambda *_: (experts.combine, {}),
    "mix_streams": lambda *_: (streams.mix_streams, {}),
    "match_magnitude": lambda *_: (streams.match_magnitude, {}),
    "gaussian_topk": lambda *_: (streams.gaussian_topk, {}),
    "conv_state": conv_state.build,
    "delta_rule": delta_rule.build,
    "ssm_scan": ssm_scan.build,
    "pack": _pack,
    "read": _read,
    "sample": _sample,
    "run_program": lambda *_: (run_program.run_program.py_func, {}),
    "worker_loop": lambda *_: (run_program.worker_loop, {}),
    "submit_step": lambda *_: (run_program.submit_step, {}),
}


def build(name: str, tier: str, prototype: str) -> Any:
    """The numba `cfunc` of a kernel; `prototype` as in `ggpy.codegen.native.load`."""
    kind, _, variant = name.partition(".")
    body, names = _KINDS[kind](tier, variant)
    return compiled(specialized(body, f"{name}.{tier}".replace(".", "_"), **names), prototype)
