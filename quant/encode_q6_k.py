"""The encoder of Q6_K, for numba to compile: a search for the scale of each sub-block of 16 weights, all 16
sub-blocks at once.

The steps and roundings are those of ggml's `quantize_row_q6_K_ref` and `make_qx_quants` (ggml-quants.c). Every
operation is rounded by itself, without fused multiply-adds: ggml's base library is built for the plain x86-64, even
in a build for the native CPU, and the bytes depend on it. Sums run in the order of the weights; lane s of each vector
is sub-block s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ggpy.codegen.scalars import f16_to_f32, f32_to_f16, load_f32, store_u8, store_u16
from ggpy.quant.vector import clear, constant, intrinsic_call, largest, load, splat, store

_I8, _I32, _F32 = ir.IntType(8), ir.IntType(32), ir.FloatType()
_V8, _VF, _V32 = ir.VectorType(_I8, 16), ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)

# Adding and taking away 1.5 · 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
_ROUNDER = 12582912.0
_N_MAX = 32  # codes are −32..31
# The first guess scales the largest weight to −32; the others try −(32 + 0.1 k) for k in −9..9.
_TRIALS = [float(np.float32(_N_MAX) + np.float32(0.1) * np.float32(k)) for k in range(-9, 10) if k]
_NEGLIGIBLE = 1e-15  # a sub-block of less is all zero
# Beyond this the super-scale cannot be fp16 in any case, and the sums of cubes stay finite below it.
_BEYOND = np.float32(1e9)


def _clamped(builder: ir.IRBuilder, shifted: Any) -> Any:
    """A float that _ROUNDER was added to → its integer, −32..31, still as a float."""
    value = builder.fsub(shifted, constant(_VF, _ROUNDER))
    value = builder.select(
        builder.fcmp_ordered("<", value, constant(_VF, _N_MAX - 1)), value, constant(_VF, _N_MAX - 1)
    )
    return builder.select(builder.fcmp_ordered(">", value, constant(_VF, -_N_MAX)), value, constant(_VF, -_N_MAX))


def _transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """16 vectors of 16: element j of vector i ↔ element i of vector j, by swapping ever smaller squares."""
    rows = list(rows)
    for step in (8, 4, 2, 1):
        upper = ir.Constant(_V32, [lane if not lane & step else 16 + lane - step for lane in range(16)])
        lower = ir.Constant(_V32, [lane + step if not lane & step else 16 + lane for lane in range(16)])
        for i in range(16):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
    return rows


def _moments(builder: ir.IRBuilder, columns: list[tuple[Any, Any, Any]], inverse: Any) -> tuple[Any, Any]:
    """(Σ x²·x·l, Σ x²·l²) a lane, where l is x · inverse as a code."""
    sum_xl, sum_ll = constant(_VF, 0.0), constant(_VF, 0.0)
    for x, weight, weight_x in columns:
        code = _clamped(builder, builder.fadd(builder.fmul(inverse, x), constant(_VF, _ROUNDER)))
        sum_xl = builder.fadd(sum_xl, builder.fmul(weight_x, code))
        sum_ll = builder.fadd(sum_ll, builder.fmul(builder.fmul(weight, code), code))
    return sum_xl, sum_ll


@intrinsic
def _search(typing_context: Any, x: Any, scales: Any, inverses: Any) -> Any:
    """256 float32 at `x` → float32 [16] each: the best scale of each sub-block, and the trial inverse that gave it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = [load(builder, builder.add(args[0], args[0].type(64 * i)), _VF) for i in range(16)]
        columns = _transposed(builder, rows)  # columns[i]: weight i of every sub-block

        largest_size, largest_value = constant(_VF, 0.0), constant(_VF, 0.0)
        for x in columns:
            size = intrinsic_call(builder, "llvm.fabs.v16f32", _VF, x)
            larger = builder.fcmp_ordered(">", size, largest_size)
            largest_size = builder.select(larger, size, largest_size)
            largest_value = builder.select(larger, x, largest_value)
        weights = [builder.fmul(x, x) for x in columns]
        triples = [(x, w, builder.fmul(w, x)) for x, w in zip(columns, weights, strict=True)]

        first = builder.fdiv(constant(_VF, -_N_MAX), largest_value)
        sum_xl, sum_ll = _moments(builder, triples, first)
        scale = builder.fdiv(sum_xl, sum_ll)
        scale = builder.select(builder.fcmp_unordered("!=", sum_ll, constant(_VF, 0.0)), scale, constant(_VF, 0.0))
        best_at = cgutils.alloca_once_value(builder, builder.fmul(scale, sum_xl))
        scale_at, inverse_at = cgutils.alloca_once_value(builder, scale), cgutils.alloca_once_value(builder, first)

        trials = ir.ArrayType(_F32, len(_TRIALS))
        table = cgutils.global_constant(builder, "q6_k_trials", ir.Constant(trials, _TRIALS))
        with cgutils.for_range(builder, ir.IntType(64)(len(_TRIALS))) as loop:
            trial = builder.load(builder.gep(table, [_I32(0), loop.index], inbounds=True))
            inverse = builder.fdiv(splat(builder, builder.fneg(trial), _VF), largest_value)
            sum_xl, sum_ll = _moments(builder, triples, inverse)
            best = builder.load(best_at)
            better = builder.fcmp_ordered(">", builder.fmul(sum_xl, sum_xl), builder.fmul(best, sum_ll))
            better = builder.and_(better, builder.fcmp_ordered(">", sum_ll, constant(_VF, 0.0)))
            scale = builder.fdiv(sum_xl, sum_ll)
            builder.store(builder.select(better, builder.fmul(scale, sum_xl), best), best_at)
            builder.store(builder.select(better, scale, builder.load(scale_at)), scale_at)
            builder.store(builder.select(better, inverse, builder.load(inverse_at)), inverse_at)

        # A negligible sub-block has the scale 0, and an inverse of 0 says that its codes are 0.
        tiny = builder.fcmp_ordered("<", largest_size, constant(_VF, _NEGLIGIBLE))
        store(builder, builder.select(tiny, constant(_VF, 0.0), builder.load(scale_at)), args[1], 0)
        store(builder, builder.select(tiny, constant(_VF, 0.0), builder.load(inverse_at)), args[2], 0)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), codegen


def _store_codes(builder: ir.IRBuilder, shifted: Any, out: Any) -> None:
    codes = builder.fptosi(builder.fadd(_clamped(builder, shifted), constant(_VF, _N_MAX)), _V32)
    store(builder, builder.trunc(codes, _V8), out, 0)


@intrinsic
def _codes_by_scale(typing_context: Any, x: Any, out: Any, scale: Any) -> Any:
    """16 float32 at `x`, divided by `scale`, → 16 codes 0..63 at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = builder.fdiv(load(builder, args[0], _VF), splat(builder, args[2], _VF))
        _store_codes(builder, builder.fadd(values, constant(_VF, _ROUNDER)), args[1])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.float32), codegen


@intrinsic
def _codes_by_inverse(typing_context: Any, x: Any, out: Any, inverse: Any) -> Any:
    """16 float32 at `x`, times `inverse`, → 16 codes 0..63 at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = builder.fmul(load(builder, args[0], _VF), splat(builder, args[2], _VF))
        _store_codes(builder, builder.fadd(values, constant(_VF, _ROUNDER)), args[1])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.float32), codegen


@intrinsic
def _pack(typing_context: Any, codes: Any, out: Any) -> Any:
    """256 codes 0..63 → 128 bytes of low nibbles and 64 of upper bit pairs: of each 128 codes, four runs of 32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I8, 32)
        for part in range(2):
            runs = [load(builder, builder.add(args[0], args[0].type(128 * part + 32 * i)), kind) for i in range(4)]
            low = [builder.and_(run, constant(kind, 15)) for run in runs]
            high = [builder.lshr(run, constant(kind, 4)) for run in runs]
            for i in range(2):
                nibbles = builder.or_(low[i], builder.shl(low[i + 2], constant(kind, 4)))
                store(builder, nibbles, args[1], 64 * part + 32 * i)
            pairs = high[0]
            for i in range(1, 4):
                pairs = builder.or_(pairs, builder.shl(high[i], constant(kind, 2 * i)))
            store(builder, pairs, args[1], 128 + 32 * part)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), codegen


@njit(inline="always")
def _nearest(value):  # type: ignore[no-untyped-def]
    return np.int32(np.float32(np.float32(value + np.float32(_ROUNDER)) - np.float32(_ROUNDER)))


def encode(x, out, n, scratch):  # type: ignore[no-untyped-def]
    """float32 [n, 256] → [n, 210 bytes]. scratch: of each sub-block its scale and inverse, then 256 codes."""
    inverses, codes = np.uint64(scratch + np.uint64(64)), np.uint64(scratch + np.uint64(128))
    for b in range(n):
        at, to = np.uint64(x + np.uint64(b * 1024)), np.uint64(out + np.uint64(b * 210))
        for run in range(8):
            if not abs(largest(np.uint64(at + np.uint64(128 * run)))) < _BEYOND:
                return b
        _search(at, scratch, inverses)
        top = np.float32(0)
        for s in range(16):
            scale = load_f32(np.uint64(scratch + np.uint64(4 * s)))
            if abs(scale) > abs(top):
                top = scale
        if abs(top) < np.float32(_NEGLIGIBLE):
            clear(to, 210)
            continue
        inverse = np.float32(np.float32(-128) / top)
        half = f32_to_f16(np.float32(np.float32(1) / inverse))
        if np.uint32(half & np.uint32(0x7FFF)) >= np.uint32(0x7C00):
            return b
        d = f16_to_f32(half)
        store_u16(np.uint64(to + np.uint64(208)), half)
        for s in range(16):
            step = min(np.int32(127), _nearest(np.float32(inverse * load_f32(np.uint64(scratch + np.uint64(4 * s))))))
            store_u8(np.uint64(to + np.uint64(192 + s)), np.uint8(step & np.int32(0xFF)))
            weights_at, to_codes = np.uint64(at + np.uint64(64 * s)), np.uint64(codes + np.uint64(16 * s))
            scale, own = np.float32(d * np.float32(step)), load_f32(np.uint64(inverses + np.uint64(4 * s)))
            if scale != np.float32(0):
                _codes_by_scale(weights_at, to_codes, scale)
            elif own != np.float32(0):
                _codes_by_inverse(weights_at, to_codes, own)
            else:
                clear(to_codes, 16)
        _pack(codes, to)
    return -1
