"""The choice of experts for each token (`ggpy.graph.operations.Route`): a block of threads a token, a thread an expert.

An expert's place is the number of those with a higher score, and of the lower ones with the same: every thread counts
by itself, so that no step waits for the one before, as it would where the best is looked for again and again.
"""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, block_max, block_sum, divided, f32, i32, inline, u32, u64
from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    divide,
    dynamic_shared,
    exp2,
    larger,
    load_f32,
    release_next,
    shared_load_128,
    shared_load_f32,
    shared_store_f32,
    store_f32,
    store_i32,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.weights.layout import LOG2_E, SUMS, round_up

NEVER = -3e38  # below every score
NOBODY = -3.4e38  # below that: of threads without an expert


@inline
def exponential(x):  # type: ignore[no-untyped-def]
    return exp2(x * f32(LOG2_E))


@inline
def higher(other, index, score, own):  # type: ignore[no-untyped-def]
    """1 where the score `other`, of expert `index`, comes before `score`, of expert `own`; else 0."""
    return i32(1) if other > score or (other == score and index < own) else i32(0)


def source(
    n_experts_: str, n_used_: str, gating: str, n_groups_: str, n_groups_used_: str, group_best: str, normalize_: str
) -> Source:
    """route.EXPERTS.USED.GATING.GROUPS.GROUPS_USED.GROUP_BEST.NORMALIZE(logits, logit_stride, bias, each, scale, dst,
    dst_stride), on a grid of tokens: row i of dst becomes the experts of token i, int32, best first, then their
    weights. bias, each: numbers of the experts, added to scores and multiplied with weights, or 0. `route_bytes` has
    its memory."""
    n_experts, n_used, n_groups, n_groups_used = map(int, (n_experts_, n_used_, n_groups_, n_groups_used_))
    softmax, sigmoid, softmax_topk = gating == "softmax", gating == "sigmoid", gating == "softmax_topk"
    normalize = normalize_ == "1" or softmax_topk
    threads = round_up(n_experts, 32)
    warps, size = threads // 32, n_experts // max(1, n_groups)
    two_count = size > 1 and group_best != "1"
    scores_at, fours = 2 * SUMS, -(-n_experts // 4)
    chosen_at = scores_at + 4 * threads
    groups_at = chosen_at + 4 * n_used

    @inline
    def sum_of(group, memory):  # type: ignore[no-untyped-def]
        """The sum of a group's two highest scores, or the highest, by which groups are compared."""
        of = memory + u32(groups_at) + u32(group * i32(8))
        first = shared_load_f32(of)
        return first + shared_load_f32(of + u32(4)) if two_count else first

    @inline
    def keep_best_groups(score, e, memory):  # type: ignore[no-untyped-def]
        """The score of an expert, or NEVER where its group is not among those of the highest sums."""
        group = divided(e, i32(size))
        first, place = group * i32(size), i32(0)
        of = memory + u32(scores_at)
        if e < i32(n_experts):
            for k in range(size):
                other, index = shared_load_f32(of + u32((first + i32(k)) * i32(4))), first + i32(k)
                place += higher(other, index, score, e)
            if place < i32(2):
                shared_store_f32(memory + u32(groups_at) + u32((i32(2) * group + place) * i32(4)), score)
        sync_block()
        if e < i32(n_experts):
            mine, before = sum_of(group, memory), i32(0)
            for g in range(n_groups):
                other = sum_of(i32(g), memory)
                before += higher(other, i32(g), mine, group)
            if before >= i32(n_groups_used):
                score = f32(NEVER)
            shared_store_f32(of + u32(e * i32(4)), score)
        sync_block()
        return score

    def route(logits, logit_stride, bias, each, scale, dst, dst_stride):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        e, token = i32(cuda.threadIdx.x), u64(cuda.blockIdx.x)
        memory = dynamic_shared()
        of, chosen = memory + u32(scores_at), memory + u32(chosen_at)
        here = e < i32(n_experts)
        x = f32(NOBODY)
        if here:
            x = load_f32(at(logits + token * u64(u32(logit_stride)), e * i32(4)))
        weight = x
        if softmax:
            largest = block_max(x, memory, warps)
            weight = exponential(x - largest) if here else f32(0.0)
            weight = divide(weight, block_sum(weight, memory + u32(SUMS), warps))
        if sigmoid:
            weight = divide(f32(1.0), f32(1.0) + exponential(-x))
        # Softmax leaves the order of logits as it is, and they are not rounded.
        score = x if n_groups == 0 and softmax and bias == u64(0) else weight
        if here and bias != u64(0):
            score += load_f32(at(bias, e * i32(4)))
        score = score if score > f32(NEVER) else f32(NEVER)  # also what is no number: experts are chosen anyway
        score = score if here else f32(NOBODY)
        shared_store_f32(of + u32(e * i32(4)), score)
        sync_block()
        if n_groups:
            score = keep_best_groups(score, e, memory)
        place = i32(0)
        for k in range(fours):
            one, two, three, four = shared_load_128(of + u32(16 * k))
            place += higher(bits_to_f32(one), i32(4 * k), score, e) + higher(bits_to_f32(two), i32(4 * k + 1), score, e)
            place += higher(bits_to_f32(three), i32(4 * k + 2), score, e)
            place += higher(bits_to_f32(four), i32(4 * k + 3), score, e)
        here = here and place < i32(n_used)
        if here:
            shared_store_f32(chosen + u32(place * i32(4)), weight)
        sync_block()
        if here:
            first, factor = shared_load_f32(chosen), scale
            if softmax_topk:
                weight = exponential(weight - first)
            if normalize:
                total = f32(0.0)
                for j in range(n_used):
                    other = shared_load_f32(chosen + u32(4 * j))
                    total += exponential(other - first) if softmax_topk else other
                factor = divide(scale, larger(total, f32(1e-20)))
            weight *= factor
            if each != u64(0):
                weight *= load_f32(at(each, e * i32(4)))
            row = dst + token * u64(u32(dst_stride))
            store_i32(at(row, place * i32(4)), e)
            store_f32(at(row, (i32(n_used) + place) * i32(4)), weight)

    return Source(route, "u64 i32 u64 u64 f32 u64 i32", threads)
