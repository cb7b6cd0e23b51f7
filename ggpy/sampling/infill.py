"""llama.cpp's sampler for infill: whole words, and an end as soon as one is likely."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from ggpy.sampling.stages import Candidates, top_k

MOST = 128  # candidates that are compared with each other; llama.cpp compares all, whatever that takes


class Infill:
    """The stage named `infill`, as llama.cpp's `llama_sampler_infill_apply` has it. token_bytes: of each token, none of
    a control token; ends: the tokens that end generation; end: the one that does where no other is likely."""

    def __init__(self, token_bytes: Callable[[int], bytes], ends: Collection[int], end: int) -> None:
        self._token_bytes, self._ends, self._end = token_bytes, np.array(sorted(ends), np.intp), end

    def __call__(self, c: Candidates) -> Candidates:
        c = top_k(c, MOST)
        ids = np.arange(c.logits.size) if c.ids is None else c.ids
        order = np.argsort(-c.logits, kind="stable")
        ids, probs = ids[order], c.probs()[order].astype(np.float64)
        ends = np.isin(ids, self._ends)
        if 3 * probs[ends].sum() * ids.size > probs[~ends].sum():
            return _chosen(ids, probs, ends)
        self._merge(ids, probs)
        kept = ends | (probs >= 0.2)
        n_words = np.count_nonzero(kept & ~ends)
        if not n_words:
            return Candidates(np.zeros(1, np.float32), np.array([self._end]), True)
        probs = np.where(kept, probs, 0) / probs[kept].sum()
        return _chosen(ids, probs, ends | (probs >= 1 / (n_words + 1)))

    def _merge(self, ids: np.ndarray, probs: np.ndarray) -> None:
        """Give the likelier of two tokens, of which one begins like the other, the probability of both, in place."""
        texts = [self._token_bytes(int(id)) for id in ids]
        gone = probs == 0
        for i, short in enumerate(texts):
            for j, long in enumerate(texts):
                if gone[i]:
                    break
                if i == j or gone[j] or not short or not long.startswith(short):
                    continue
                into, out_of = (j, i) if probs[j] > probs[i] else (i, j)
                probs[into] += probs[out_of]
                probs[out_of], gone[out_of] = 0, True


def _chosen(ids: np.ndarray, probs: np.ndarray, kept: np.ndarray) -> Candidates:
    kept = kept & (probs > 0)
    return Candidates(np.log(probs[kept]).astype(np.float32), ids[kept], False)
