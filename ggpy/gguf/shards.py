"""The files on disk of one model: a single one, or NAME-00001-of-00003.gguf and its fellows, as llama.cpp's gguf-split
writes them.

The first shard holds the metadata, and each holds tensors of its own. Where the others lie is known from the name of
one alone: they are beside it. What files say of themselves (`split.no`, `split.count`, `split.tensors.count`) only has
to agree. Importing this module imports no numpy.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path

from ggpy.errors import GGPYError, quoted, shown
from ggpy.gguf.header import BeyondStart, Header, Metadata, TensorInfo
from ggpy.gguf.metadata import TypedMetadata

_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_MOST = 65535  # the format counts shards in 16 bits

# Bytes of the header read at once: most are smaller; a vocabulary of 262k tokens takes 20 MB; and the most.
_FIRST_READ, _MOST_HEADER = 1 << 20, 1 << 28


class Shard:
    """A file on disk, open for reading: a whole model, or one of those that a model is split into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = _open(path)
        self._file = self._stream.fileno()
        try:
            self._opened = os.fstat(self._file)
        except BaseException:
            self.close()
            raise
        self.size = self._opened.st_size
        self._turns = threading.Lock()

    def close(self) -> None:
        self._stream.close()
        self._file = -1

    def read_header(self) -> Header:
        """The header, checked. Raises GGPYError where the file is damaged, or not one that ggpy reads."""
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

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of this file on. Raises GGPYError where those bytes are gone."""
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


class RangeShard(Shard):
    """A file whose beginning is read by a function: one at a hub, or one that a conversion would write.

    path: its name, for sentences. read(offset, length): so many of its bytes, from there on.
    """

    def __init__(self, path: Path, size: int, read: Callable[[int, int], bytes]) -> None:
        self.path, self.size, self._read, self._start = path, size, read, bytearray()

    def close(self) -> None:
        self._start = bytearray()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end, known = offset + len(buffer), len(self._start)
        if end > known >= offset:  # no byte is asked for twice
            self._start += self._read(known, end - known)
        data = self._start[offset:end] if offset <= known else self._read(offset, len(buffer))
        if len(data) != len(buffer):
            raise self._changed()
        buffer[:] = data

    def check_unchanged(self) -> None:
        pass


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


# Which files make a model


def shard_names(name: str) -> list[str]:
    """The names, or paths, of all shards of a model whose one is `name`, in order; `name` alone where it is none."""
    match = _NAME.fullmatch(name)
    if not match or not 1 <= int(match[2]) <= int(match[3]) <= _MOST:
        return [name]
    return [f"{match[1]}{_ending(i + 1, int(match[3]))}" for i in range(int(match[3]))]


def _ending(number: int, count: int) -> str:
    return f"-{number:05d}-of-{count:05d}.gguf"


def shard_paths(header: Header) -> list[Path]:
    """The files of the model that a file belongs to, in order. Raises GGPYError where its name does not say where they
    are, or one is missing."""
    number, count = _numbering(header)
    path = header.path
    if count == 1:
        return [path]
    if not path.name.endswith(_ending(number, count)):
        raise GGPYError(
            f"{shown(path)} is shard {number} of {count} of a model, and the others are found by its name, which does "
            f"not end in {_ending(number, count)}; give each shard its name back."
        )
    paths = [path.with_name(name) for name in shard_names(path.name)]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise GGPYError(
            f"{shown(missing[0])} is missing{more}: the model is split into {count} files, to be kept in one folder; "
            "fetch what is missing into it."
        )
    return paths


def _numbering(header: Header) -> tuple[int, int]:
    """The number of a shard, from 1, and how many there are, as it says itself; (1, 1) for a whole model."""
    metadata = _typed(header)
    count = metadata.find("split.count", int)
    if count is None or count <= 1:  # 0 after a merge
        return 1, 1
    number = metadata.find("split.no", int)
    if number is None or not 0 <= number < count <= _MOST:
        which = "without 'split.no' to say which" if number is None else f"with {number} for 'split.no'"
        raise GGPYError(
            f"{shown(header.path)} is not a valid GGUF file: it claims to be one of {count} shards (of {_MOST} at "
            f"most), {which}; fetch it again."
        )
    return number + 1, count


def _typed(header: Header) -> TypedMetadata:
    return TypedMetadata(Metadata(header.entries, header.type_names), str(header.path))


# How they fit together

_APART = "fetch all shards of one model into a folder of their own"


def join(headers: Sequence[Header], starts: Sequence[int]) -> dict[str, TensorInfo]:
    """The tensors of a model's shards. starts: where each shard begins if they lie end to end; the tensors' offsets are
    counted so. Raises GGPYError where the shards are not all of one model."""
    first, count = headers[0], len(headers)
    if count == 1:
        return first.tensors
    homes: dict[str, Path] = {}
    tensors: dict[str, TensorInfo] = {}
    for number, (header, start) in enumerate(zip(headers, starts, strict=True), 1):
        _check_fellow(header, first, number, count)
        for name, info in header.tensors.items():
            if name in homes:
                raise GGPYError(
                    f"{shown(header.path)} is a shard of another model than {shown(homes[name].name)}: both hold the "
                    f"tensor {quoted(name, 100)}; {_APART}."
                )
            homes[name] = header.path
            tensors[name] = replace(info, offset=start + info.offset)
    wanted = _typed(first).find("split.tensors.count", int)
    if wanted is not None and wanted != len(tensors):
        raise GGPYError(
            f"{shown(first.path)} belongs to a model of {wanted} tensors ('split.tensors.count'), but its {count} "
            f"shards hold {len(tensors)}; {_APART}."
        )
    return tensors


def _check_fellow(header: Header, first: Header, number: int, count: int) -> None:
    """Raise GGPYError unless a file is the shard that its name makes it, of the model of the first one."""
    name = shown(header.path)
    if (says := _numbering(header)) != (number, count):
        what = "holds a whole model" if says == (1, 1) else f"says that it is shard {says[0]} of {says[1]}"
        raise GGPYError(f"{name} {what}, but its name makes it shard {number} of {count}; {_APART}.")
    there = _model(first)
    for key, found in _model(header).items():
        if found is not None and found != there[key]:
            raise GGPYError(
                f"{name} is a shard of another model than {shown(first.path.name)}: its {key!r} is "
                f"{quoted(found, 80)}, and there it is {quoted(there[key], 80)}; {_APART}."
            )


def _model(header: Header) -> dict[str, str | int | None]:
    """The values that all shards of a model share, if they have them."""
    metadata, architecture, tensors = _typed(header), "general.architecture", "split.tensors.count"
    return {architecture: metadata.find(architecture, str), tensors: metadata.find(tensors, int)}
