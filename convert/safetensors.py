"""One safetensors file, read without trust: the header is checked whole, then rows are read on demand.

Format: 8 bytes little-endian header length, a JSON object `{name: {dtype, shape, data_offsets}}`, then the data, which
the tensors cover without gap or overlap (https://github.com/huggingface/safetensors). Rows are read, not mapped, so a
conversion's memory holds what it works on and nothing of the page cache.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ggpy.errors import GGPYError

#: Longest header believed; the format's own limit.
MAX_HEADER = 100_000_000

#: Bytes an element takes, by safetensors' own names.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

#: What weights are read as; bfloat16 stays as its bits.
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a checkpoint. `dtype` is safetensors' name, `start` and `nbytes` place its data in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SafetensorsFile
    start: int
    nbytes: int

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as [stop - start, columns]: float32, float16, or uint16 holding bfloat16 bits."""
        if self.dtype not in _NUMPY:
            raise GGPYError(
                f"The tensor {self.name!r} in {self.file.path.name} has the type {self.dtype}; ggpy converts from"
                " F32, F16 and BF16, so take the checkpoint as it was before it was quantized."
            )
        n_cols = self.shape[-1] if self.shape else 1
        dtype = _NUMPY[self.dtype]
        out = np.empty((stop - start, n_cols), dtype)
        self.file.read_into(self.start + start * n_cols * dtype.itemsize, out.data.cast("B"))
        return out.astype(np.float32) if self.dtype == "F64" else out


class SafetensorsFile:
    """An open safetensors file: `tensors` by name, in file order. GGPYError says what is wrong with a bad one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()  # each thread reads through its own handle: seek and read go together
        self._handles: list[BinaryIO] = []
        try:
            self.size = os.stat(path).st_size
            with open(path, "rb") as f:
                header, data_start = self._read_header(f)
        except OSError as error:
            raise GGPYError(f"Cannot read {path}: {error.strerror or error}.") from error
        self.tensors = self._check(header, data_start)

    def _bad(self, what: str) -> GGPYError:
        return GGPYError(f"{self.path} is not a sound safetensors file: {what}. Fetch it again.")

    def _read_header(self, f: BinaryIO) -> tuple[dict[str, Any], int]:
        if self.size < 8:
            raise self._bad(f"it has only {self.size} bytes")
        (length,) = struct.unpack("<Q", f.read(8))
        if length > MAX_HEADER or length > self.size - 8:
            raise self._bad(f"its header claims {length} bytes, the file has {self.size}")
        text = f.read(length)
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise self._bad(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        return header, 8 + length

    def _check(self, header: dict[str, Any], data_start: int) -> dict[str, SourceTensor]:
        tensors: list[SourceTensor] = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            entry = entry if isinstance(entry, dict) else {}
            dtype: Any = entry.get("dtype")
            shape: Any = entry.get("shape")
            offsets: Any = entry.get("data_offsets")
            if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
                raise self._bad(f"the tensor {name!r} has the unknown type {dtype!r:.40}")
            if not _sizes(shape) or len(shape) > 8:
                raise self._bad(f"the tensor {name!r} has the impossible shape {shape!r:.60}")
            if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
                raise self._bad(f"the tensor {name!r} has the impossible offsets {offsets!r:.60}")
            nbytes = math.prod(shape) * ITEM_SIZES[dtype]
            if offsets[1] - offsets[0] != nbytes:
                raise self._bad(
                    f"the tensor {name!r}, {dtype} {shape}, takes {nbytes} bytes, its offsets give"
                    f" {offsets[1] - offsets[0]}"
                )
            if data_start + offsets[1] > self.size:
                raise self._bad(
                    f"the tensor {name!r} ends at byte {data_start + offsets[1]}, but the file has {self.size} bytes,"
                    " so it was cut short"
                )
            tensors.append(SourceTensor(name, dtype, tuple(shape), self, data_start + offsets[0], nbytes))
        end, last = data_start, "the header"
        for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
            if tensor.start < end:
                raise self._bad(f"the tensor {tensor.name!r} overlaps {last!r}")
            if tensor.start > end:
                raise self._bad(f"there is a gap before the tensor {tensor.name!r}")
            end, last = tensor.start + tensor.nbytes, tensor.name
        if end != self.size:
            raise self._bad(f"its tensors end at byte {end}, the file has {self.size} bytes")
        return {t.name: t for t in tensors}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of the file. Any number of threads at once."""
        f: BinaryIO | None = getattr(self._local, "file", None)
        try:
            if f is None:
                f = self._local.file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed in close()
                self._handles.append(f)
            f.seek(offset)
            done = 0
            while done < len(buffer):
                n = f.readinto(buffer[done:])  # type: ignore[attr-defined]
                if not n:
                    raise self._bad("it became shorter while it was read")
                done += n
        except OSError as error:
            raise GGPYError(f"Cannot read {self.path}: {error.strerror or error}.") from error

    def close(self) -> None:
        for handle in self._handles:
            handle.close()
        self._handles.clear()


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result
