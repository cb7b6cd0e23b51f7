"""Rows of embedding tables, gathered from the file for each step: only those of tokens that occur are ever read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.errors import GGPYError
from ggpy.gguf.slices import read_halves
from ggpy.quant.formats import PACKED

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.operations import Embed


class Table:
    """One table, and the rows of it that the step needs, read from the file as they occur: 2 us a token, and no memory.
    A table of a type without a packed form is converted once, to half precision."""

    def __init__(self, file: GGUFFile, info: TensorInfo, n_batch: int) -> None:
        n_rows, n_cols = info.shape
        self._file, self._start = file, info
        self._halves: np.ndarray | None = None  # uint8 [n_rows, row bytes]
        row_bytes = info.nbytes // n_rows
        if info.type_name not in PACKED:
            rows = np.asarray(file.data(info.name)).reshape(n_rows, -1)
            self._halves, row_bytes = read_halves(file, info, rows).view(np.uint8), 2 * n_cols
        self.rows = np.zeros((n_batch, row_bytes), np.uint8)  # what the kernel reads
        self._views = [row.data for row in self.rows]

    def read(self, indices: np.ndarray, n: int) -> None:
        """Fill rows[:n] with those of the table."""
        if self._halves is not None:
            self.rows[:n] = self._halves[indices[:n]]
            return
        start, size, read, views = self._start.offset, self.rows.shape[1], self._file.read_into, self._views
        for i in range(n):
            read(views[i], start + int(indices[i]) * size)


class Embeddings:
    """The tables of a program, by what their rows are chosen by."""

    def __init__(self, file: GGUFFile, n_ctx: int, n_batch: int) -> None:
        self._file, self._n_ctx, self._n_batch = file, n_ctx, n_batch
        self._tables: list[tuple[str, Table]] = []
        self._has_types = False  # a table by the type of the token
        self._typed = False  # whether its rows are of other types than the first

    def add(self, embed: Embed) -> np.ndarray:
        """The rows that the kernel of `embed` is to read: uint8 [n_batch, row bytes]."""
        n_rows = embed.table.shape[0]
        if embed.index == "position" and n_rows < self._n_ctx:
            raise GGPYError(
                f"{self._file.path}: the model knows {n_rows} positions, fewer than the context of {self._n_ctx} tokens"
                f"; take a smaller one (-c {n_rows})."
            )
        table = Table(self._file, embed.table, self._n_batch)
        self._tables.append((embed.index, table))
        if embed.index == "type":
            self._has_types = True
            table.read(np.zeros(self._n_batch, np.int32), self._n_batch)
        return table.rows

    def read(self, tokens: np.ndarray, positions: np.ndarray, types: np.ndarray, n: int) -> None:
        """Gather the rows of a step of n tokens."""
        typed = self._has_types and bool(types[:n].any())
        for index, table in self._tables:
            if index != "type":
                table.read(tokens if index == "token" else positions, n)
            elif typed or self._typed:  # rows of type 0 stay from step to step
                table.read(types, len(types))
        self._typed = typed
