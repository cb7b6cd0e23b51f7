"""A conversation's evaluated state in a file, so that a later process goes on from it: `write` and `read`.

A file is one line of JSON, padded to 64 bytes, then arrays of bytes as the runtime gave them, one behind the other. The
line says which version of this form it is, which model and which types of cache it belongs to, the tokens, the sizes of
the arrays and a checksum of them. Nothing of a file is believed before it is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy.engine.cache import Parked
from ggpy.errors import GGPYError, shown
from ggpy.files import whole_file
from ggpy.gguf.metadata import TypedMetadata

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile

VERSION = 3
MAGIC = "ggpy-state"
LONGEST_HEADER = 64 << 20  # bytes
SAMPLES, SAMPLE_BYTES = 32, 1024  # of the weights, for a model's key


def model_key(file: GGUFFile, n_ctx: int) -> str:
    """A hash that tells models apart: tensors by name, type and shape, and samples of their bytes; and, where rope has
    frequencies of its own for long contexts, whether a context of `n_ctx` tokens is one."""
    digest = hashlib.sha256()
    tensors = sorted(file.tensors.values(), key=lambda info: info.name)
    for info in tensors:
        digest.update(repr((info.name, info.type, tuple(info.shape), info.nbytes)).encode())
    for info in tensors[:: max(1, len(tensors) // SAMPLES)]:
        n = min(SAMPLE_BYTES, info.nbytes)
        digest.update(file.read(info.name, (info.nbytes - n) // 2, n).tobytes())
    if "rope_factors_long.weight" in file.tensors:
        m = TypedMetadata(file.metadata, str(file.path), str(file.metadata.get("general.architecture")))
        usual = m.integer("{arch}.context_length", 0)
        n_ctx_orig = m.integer("{arch}.rope.scaling.original_context_length", usual)
        digest.update(b"long" if n_ctx > n_ctx_orig else b"short")
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str], parked: Parked, model: str, cache_type: str, devices: str, inputs: list[Path]
) -> None:
    """Write a conversation's state. model: `model_key`; devices: `Runtime.devices`. inputs: files that must not be
    replaced."""
    arrays = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in parked.kept]
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array.data, checksum)
    sizes = [array.nbytes for array in arrays]
    values: dict[str, Any] = {
        "magic": MAGIC, "version": VERSION, "model": model, "cache_type": cache_type, "devices": devices,
        "tokens": parked.tokens, "n_prompt": parked.n_prompt, "written": parked.written, "sizes": sizes,
        "crc32": checksum,
    }  # fmt: skip
    header = json.dumps(values, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 1) % 64) + b"\n"
    with whole_file(path, size=len(header) + sum(sizes), inputs=inputs) as file:
        file.write(header)
        for array in arrays:
            file.write(array.data)


def read(path: str | os.PathLike[str], model: str, cache_type: str, devices: str, n_ctx: int, n_vocab: int) -> Parked:
    """The conversation in a file that `write` made. Raises GGPYError for another file, another model's, one of another
    type of cache or of other devices, or a damaged one."""
    where = shown(path)
    try:
        with open(path, "rb") as file:
            line = file.readline(LONGEST_HEADER)
            values = _header(line, where)
            _check(values, where, model, cache_type, devices, n_ctx, n_vocab)
            size = os.fstat(file.fileno()).st_size
            if size != len(line) + sum(values["sizes"]):
                raise GGPYError(f"{where} is damaged: it has {size} bytes; delete it, and it is made again.")
            kept, checksum = [], 0
            for n in values["sizes"]:
                kept.append(np.frombuffer(file.read(n), np.uint8))
                checksum = zlib.crc32(kept[-1].data, checksum)
    except OSError as error:
        raise GGPYError(f"{where} cannot be read: {error.strerror or error}.") from error
    if checksum != values["crc32"]:
        raise GGPYError(f"{where} is damaged: its bytes are not those that were written; delete it.")
    tokens = values["tokens"]
    parked = Parked(-1, tokens, min(values["n_prompt"], len(tokens)), stands=len(tokens), written=values["written"])
    parked.kept = kept
    return parked


def _header(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.get("magic") != MAGIC:
        raise GGPYError(f"{where} is no saved state of ggpy.")
    if values.get("version") != VERSION:
        raise GGPYError(f"{where} was saved by another version of ggpy (form {values.get('version')}); delete it.")
    return values


def _check(
    values: dict[str, Any], where: str, model: str, cache_type: str, devices: str, n_ctx: int, n_vocab: int
) -> None:
    def whole(value: Any, most: int) -> bool:
        return type(value) is int and 0 <= value <= most

    tokens, sizes = values.get("tokens"), values.get("sizes")
    sound = isinstance(tokens, list) and bool(tokens) and all(whole(token, n_vocab - 1) for token in tokens)
    sound = sound and isinstance(sizes, list) and all(whole(size, 1 << 48) for size in sizes)
    sound = sound and whole(values.get("n_prompt"), 1 << 48) and whole(values.get("crc32"), 1 << 32)
    if values.get("model") != model:
        raise GGPYError(
            f"{where} was saved with another model, or with a context (-c) in which this one's rope turns otherwise;"
            " give each a file of its own."
        )
    if values.get("cache_type") != cache_type:
        raise GGPYError(
            f"{where} was saved with a cache of {str(values.get('cache_type'))[:40]!r}, but this one is {cache_type!r};"
            " take the same types (-ctk, -ctv), or another file."
        )
    if values.get("devices") != devices:  # each lays its state out in its own way
        raise GGPYError(
            f"{where} was saved with {str(values.get('devices'))[:80]}, but here are {devices}; divide the layers alike"
            " (--device, -ngl), or take another file."
        )
    if not sound or not whole(values.get("written"), 1 << 48) or values["written"] < len(tokens or ()):
        raise GGPYError(f"{where} is damaged: its first line makes no sense; delete it.")
    assert tokens is not None
    if len(tokens) > n_ctx:
        raise GGPYError(f"{where} holds {len(tokens)} tokens, more than the context of {n_ctx}; ask for more (-c).")
