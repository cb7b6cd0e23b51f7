"""Every tensor type that the gguf package decodes, in a whole model, against the plain numpy model; and a new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy.codegen.native import Native, isa
from ggpy.convert.pipeline import convert
from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cpu import kernels
from ggpy.cpu.builds import build
from ggpy.cpu.sizes import weight_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS, formats
from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Numbers, half, values
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import Packed
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.support import blocks
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
    run(plain, name)


def run(plain: Path, name: str) -> None:
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


def test_a_type_is_one_class(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in memory alone: on disk they would outlive a change of the class."""

    class TOY(BlockFormat):
        """fp16 d, 32 bytes of third bits, 16 nibbles of scales, pairs of bits: 16 bytes hold 64 weights."""

        id, block_size, type_size = 200, 256, 106
        packed = Packed(3, group=16, scales="byte", offset=4)
        d = half(0)
        scales = values(4, 34, (8, 2), (8, 4))
        codes = Numbers((Bits(2, 42, (4, 4, 16), (128, 2, 8)), Bits(1, 2, (32, 8), (8, 1))))

    form, packed = BlockFormat.types.pop("TOY"), TOY.packed
    assert packed is not None
    monkeypatch.setitem(formats.FORMATS, "TOY", form)
    monkeypatch.setitem(formats.PACKED, "TOY", packed)
    monkeypatch.setitem(formats._BY_ID, form.id, form)
    monkeypatch.setitem(blocks.SCALES, "TOY", {0: 0.01})
    for name in ("pack.TOY", "embed.TOY", "linear.TOY", "linear.TOY.q16"):
        function = build(name, isa(), kernels.PROTOTYPES.get(name.partition(".")[0], kernels.OF_OPERATIONS))
        native = Native(name, function.address, function.ctypes, from_disk=False)
        monkeypatch.setitem(kernels._loaded, kernels.file_name(name), native)

    raw = random_blocks("TOY", 3)
    for block, weights in zip(raw, form.dequantize(raw), strict=True):
        d = block[:2].copy().view(np.float16)[0].astype(np.float32)
        for x in range(256):
            code = (int(block[42 + x // 64 * 16 + x % 16]) >> 2 * (x // 16 % 4)) & 3
            code |= (int(block[2 + x // 8]) >> x % 8 & 1) << 2
            scale = int(block[34 + x // 32]) >> 4 * (x // 16 % 2) & 15
            assert weights[x] == d * np.float32(scale) * np.float32(code - 4)
    run(plain, "TOY")


def packed_bits(name: str) -> float:
    """Bits a weight in memory; half precision without a packed form."""
    return 8 * PACKED.get(name, PACKED["F16"]).stripe_bytes(256) / (16 * 256)


def test_packed_types_stay_small() -> None:
    """Sizes as in the file but for a few bytes, or two to four bits a weight where the file keeps fewer: in types made
    of base-3 digits or of vectors in a codebook."""
    unfolded = {"TQ1": 2.1, "IQ1": 3.6, "IQ2": 3.6, "IQ3": 4.4}
    for name in PACKED:
        assert packed_bits(name) <= unfolded.get(name[:3], FORMATS[name].bits_per_weight + 0.6), name
