"""GGUF files, read: a validated view of a model's metadata and tensors.

The file is read, not mapped: whoever cuts a mapped file short kills every process that touches its end (SIGBUS), while
a read that finds too little is an error of one sentence. Bytes are read once, where they are packed. Importing this
module imports neither numpy nor the gguf package.
"""

from __future__ import annotations

import os
import stat
import threading
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from ggpy import arguments
from ggpy.errors import GGPYError, quoted, shown
from ggpy.gguf.header import ArrayView, BeyondStart, Header, Metadata, TensorInfo

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ArrayView", "GGUFFile", "Metadata", "TensorInfo"]

# Bytes of the header read at once: most are smaller; a vocabulary of 262k tokens takes 20 MB; and the most.
_FIRST_READ, _MOST_HEADER = 1 << 20, 1 << 28


class GGUFFile:
    """A GGUF file opened for reading. Raises GGPYError when it is missing, damaged, or not one that ggpy reads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = arguments.path("path", path)
        self._stream = _open(self.path)
        self._file = self._stream.fileno()
        try:
            self._opened = os.fstat(self._file)
            self.size = self._opened.st_size
            self._turns = threading.Lock()
            header = self._read_header()
            self.version = header.version
            self.alignment = header.alignment
            self.metadata: Metadata = Metadata(header.entries, header.type_names)
            self.tensors: dict[str, TensorInfo] = header.tensors
        except BaseException:
            self.close()
            raise

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
        """Fill `buffer` from byte `offset` of the file on. Raises GGPYError where those bytes are gone."""
        done = 0
        if self._stream.closed:
            raise GGPYError(f"{shown(self.path)} was closed; open it again with GGUFFile(path).")
        try:
            while done < len(buffer):  # the system reads 2 GB at most at a time
                n = self._read_some(buffer[done:] if done else buffer, offset + done)
                if n == 0:
                    raise self._changed()
                done += n
        except OSError as error:
            raise GGPYError(f"{shown(self.path)} cannot be read: {error.strerror or error}.") from error

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file, [buffer], offset)
        with self._turns:
            os.lseek(self._file, offset, os.SEEK_SET)
            found = os.read(self._file, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def check_unchanged(self) -> None:
        """Raise GGPYError if the file was written since it was opened: its bytes may come from two models."""
        found = os.fstat(self._file)
        if (found.st_size, found.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> GGPYError:
        return GGPYError(
            f"{shown(self.path)} was cut or written to while it was in use; load the model again once it is whole. "
            "(To replace the file of a model, move another one to its place.)"
        )

    def _read_header(self) -> Header:
        length = _FIRST_READ
        while True:
            start = bytearray(min(length, self.size))
            self.read_into(memoryview(start), 0)
            try:
                return Header(self.path, bytes(start), self.size)
            except BeyondStart:
                if length >= _MOST_HEADER:
                    raise GGPYError(
                        f"{self.path} is not a valid GGUF file: its metadata takes more than {_MOST_HEADER >> 20} MB; "
                        "fetch or convert it again."
                    ) from None
                length = min(8 * length, _MOST_HEADER)

    def close(self) -> None:
        """Close the file; nothing can be read from it afterwards."""
        self._stream.close()
        self._file = -1

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(arguments.text("name", name))
        if info is None:
            raise GGPYError(
                f"{self.path} has no tensor named {quoted(name, 100)}; it is incomplete or of another architecture."
            )
        return info


def _open(path: Path) -> FileIO:
    name = shown(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise GGPYError(f"{name} is a folder, not a GGUF file; name a .gguf file in it, or convert it first.")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, and a device has no end
            raise GGPYError(f"{name} is not a regular file; a GGUF file must be on disk to be read.")
        if status.st_size == 0:
            raise GGPYError(f"{name} is empty; fetch or convert the model again.")
        return FileIO(path)
    except FileNotFoundError as error:
        raise GGPYError(f"{name} does not exist; check the path to the GGUF file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise GGPYError(f"{name} cannot be read: {reason}.") from error
