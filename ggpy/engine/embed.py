"""Texts as rows: what a model that embeds texts or ranks them gives for each.

Such a model carries nothing on from one text to the next, so slots are filled as texts come, as many together as a
step has tokens for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.cells import in_cells
from ggpy.engine.token_ids import check_token_ids

Rows = NDArray[np.float32]


class RowsRuntime(Protocol):
    """The interface that an embedder needs of a runtime."""

    n_slots: int
    kv_cells: int | None  # that slots have ranges of; None: each has its own
    n_ctx: int
    n_batch: int
    n_vocab: int

    def assign_cells(self, slot: int, start: int, n_cells: int, n: int) -> None: ...

    def embed(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        outputs: Sequence[int],
        types: Sequence[int] | None = None,
        pooled: bool = True,
    ) -> Rows: ...


@dataclass(frozen=True)
class TokenizedText:
    """The token ids of a text, and from which on they are of its second part, if it has two (a query, a document)."""

    token_ids: list[int]
    second: int | None = None


class Embedder:
    """Texts through a runtime, in steps that callers take one by one. Not thread-safe."""

    def __init__(self, runtime: RowsRuntime, n_types: int = 0) -> None:
        """n_types: the types of tokens that the model tells apart."""
        self._runtime, self._two_types = runtime, n_types > 1

    def check(self, token_ids: Sequence[int], what: str = "The text") -> None:
        """Raise GGPYError for a text that the model cannot take."""
        check_token_ids(token_ids, self._runtime.n_ctx, self._runtime.n_vocab, what)

    def steps(self, texts: Sequence[TokenizedText]) -> Iterator[list[int]]:
        """The texts that each step takes, by their places in `texts`, in order; `run` evaluates one."""
        runtime = self._runtime
        step: list[int] = []
        n_tokens = n_cells = 0
        for place, text in enumerate(texts):
            n = len(text.token_ids)
            cells = in_cells(n)
            if step and (
                n_tokens + n > runtime.n_batch
                or len(step) == runtime.n_slots
                or (runtime.kv_cells is not None and n_cells + cells > runtime.kv_cells)
            ):
                yield step
                step, n_tokens, n_cells = [], 0, 0
            step.append(place)
            n_tokens, n_cells = n_tokens + n, n_cells + cells
        if step:
            yield step

    def run(self, texts: Sequence[TokenizedText], pooled: bool = True) -> list[Rows]:
        """The model's answer to each text of a step: one row, [n_cols], or, where not `pooled`, one for each token,
        [n_tokens, n_cols]."""
        self._make_room(texts)
        if len(texts) == 1 and len(texts[0].token_ids) > self._runtime.n_batch:
            return [self._in_chunks(texts[0].token_ids, pooled)]
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        types: list[int] = []
        ends: list[int] = []
        typed = self._two_types and any(text.second is not None for text in texts)
        for slot, text in enumerate(texts):
            n = len(text.token_ids)
            tokens += text.token_ids
            slots += [slot] * n
            positions += range(n)
            ends.append(len(tokens))
            if typed:
                first = n if text.second is None else text.second
                types += [0] * first + [1] * (n - first)
        outputs = [end - 1 for end in ends] if pooled else range(len(tokens))
        rows = self._runtime.embed(tokens, slots, positions, outputs, types if typed else None, pooled)
        if pooled:
            return [row.copy() for row in rows]
        return [part.copy() for part in np.split(rows, ends[:-1])]

    def _make_room(self, texts: Sequence[TokenizedText]) -> None:
        """Give slots the cells that these texts take, where slots have none of their own."""
        if self._runtime.kv_cells is None:
            return
        start = 0
        for slot, text in enumerate(texts):
            n_cells = in_cells(len(text.token_ids))
            self._runtime.assign_cells(slot, start, n_cells, 0)
            start += n_cells

    def _in_chunks(self, tokens: list[int], pooled: bool) -> Rows:
        """A text that need not be in one step, since none of its tokens sees those after it."""
        found: list[Rows] = []
        for start in range(0, len(tokens), self._runtime.n_batch):
            chunk = tokens[start : start + self._runtime.n_batch]
            last = start + len(chunk) == len(tokens)
            outputs = range(len(chunk)) if not pooled else (len(chunk) - 1,) if last else ()
            positions = range(start, start + len(chunk))
            found.append(self._runtime.embed(chunk, [0] * len(chunk), positions, outputs, None, pooled).copy())
        return found[-1][0] if pooled else np.concatenate(found)


def pool(rows: Rows, kind: str) -> Rows:
    """The rows of a text [n_tokens, n_cols] as one: "mean", "cls" (the first) or "last"; "none" leaves them."""
    if kind == "mean":
        return np.asarray(rows.mean(0, dtype=np.float64), np.float32)
    return rows if kind == "none" else rows[0 if kind == "cls" else -1]


def normalized(rows: Rows) -> Rows:
    """Rows scaled to length 1, along the last axis."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)
