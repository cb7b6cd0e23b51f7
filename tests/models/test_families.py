"""Decoders of every family: converted and run, they give the logits that transformers gives, however a text is cut, in
every kind of file; other engines know the names in their files; what cannot be is one sentence.

A family's module in `tests/support/` has its cases and their logits: POSITIONS and COLUMNS of those of TOKENS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.models import by_gguf_name
from ggpy.runtime.runtime import Runtime
from tests.support import (
    hf_families_dense,
    hf_families_hybrid,
    hf_families_moe,
    hf_families_multimodal,
    plain_decoders,
)
from tests.support.converted import Make, exact, logits
from tests.support.gguf_names import unknown_names
from tests.support.recorded import present

FAMILIES = (hf_families_dense, hf_families_hybrid, hf_families_moe, hf_families_multimodal, plain_decoders)
CASES = [(families, name) for families in FAMILIES for name in families.CASES]
QUANTIZED = [
    (families, name)
    for families, name in CASES
    if name.endswith("whole blocks") or name in ("gpt-oss, mxfp4", "lfm2moe")
]
CUT = [(families, name) for families in FAMILIES for name in families.CUT]
ABSURD = [(families, *refusal) for families in FAMILIES for refusal in families.ABSURD]
REFUSED = [(families, *refusal) for families in FAMILIES for refusal in families.REFUSED]

#: Keys of ggpy's or Ollama's own, and those that are newer than the installed gguf package.
OWN_KEYS = {"ssm.dt_b_c_rms_epsilon", "rope.scaling.yarn_truncate", "attention.chunk_size", "use_qk_norm"}
NEWER_KEYS = {"attention.rope_pattern", "attention.recurrent_layers"}


def _names(cases: list[tuple[Any, ...]]) -> list[str]:
    return [", ".join(part for part in case if isinstance(part, str)) for case in cases]


# Blocks that are quantized already run in 8-bit activations, in files of any type.
_EXACT = [case for case in CASES if case[1] != "gpt-oss, mxfp4"]


@pytest.mark.parametrize(("families", "name"), _EXACT, ids=_names(_EXACT))
def test_logits_are_those_of_transformers(make: Make, families: ModuleType, name: str) -> None:
    ours = logits(make(families.CASES[name]), families.TOKENS)[families.POSITIONS][:, list(families.COLUMNS)]
    theirs = families.logits(name)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(("families", "name"), QUANTIZED, ids=_names(QUANTIZED))
def test_quantized_files_stay_close(make: Make, families: ModuleType, name: str) -> None:
    """8-bit activations are all that is between the file's weights and the result. Another choice of experts makes some
    tokens another result altogether, so it is the median that is looked at."""
    path = make(families.CASES[name], "q8_0")
    ours, theirs = logits(path, families.TOKENS), exact(path, families.TOKENS)
    errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert np.median(errors) < 0.1


@pytest.mark.parametrize(("families", "name"), CUT, ids=_names(CUT))
def test_a_text_may_be_cut_anywhere(make: Make, families: ModuleType, name: str) -> None:
    n, ids = len(families.TOKENS), np.array(families.TOKENS, np.int32)
    with GGUFFile(make(families.CASES[name], "q8_0" if "mxfp4" in name else "f32")) as file:
        runtime = Runtime(file, -(-n // 64) * 64, n_threads=1)

        def run(cuts: list[int]) -> Iterator[np.ndarray]:
            at = 0
            for size in cuts:
                part = slice(at, at + size)
                yield runtime.step(ids[part], np.zeros(size, int), np.arange(n)[part], np.arange(size)).copy()
                at += size

        whole = np.concatenate([*run([n])])
        for cuts in ([1] * n, [7, n // 2, 1, n - n // 2 - 8]):
            assert np.array_equal(np.concatenate([*run(cuts)]), whole)
        runtime.close()


@pytest.mark.parametrize(("families", "name"), CASES, ids=_names(CASES))
def test_names_are_those_of_gguf(make: Make, families: ModuleType, name: str) -> None:
    """Every tensor and key has a name that the gguf package has for the architecture."""
    tensors, keys = unknown_names(make(families.CASES[name]))
    if name in ("qwen3moe, a dense layer", "qwen3moe, every other layer"):  # other readers want experts in each
        tensors -= {f"blk.{{bid}}.ffn_{part}" for part in ("gate", "up", "down")}
    keys = {key.partition(".")[2] for key in keys}
    # The name of a tensor that is no weight and no bias ends earlier.
    assert (tensors - {"blk.{bid}"}, keys - OWN_KEYS - NEWER_KEYS) == (set(), set())


@pytest.mark.parametrize(("families", "name", "changes", "words"), ABSURD, ids=_names(ABSURD))
def test_absurd_metadata_is_one_sentence(
    make: Make, families: ModuleType, name: str, changes: dict[str, Any], words: str
) -> None:
    with GGUFFile(make(families.CASES[name])) as file:
        found = dict(file.metadata)
        arch = found["general.architecture"]
        found |= {f"{arch}.{key}": value for key, value in changes.items()}
        with pytest.raises(GGPYError, match=words):
            by_gguf_name(arch)(found, 461).build(Graph(file))


@pytest.mark.parametrize(("families", "name", "changes", "words"), REFUSED, ids=_names(REFUSED))
def test_what_cannot_be_converted_is_said(
    tmp_path: Path, families: ModuleType, name: str, changes: dict[str, Any], words: str
) -> None:
    families.CASES[name].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(present(config)))
    with pytest.raises(GGPYError, match=words):
        convert(tmp_path, "f32", tmp_path / "out.gguf")
