"""The next token of each sequence, chosen from its logits: top-k, top-p, min-p, temperature, draw, as
`ggpy.sampling.sampler` has them, with its random numbers.

The vocabulary is cut into SEGMENTS runs of tokens. `sample.peaks` finds the largest logit of each. Each of the k best
of these is a logit, so the k-th is a floor under the k-th largest logit: `sample.pick` looks for it, goes through the
few segments that reach it, and keeps the k best tokens it meets, of equal ones the lower. One warp does the rest.

Logits are compared as *keys*, whole numbers in the same order: NaN above all, -0 equal to 0, 0 for what is none.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, inline, quotient, u32, u64, warp_sum
from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    count_block,
    divide,
    dynamic_shared,
    exp2,
    f32_to_bits,
    fresh_f32,
    fresh_i32,
    load_4f32,
    load_f32,
    load_i32,
    load_u32,
    release_next,
    shared_add,
    shared_load_u32,
    shared_store_u32,
    shift_f32,
    store_i32,
    store_u32,
    swap_i32,
    sync_block,
    wait_for_previous,
)
from ggpy.cuda.ops.sample_layout import (
    BAD_INFINITE,
    BAD_NAN,
    BAD_NOTHING,
    BANNED_AT,
    LANES,
    LISTED,
    LOADS,
    MAX_TOP_K,
    PEAK_THREADS,
    PICK_THREADS,
    SEGMENTS,
    SPEC_WORDS,
    segment_length,
)

LOG2_E = 1.4426950408889634
SEARCHED_BITS = 20  # of the floor's key: one a little too low only lets more tokens through
NAN_KEY = 0xFFFFFFFF
INFINITE_KEY = 0xFF800000
LOWEST_KEY = 0x007FFFFF  # of minus infinity

# shared memory of `pick`, in bytes: the list of tokens that may be among the best, the best in order, the segments
LIST_IDS_AT = 4 * LISTED
BEST_AT = 8 * LISTED
BEST_IDS_AT = BEST_AT + 4 * MAX_TOP_K
SEGMENTS_AT = BEST_IDS_AT + 4 * MAX_TOP_K
COUNTERS_AT = SEGMENTS_AT + 4 * SEGMENTS  # segments, then tokens listed


@inline
def key_of(x):  # type: ignore[no-untyped-def]
    bits = f32_to_bits(x)
    if x == f32(0.0):
        bits = u32(0)
    key = ~bits if bits >= u32(0x80000000) else bits | u32(0x80000000)
    return key if x == x else u32(NAN_KEY)


@inline
def logit_of(key):  # type: ignore[no-untyped-def]
    return bits_to_f32(key ^ u32(0x80000000) if key >= u32(0x80000000) else ~key)


def _forbidding(n: int) -> Any:
    """`forbid(x, tokens, spec, n_banned)`: minus infinity added to those of n logits whose tokens are banned."""

    @inline
    def forbid(x, tokens, spec, n_banned):  # type: ignore[no-untyped-def]
        for b in range(n_banned):
            banned = load_i32(at(spec, i32(4 * BANNED_AT) + b * i32(4)))
            for j in range(n):
                x[j] += f32(-math.inf) if tokens[j] == banned else f32(0.0)

    return forbid


def source(what: str, n_vocab: str) -> Source:
    return {"peaks": _peaks, "pick": _pick}[what](int(n_vocab))


def _peaks(n_vocab: int) -> Source:
    """sample.peaks.VOCABULARY(header, specs, logits, logit_stride, peaks), on a grid (PEAK_BLOCKS, rows): the largest
    key of each segment, u32 [row][SEGMENTS]. Rows from `header`[0] on are left alone."""
    length = segment_length(n_vocab)
    rounds = -(-length // (4 * LANES))
    n_held = 4 * rounds
    forbid = _forbidding(n_held)

    def peaks(header, specs, logits, logit_stride, peaks):  # type: ignore[no-untyped-def]
        release_next()
        # What describes the batch is there before the kernel ahead has ended.
        row = i32(cuda.blockIdx.y)
        spec = at(specs, row * i32(4 * SPEC_WORDS))
        n, n_banned = fresh_i32(header), fresh_i32(at(spec, i32(4)))
        wait_for_previous()
        if row >= n:
            return
        thread = i32(i32(cuda.blockIdx.x) * i32(PEAK_THREADS) + i32(cuda.threadIdx.x))
        segment, lane = thread // i32(LANES), thread % i32(LANES)
        spec = at(specs, row * i32(4 * SPEC_WORDS))
        from_ = logits + u64(u32(row)) * u64(u32(logit_stride))
        x = cuda.local.array(n_held, types.float32)
        tokens = cuda.local.array(n_held, types.int32)
        for r in range(rounds):
            within = i32(4 * r * LANES) + lane * i32(4)
            token = i32(segment * i32(length) + within)
            a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            inside = within < i32(length) and token < i32(n_vocab)
            if inside:
                a, b, c, d = load_4f32(at(from_, token * i32(4)))
            x[4 * r], x[4 * r + 1], x[4 * r + 2], x[4 * r + 3] = a, b, c, d
            for j in range(4):
                tokens[4 * r + j] = i32(token + i32(j)) if inside else i32(n_vocab)
        forbid(x, tokens, spec, n_banned)
        best = u32(0)
        for j in range(n_held):
            if tokens[j] < i32(n_vocab):
                best = max(best, key_of(x[j]))
        for mask in (4, 2, 1):
            best = max(best, u32(swap_i32(i32(best), u32(mask))))
        if lane == i32(0):
            store_u32(at(peaks, (row * i32(SEGMENTS) + segment) * i32(4)), best)

    return Source(peaks, "u64 u64 u64 i32 u64", PEAK_THREADS)


@inline
def word(memory, index):  # type: ignore[no-untyped-def]
    return memory + u32(index) * u32(4)


@inline
def keep_best(memory, listed, k):  # type: ignore[no-untyped-def]
    """Put the k best of the listed tokens in order, and reduce the list to them; returns how many there are."""
    tid = i32(cuda.threadIdx.x)
    for i in range(tid, listed, i32(PICK_THREADS)):
        key, token = shared_load_u32(word(memory, i)), shared_load_u32(word(memory + u32(LIST_IDS_AT), i))
        rank = i32(0)
        for j in range(listed):
            other = shared_load_u32(word(memory, j))
            if other > key or (other == key and shared_load_u32(word(memory + u32(LIST_IDS_AT), j)) < token):
                rank = i32(rank + i32(1))
        if rank < k:
            shared_store_u32(word(memory + u32(BEST_AT), rank), key)
            shared_store_u32(word(memory + u32(BEST_IDS_AT), rank), token)
    sync_block()
    kept = min(listed, k)
    if tid < kept:
        shared_store_u32(word(memory, tid), shared_load_u32(word(memory + u32(BEST_AT), tid)))
        shared_store_u32(word(memory + u32(LIST_IDS_AT), tid), shared_load_u32(word(memory + u32(BEST_IDS_AT), tid)))
    if tid == i32(0):
        shared_store_u32(memory + u32(COUNTERS_AT + 4), u32(kept))
    sync_block()
    return kept


def _drawing() -> Any:
    each = MAX_TOP_K // 32  # candidates of a lane, one after the other

    @inline
    def running(x, lane):  # type: ignore[no-untyped-def]
        """Turn x into running sums over the warp's candidates."""
        for j in range(1, each):
            x[j] += x[j - 1]
        total = x[each - 1]
        for step in (1, 2, 4, 8, 16):
            below = shift_f32(total, u32(step))
            if lane >= i32(step):
                total += below
        before = shift_f32(total, u32(1))
        if lane > i32(0):
            for j in range(each):
                x[j] += before

    @inline
    def drawn(memory, kept, lane, hot, top_p, least, uniform):  # type: ignore[no-untyped-def]
        """Index of the chosen one of the best: top-p, min-p, temperature and the draw, by one warp."""
        peak = logit_of(shared_load_u32(memory + u32(BEST_AT)))
        x = cuda.local.array(each, types.float32)
        mass = cuda.local.array(each, types.float32)
        whole = f32(0.0)
        for j in range(each):
            i = lane * i32(each) + i32(j)
            x[j], mass[j] = f32(-math.inf), f32(0.0)
            if i < kept:
                x[j] = logit_of(shared_load_u32(word(memory + u32(BEST_AT), i)))
                mass[j] = exp2((x[j] - peak) * f32(LOG2_E))
            whole += mass[j]
        whole = warp_sum(whole)
        for j in range(each):
            mass[j] = quotient(mass[j], whole)
        running(mass, lane)
        before = shift_f32(mass[each - 1], u32(1))  # the mass of all likelier candidates
        if lane == i32(0):
            before = f32(-1.0)  # the likeliest always stays
        for j in range(each):
            here = mass[j]
            mass[j] = f32(0.0)
            if before < top_p and x[j] >= peak + least:
                mass[j] = exp2(divide(x[j] - peak, hot) * f32(LOG2_E))
            before = here
        running(mass, lane)
        whole = last_lane(mass[each - 1])
        point = uniform * whole
        first, last = i32(MAX_TOP_K), i32(MAX_TOP_K)
        for j in range(each - 1, -1, -1):
            if mass[j] > point:
                first = lane * i32(each) + i32(j)
            if mass[j] >= whole:
                last = lane * i32(each) + i32(j)
        for mask in (16, 8, 4, 2, 1):
            first = min(first, swap_i32(first, u32(mask)))
            last = min(last, swap_i32(last, u32(mask)))
        return min(first, last)  # where rounding leaves none above the point, the last with any mass

    return drawn


@inline
def last_lane(x):  # type: ignore[no-untyped-def]
    """The value of lane 31, where values never decrease from lane to lane."""
    for mask in (16, 8, 4, 2, 1):
        x = max(x, bits_to_f32(u32(swap_i32(i32(f32_to_bits(x)), u32(mask)))))
    return x


def _pick(n_vocab: int) -> Source:
    """sample.pick.VOCABULARY(header, specs, slots, logits, logit_stride, peaks, chosen, answers), a block a row.

    Row r's token goes to chosen[slots[r]], and to row r of the answers that `header`[1] names, in host memory; one of
    the BAD_ numbers where the logits are no distribution.
    """
    length = segment_length(n_vocab)
    drawn, forbid = _drawing(), _forbidding(LOADS)

    def pick(header, specs, slots, logits, logit_stride, peaks, chosen, answers):  # type: ignore[no-untyped-def]
        release_next()
        row, tid = i32(cuda.blockIdx.x), i32(cuda.threadIdx.x)
        spec = at(specs, row * i32(4 * SPEC_WORDS))
        # What describes the batch is there before the kernel ahead has ended.
        n, place_of_answers, slot = fresh_i32(header), fresh_i32(at(header, i32(4))), fresh_i32(at(slots, row * i32(4)))
        k, n_banned = fresh_i32(spec), fresh_i32(at(spec, i32(4)))
        hot, top_p = fresh_f32(at(spec, i32(8))), fresh_f32(at(spec, i32(12)))
        least, uniform = fresh_f32(at(spec, i32(16))), fresh_f32(at(spec, i32(20)))
        wait_for_previous()
        if row >= n:
            return
        memory = dynamic_shared()
        peak = load_u32(at(peaks, (row * i32(SEGMENTS) + tid) * i32(4)))
        if tid < i32(2):
            shared_store_u32(word(memory + u32(COUNTERS_AT), tid), u32(0))
        floor = u32(0)
        for bit in range(31, 31 - SEARCHED_BITS, -1):
            higher = floor | (u32(1) << u32(bit))
            above = i32(count_block(u32(1) if peak >= higher else u32(0)))
            if above >= k:
                floor = higher
            if above == k:
                break
        floor = max(floor, u32(1))
        if peak >= floor:
            place = shared_add(memory + u32(COUNTERS_AT), u32(1))
            shared_store_u32(word(memory + u32(SEGMENTS_AT), place), u32(tid))
        sync_block()
        n_items = i32(shared_load_u32(memory + u32(COUNTERS_AT))) * i32(length)

        from_ = logits + u64(u32(row)) * u64(u32(logit_stride))
        listed, limit = i32(0), i32(n_vocab)  # of equals of the floor, only tokens below the limit
        x = cuda.local.array(LOADS, types.float32)
        tokens = cuda.local.array(LOADS, types.int32)
        for start in range(i32(0), n_items, i32(LOADS * PICK_THREADS)):
            for j in range(LOADS):
                item = i32(start + i32(j * PICK_THREADS) + tid)
                x[j], tokens[j] = f32(0.0), i32(n_vocab)
                if item < n_items:
                    which = i32(item // i32(length))
                    segment = i32(shared_load_u32(word(memory + u32(SEGMENTS_AT), which)))
                    token = i32((segment - which) * i32(length) + item)
                    if token < i32(n_vocab):
                        x[j], tokens[j] = load_f32(at(from_, token * i32(4))), token
            forbid(x, tokens, spec, n_banned)
            for j in range(LOADS):
                key = key_of(x[j])
                if tokens[j] < i32(n_vocab) and (key > floor or (key == floor and tokens[j] < limit)):
                    place = shared_add(memory + u32(COUNTERS_AT + 4), u32(1))
                    shared_store_u32(word(memory, place), key)
                    shared_store_u32(word(memory + u32(LIST_IDS_AT), place), u32(tokens[j]))
            sync_block()
            listed = i32(shared_load_u32(memory + u32(COUNTERS_AT + 4)))
            sync_block()
            if listed > i32(MAX_TOP_K) or start + i32(LOADS * PICK_THREADS) >= n_items:
                listed = keep_best(memory, listed, k)
                floor = shared_load_u32(word(memory, listed - i32(1)))
                limit = i32(shared_load_u32(word(memory + u32(LIST_IDS_AT), listed - i32(1))))
        if tid >= i32(32):
            return
        best = shared_load_u32(memory + u32(BEST_AT))
        answer, token = i32(BAD_NOTHING), i32(0)
        if best > u32(LOWEST_KEY):
            if best == u32(NAN_KEY):
                answer = i32(BAD_NAN)
            elif best == u32(INFINITE_KEY):
                answer = i32(BAD_INFINITE)
            else:
                taken = i32(0)
                if listed > i32(1):
                    taken = drawn(memory, listed, tid, hot, top_p, least, uniform)
                token = i32(shared_load_u32(word(memory + u32(BEST_IDS_AT), taken)))
                answer = token
        if tid == i32(0):
            store_i32(at(chosen, slot * i32(4)), token)
            store_i32(at(answers, place_of_answers + row * i32(4)), answer)

    return Source(pick, "u64 u64 u64 u64 i32 u64 u64 u64", PICK_THREADS)
