"""GGUF files of nothing but random tensors: for graphs that no architecture has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.quant import FORMATS


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str] | None = None,
    seed: int = 0,
    changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> Path:
    """A file of tensors of these shapes, in float32 or, by name, one of `types`: matrices about as large as keeps the
    size of what they multiply, vectors of weights about 1, others small; each as what `changes` makes of it, by name.
    """
    rng, values = np.random.RandomState(seed), {}
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            drawn *= np.float32(shape[-1] ** -0.5) if "embd" not in name else 1
        elif name.endswith("weight"):
            drawn = 1 + drawn / 4
        values[name] = (changes or {}).get(name, lambda drawn: drawn)(drawn)
    formats = {name: FORMATS[(types or {}).get(name, "F32")] for name in shapes}
    outputs = [OutputTensor(name, shape, formats[name]) for name, shape in shapes.items()]
    with write_gguf(path, {"general.architecture": "none"}, outputs) as writer:
        for name, array in values.items():
            writer.write(formats[name].quantize(array.reshape(-1, array.shape[-1])))
    return path
