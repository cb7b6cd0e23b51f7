"""The header of a GGUF file, everything before the tensor data: keys, values, and where tensors lie, each checked.

Nothing the header says is believed before it is checked against the bytes that are there, and every failure is one
GGPYError that names the file and the key or tensor. The header is walked once and no array decoded: a 152k-token
vocabulary costs some hundredths of a second. Importing this module imports neither numpy nor the gguf package.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ggpy.errors import GGPYError, quoted
from ggpy.quant.formats import by_id

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

_STRING, _ARRAY = 8, 9
#: The scalar value types: number in the file → (name, struct code). 8 is a string and 9 an array.
_SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "?"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip

_MAX_DIMS = 4
_MAX_NAME = 65535  # bytes of a key or tensor name; the specification's bound for keys
_MAX_ELEMENTS = (1 << 63) - 1
_MAX_MISSING = 1 << 42  # no download was cut by more than 4 TiB: a length that asks for it is a lie
# An entry becomes Python objects many times its size in the file: the bound keeps a made-up header from abusing that.
_MAX_ENTRIES = 1 << 17


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is. `shape` is in numpy's order (rows before columns), GGUF's `ne` reversed."""

    name: str
    type: int  # ggml type number
    type_name: str  # 'Q4_0'
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file, or of the first of a model's files, as if they lay end to end
    nbytes: int


@dataclass(frozen=True)
class ArrayView:
    """A metadata array as it lies in the file: its length is known, its values are decoded when asked for."""

    type_name: str  # of one value: 'string', 'int32', …
    length: int
    offset: int  # of the first value, bytes from the start of the file
    _code: str  # struct code of one value; empty for strings
    _header: bytes  # the file up to its tensors

    def __len__(self) -> int:
        return self.length

    def head(self, n: int) -> list[Any]:
        """The first `n` values as Python objects, without numpy."""
        n = min(n, self.length)
        if not self._code:
            return self._strings(n)
        return list(struct.unpack_from(f"<{n}{self._code}", self._header, self.offset))

    def decode(self) -> Any:
        """Every value: list[str], or a read-only numpy array of the file's own number type (bool for bool)."""
        if not self._code:
            return self._strings(self.length)
        import numpy as np

        dtype = np.dtype("u1" if self._code == "?" else f"<{_NUMPY_CODES[self._code]}")
        raw = np.frombuffer(self._header, dtype, self.length, self.offset)
        values = raw != 0 if self._code == "?" else raw.copy()  # which does not keep all of the header
        values.flags.writeable = False
        return values

    def _strings(self, n: int) -> list[str]:
        read, length_at, pos = self._header, _U64.unpack_from, self.offset
        strings = []
        for _ in range(n):
            start = pos + 8
            pos = start + length_at(read, pos)[0]
            strings.append(read[start:pos].decode("utf-8", "surrogateescape"))
        return strings


_NUMPY_CODES = {
    "B": "u1", "b": "i1", "H": "u2", "h": "i2", "I": "u4", "i": "i4", "f": "f4", "Q": "u8", "q": "i8", "d": "f8",
}  # fmt: skip


class Metadata(Mapping[str, Any]):
    """The key-value pairs, in file order. Scalars are Python values; an array is decoded on first access and then kept.

    Strings are UTF-8; bytes that are not become lone surrogates (PEP 383), so that
    `value.encode("utf-8", "surrogateescape")` gives back exactly the bytes in the file.
    """

    def __init__(self, entries: dict[str, Any], type_names: dict[str, str]) -> None:
        self._entries = entries
        self._type_names = type_names
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        value = self._entries[key]
        if not isinstance(value, ArrayView):
            return value
        if key not in self._decoded:
            self._decoded[key] = value.decode()
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode the array
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def array(self, key: str) -> ArrayView | None:
        """The undecoded array under `key`, or None when the key is absent or holds a scalar."""
        value = self._entries.get(key)
        return value if isinstance(value, ArrayView) else None

    def type_name(self, key: str) -> str:
        """'uint32', 'string', …; for an array the type of one value in brackets: '[int32]'."""
        return self._type_names[key]


class BeyondStart(Exception):
    """The header is longer than the part of the file that was read."""


class Header:
    """One walk through everything before the tensor data. start: the first bytes of the file; raises BeyondStart
    where they are too few. Nothing is believed that the whole file could not hold."""

    def __init__(self, path: Path, start: bytes, file_size: int) -> None:
        self.path, self.map, self.size, self.pos = path, start, len(start), 0
        self.file_size = file_size
        self.entries: dict[str, Any] = {}
        self.type_names: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.version = self._version()
        n_tensors = self._count("tensors", "tensor count", smallest=24)
        n_entries = self._count("metadata keys", "metadata key count", smallest=13)
        for index in range(n_entries):
            self._entry(index)
        self.alignment = self._alignment()
        infos = [self._tensor(index) for index in range(n_tensors)]
        self._keep(start[: self.pos])
        self._place(infos)

    def _keep(self, header: bytes) -> None:
        """Keep only this much of the file, in arrays too."""
        self.map = header
        for key, value in self.entries.items():
            if isinstance(value, ArrayView):
                self.entries[key] = replace(value, _header=header)

    # Errors

    def _bad(self, what: str) -> GGPYError:
        return GGPYError(f"{self.path} is not a valid GGUF file: {what}; fetch or convert it again.")

    def _cut(self, what: str, needed: int) -> GGPYError:
        missing = needed - (self.file_size - self.pos)
        if missing <= 0:
            raise BeyondStart
        if missing > _MAX_MISSING:
            return self._bad(f"{what} claims to reach {missing} bytes beyond the end")
        return GGPYError(
            f"{self.path} ends inside {what}, at least {missing} bytes too early; "
            "the download was probably cut, so fetch the file again."
        )

    # Pieces

    def _take(self, form: struct.Struct, what: str) -> int:
        if self.size - self.pos < form.size:
            raise self._cut(what, form.size)
        value: int = form.unpack_from(self.map, self.pos)[0]
        self.pos += form.size
        return value

    def _string(self, what: str) -> bytes:
        length = self._take(_U64, what)
        if length > self.size - self.pos:
            raise self._cut(what, length)
        start, self.pos = self.pos, self.pos + length
        return self.map[start : self.pos]

    def _name(self, what: str) -> str:
        start = self.pos
        length = self._take(_U64, what)
        if not 0 < length <= _MAX_NAME:
            raise self._bad(f"{what} is {length} bytes long, and a name has 1 to {_MAX_NAME}")
        self.pos = start
        try:
            return self._string(what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad(f"{what} is not UTF-8") from error

    def _count(self, things: str, what: str, smallest: int) -> int:
        """A count of entries, each of at least `smallest` bytes."""
        count = self._take(_U64, f"the {what}")
        if count > (self.file_size - self.pos) // smallest:
            raise self._bad(f"it claims {count} {things}, more than its {self.file_size} bytes can hold")
        if count > _MAX_ENTRIES:
            raise self._bad(f"it claims {count} {things}, and ggpy reads at most {_MAX_ENTRIES}")
        return count

    # Parts of the header, in the order of the file

    def _version(self) -> int:
        magic = self.map[:4]
        if magic != b"GGUF":
            raise GGPYError(f"{self.path} is not a GGUF file: {_describe(self.map[:64])}.")
        self.pos = 4
        version = self._take(_U32, "the version number")
        if version & 0xFFFF == 0 and version != 0:
            raise GGPYError(
                f"{self.path} is a big-endian GGUF file; ggpy reads little-endian ones, so convert it again."
            )
        if version == 1:
            raise GGPYError(f"{self.path} is GGUF version 1, which ggpy does not read; convert the model again.")
        if version not in (2, 3):
            raise GGPYError(f"{self.path} is GGUF version {version}; ggpy reads versions 2 and 3.")
        return version

    def _entry(self, index: int) -> None:
        key = self._name(f"the name of metadata key number {index}")
        if key in self.entries:
            raise self._bad(f"the metadata key {quoted(key)} occurs twice")
        what = f"the value of the metadata key {quoted(key)}"
        value_type = self._take(_U32, what)
        if value_type == _STRING:
            self.type_names[key] = "string"
            self.entries[key] = self._string(what).decode("utf-8", "surrogateescape")
        elif value_type == _ARRAY:
            view = self._array(what)
            self.type_names[key] = f"[{view.type_name}]"
            self.entries[key] = view
        elif value_type in _SCALARS:
            self.type_names[key], code = _SCALARS[value_type]
            self.entries[key] = self._take(struct.Struct(f"<{code}"), what)
        else:
            raise self._bad(f"{what} is of the unknown type number {value_type}")

    def _array(self, what: str) -> ArrayView:
        value_type = self._take(_U32, what)
        length = self._take(_U64, what)
        if value_type == _ARRAY:
            raise self._bad(f"{what} is an array of arrays, which no known model uses")
        if value_type != _STRING and value_type not in _SCALARS:
            raise self._bad(f"{what} is an array of the unknown type number {value_type}")
        name, code = ("string", "") if value_type == _STRING else _SCALARS[value_type]
        item = struct.calcsize(f"<{code}") if code else 8  # a string takes at least its length field
        if length > (self.size - self.pos) // item:
            raise self._cut(f"{what} ({length} values)", length * item)
        view = ArrayView(name, length, self.pos, code, self.map)
        if code:
            self.pos += length * item
        else:
            self._skip_strings(length, what)
        return view

    def _skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings: the one loop that runs once per token and merge, and so is lean. Every step moves
        on by eight bytes or more, and an index beyond the file raises by itself."""
        pos, length_at, data = self.pos, _U64.unpack_from, self.map
        try:
            for _ in range(count):
                pos += length_at(data, pos)[0] + 8
        except (struct.error, OverflowError):
            pos += 8  # it lay beyond the file, or too near its end to hold a length
        if pos > self.size:
            raise self._cut(what, pos - self.pos)
        self.pos = pos

    def _alignment(self) -> int:
        key = "general.alignment"
        alignment = self.entries.get(key, 32)
        if self.type_names.get(key, "uint32") != "uint32" or alignment == 0 or alignment & (alignment - 1):
            raise self._bad(
                f"the metadata key {quoted(key)} is {quoted(alignment)}, and must be a power of two stored as uint32"
            )
        return int(alignment)

    def _tensor(self, index: int) -> TensorInfo:
        """A tensor's description, with `offset` still counted from the start of the data."""
        name = self._name(f"the name of tensor number {index}")
        what = f"the description of the tensor {quoted(name)}"
        n_dims = self._take(_U32, what)
        if n_dims > _MAX_DIMS:
            raise self._bad(f"the tensor {quoted(name)} has {n_dims} dimensions, and at most {_MAX_DIMS} are possible")
        dims = [self._take(_U64, what) for _ in range(n_dims)]
        n_elements = 1
        for dim in dims:
            n_elements *= dim
        if not 0 < n_elements <= _MAX_ELEMENTS:
            raise self._bad(f"the tensor {quoted(name)} has the impossible shape {dims}")
        type_id = self._take(_U32, what)
        try:
            form = by_id(type_id)
            row = dims[0] if dims else 1
            nbytes = form.row_bytes(row) * (n_elements // row)
        except GGPYError as error:
            raise GGPYError(f"{self.path} cannot be used because of the tensor {quoted(name)}: {error}") from error
        shape = tuple(reversed(dims)) or (1,)
        return TensorInfo(name, type_id, form.name, shape, self._take(_U64, what), nbytes)

    def _place(self, infos: list[TensorInfo]) -> None:
        """Fill `tensors` with absolute offsets, once all of them are known to lie in the file side by side."""
        start = -(-self.pos // self.alignment) * self.alignment
        for info in infos:
            if info.name in self.tensors:
                raise self._bad(f"the tensor {quoted(info.name)} occurs twice")
            if info.offset % self.alignment:
                raise self._bad(f"the tensor {quoted(info.name)} is not aligned to {self.alignment} bytes")
            self.tensors[info.name] = TensorInfo(
                info.name, info.type, info.type_name, info.shape, start + info.offset, info.nbytes
            )
        placed = sorted(self.tensors.values(), key=lambda info: info.offset)
        for before, after in pairwise(placed):
            if before.offset + before.nbytes > after.offset:
                raise self._bad(f"the tensors {quoted(before.name)} and {quoted(after.name)} overlap")
        for info in placed:
            if info.offset + info.nbytes > self.file_size:
                self.pos = 0
                raise self._cut(f"the data of the tensor {quoted(info.name)}", placed[-1].offset + placed[-1].nbytes)


def _describe(start: bytes) -> str:
    """A guess, from its first bytes, at what a file that is not GGUF is, and what to do."""
    if start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"FUGG"):
        return "it is in a format that came before GGUF or of the other byte order, so convert the model again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, so fetch the file it stands for with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, so the download led to a site's message instead of the model"
    if start[:2] == b"PK":
        return "it is a zip archive or a pickled checkpoint, so unpack or convert it first"
    if start[8:9] == b"{":
        return "it looks like a safetensors file, so convert its folder with `ggpy convert`"
    return f"it begins with {start[:4]!r} instead of b'GGUF'"
