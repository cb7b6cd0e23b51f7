"""Every tensor type that the gguf package decodes, in a whole model, against the plain numpy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import ReferenceModel
from tiny import tiny_checkpoint

from ggpy.convert.pipeline import convert
from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.errors import GGPYError
from ggpy.gguf_file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.quant.packed import PACKED
from ggpy.runtime import Runtime

# Where a block keeps its half-precision scales: byte → value, chosen so that weights come out near a tenth.
SCALES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 0.02}, "Q4_1": {0: 0.02, 2: -0.15}, "Q5_0": {0: 0.01}, "Q5_1": {0: 0.01, 2: -0.15}, "Q8_0": {0: 0.001},
    "Q2_K": {80: 0.01, 82: 0.015}, "Q3_K": {108: 0.003}, "Q4_K": {0: 0.0005, 2: 0.003}, "Q5_K": {0: 0.0002, 2: 0.003},
    "Q6_K": {208: 0.0001}, "IQ1_S": {0: 0.01}, "IQ2_XXS": {0: 0.002}, "IQ2_XS": {0: 0.002}, "IQ2_S": {0: 0.002},
    "IQ3_XXS": {0: 0.001}, "IQ3_S": {0: 0.001}, "IQ4_NL": {0: 0.001}, "IQ4_XS": {0: 0.0001}, "TQ1_0": {52: 0.1},
    "TQ2_0": {64: 0.1},
}  # fmt: skip
TYPES = (*SCALES, "IQ1_M", "MXFP4", "NVFP4")


def random_blocks(name: str, n: int) -> np.ndarray:
    """uint8 [n, type_size]: any codes, scales as of a model."""
    form, rng = FORMATS[name], np.random.default_rng(5)
    blocks = rng.integers(0, 256, (n, form.type_size), dtype=np.uint8)
    for at, scale in SCALES.get(name, {}).items():
        halves = (scale * rng.uniform(0.7, 1.3, n)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(n, 2)
    if name == "IQ1_M":  # its scale lies in the high nibbles of the four last words
        words, bits = blocks[:, 48:56].copy().view("<u2"), int(np.float16(0.01).view(np.uint16))
        words = (words & 0x0FFF) | np.array([(bits >> 4 * i & 15) << 12 for i in range(4)], np.uint16)
        blocks[:, 48:56] = words.astype("<u2").view(np.uint8)
    elif name == "MXFP4":  # a power of two
        blocks[:, 0] = 122
    elif name == "NVFP4":  # four 8-bit floats
        blocks[:, :4] = rng.integers(0x10, 0x18, (n, 4))
    return blocks


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    convert(tiny_checkpoint(folder, "llama", dtype="f32"), "f32", folder / "f32.gguf")
    return folder / "f32.gguf"


def in_type(plain: Path, name: str) -> Path:
    """The model with every matrix of that type, embeddings and output too."""
    out = plain.with_name(f"{name}.gguf")
    with GGUFFile(plain) as file:
        tensors = [
            OutputTensor(t.name, t.shape, FORMATS[name if len(t.shape) == 2 else "F32"]) for t in file.tensors.values()
        ]
        with write_gguf(out, dict(file.metadata), tensors) as writer:
            for tensor in tensors:
                if tensor.format.name == "F32":
                    writer.write(np.array(file.data(tensor.name)))
                else:
                    writer.write(random_blocks(name, tensor.nbytes // tensor.format.type_size))
    return out


@pytest.mark.parametrize("name", TYPES)
def test_a_model_of_each_type(plain: Path, name: str) -> None:
    try:
        FORMATS[name].dequantize(random_blocks(name, 1))
    except GGPYError as error:
        pytest.skip(str(error))  # an older gguf package
    path = in_type(plain, name)
    ids = np.random.default_rng(1).integers(0, 456, 20).astype(np.int32)
    expected = ReferenceModel(path, int8_activations=name in PACKED, half_cache=True).logits(ids.tolist())
    notes: list[str] = []
    with GGUFFile(path) as file:
        runtime = Runtime(file, 64, n_threads=1, notify=notes.append)
        ours = runtime.step(ids, np.zeros(20), np.arange(20), np.arange(20)).copy()
        runtime.close()
        grown = Runtime.weight_bytes(file) - file.size
    assert np.isfinite(expected).all()
    each = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Packed types: a token whose activations all rounded alike agrees; the others differ by what rounding does.
    assert each.min() < (1e-4 if name in PACKED else 5e-3)
    assert np.median(each) < (5e-2 if name in PACKED else 1e-2)
    assert any(name in note and "half precision" in note for note in notes) == (name not in PACKED)
    assert (grown > 0) == (name not in PACKED)
