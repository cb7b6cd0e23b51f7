"""A streaming GGUF v3 writer: the header is known before the data, so tensors go to disk as they are made.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, metadata, tensor infos,
padding to the alignment, then the tensors, each padded to it. The file appears whole or not at all (`ggpy.files`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ggpy.errors import GGPYError, quoted
from ggpy.files import whole_file
from ggpy.quant import BlockFormat

ALIGNMENT = 32
_VERSION = 3

# GGUF's own numbers for value types.
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_NUMPY_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7, "uint64": 10,
    "int64": 11, "float64": 12,
}  # fmt: skip

# Written in pieces of this size, the page cache drains to the disk while later tensors are quantized.
_FLUSH_EVERY = 64 << 20


@dataclass(frozen=True)
class OutputTensor:
    """One tensor as the file will hold it: `shape` (rows, columns) or (columns,), `nbytes` without padding."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat

    @property
    def n_rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_bytes


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Any) -> bytes:
    """A metadata value with its type: bool, int (uint32), float (float32), str, list of str, numpy scalar or array."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray) and value.ndim == 1:
        head = struct.pack("<IIQ", _ARRAY, _NUMPY_TYPES[value.dtype.name], len(value))
        return head + value.astype(value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, np.generic):
        return struct.pack("<I", _NUMPY_TYPES[value.dtype.name]) + value.astype(value.dtype.newbyteorder("<")).tobytes()
    raise TypeError(f"GGUF has no place for {type(value).__name__}")


def encode_header(metadata: Mapping[str, Any], tensors: Iterable[OutputTensor]) -> bytes:
    """Everything before the data, padded to the alignment."""
    tensors = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_string(key), encode_value(value)]
        except (struct.error, OverflowError, UnicodeEncodeError):  # a number of too many bits, half a surrogate pair
            raise GGPYError(f"GGUF cannot hold {quoted(value)} under the key {key!r}; mend the checkpoint.") from None
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]  # GGUF counts the contiguous dimension first
        parts += [_string(tensor.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", tensor.format.id, offset))
        offset += _padded(tensor.nbytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def file_size(metadata: Mapping[str, Any], tensors: Iterable[OutputTensor]) -> int:
    """Bytes of a file with this metadata and these tensors."""
    tensors = list(tensors)
    return len(encode_header(metadata, tensors)) + sum(_padded(t.nbytes) for t in tensors)


def is_gguf(path: Path) -> bool:
    """True where the file exists and begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


class GGUFWriter:
    """Writes the tensors announced, in their order, in pieces of any size. Use through `write_gguf`."""

    def __init__(self, file: BinaryIO, metadata: Mapping[str, Any], tensors: list[OutputTensor]) -> None:
        self._file = file
        self._sizes = iter([t.nbytes for t in tensors])
        self._left = 0  # bytes the current tensor still lacks
        self._unflushed = 0
        header = encode_header(metadata, tensors)
        self.total = len(header) + sum(_padded(t.nbytes) for t in tensors)
        self._file.write(header)

    def write(self, data: np.ndarray) -> None:
        """The next bytes of the current tensor; pieces never reach over a tensor's end."""
        if not self._left:
            self._left = self._size = next(self._sizes)
        if data.nbytes > self._left:
            raise ValueError(f"{data.nbytes} bytes for a tensor that lacks {self._left}")
        self._file.write(np.ascontiguousarray(data).data)
        self._left -= data.nbytes
        if not self._left:
            self._file.write(bytes(_padded(self._size) - self._size))
        self._unflushed += data.nbytes
        if self._unflushed >= _FLUSH_EVERY:
            self._unflushed = 0
            _start_writeback(self._file)

    def finish(self) -> None:
        if self._left or next(self._sizes, None) is not None:
            raise ValueError("a tensor announced was not written")


def _start_writeback(file: BinaryIO) -> None:
    """Let the system begin to store what was written, so the final fsync has little left to wait for."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:  # on Linux, DONTNEED starts writeback of dirty pages without waiting for it
        with suppress(OSError):
            advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: list[OutputTensor], inputs: Iterable[Path] = ()
) -> Iterator[GGUFWriter]:
    """A writer for a new file at `path`, which is none of `inputs`. Whatever ends the block early leaves `path` as it
    was, nothing beside it."""
    with whole_file(path, size=file_size(metadata, tensors), inputs=inputs) as file:
        writer = GGUFWriter(file, metadata, tensors)
        yield writer
        writer.finish()
