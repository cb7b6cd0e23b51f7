"""The CPU's side of each operation: the kernel that runs it, its record, and the memory that it reads and writes.

A new operation has a class here and its kernel's body in `ggpy.cpu.ops`; barriers follow from what it says it touches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy.cpu.access import (
    ACTIVATIONS,
    EVERYONE,
    ORDER,
    OWN,
    PARTS,
    Access,
    Lowering,
    Places,
    by_columns,
    dst_of,
    rows_of,
    stripes_of,
    touch,
)
from ggpy.cpu.isa.layout import cache_types
from ggpy.cpu.lowering_recurrent import LowerConvWithState, LowerDeltaRule, LowerSSMScan
from ggpy.cpu.lowering_streams import LowerGaussianTopK, LowerMatchMagnitude, LowerMixStreams
from ggpy.cpu.memory import Memory, address
from ggpy.cpu.sizes import round_up
from ggpy.gguf.slices import read_vector
from ggpy.graph import operations as ops
from ggpy.graph import recurrent, streams
from ggpy.quant.formats import packed_format
from ggpy.quant.packed import ROWS

if TYPE_CHECKING:
    from ggpy.graph.program import Op


class LowerEmbed(Lowering[ops.Embed]):
    def kernel(self, operation: ops.Embed, cache_type: str) -> str:
        return f"embed.{packed_format(operation.table).name}"

    def record(self, op: Op, operation: ops.Embed, places: Places, r: np.ndarray) -> None:
        rows = places.embeddings.add(operation)
        r["weight"], r["weight_stride"], r["n_cols"] = address(rows), rows.shape[1], operation.table.shape[1]


class LowerQuantize(Lowering[ops.QuantizeActivations]):
    def kernel(self, operation: ops.QuantizeActivations, cache_type: str) -> str:
        return f"quantize_activations.{operation.dtype}"

    def record(self, op: Op, operation: ops.QuantizeActivations, places: Places, r: np.ndarray) -> None:
        memory, n_cols, norm = places.memory, op.srcs[0].n_cols, operation.norm
        r["n_cols"], r["token_bytes"] = n_cols, memory.token_bytes[n_cols, operation.dtype]
        r["dst"] = address(memory.activations)
        r["eps"] = norm.eps if norm else -1.0
        r["weight"] = memory.vector(norm.weight if norm else None, memory.ones)
        r["select"], r["spread"] = operation.select, operation.spread
        if operation.joins:
            _record_heads(operation.joins, memory, r)
            r["combine"], r["src2"] = 1, address(memory.parts)
        if operation.route:
            _record_order(operation.route, memory, r)

    def accesses(self, op: Op, operation: ops.QuantizeActivations, small: bool) -> list[Access]:
        rows = rows_of(op)
        src = EVERYONE if small or operation.spread or operation.select else rows
        found = [*touch(op.srcs, False, src), Access(ACTIVATIONS, True, OWN if small else rows)]
        found += [Access(PARTS, False, EVERYONE)] if operation.joins else []
        return found + ([Access(ORDER, False, EVERYONE)] if operation.route else [])


class LowerLinear(Lowering[ops.Linear]):
    def kernel(self, operation: ops.Linear, cache_type: str) -> str:
        kind = "expert_linear" if operation.route else "head_linear" if operation.n_head else "linear"
        return f"{kind}.{packed_format(operation.weight).name}" + (".q16" if operation.dtype == "q16" else "")

    def record(self, op: Op, operation: ops.Linear, places: Places, r: np.ndarray) -> None:
        weight, memory = operation.weight, places.memory
        packed = packed_format(weight)
        n_rows, n_cols = weight.shape[-2:]
        r["src"], r["weight"] = address(memory.activations), places.weights.address(weight)
        r["bias"] = memory.vector(operation.bias, memory.zeros)
        r["n_cols"], r["n_stripes"] = packed.padded(n_cols), -(-n_rows // ROWS)
        r["stripe_bytes"] = packed.stripe_bytes(n_cols)
        r["token_bytes"] = memory.token_bytes[n_cols * max(1, operation.n_head), operation.dtype]
        r["n_head"], r["expert_bytes"] = operation.n_head, packed.matrix_bytes(n_rows, n_cols)
        r["accumulate"], r["next"] = operation.accumulate, memory.counter()
        if operation.route:
            _record_order(operation.route, memory, r)
            if operation.bias:
                bias = read_vector(memory.file, operation.bias).reshape(-1, n_rows)
                padded = np.zeros((len(bias), round_up(n_rows, 32)), np.float32)
                padded[:, :n_rows] = bias
                r["bias"], r["bias_stride"] = memory.keep(padded), padded.strides[0]

    def accesses(self, op: Op, operation: ops.Linear, small: bool) -> list[Access]:
        assert op.dst is not None
        rows = stripes_of(op.dst.buffer.n_cols) if small and not operation.n_head else EVERYONE
        found = [Access(ACTIVATIONS, False, OWN if small else EVERYONE), *touch(dst_of(op), True, rows)]
        return found + ([Access(ORDER, False, EVERYONE)] if operation.route else [])


def _record_order(route: ops.Route, memory: Memory, r: np.ndarray) -> None:
    r["groups"], r["pairs"], r["places"] = (address(part) for part in (memory.groups, memory.pairs, memory.places))
    r["n_experts"], r["n_used"] = route.n_experts, route.n_used


def _record_heads(a: ops.Attention, memory: Memory, r: np.ndarray) -> None:
    r["n_head"], r["n_head_kv"], r["head_dim"], r["v_dim"] = a.n_head, a.n_head_kv, a.head_dim, a.v_head_dim
    r["head_pad"], r["max_parts"] = round_up(a.v_head_dim, 16), memory.max_parts
    r["key_pad"] = round_up(a.head_dim, 16) if a.latent else a.head_dim
    r["causal"], r["window"], r["chunk"], r["softcap"] = a.causal, a.window, a.chunk, a.softcap
    for name, value in memory.states.cache(a.cache_layer).items():
        r[name] = value
    if a.sinks:
        r["sinks"] = memory.vector(a.sinks)


def _attention_kernel(kind: str, attention: ops.Attention, cache_type: str) -> str:
    """The name of a kernel for a cache of that type; a latent one is of the keys' type."""
    return f"latent_{kind}.{cache_types(cache_type)[0]}" if attention.latent else f"{kind}.{cache_type}"


class LowerRopeStore(Lowering[ops.RopeStore]):
    def kernel(self, operation: ops.RopeStore, cache_type: str) -> str:
        return _attention_kernel("rope_store", operation.attention, cache_type)

    def record(self, op: Op, operation: ops.RopeStore, places: Places, r: np.ndarray) -> None:
        attention, memory = operation.attention, places.memory
        _record_heads(attention, memory, r)
        if rope := attention.rope:
            r["n_rot"], r["neox"], r["angles"] = rope.n_rot, rope.style == "neox", memory.angles(rope)
            r["rope_first"] = attention.rope_first
        for norm, at in ((attention.q_norm, "weight"), (attention.k_norm, "weight2")):
            if norm:
                r[at], r["eps"] = memory.vector(norm.weight), norm.eps
                r["norm"] = 2 if attention.norm_after_rope else 1

    def accesses(self, op: Op, operation: ops.RopeStore, small: bool) -> list[Access]:
        cache = ("cache", operation.attention.cache_layer if operation.attention.causal else "shared")
        return [*touch(op.srcs, True, EVERYONE), Access(cache, True, EVERYONE)]


class LowerAttend(Lowering[ops.Attend]):
    def kernel(self, operation: ops.Attend, cache_type: str) -> str:
        return _attention_kernel("attention", operation.attention, cache_type)

    def record(self, op: Op, operation: ops.Attend, places: Places, r: np.ndarray) -> None:
        attention, memory = operation.attention, places.memory
        _record_heads(attention, memory, r)
        r["scale"] = attention.scale
        r["src2"], r["next"] = address(memory.parts), memory.counter()
        if t := attention.temperature:
            r["temperature"], r["temperature_length"], r["temperature_offset"] = t.beta, t.length, t.offset
        if attention.alibi:
            r["slopes"] = memory.keep(np.array(attention.slopes, np.float32))

    def accesses(self, op: Op, operation: ops.Attend, small: bool) -> list[Access]:
        cache = ("cache", operation.attention.cache_layer if operation.attention.causal else "shared")
        return [
            *touch(op.srcs, False, EVERYONE),
            *touch(dst_of(op), True, EVERYONE),
            Access(cache, False, EVERYONE),
            Access(PARTS, True, EVERYONE),
        ]


class LowerJoin(Lowering[ops.JoinAttention]):
    def kernel(self, operation: ops.JoinAttention, cache_type: str) -> str:
        return "join_attention"

    def record(self, op: Op, operation: ops.JoinAttention, places: Places, r: np.ndarray) -> None:
        _record_heads(operation.attention, places.memory, r)
        r["src2"] = address(places.memory.parts)

    def accesses(self, op: Op, operation: ops.JoinAttention, small: bool) -> list[Access]:
        return [Access(PARTS, False, EVERYONE), *touch(dst_of(op), True, EVERYONE)]


class LowerNorm(Lowering[ops.Norm]):
    def kernel(self, operation: ops.Norm, cache_type: str) -> str:
        return f"norm.{operation.kind}"

    def record(self, op: Op, operation: ops.Norm, places: Places, r: np.ndarray) -> None:
        memory, n_cols = places.memory, op.srcs[0].n_cols
        width = operation.width or n_cols
        r["n_cols"], r["n_groups"], r["eps"] = width, n_cols // width, operation.eps
        r["weight"], r["bias"] = (
            memory.vector(operation.weight, memory.ones),
            memory.vector(operation.bias, memory.zeros),
        )
        whole = operation.weight and math.prod(operation.weight.shape) == n_cols
        r["weight_stride"] = 4 * width if whole else 0

    def accesses(self, op: Op, operation: ops.Norm, small: bool) -> list[Access]:
        rows = EVERYONE if operation.width else rows_of(op)
        return [*touch(op.srcs, False, rows), *touch(dst_of(op), True, rows)]


class LowerElementwise(Lowering[ops.Elementwise]):
    def kernel(self, operation: ops.Elementwise, cache_type: str) -> str:
        return f"elementwise.{operation.function}"

    def record(self, op: Op, operation: ops.Elementwise, places: Places, r: np.ndarray) -> None:
        r["n_stripes"], r["scale"] = -(-op.srcs[0].n_cols // ROWS), operation.constant
        if len(op.srcs) == 1:
            r["src2"], r["src2_stride"] = r["src"], r["src_stride"]

    def accesses(self, op: Op, operation: ops.Elementwise, small: bool) -> list[Access]:
        return by_columns(op)


class LowerScaleColumns(Lowering[ops.ScaleColumns]):
    def kernel(self, operation: ops.ScaleColumns, cache_type: str) -> str:
        return "elementwise.mul"

    def record(self, op: Op, operation: ops.ScaleColumns, places: Places, r: np.ndarray) -> None:
        n_cols, values = op.srcs[0].n_cols, read_vector(places.memory.file, operation.weight)
        r["n_stripes"] = -(-n_cols // ROWS)
        r["src2"] = places.memory.keep(np.broadcast_to(values, n_cols))

    def accesses(self, op: Op, operation: ops.ScaleColumns, small: bool) -> list[Access]:
        return by_columns(op)


class LowerShiftColumns(Lowering[ops.ShiftColumns]):
    def kernel(self, operation: ops.ShiftColumns, cache_type: str) -> str:
        return "elementwise.add"

    def record(self, op: Op, operation: ops.ShiftColumns, places: Places, r: np.ndarray) -> None:
        r["n_stripes"] = -(-op.srcs[0].n_cols // ROWS)
        r["src2"] = places.memory.vector(operation.weight)

    def accesses(self, op: Op, operation: ops.ShiftColumns, small: bool) -> list[Access]:
        return by_columns(op)


class LowerConcat(Lowering[ops.Concat]):
    def kernel(self, operation: ops.Concat, cache_type: str) -> str:
        return "concat"

    def record(self, op: Op, operation: ops.Concat, places: Places, r: np.ndarray) -> None:
        r["n_groups"] = operation.n_groups
        r["n_cols"], r["v_dim"] = (region.n_cols // operation.n_groups for region in op.srcs)


class LowerSelectColumns(Lowering[ops.SelectColumns]):
    def kernel(self, operation: ops.SelectColumns, cache_type: str) -> str:
        return "select_columns"

    def record(self, op: Op, operation: ops.SelectColumns, places: Places, r: np.ndarray) -> None:
        assert op.dst is not None
        r["n_groups"], r["n_cols"] = operation.n_groups, op.dst.n_cols // operation.n_groups
        r["flag"] = op.srcs[0].n_cols // operation.n_groups
        r["src"] += 4 * operation.first


class LowerSelectOutputs(Lowering[ops.SelectOutputs]):
    def kernel(self, operation: ops.SelectOutputs, cache_type: str) -> str:
        return "select_outputs"

    def record(self, op: Op, operation: ops.SelectOutputs, places: Places, r: np.ndarray) -> None:
        r["n_cols"] = op.srcs[0].n_cols

    def accesses(self, op: Op, operation: ops.SelectOutputs, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), *touch(dst_of(op), True, rows_of(op))]


class LowerPool(Lowering[ops.Pool]):
    def kernel(self, operation: ops.Pool, cache_type: str) -> str:
        return "pool"

    def record(self, op: Op, operation: ops.Pool, places: Places, r: np.ndarray) -> None:
        r["n_cols"], r["flag"] = op.srcs[0].n_cols, ops.POOLINGS.index(operation.kind)

    def accesses(self, op: Op, operation: ops.Pool, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), *touch(dst_of(op), True, rows_of(op))]


class LowerRoute(Lowering[ops.Route]):
    def kernel(self, operation: ops.Route, cache_type: str) -> str:
        return "route"

    def record(self, op: Op, operation: ops.Route, places: Places, r: np.ndarray) -> None:
        _record_order(operation, places.memory, r)
        r["gating"], r["flag"] = ops.GATINGS.index(operation.gating), operation.normalize
        r["scale"], r["n_groups"], r["n_chosen_groups"] = operation.scale, operation.n_groups, operation.n_groups_used
        r["group_best"] = operation.group_best
        if operation.bias:
            r["bias"] = places.memory.vector(operation.bias)
        if operation.expert_scale:
            r["weight2"] = places.memory.vector(operation.expert_scale)


class LowerGroupExperts(Lowering[ops.GroupExperts]):
    def kernel(self, operation: ops.GroupExperts, cache_type: str) -> str:
        return "group_experts"

    def record(self, op: Op, operation: ops.GroupExperts, places: Places, r: np.ndarray) -> None:
        _record_order(operation.route, places.memory, r)

    def accesses(self, op: Op, operation: ops.GroupExperts, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), Access(ORDER, True, EVERYONE)]


class LowerWeigh(Lowering[ops.Weigh]):
    def kernel(self, operation: ops.Weigh, cache_type: str) -> str:
        return "weigh"

    def record(self, op: Op, operation: ops.Weigh, places: Places, r: np.ndarray) -> None:
        r["n_used"], r["n_cols"] = op.srcs[1].n_cols // 2, op.srcs[0].n_cols
        r["places"] = address(places.memory.places)

    def accesses(self, op: Op, operation: ops.Weigh, small: bool) -> list[Access]:
        read = touch(op.srcs, False, EVERYONE)
        return [*read, Access(ORDER, False, EVERYONE), *touch(dst_of(op), True, EVERYONE)]


class LowerCombine(Lowering[ops.Combine]):
    def kernel(self, operation: ops.Combine, cache_type: str) -> str:
        return "combine"

    def record(self, op: Op, operation: ops.Combine, places: Places, r: np.ndarray) -> None:
        assert op.dst is not None
        n_used = op.srcs[1].n_cols // 2
        r["n_used"], r["n_stripes"] = n_used, -(-op.dst.n_cols // ROWS)
        r["places"] = address(places.memory.places)
        if not operation.weighted:  # the same numbers for every token, where weights would be
            ones = np.ones(2 * n_used, np.float32)
            r["src2"], r["src2_stride"] = places.memory.keep(ones), 0

    def accesses(self, op: Op, operation: ops.Combine, small: bool) -> list[Access]:
        assert op.dst is not None
        columns = stripes_of(op.dst.n_cols)
        rows, weights = op.srcs
        return [
            Access(rows.buffer, False, columns),
            Access(weights.buffer, False, EVERYONE),
            Access(ORDER, False, EVERYONE),
            *touch(dst_of(op), True, columns),
        ]


LOWERINGS: dict[type[ops.Operation], Lowering[Any]] = {
    ops.Embed: LowerEmbed(),
    ops.QuantizeActivations: LowerQuantize(),
    ops.Linear: LowerLinear(),
    ops.RopeStore: LowerRopeStore(),
    ops.Attend: LowerAttend(),
    ops.JoinAttention: LowerJoin(),
    ops.Norm: LowerNorm(),
    ops.Elementwise: LowerElementwise(),
    ops.ScaleColumns: LowerScaleColumns(),
    ops.ShiftColumns: LowerShiftColumns(),
    ops.Concat: LowerConcat(),
    ops.SelectColumns: LowerSelectColumns(),
    ops.SelectOutputs: LowerSelectOutputs(),
    ops.Pool: LowerPool(),
    ops.Route: LowerRoute(),
    ops.GroupExperts: LowerGroupExperts(),
    ops.Weigh: LowerWeigh(),
    ops.Combine: LowerCombine(),
    streams.MixStreams: LowerMixStreams(),
    streams.MatchMagnitude: LowerMatchMagnitude(),
    streams.GaussianTopK: LowerGaussianTopK(),
    recurrent.ConvWithState: LowerConvWithState(),
    recurrent.DeltaRule: LowerDeltaRule(),
    recurrent.SSMScan: LowerSSMScan(),
}


def lowering_of(operation: ops.Operation) -> Lowering[Any]:
    """The lowering of an operation's class, or of the class that it is made from."""
    return next(LOWERINGS[kind] for kind in type(operation).__mro__ if kind in LOWERINGS)
