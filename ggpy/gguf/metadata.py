"""Typed look-ups in the metadata of a GGUF file: whoever reads a key says which kind its value has to be, and a value
of another kind is an error of one sentence that names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ggpy.errors import GGPYError, quoted

T = TypeVar("T", str, int, float, bool, list[Any])

_KINDS: dict[type, str] = {
    str: "a text",
    int: "one whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
}


class TypedMetadata:
    """Look-ups in `entries`, the keys and values of the file `where`. `{arch}` in a key stands for the architecture.

    Values are as `ggpy.gguf.file.Metadata` gives them. Every look-up raises GGPYError for a value of another kind.
    """

    def __init__(self, entries: Mapping[str, Any], where: str, arch: str = "") -> None:
        self.entries, self.where, self.arch = entries, where, arch

    def has(self, key: str) -> bool:
        return self._key(key) in self.entries

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value under a key, or None where there is none. kind: str; int; float, which takes whole numbers too;
        bool; or list, for an array of any values."""
        key = self._key(key)
        if key not in self.entries:
            return None
        array = self._array(key)
        value = self.entries[key] if array is None or kind is list else array
        if hasattr(value, "item") and not hasattr(value, "__len__"):  # numpy's scalars, in metadata yet to be written
            value = value.item()
        if kind is list:
            fits = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
        elif kind is float:
            fits = type(value) in (int, float) and math.isfinite(value)
            value = float(value) if fits else value
        else:
            fits = type(value) is kind
        if not fits:
            raise self.wrong(key, _KINDS[kind])
        return value  # type: ignore[no-any-return]

    def strings(self, key: str) -> list[str] | None:
        """The array of texts under a key, or None where there is none. One that a caller made may hold anything behind
        its first value; a file's array has values of one kind."""
        key = self._key(key)
        array = self._array(key)
        if array is not None and array.type_name != "string":
            raise self.wrong(key, "a list of texts")
        value = self.find(key, list)
        if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value[:1])):
            raise self.wrong(key, "a list of texts")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default it has to be there. Some converters write one per layer, all alike."""
        array = self._array(self._key(key))
        if array is None or array.type_name.startswith(("int", "uint")):
            value: Any = self.entries.get(self._key(key))
            kind = getattr(getattr(value, "dtype", None), "kind", "")
            per_layer = set(value.tolist()) if kind in ("i", "u") and value.ndim else set()
            if len(per_layer) == 1:
                return int(per_layer.pop())
        return self._needed(key, self.find(key, int), default)

    def integers(self, key: str, n: int, default: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """`n` whole numbers, one a layer: those of a list, or one number for all; without a default they have to be
        there."""
        key = self._key(key)
        array = self._array(key)
        if array is not None and not array.type_name.startswith(("int", "uint")):
            raise self.wrong(key, "one whole number or a list of them")
        value: Any = self.entries.get(key)
        if isinstance(default, Sequence):
            if value is None:
                return tuple(default)
            default = None
        if not getattr(value, "ndim", 0) or value.dtype.kind not in ("i", "u") or len(set(value.tolist())) == 1:
            return (self.integer(key, default),) * n
        if len(value) != n:
            raise self.wrong(key, f"one whole number for each of {n} layers")
        return tuple(int(entry) for entry in value.tolist())

    def is_integer(self, key: str) -> bool:
        """True where there is one whole number under the key."""
        key = self._key(key)
        return self._array(key) is None and type(self.entries.get(key)) is int

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it has to be there."""
        return self._needed(key, self.find(key, float), default)

    def string(self, key: str, default: str | None = None) -> str:
        """A text; without a default it has to be there."""
        return self._needed(key, self.find(key, str), default)

    def flags(self, key: str) -> tuple[bool, ...]:
        """An array of booleans, empty where there is none."""
        key = self._key(key)
        array = self._array(key)
        value: Any = self.entries.get(key, ()) if array is None or array.type_name == "bool" else None
        if not isinstance(value, tuple) and getattr(getattr(value, "dtype", None), "kind", "") != "b":
            raise self.wrong(key, "a list of booleans")
        return tuple(bool(flag) for flag in value)

    def wrong(self, key: str, wanted: str) -> GGPYError:
        """The error for a value that is not what it has to be."""
        array = self._array(key)
        found = quoted(self.entries[key], 60) if array is None else f"an array of {len(array)} {array.type_name} values"
        return GGPYError(f"{self.where}: the metadata key {quoted(key)} must be {wanted}; found {found}.")

    def _needed(self, key: str, value: T | None, default: T | None) -> T:
        if value is not None:
            return value
        if default is None:
            name = quoted(self._key(key))
            raise GGPYError(
                f"{self.where} lacks the metadata key {name}, which every {self.arch} model needs; convert it again."
            )
        return default

    def _key(self, key: str) -> str:
        return key.replace("{arch}", self.arch)

    def _array(self, key: str) -> Any:
        """The undecoded array under a key, or None: a million strings are not decoded only to be refused."""
        undecoded = getattr(self.entries, "array", None)
        return undecoded(key) if undecoded is not None else None
