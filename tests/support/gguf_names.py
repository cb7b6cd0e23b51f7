"""The names that the gguf package has for tensors and keys of an architecture, which other programs read."""

from __future__ import annotations

import re
from pathlib import Path

import gguf


def unknown_names(path: Path) -> tuple[set[str], set[str]]:
    """The tensors and keys of a file that the gguf package does not know of its architecture."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    tensors = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
    keys = {
        value.format(arch=arch)
        for section in vars(gguf.Keys).values()
        if isinstance(section, type)
        for value in vars(section).values()
        if isinstance(value, str) and "{" not in value.replace("{arch}", "")
    }
    stems = {re.sub(r"^blk\.\d+\.", "blk.{bid}.", t.name).rpartition(".")[0] for t in reader.tensors}
    return stems - tensors, {name for name in reader.fields if name.startswith(arch)} - keys
