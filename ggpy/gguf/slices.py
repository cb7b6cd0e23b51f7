"""Weights as arrays: whole tensors of a file, or some rows and columns of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile, TensorInfo
from ggpy.quant import by_id

Range = tuple[int, int]  # first, one past the last


@dataclass(frozen=True)
class TensorSlice(TensorInfo):
    """Some rows and columns of a tensor of the file; `shape` and `nbytes` are those of the slice."""

    rows: tuple[Range, ...]
    columns: Range | None = None

    @staticmethod
    def of(info: TensorInfo, rows: Sequence[Range] | None = None, columns: Range | None = None) -> TensorSlice:
        """`rows` and `columns` of a tensor, all where None; columns must begin and end with whole blocks."""
        n_rows = sum(last - first for first, last in rows) if rows else info.shape[0]
        n_cols = columns[1] - columns[0] if columns else info.shape[-1]
        shape = (n_rows, n_cols) if len(info.shape) == 2 else (n_rows,)
        row_bytes = by_id(info.type).row_bytes(n_cols) if len(shape) == 2 else info.nbytes // info.shape[0]
        return TensorSlice(
            info.name,
            info.type,
            info.type_name,
            shape,
            info.offset,
            n_rows * row_bytes,
            tuple(rows or [(0, n_rows)]),
            columns,
        )


def raw_rows(file: GGUFFile, info: TensorInfo, first: int = 0, last: int | None = None) -> np.ndarray:
    """Rows first .. last of a matrix, or of a slice of one, as they are stored: uint8 [rows, bytes of a row]."""
    stored = file.tensors[info.name]
    as_stored = len(stored.shape) == len(info.shape)  # or a vector taken for a matrix of one row
    row_bytes = stored.nbytes // (stored if as_stored else info).shape[0]
    last = info.shape[0] if last is None else last

    def read(first: int, last: int) -> np.ndarray:
        return file.read(info.name, first * row_bytes, (last - first) * row_bytes).reshape(-1, row_bytes)

    if not isinstance(info, TensorSlice):
        return read(first, last)
    parts, place = [], 0  # the slice's row that the next range begins with
    for begin, end in info.rows:
        low, high = max(first, place), min(last, place + end - begin)
        if low < high:
            parts.append(read(begin + low - place, begin + high - place))
        place += end - begin
    rows = np.concatenate(parts)
    if info.columns:
        left, right = (by_id(info.type).row_bytes(column) for column in info.columns)
        rows = np.ascontiguousarray(rows[:, left:right])
    return rows


def read_vector(file: GGUFFile, info: TensorInfo) -> np.ndarray:
    """A small tensor, or a slice of one, as float32, flattened."""
    raw = np.asarray(file.data(info.name)).reshape(1, -1)
    values = by_id(info.type).dequantize(raw).reshape(-1).astype(np.float32)
    if isinstance(info, TensorSlice):
        values = np.concatenate([values[first:last] for first, last in info.rows])
    return values


def read_halves(file: GGUFFile, info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """Rows of a matrix, uint8 [n, bytes of a row], in half precision: what types without a packed form run in.

    Raises GGPYError where a finite weight is beyond its range.
    """
    weights = by_id(info.type).dequantize(rows)
    with np.errstate(all="ignore"):
        halves = weights.astype(np.float16)
        if (np.isinf(halves) & np.isfinite(weights)).any():
            raise GGPYError(
                f"{file.path}: the tensor {info.name!r} has weights beyond 65504, the most that half precision holds, "
                f"in which ggpy runs the type {info.type_name}; convert the model to bf16 or f32."
            )
    return halves
