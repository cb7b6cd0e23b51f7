"""Sums over the ranks that share a model's matrices (`ggpy.graph.tensor_parallel`): every rank adds up all partial
products, in the order of the ranks, so that all of them hold the same bits.

Two ways, by the number of tokens. *Pushed*, for few: the product itself sends each number to every rank, in 8 bytes
with the sum's *epoch*, which no earlier number in that place had: whoever reads waits for it there, and no mark or
fence is needed (what NCCL calls its low-latency protocol). *Pulled*, for many: a product leaves its rows in its own
memory and a mark with every rank; whoever has all marks reads all rows.

Two sets of places serve in turn. Before a rank writes a set again it has made the sum between, for which every rank
must have sent its part, after having read that set.

A rank waits for others `patience` turns at most, then the kernel ends with an error: nothing ever hangs.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64
from ggpy.cuda.isa.instructions import (
    bits_to_f32,
    f32_to_bits,
    fresh_i32,
    load_4f32,
    load_64,
    load_f32,
    load_far_4f32,
    load_mark,
    poll_128,
    release_next,
    store_4f32,
    store_f32,
    store_far_64,
    store_mark,
    sync_block,
    trap,
    wait_for_previous,
)
from ggpy.cuda.weights.layout import ALL_REDUCE_THREADS as THREADS


@inline
def epoch(epochs, number):  # type: ignore[no-untyped-def]
    """The mark of the sum `number` of a step; epochs: address of the mark of the step's first sum."""
    return u32(fresh_i32(epochs)) + u32(number)


@inline
def address(table, index):  # type: ignore[no-untyped-def]
    low, high = load_64(at(table, index * i32(8)))
    return u64(low) | u64(high) << u64(32)


def sender(ranks: int) -> Any:
    """`send(table, offset, value, mark)`: send a number with its mark to all ranks, at `offset` from the address of
    each."""

    @inline
    def send(table, offset, value, mark):  # type: ignore[no-untyped-def]
        for rank in range(ranks):
            store_far_64(at(address(table, i32(rank)), offset), f32_to_bits(value), mark)

    return send


def source(way: str, ranks_: str) -> Source:
    """all_reduce.pushed.RANKS or all_reduce.pulled.RANKS: see the module."""
    return (_pushed if way == "pushed" else _pulled)(int(ranks_))


def _pushed(ranks: int) -> Source:
    """all_reduce.pushed.RANKS(pairs, rank_stride, token_stride, n_cols, epochs, number, dst, dst_stride, accumulate,
    patience), on a grid (n_cols / (2 * THREADS), tokens).

    pairs: what came from rank r for token t, float32 and mark of each column, at r * rank_stride + t * token_stride.
    """
    n_words = 4 * ranks

    def all_reduce(pairs, rank_stride, token_stride, n_cols, epochs, number,
                   dst, dst_stride, accumulate, patience):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        column = (i32(cuda.blockIdx.x) * i32(THREADS) + i32(cuda.threadIdx.x)) * i32(2)
        token = i32(cuda.blockIdx.y)
        wait_for_previous()
        if column >= n_cols:
            return
        mark = epoch(epochs, number)
        out = dst + u64(u32(token)) * u64(u32(dst_stride)) + u64(u32(column * i32(4)))
        first, second = f32(0.0), f32(0.0)
        if accumulate != i32(0):
            first, second = load_f32(out), load_f32(at(out, i32(4)))
        here = pairs + u64(u32(token)) * u64(u32(token_stride)) + u64(u32(column * i32(8)))
        word = cuda.local.array(n_words, types.uint32)
        turn, there = i32(0), False
        while not there:
            there = True
            for r in range(ranks):
                word[4 * r], word[4 * r + 1], word[4 * r + 2], word[4 * r + 3] = poll_128(
                    here + u64(u32(r)) * u64(u32(rank_stride))
                )
            for r in range(ranks):
                there = there and word[4 * r + 1] == mark and word[4 * r + 3] == mark
            turn += i32(1)
            if turn > patience:
                trap()
        for r in range(ranks):
            first += bits_to_f32(word[4 * r])
            second += bits_to_f32(word[4 * r + 2])
        store_f32(out, first)
        store_f32(at(out, i32(4)), second)

    return Source(all_reduce, "u64 i32 i32 i32 u64 i32 u64 i32 i32 i32", THREADS)


def _pulled(ranks: int) -> Source:
    """all_reduce.pulled.RANKS(partials, marks, own_marks, own_rank, row_stride, n_cols, epochs, number, dst,
    dst_stride, accumulate, patience), on a grid (n_cols / (4 * THREADS), tokens).

    partials, marks: tables of every rank's rows and of its marks, one word for each rank.
    """

    def all_reduce(partials, marks, own_marks, own_rank, row_stride, n_cols, epochs, number,
                   dst, dst_stride, accumulate, patience):  # type: ignore[no-untyped-def]  # fmt: skip
        release_next()
        tid = i32(cuda.threadIdx.x)
        column = (i32(cuda.blockIdx.x) * i32(THREADS) + tid) * i32(4)
        token = i32(cuda.blockIdx.y)
        wait_for_previous()
        mark = epoch(epochs, number)
        if tid < i32(ranks):
            if i32(cuda.blockIdx.x) == i32(0) and token == i32(0):
                store_mark(at(address(marks, tid), own_rank * i32(4)), mark)
            turn = i32(0)
            while i32(load_mark(at(own_marks, tid * i32(4))) - mark) < i32(0):
                turn += i32(1)
                if turn > patience:
                    trap()
        sync_block()
        if column >= n_cols:
            return
        out = dst + u64(u32(token)) * u64(u32(dst_stride)) + u64(u32(column * i32(4)))
        a, b, c, d = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        if accumulate != i32(0):
            a, b, c, d = load_4f32(out)
        offset = u64(u32(token)) * u64(u32(row_stride)) + u64(u32(column * i32(4)))
        for r in range(ranks):
            p, q, s, t = load_far_4f32(address(partials, i32(r)) + offset)
            a += p
            b += q
            c += s
            d += t
        store_4f32(out, a, b, c, d)

    return Source(all_reduce, "u64 u64 u64 i32 i32 i32 u64 i32 u64 i32 i32 i32", THREADS)
