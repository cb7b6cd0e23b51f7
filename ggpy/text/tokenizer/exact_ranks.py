"""The check that tiktoken's merging gives exactly the same as a list of merges.

tiktoken joins any neighbours whose concatenation is a token, least rank first. A list of merges allows named pairs
only. The two agree when every token is reached by one pair alone. That is decidable token by token, because merging is
deterministic: while the bytes of a token t are still a run of whole symbols, what has happened inside the run is what
merging t's bytes alone would have done so far. So if merging t's bytes alone ends in the pair (l, r) and then t, no
other pair of neighbours that spells t can ever stand side by side; and if it does not end in t, the merges never make
t, and leaving t out of tiktoken's table keeps tiktoken from making it.

Merging l's and r's bytes side by side must lead to l and r, with no merge across the seam between them. That is checked
by undoing the merges of both, last merge first, and testing at each stage whether the symbols that meet at the seam
would have merged. All pairs are taken apart together, in numpy, shorter tokens first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ggpy.text.tokenizer.byte_alphabet import CHARACTER_OF_BYTE

Ints = NDArray[np.int64]


def ranks_of_merges(merges: list[str], merge: Callable[[str], list[str]]) -> list[str] | None:
    """The symbols for tiktoken in order of rank, first the 256 bytes; None where tiktoken would not be exact.

    `merges` are "left right" in order; `merge(symbol)` gives the symbols that they make of a symbol's characters.
    """
    number = {character: i for i, character in enumerate(CHARACTER_OF_BYTE)}
    symbols = list(CHARACTER_OF_BYTE)
    # Rules as symbol numbers. A symbol's number is its rank: symbols are numbered as the merges first make them.
    rules: list[tuple[str, str, int]] = []
    for left, right in _pairs(merges):
        made = left + right
        at = number.get(made)
        if at is None:
            at = number[made] = len(symbols)
            symbols.append(made)
        elif at != len(symbols) - 1:
            return None  # ways to make one token with others ranked between them
        rules.append((left, right, at))
    if not rules:
        return symbols
    known = [(number[left], number[right], at) for left, right, at in rules if left in number and right in number]
    splits = _splits(np.array(known, np.int64).reshape(-1, 3), [len(s) for s in symbols])
    if splits is None:
        return None
    # Tokens that no pair of lower ranks makes: see one by one whether the merges make them at all.
    unsettled = np.flatnonzero(splits[:, 0] < 0).tolist()
    dropped = {token for token in unsettled if merge(symbols[token]) != [symbols[token]]}
    return [symbol for i, symbol in enumerate(symbols) if i not in dropped]


def _pairs(merges: list[str]) -> list[list[str]]:
    """The merges as pairs, without those that match nothing: repeated ones, or of characters that no text becomes."""
    alphabet = set(CHARACTER_OF_BYTE)
    pairs = [entry.split(" ") for entry in dict.fromkeys(merges)]
    if set(map(len, pairs)) == {2} and alphabet.issuperset("".join(chain.from_iterable(pairs))):
        return [pair for pair in pairs if pair[0] and pair[1]]
    return [pair for pair in pairs if len(pair) == 2 and all(pair) and alphabet.issuperset("".join(pair))]


def _splits(rules: Ints, lengths: list[int]) -> Ints | None:
    """[n_symbols, 2]: the pair that makes each symbol; a byte is its own pair, a symbol without one has (-1, -1).

    `rules` [n, 3] are left, right, made. None where two pairs make one symbol, which cannot be.
    """
    count = len(lengths)
    split = np.full((count, 2), -1, np.int64)
    split[:256] = np.arange(256)[:, None]
    keys = rules[:, 0] * count + rules[:, 1]
    order = np.argsort(keys)
    keys, made = keys[order], rules[order, 2]

    length_of_rule = np.asarray(lengths)[rules[:, 2]]
    by_length = np.argsort(length_of_rule, kind="stable")
    bounds = np.flatnonzero(np.diff(length_of_rule[by_length])) + 1
    for group in np.split(by_length, bounds):
        left, right, token = rules[group].T
        # Only over lower ranks, and only from symbols that are themselves made.
        usable = (left < token) & (right < token) & (split[left, 0] >= 0) & (split[right, 0] >= 0)
        left, right, token = left[usable], right[usable], token[usable]
        valid = _seam_holds(left, right, token, split, keys, made)
        left, right, token = left[valid], right[valid], token[valid]
        if len(np.unique(token)) != len(token):
            return None
        split[token] = np.stack([left, right], 1)
    return split


def _seam_holds(left: Ints, right: Ints, limit: Ints, split: Ints, keys: Ints, made: Ints) -> NDArray[np.bool_]:
    """True for each i where merging the bytes of `left[i]` and `right[i]` together, by ranks below `limit[i]` only,
    gives those two."""
    count = len(split)
    holds = np.ones(len(left), bool)
    index = np.arange(len(left))
    while len(index):
        # Would the two symbols that meet at the seam have merged before the next inner merge?
        wanted = left * count + right
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        across = np.where(keys[at] == wanted, made[at], count)
        open_seam = across < limit
        holds[index[open_seam]] = False
        # Undo the later of the merges that made them. Of equal ranks the right one is the later.
        undo_left = left > right
        left_is_byte, right_is_byte = left < 256, right < 256
        undo_left = np.where(left_is_byte, False, np.where(right_is_byte, True, undo_left))
        limit = np.where(undo_left, left, right + 1)
        going = ~open_seam & ~(left_is_byte & right_is_byte)
        left = np.where(undo_left, split[left, 1], left)
        right = np.where(undo_left, right, split[right, 0])
        index, left, right, limit = index[going], left[going], right[going], limit[going]
    return holds
