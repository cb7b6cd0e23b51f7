"""One safetensors file, read without trust: the `safetensors` package reads and checks the header, we read the rows.

`safe_open` parses the header and refuses one whose tensors leave a gap, overlap, or end before or behind the file. Rows
are not taken from it: it maps the file, so what it read counts as this process's memory, a shard that shrinks or a disk
that fails ends the process with SIGBUS, and its numpy arrays cannot be bfloat16. Ours are read with plain calls into
buffers of a chunk's size, by any number of threads.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ggpy.errors import GGPYError, quoted

#: What weights are read as; bfloat16 stays as its bits.
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}

#: Bytes that stand for something else, such as blocks of quantized weights.
_RAW = {"U8": np.dtype("u1")}


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

    def check_type(self, raw: bool = False) -> None:
        """GGPYError unless the tensor is of a type that weights are converted from; of bytes, where it is `raw`."""
        if raw and self.dtype not in _RAW:
            raise GGPYError(
                f"The tensor {quoted(self.name)} in {self.file.path.name} has the type {self.dtype}; its config.json"
                " calls for blocks of quantized weights, which are bytes."
            )
        if not raw and self.dtype not in _NUMPY:
            raise GGPYError(
                f"The tensor {quoted(self.name)} in {self.file.path.name} has the type {self.dtype}; ggpy converts from"
                " F32, F16, BF16 and F64, so take the checkpoint as it was before it was quantized."
            )

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as [stop - start, columns]: float32, float16, uint16 holding bfloat16 bits, or bytes."""
        self.check_type(raw=self.dtype in _RAW)
        n_cols = self.shape[-1] if self.shape else 1
        dtype = _RAW.get(self.dtype) or _NUMPY[self.dtype]
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
            self.tensors = {tensor.name: tensor for tensor in self._read_header()}
        except SafetensorError as error:
            raise self._bad(str(error).removeprefix("Error while deserializing header: ")) from error
        except OSError as error:
            raise GGPYError(f"Cannot read {path}: {error.strerror or error}.") from error

    def _bad(self, what: str) -> GGPYError:
        return GGPYError(f"{self.path} is not a sound safetensors file: {what:.200}. Fetch it again.")

    def _read_header(self) -> Iterator[SourceTensor]:
        """The tensors in the order of their data, which follows the header without a gap: that places each."""
        with safe_open(self.path, framework="numpy") as file, open(self.path, "rb") as raw:
            at = 8 + int.from_bytes(raw.read(8), "little")
            for name in file.offset_keys():
                entry = file.get_slice(name)
                shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
                bits = int(re.sub(r"\D*(\d*).*", r"\1", dtype) or 8)  # BF16, F8_E4M3; BOOL takes a byte
                nbytes = math.prod(shape) * bits // 8
                yield SourceTensor(name, dtype, shape, self, at, nbytes)
                at += nbytes

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
