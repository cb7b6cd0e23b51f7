"""Memory of who drafts tokens for a model, a smaller model or a head of the model's own, on the CPU beside it: in sums
made before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

from ggpy.cpu.sizes import WorkingSizes, slots_bytes, weight_bytes
from ggpy.errors import GGPYError
from ggpy.models import architecture_of
from ggpy.runtime.placement import ENOUGH_CONTEXT, Placement
from ggpy.runtime.planned import needed_predictor

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile


class Drafter(Protocol):
    """Who drafts for the model of a `Placement`, `main`."""

    def contexts(self, n_ctx: int) -> tuple[int, int]:
        """The least and the most tokens that its slots have, beside slots of `n_ctx`."""

    def n_bytes(self, main: Placement, n_ctx: int, n_batch: int) -> int:
        """Bytes that it takes with slots of `n_ctx` tokens, beside steps of up to `n_batch`."""


class SmallModel:
    """A model of a file of its own, with as many slots and threads. Each slot has the whole context, where the other
    model's may share cells: as much of it as fits, but at least what is enough for most answers."""

    def __init__(self, file: GGUFFile, n_slots: int, n_threads: int | None) -> None:
        hparams = architecture_of(file).hparams
        if not hparams.writes_text:
            raise GGPYError(f"{file.path.name} is a {hparams.arch} model: it embeds texts and cannot draft any.")
        self._placement = Placement(file, n_slots=n_slots, n_threads=n_threads)
        self._total = cache(self._total_bytes)

    def contexts(self, n_ctx: int) -> tuple[int, int]:
        most = min(n_ctx, self._placement.hparams.n_ctx_train)
        return min(most, ENOUGH_CONTEXT), most

    def n_bytes(self, main: Placement, n_ctx: int, n_batch: int) -> int:
        return self._total(n_ctx)

    def _total_bytes(self, n_ctx: int) -> int:
        stages, n_batch = self._placement.place(n_ctx)
        return sum(use.total for use in self._placement.uses(stages, n_ctx, n_batch, free=0))


class OwnHead:
    """The model's own block that predicts further tokens, with a cell for each of the model's. Sums raise GGPYError
    where the file has none."""

    def __init__(self) -> None:
        self._program = cache(needed_predictor)

    def contexts(self, n_ctx: int) -> tuple[int, int]:
        return n_ctx, n_ctx

    def n_bytes(self, main: Placement, n_ctx: int, n_batch: int) -> int:
        program = self._program(main.file)
        state = slots_bytes(program.states, n_ctx, main.n_slots, n_batch, main.cache_type("cpu"))
        working = WorkingSizes(program, n_ctx, n_batch, main.n_threads).total
        return weight_bytes(program, beside=main.program(False)) + working + state


@contextmanager
def drafter_of(
    draft: str | os.PathLike[str] | GGUFFile | None, head: bool, n_slots: int, n_threads: int | None
) -> Iterator[Drafter | None]:
    """Who drafts for a model of so many slots: the model of a file, whose header is open within the block, or the
    model's own head, or nobody."""
    if draft is None:
        yield OwnHead() if head else None
        return
    from ggpy.gguf.file import GGUFFile

    with draft if isinstance(draft, GGUFFile) else GGUFFile(draft) as file:
        yield SmallModel(file, n_slots, n_threads)
