"""The sampler's usual chain on one row of logits: top-k, top-p, min-p, temperature, draw. `ggpy.sampling.sampler` has
each stage in numpy, for every case, and is the reference for this kernel."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, load_f64, load_i32, load_i64, store_f32, store_i32
from ggpy.cpu.isa.vector import LANES, Vec, i1, i16

RUN = 64  # logits looked at together

any_from: Any = None  # these names are set by `specialized`
largest_of: Any = None


@njit
def allowed_run(bits, run):  # type: ignore[no-untyped-def]
    """A bit for each token of a run of RUN: set where it may be chosen."""
    return types.uint64(load_i64(bits + types.uint64(8 * run)) if bits else -1)


@njit
def is_allowed(bits, i):  # type: ignore[no-untyped-def]
    return not bits or (load_i32(bits + types.uint64(4 * (i >> 5))) >> (i & 31)) & 1


@njit
def insert(values, ids, found, k, x, i):  # type: ignore[no-untyped-def]
    """Insert x among the `found` descending values; the last of these is dropped where there are k."""
    at = min(found, k - 1)
    while at > 0 and load_f32(values + types.uint64(4 * (at - 1))) < x:
        store_f32(values + types.uint64(4 * at), load_f32(values + types.uint64(4 * (at - 1))))
        store_i32(ids + types.uint64(4 * at), load_i32(ids + types.uint64(4 * (at - 1))))
        at -= 1
    store_f32(values + types.uint64(4 * at), x)
    store_i32(ids + types.uint64(4 * at), types.int32(i))


def sample(logits, n, params, values, ids, k, bits):  # type: ignore[no-untyped-def]
    """The token chosen among n logits, float32; -1 where they hold NaN, or the largest is no finite number.

    bits: int32 [n / 32, rounded up], a bit a token: only those that are set count; 0 for all.

    params: float64 [4], namely top-p (1 or more is off), the logarithm of min-p (minus infinity is off), temperature,
    and the point of the cumulative distribution to draw at, from 0 to below 1. values, ids: float32 and int32 [k] to
    work in.

    The k largest are kept in descending order; of equal values the lower index comes first. Each of the k runs with the
    largest maxima holds a value that large, so the least of these maxima is a floor under the k-th largest value: one
    comparison passes over most runs.
    """
    last = types.uint64(4 * (k - 1))
    least = types.float32(-math.inf)
    if n // RUN >= k:
        for run in range(n // RUN):
            x = largest_of(logits + types.uint64(4 * RUN * run), allowed_run(bits, run))
            if run < k or x > load_f32(values + last):
                insert(values, ids, run, k, x, run)
        least = load_f32(values + last)
    found = 0
    for start in range(0, n, RUN):
        end = min(n, start + RUN)
        if end - start == RUN:
            allowed = allowed_run(bits, start // RUN)
            if not any_from(logits + types.uint64(4 * start), least, allowed):
                continue
        for i in range(start, end):
            x = load_f32(logits + types.uint64(4 * i))
            if x < least or (found == k and x <= least) or not is_allowed(bits, i):
                continue
            if math.isnan(x):
                return -1
            insert(values, ids, found, k, x, i)
            found = min(k, found + 1)
            if found == k:
                least = load_f32(values + last)
    if not found or math.isinf(load_f32(values)):
        return -1

    peak = load_f32(values)
    top_p = load_f64(params)
    if top_p < 1.0:
        total = 0.0
        for i in range(found):
            total += math.exp(types.float64(load_f32(values + types.uint64(4 * i)) - peak))
        mass, kept = 0.0, 0
        while kept < found and (kept == 0 or mass < top_p * total):
            mass += math.exp(types.float64(load_f32(values + types.uint64(4 * kept)) - peak))
            kept += 1
        found = kept
    floor = peak + types.float32(load_f64(params + types.uint64(8)))
    while load_f32(values + types.uint64(4 * (found - 1))) < floor:
        found -= 1
    # Weights replace the logits, so that each exponential is taken once.
    divisor = types.float32(load_f64(params + types.uint64(16)))
    total = 0.0
    for i in range(found):
        at = values + types.uint64(4 * i)
        weight = math.exp(types.float64((load_f32(at) - peak) / divisor))
        store_f32(at, types.float32(weight))
        total += types.float32(weight)
    point, mass, last = load_f64(params + types.uint64(24)) * total, 0.0, 0
    for i in range(found):
        weight = load_f32(values + types.uint64(4 * i))
        mass += weight
        if weight > types.float32(0.0):
            last = i
        if mass > point:
            break
    return types.int64(load_i32(ids + types.uint64(4 * last)))


def _lanes(b: ir.IRBuilder, allowed: ir.Value, first: int) -> ir.Value:
    """The bits of LANES tokens, those from `first` on of a run, as a condition for each lane."""
    some = b.trunc(b.lshr(allowed, ir.Constant(allowed.type, first)), i16)
    return b.bitcast(some, ir.VectorType(i1, LANES))


def any_from_intrinsic(isa: str) -> Any:
    """`any_from(at, least, allowed)`: true where one of the RUN floats from `at` on whose bit is set in `allowed` is at
    least as large as `least`, or NaN."""

    def any_from(typingctx: Any, at: Any, least: Any, allowed: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            floor = v.splat(args[1])
            either = ir.Constant(ir.VectorType(i1, LANES), [0] * LANES)
            for first in range(0, RUN, LANES):
                x = v.load_f32(v.at(args[0], 4 * first))
                either = b.or_(either, b.and_(_lanes(b, args[2], first), b.fcmp_unordered(">=", x, floor)))
            return b.icmp_unsigned("!=", b.bitcast(either, i16), ir.Constant(i16, 0))

        return types.boolean(types.uintp, types.float32, types.uint64), codegen

    return intrinsic(any_from)


def largest_of_intrinsic(isa: str) -> Any:
    """`largest_of(at, allowed)`: the largest of the RUN floats from `at` on whose bit is set in `allowed`, minus
    infinity without any; undefined where one is NaN."""

    def largest_of(typingctx: Any, at: Any, allowed: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            largest = none = v.float(-math.inf)
            for first in range(0, RUN, LANES):
                x = v.load_f32(v.at(args[0], 4 * first))
                largest = v.maximum(b.select(_lanes(b, args[1], first), x, none), largest)
            return v.max_lanes(largest)

        return types.float32(types.uintp, types.uint64), codegen

    return intrinsic(largest_of)
