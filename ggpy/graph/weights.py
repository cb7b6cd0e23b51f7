"""A model's weights by name, each checked where it is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.gguf.slices import read_vector

if TYPE_CHECKING:
    import numpy as np

    from ggpy.gguf.file import GGUFFile, TensorInfo


class Weights:
    """The tensors of a file. Raises GGPYError where one is missing or has another shape."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def has(self, name: str, rows: int | None = None) -> bool:
        """True where the file has the tensor `name`, and in so many rows, if `rows` is given."""
        info = self.file.tensors.get(name)
        return info is not None and (rows is None or info.shape[0] == rows)

    def tensor(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The tensor `name`, which must be there in exactly this shape (rows first)."""
        info = self.file.tensors.get(name)
        if info is None:
            raise GGPYError(
                f"{self.file.path}: the tensor {name!r} is missing; the file is incomplete or of another architecture."
            )
        if tuple(info.shape) != shape:
            found, needed = (" x ".join(map(str, s)) for s in (info.shape, shape))
            raise GGPYError(f"{self.file.path}: the tensor {name!r} is {found}; this model needs {needed}.")
        return info

    def stack(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The tensor `name` in this shape; where the first axis has one entry, the file may have it without."""
        info = self.file.tensors.get(name)
        if shape[0] == 1 and info is not None and tuple(info.shape) == shape[1:]:
            return replace(info, shape=shape)
        return self.tensor(name, shape)

    def optional(self, name: str, shape: tuple[int, ...]) -> TensorInfo | None:
        return self.tensor(name, shape) if self.has(name) else None

    def vector(self, name: str) -> np.ndarray | None:
        """The one-dimensional tensor `name` as float32, or None where the file has none."""
        if not self.has(name):
            return None
        info = self.file.tensors[name]
        if len(info.shape) != 1:
            raise GGPYError(f"{self.file.path}: the tensor {name!r} must have one dimension; it has {len(info.shape)}.")
        return read_vector(self.file, info)
