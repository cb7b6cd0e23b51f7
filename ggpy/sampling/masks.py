"""Masks of structured outputs, computed while a step runs: on the host's other cores, and all at once.

A mask takes 0.02 ms of a core for most JSON, 0.2 ms for regular expressions that count, some milliseconds where these
begin, at a vocabulary of 152,000 tokens: eight of those one after the other would be a step of a small model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ggpy.host.cores import cpus

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from llguidance import LLExecutor

    from ggpy.sampling.structured import Grammar


@contextmanager
def computed_meanwhile(grammars: Sequence[Grammar]) -> Iterator[None]:
    """Compute the masks of the next token of some grammars, none twice, beside what is done within. They are there at
    its end."""
    if not grammars:
        yield
        return
    pool, executor = _threads(os.getpid())
    done = pool.submit(_compute, grammars, executor)
    try:
        yield
    finally:
        done.exception()  # whatever fails is tried again by `Grammar.mask`, and then is its request's error


def _compute(grammars: Sequence[Grammar], executor: LLExecutor) -> None:
    bits = np.empty((len(grammars), grammars[0].n_words), np.int32)
    pairs = [(grammar.matcher, i) for i, grammar in enumerate(grammars)]
    executor.unsafe_compute_mask_ptr(pairs, bits.ctypes.data, bits[0].nbytes, len(pairs))
    for grammar, row in zip(grammars, bits, strict=True):
        grammar.learn(row)


@cache
def _threads(process: int) -> tuple[ThreadPoolExecutor, LLExecutor]:
    """Threads of a process, one that waits and those that compute; a child that was forked has none of its parent's."""
    from concurrent.futures import ThreadPoolExecutor

    import llguidance

    return ThreadPoolExecutor(1, "ggpy-masks"), llguidance.LLExecutor(min(8, cpus()))
