"""Mixture of experts: the choice of experts for each token, the order of rows by expert, and the weighted sum of what
they gave. The products between are `ggpy.cpu.ops.linear.expert_linear`'s."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import load_f32, load_i32, store_f32, store_i32
from ggpy.cpu.isa.layout import GROUP_WORDS
from ggpy.cpu.isa.records import as_op, as_step, stripes_of
from ggpy.cpu.isa.vector import Vec, i32, i64
from ggpy.graph.operations import GATINGS

SIGMOID, SOFTMAX_TOPK = GATINGS.index("sigmoid"), GATINGS.index("softmax_topk")
NEVER = -3e38  # below every score


def route(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = for each token the experts with the highest scores (int32), best first, then their weights. Of equal scores
    the lower expert comes first."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    scores = op.scratch + types.uint64(tid * op.scratch_stride)
    weights = scores + types.uint64(4 * op.n_experts)
    n = step.n_outputs if op.outputs_only else step.n_tokens
    for token in range(n * tid // nth, n * (tid + 1) // nth):
        logits = op.src + types.uint64(token * op.src_stride)
        weigh(op, logits, weights)
        for e in range(op.n_experts):
            at = types.uint64(4 * e)
            score = load_f32(weights + at)
            if op.bias:
                score += load_f32(op.bias + at)
            store_f32(scores + at, score)
        if op.n_groups:
            keep_best_groups(op, scores)
        ids = op.dst + types.uint64(token * op.dst_stride)
        chosen = ids + types.uint64(4 * op.n_used)
        total = types.float32(0.0)
        for j in range(op.n_used):
            best = highest(scores, op.n_experts)
            store_f32(scores + types.uint64(4 * best), types.float32(NEVER))
            weight = load_f32(weights + types.uint64(4 * best))
            if op.gating == SOFTMAX_TOPK:  # relative to the first, which is the largest
                first = load_f32(weights + types.uint64(4 * load_i32(ids))) if j else weight
                weight = types.float32(math.exp(weight - first))
            store_i32(ids + types.uint64(4 * j), types.int32(best))
            store_f32(chosen + types.uint64(4 * j), weight)
            total += weight
        factor = op.scale
        if op.flag or op.gating == SOFTMAX_TOPK:
            factor /= max(total, types.float32(1e-20))
        for j in range(op.n_used):
            at = chosen + types.uint64(4 * j)
            weight = load_f32(at) * factor
            if op.weight2:  # a factor of each expert's own
                weight *= load_f32(op.weight2 + types.uint64(4 * load_i32(ids + types.uint64(4 * j))))
            store_f32(at, weight)


@njit
def weigh(op, logits, weights):  # type: ignore[no-untyped-def]
    """Each expert's weight: its share by softmax, its sigmoid, or its logit as it stands."""
    largest = load_f32(logits)
    for e in range(op.n_experts):
        largest = max(largest, load_f32(logits + types.uint64(4 * e)))
    total = types.float32(0.0)
    for e in range(op.n_experts):
        at = types.uint64(4 * e)
        x = load_f32(logits + at)
        if op.gating == SIGMOID:
            x = types.float32(1.0) / (types.float32(1.0) + types.float32(math.exp(-x)))
        elif op.gating != SOFTMAX_TOPK:
            x = types.float32(math.exp(x - largest))
            total += x
        store_f32(weights + at, x)
    if total > types.float32(0.0):
        for e in range(op.n_experts):
            at = weights + types.uint64(4 * e)
            store_f32(at, load_f32(at) / total)


@njit
def highest(scores, n):  # type: ignore[no-untyped-def]
    """The place of the largest of n scores; 0 where none is above NEVER."""
    best, largest = 0, types.float32(NEVER)
    for e in range(n):
        x = load_f32(scores + types.uint64(4 * e))
        if x > largest:
            best, largest = e, x
    return best


@njit
def keep_best_groups(op, scores):  # type: ignore[no-untyped-def]
    """Set the scores outside the groups whose highest score, or two, sum up to most to NEVER."""
    size = op.n_experts // op.n_groups
    sums = scores + types.uint64(8 * op.n_experts)
    for g in range(op.n_groups):
        first, second = types.float32(NEVER), types.float32(NEVER)
        for e in range(g * size, (g + 1) * size):
            x = load_f32(scores + types.uint64(4 * e))
            if x > first:
                first, second = x, first
            elif x > second:
                second = x
        store_f32(sums + types.uint64(4 * g), first + second if size > 1 and op.group_best > 1 else first)
    for kept in range(op.n_groups):
        best = highest(sums, op.n_groups)
        store_f32(sums + types.uint64(4 * best), types.float32(NEVER))
        if kept >= op.n_chosen_groups:
            for e in range(best * size, (best + 1) * size):
                store_f32(scores + types.uint64(4 * e), types.float32(NEVER))


def group_experts(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """Put the rows for chosen experts in order: by expert, then by token. One thread does it; see `GROUP_WORDS`."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    if tid:
        return
    n = step.n_outputs if op.outputs_only else step.n_tokens
    following = op.scratch  # of each expert, how many rows; then the next row
    for e in range(op.n_experts):
        store_i32(following + types.uint64(4 * e), types.int32(0))
    for token in range(n):
        for j in range(op.n_used):
            expert = load_i32(op.src + types.uint64(token * op.src_stride + 4 * j))
            at = following + types.uint64(4 * expert)
            store_i32(at, types.int32(load_i32(at) + 1))
    row, n_groups = 0, 0
    for e in range(op.n_experts):
        count = types.int64(load_i32(following + types.uint64(4 * e)))
        store_i32(following + types.uint64(4 * e), types.int32(row))
        if count:
            n_groups += 1
            describe(op.groups + types.uint64(4 * GROUP_WORDS * n_groups), e, row, count)
            for r in range(row, row + count):
                describe(op.pairs + types.uint64(4 * GROUP_WORDS * r), 0, row, count)
            row += count
    store_i32(op.groups, types.int32(n_groups))
    for token in range(n):
        for j in range(op.n_used):
            expert = load_i32(op.src + types.uint64(token * op.src_stride + 4 * j))
            at = following + types.uint64(4 * expert)
            row = types.int64(load_i32(at))
            store_i32(at, types.int32(row + 1))
            store_i32(op.pairs + types.uint64(4 * GROUP_WORDS * row), types.int32(token))
            store_i32(op.places + types.uint64(4 * (token * op.n_used + j)), types.int32(row))


@njit
def describe(at, what, row, count):  # type: ignore[no-untyped-def]
    store_i32(at, types.int32(what))
    store_i32(at + types.uint64(4), types.int32(row))
    store_i32(at + types.uint64(8), types.int32(count))


def weigh_rows(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst = for each expert of a token its row in src times that expert's weight in src2, in the experts' order."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = step.n_outputs if op.outputs_only else step.n_tokens
    for token in range(n * tid // nth, n * (tid + 1) // nth):
        src = op.src + types.uint64(token * op.src_stride)
        for j in range(op.n_used):
            weight = load_f32(op.src2 + types.uint64(token * op.src2_stride + 4 * (op.n_used + j)))
            row = types.int64(load_i32(op.places + types.uint64(4 * (token * op.n_used + j))))
            dst = op.dst + types.uint64(row * op.dst_stride)
            for column in range(op.n_cols):
                at = types.uint64(4 * column)
                store_f32(dst + at, load_f32(src + at) * weight)


@intrinsic
def weighted_sum(
    typingctx: Any, dst: Any, src: Any, stride: Any, places: Any, weights: Any, n_rows: Any, n16: Any
) -> tuple[Signature, Any]:
    """dst = the sum of n_rows rows of src, `places` among rows that are `stride` bytes apart, each times its weight,
    over 16 * n16 floats: a few vectors of all rows at a time, so that sums stay in registers."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        v = Vec(b, "plain")
        dst, src, stride, places, weights, n_rows, n16 = args

        def vectors(count: int, carried: list[ir.Value]) -> list[ir.Value]:
            dst, src = carried

            def row(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                place, weight, *sums = inner
                at = b.add(src, b.mul(b.sext(v.load(place, i32, 4), i64), stride))
                factor = v.bcast_f32(weight)
                sums = [b.fadd(x, b.fmul(v.load_f32(v.at(at, 64 * k)), factor)) for k, x in enumerate(sums)]
                return [v.at(place, 4), v.at(weight, 4), *sums]

            for k, x in enumerate(v.loop(n_rows, [places, weights, *[v.float(0.0)] * count], row)[2:]):
                v.store(x, v.at(dst, 64 * k))
            return [v.at(dst, 64 * count), v.at(src, 64 * count)]

        whole, rest = b.lshr(n16, v.const(3)), b.and_(n16, v.const(7))
        after = v.loop(whole, [dst, src], lambda i, c: vectors(8, c), may_be_empty=True)
        v.loop(rest, after, lambda i, c: vectors(1, c), may_be_empty=True)
        return context.get_dummy_value()

    u, i = types.uintp, types.intp
    return types.void(u, u, i, u, u, i, i), codegen


def combine(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token] = the rows of its experts in src, each times its weight in src2, summed up best first; over the same
    stripes of columns that this thread's matrix products wrote."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    first, last = stripes_of(tid, nth, op.n_stripes)
    if first >= last:
        return
    column = types.uint64(64 * first)
    for token in range(step.n_outputs if op.outputs_only else step.n_tokens):
        weighted_sum(
            op.dst + types.uint64(token * op.dst_stride) + column,
            op.src + column,
            op.src_stride,
            op.places + types.uint64(4 * token * op.n_used),
            op.src2 + types.uint64(token * op.src2_stride + 4 * op.n_used),
            op.n_used,
            last - first,
        )
