"""GGUF files built byte by byte, so that they can lie."""

from __future__ import annotations

import struct


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def entry(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(key) + u32(value_type) + value


def tensor(name: str, dims: list[int], type_id: int = 0, offset: int = 0) -> bytes:
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(type_id) + u64(offset)


def build(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    entries, tensors = entries or [], tensors or []
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    header = b"GGUF" + u32(version) + u64(n_tensors) + u64(n_entries) + b"".join(entries) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment if tensors else 0) + data


ARCHITECTURE = entry("general.architecture", 8, string("llama"))
