"""Merging a sequence of symbols pair by pair, best pair first: the loop that BPE and SentencePiece share."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush


def merge_pairs(symbols: list[str], priority: Callable[[str, str], float | None]) -> list[str]:
    """`symbols` with the adjacent pair of least priority joined, over and over, until no pair has one.

    Of equal priorities the leftmost pair goes first. `priority` is None for a pair that does not merge.
    Takes O(n log n) for n symbols. `symbols` is used up.
    """
    count = len(symbols)
    heap: list[tuple[float, int, int]] = []  # priority, index of the left symbol, characters in the pair
    for left in range(count - 1):
        first, second = symbols[left], symbols[left + 1]
        found = priority(first, second)
        if found is not None:
            heap.append((found, left, len(first) + len(second)))
    if not heap:
        return symbols
    heapify(heap)
    following = list(range(1, count + 1))  # index of the next living symbol; `count` is the end
    preceding = list(range(-1, count))  # index of the one before; -1 is the beginning
    while heap:
        _, left, size = heappop(heap)
        first = symbols[left]
        right = following[left]
        # A pair that changed since it was pushed is longer or its left symbol is gone.
        if not first or right == count or len(first) + len(symbols[right]) != size:
            continue
        symbols[left] = merged = first + symbols[right]
        symbols[right] = ""
        following[left] = after = following[right]
        preceding[after] = left
        before = preceding[left]
        if before >= 0:
            found = priority(symbols[before], merged)
            if found is not None:
                heappush(heap, (found, before, len(symbols[before]) + size))
        if after < count:
            found = priority(merged, symbols[after])
            if found is not None:
                heappush(heap, (found, left, size + len(symbols[after])))
    return [symbol for symbol in symbols if symbol]
