"""GGUF files, read: a validated view of a model's metadata and tensors.

The file is read, not mapped: whoever cuts a mapped file short kills every process that touches its end (SIGBUS), while
a read that finds too little is an error of one sentence. Bytes are read once, where they are packed. Importing this
module imports neither numpy nor the gguf package.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import accumulate
from typing import TYPE_CHECKING

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.gguf.header import ArrayView, Header, Metadata, TensorInfo
from ggpy.gguf.shards import Shard, join, shard_paths

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ArrayView", "GGUFFile", "Metadata", "TensorInfo"]


class GGUFFile:
    """A GGUF file opened for reading. Of a model that is split into several files any is named, and all are opened.
    Raises GGPYError when one is missing, damaged, of another model, or not one that ggpy reads.

    path: the file, the first of several. paths: all of them. size: their bytes together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with ExitStack() as undo:
            named = undo.enter_context(closing(Shard(arguments.path("path", path))))
            header = named.read_header()
            shards, headers = [], []
            for place in shard_paths(header):
                here = place == named.path
                shard = named if here else undo.enter_context(closing(Shard(place)))
                shards.append(shard)
                headers.append(header if here else shard.read_header())
            self._join(shards, headers)
            undo.pop_all()

    @classmethod
    def over(cls, shards: Sequence[Shard]) -> GGUFFile:
        """The model whose files, in order, are read by these; closing it closes them."""
        self = cls.__new__(cls)
        self._join(shards, [shard.read_header() for shard in shards])
        return self

    def _join(self, shards: Sequence[Shard], headers: Sequence[Header]) -> None:
        self.shards = list(shards)
        *self._starts, self.size = accumulate((shard.size for shard in shards), initial=0)
        self.tensors: dict[str, TensorInfo] = join(headers, self._starts)
        first = headers[0]
        self.path = first.path
        self.paths = [header.path for header in headers]
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: Metadata = Metadata(first.entries, first.type_names)

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes: uint8 [nbytes], read now. GGPYError for an unknown name."""
        data = self.read(name, 0, self._info(name).nbytes)
        data.flags.writeable = False
        return data

    def read(self, name: str, start: int, length: int) -> np.ndarray:
        """Bytes start .. start + length of a tensor: uint8 [length]."""
        import numpy as np

        info, words = self._info(name), f"a number of bytes of {quoted(name, 100)}"
        start = arguments.whole("start", start, 0, info.nbytes, words)
        length = arguments.whole("length", length, 0, info.nbytes - start, words)
        data = np.empty(length + 64, np.uint8)[:length]  # kernels may look a vector past the end
        self.read_into(data.data, info.offset + start)
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` on, counted as `TensorInfo.offset` is. No tensor goes on in another shard,
        and no read does. Raises GGPYError where those bytes are gone."""
        index, offset = self.place(offset)
        self.shards[index].read_into(buffer, offset)

    def place(self, offset: int) -> tuple[int, int]:
        """The shard that byte `offset` lies in, counted from 0, and the same byte counted from that shard's start."""
        index = bisect_right(self._starts, offset) - 1
        return index, offset - self._starts[index]

    def check_unchanged(self) -> None:
        """Raise GGPYError if the file was written since it was opened: its bytes may come from two models."""
        for shard in self.shards:
            shard.check_unchanged()

    def close(self) -> None:
        """Close the file; nothing can be read from it afterwards."""
        for shard in self.shards:
            shard.close()

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(arguments.text("name", name))
        if info is None:
            raise GGPYError(
                f"{self.path} has no tensor named {quoted(name, 100)}; it is incomplete or of another architecture."
            )
        return info
