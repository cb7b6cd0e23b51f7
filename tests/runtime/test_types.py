"""Every tensor type that the gguf package decodes, in a whole model, against the plain numpy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cpu.sizes import weight_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.quant.formats import PACKED
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.support.blocks import TYPES, random_blocks
from tests.support.reference import ReferenceModel
from tests.support.tiny import tiny_checkpoint


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
        program = planned(file)
        taken, matrices = weight_bytes(program), program.matrices()
    assert np.isfinite(expected).all()
    each = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Packed types: a token whose activations all rounded alike agrees; the others differ by what rounding does.
    assert each.min() < (1e-4 if name in PACKED else 5e-3)
    assert np.median(each) < (5e-2 if name in PACKED else 1e-2)
    assert any(name in note and "half precision" in note for note in notes) == (name not in PACKED)
    assert taken >= packed_bits(name) / 8 * sum(t.shape[0] * t.shape[1] for t in matrices)


def packed_bits(name: str) -> float:
    """Bits a weight in memory; half precision without a packed form."""
    return 8 * PACKED.get(name, PACKED["F16"]).stripe_bytes(256) / (16 * 256)


def test_packed_types_stay_small() -> None:
    """Sizes as in the file but for a few bytes, or two to four bits a weight where the file keeps fewer: in types made
    of base-3 digits or of vectors in a codebook."""
    unfolded = {"TQ1": 2.1, "IQ1": 3.6, "IQ2": 3.6, "IQ3": 4.4}
    for name in PACKED:
        assert packed_bits(name) <= unfolded.get(name[:3], FORMATS[name].bits_per_weight + 0.6), name
