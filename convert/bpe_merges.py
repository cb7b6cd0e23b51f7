"""Merge rules from ranks: tiktoken vocabularies hold (bytes, rank) alone, GGUF wants the pair that makes each token."""

from __future__ import annotations

from collections.abc import Mapping

from ggpy.errors import GGPYError


def rebuild_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair of each token longer than a byte, in the order of rank.

    A token's pair is what byte-pair encoding of its bytes ends on when it may use only tokens of lower rank. Instead of
    encoding, each way to cut the token in two is tried until one stays whole: encoding reaches (left, right) exactly if
    nothing merges across the cut while the sides grow, and the pairs of the sides, known already, tell how they grow.
    GGPYError for a token that no pair of lower rank makes.
    """
    # Tokens by their place in the order of merging; bytes come first, for encoding starts from them.
    tokens = sorted(ranks, key=lambda token: (len(token) > 1, ranks[token]))
    place = {token: i for i, token in enumerate(tokens)}
    n = len(tokens)
    left, right = list(range(n)), list(range(n))  # a token's pair; a byte is its own
    made: dict[int, int] = {}  # left * n + right → the token that the pair makes
    find = place.get

    def stays_whole(a: int, b: int) -> bool:
        """True where encoding the bytes of a and b together gives (a, b): undo their merges, the latest first, and look
        for one across the cut."""
        before = n  # merges at or after this place have been undone, or come too late to matter
        while True:
            across = made.get(a * n + b)
            if across is not None and across < before:
                return False
            if a > b and right[a] != a:
                a, before = right[a], a
            elif left[b] != b:
                # Of two equal merges the left one goes first, so an equal one across the cut would win.
                b, before = left[b], b + 1
            elif right[a] != a:
                a, before = right[a], a
            else:
                return True

    merges: list[tuple[bytes, bytes]] = []
    for i, token in enumerate(tokens):
        for cut in range(len(token) - 1, 0, -1):
            a = find(token[:cut])
            if a is None or a >= i:
                continue
            b = find(token[cut:])
            if b is not None and b < i and stays_whole(a, b):
                left[i], right[i] = a, b
                made[a * n + b] = i
                merges.append((tokens[a], tokens[b]))
                break
        else:
            if len(token) > 1:
                raise GGPYError(
                    f"The tokenizer's token {token!r:.60} of rank {ranks[token]} is not made by two tokens before it."
                )
    return merges
