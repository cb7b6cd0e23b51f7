"""A model of an unknown architecture: one sentence names it, the nearest known family, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.models import architecture_of
from ggpy.quant.formats import FORMATS
from tests.support.converted import Make
from tests.support.hf_families_multimodal import CASES
from tests.support.tiny import tiny_checkpoint


def renamed(path: Path, name: str, *, without: str = "", more: dict[str, tuple[int, ...]] | None = None) -> GGPYError:
    """The error for a file of the same tensors under another name."""
    from ggpy.convert.writer import OutputTensor, write_gguf

    with GGUFFile(path) as file:
        arch = file.metadata["general.architecture"]
        found: dict[str, Any] = {key.replace(arch, name, 1): value for key, value in file.metadata.items()}
        found["general.architecture"] = name
        shapes = {key: info.shape for key, info in file.tensors.items() if key != without} | (more or {})
    outputs = [OutputTensor(key, tuple(shape), FORMATS["F32"]) for key, shape in shapes.items()]
    with write_gguf(path.with_name("other.gguf"), found, outputs) as writer:
        for shape in shapes.values():
            writer.write(FORMATS["F32"].quantize(np.zeros(shape, np.float32).reshape(-1, shape[-1])))
    with GGUFFile(path.with_name("other.gguf")) as file, pytest.raises(GGPYError) as error:
        architecture_of(file)
    return error.value


def test_the_nearest_family_is_named(make: Make) -> None:
    path = make(CASES["gemma3n_text"])
    assert (
        "'zebra', which ggpy does not know; the nearest that it knows is 'gemma3n', whose tensors are the same"
        in str(renamed(path, "zebra"))
    )
    said = str(renamed(path, "gemma3m", more={"blk.0.stripes.weight": (4, 4), "blk.1.stripes.weight": (4, 4)}))
    assert "is 'gemma3n', which has no place for the tensor 'blk.0.stripes.weight' and 1 more." in said
    said = str(renamed(path, "zebra", without="blk.5.ffn_down.weight"))
    assert "is 'gemma3n', as such it lacks something: " in said
    assert "'blk.5.ffn_down.weight'" in said


def test_of_a_folder_the_nearest_classes_are_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", architectures=["Llama5ForCausalLM"], model_type="llama5")
    with pytest.raises(
        GGPYError, match=r"'Llama5ForCausalLM', which ggpy does not convert; the nearest .*Llama4ForCausalLM"
    ):
        convert(folder, "f32", tmp_path / "out.gguf")
