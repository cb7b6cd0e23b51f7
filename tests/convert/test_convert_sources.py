"""Transforms of a checkpoint's tensors: each against numpy on whole tensors, read by ranges of rows, and in a file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggpy.convert import pipeline
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_sources import Mxfp4, Source, Stored, concat, stack
from ggpy.models.llama import Llama
from tests.support.tiny import CONFIGS, random_tensors, tiny_checkpoint, to_float32, write_safetensors

RNG = np.random.default_rng(3)
SHAPES = {
    "matrix": (12, 10), "wide": (12, 10), "vector": (24,), "scalar": (), "conv": (6, 1, 4), "experts": (3, 8, 10),
    "long": (70, 2), "a": (5, 10),
}  # fmt: skip
TENSORS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
TENSORS["wide"] = (TENSORS["wide"].view(np.uint32) >> 16).astype(np.uint16)  # bfloat16's bits
TENSORS["blocks"] = RNG.integers(0, 256, (3, 4, 2, 16)).astype(np.uint8)
TENSORS["scales"] = RNG.integers(110, 140, (3, 4, 2)).astype(np.uint8)


def stored(name: str) -> Source:
    return Stored(name, TENSORS[name].shape, raw=TENSORS[name].dtype == np.uint8)


def values(name: str) -> np.ndarray:
    return to_float32(TENSORS[name])


def read(name: str, start: int, stop: int) -> np.ndarray:
    tensor = TENSORS[name]
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.shape else 1)
    assert 0 <= start < stop <= len(rows)
    return rows[start:stop].copy()


def pairs(x: np.ndarray, n_head: int) -> np.ndarray:
    return np.concatenate([np.stack(np.split(head, 2), 1).reshape(head.shape) for head in np.split(x, n_head)])


MATRIX, WIDE, EXPERTS, LONG = (values(name) for name in ("matrix", "wide", "experts", "long"))

CASES: dict[str, tuple[Source, np.ndarray]] = {
    "stored": (stored("matrix"), MATRIX),
    "stored, bfloat16": (stored("wide"), WIDE),
    "a scalar": (stored("scalar").reshape(1), values("scalar").reshape(1)),
    "plus": (stored("matrix").plus(1), MATRIX + 1),
    "plus, bfloat16": (stored("wide").plus(1), WIDE + 1),
    "plus, a vector": (stored("vector").plus(1), values("vector") + 1),
    "neg_exp": (stored("vector").neg_exp(), -np.exp(values("vector"))),
    "transpose": (stored("matrix").transpose(), MATRIX.T),
    "transpose, bfloat16": (stored("wide").transpose(), WIDE.T),
    "transpose, experts": (stored("experts").transpose(), EXPERTS.swapaxes(1, 2)),
    "reshape, a convolution": (stored("conv").reshape(6, 4), values("conv")[:, 0]),
    "reshape, other rows": (stored("matrix").reshape(5, 3, 8), MATRIX.reshape(5, 3, 8)),
    "reshape, to a vector": (stored("matrix").reshape(120), MATRIX.reshape(-1)),
    "slice": (stored("matrix").slice(3, 5), MATRIX[3:8]),
    "slice, columns": (stored("matrix").slice(3, 5, axis=1), MATRIX[:, 3:8]),
    "slice, a vector": (stored("vector").slice(3, 5), values("vector")[3:8]),
    "slice, rows of experts": (stored("experts").slice(2, 4, axis=-2), EXPERTS[:, 2:6]),
    "slice, one expert": (stored("experts").slice(1, 1).reshape(8, 10), EXPERTS[1]),
    "every": (stored("matrix").every(2, 1), MATRIX[1::2]),
    "every, of experts": (stored("experts").every(2, 1, axis=1), EXPERTS[:, 1::2]),
    "every, columns": (stored("experts").every(2, axis=2), EXPERTS[..., ::2]),
    "take": (stored("long").take([69, 0, 30, 30, 1]), LONG[[69, 0, 30, 30, 1]]),
    "rope_pairs": (stored("matrix").rope_pairs(2), pairs(MATRIX, 2)),
    "rope_pairs, a bias": (stored("vector").rope_pairs(3), pairs(values("vector"), 3)),
    "reorder_heads": (stored("matrix").reorder_heads([2, 0, 1]), MATRIX.reshape(3, 4, 10)[[2, 0, 1]].reshape(12, 10)),
    "reorder_heads, columns": (
        stored("matrix").reorder_heads([1, 0], axis=1),
        MATRIX.reshape(12, 2, 5)[:, [1, 0]].reshape(12, 10),
    ),
    "stack": (stack([stored("matrix"), stored("matrix").plus(2)]), np.stack([MATRIX, MATRIX + 2])),
    "stack, vectors": (stack([stored("vector")] * 3), np.stack([values("vector")] * 3)),
    "stack, of two types": (stack([stored("matrix"), stored("wide")]), np.stack([MATRIX, WIDE])),
    "concat": (concat([stored("matrix"), stored("a"), stored("wide")]), np.concatenate([MATRIX, values("a"), WIDE])),
    "concat, vectors": (
        concat([stored("vector"), stored("vector").plus(1)]),
        np.concatenate([values("vector"), values("vector") + 1]),
    ),
    "several": (
        stack([stored("experts").transpose().slice(e, 1).reshape(10, 8).plus(1).every(3) for e in (2, 0)]),
        np.stack([(EXPERTS[e].T + 1)[::3] for e in (2, 0)]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggpy.models.hf_sources._PIECE", 30)
    source, expected = CASES[name]
    assert source.shape == expected.shape
    n = source.n_rows
    for step in (1, 3, 7, n):
        cuts = [*range(0, n, step), n]
        parts = [source.rows(read, *cut) for cut in pairwise(cuts)]
        assert [len(part) for part in parts] == [b - a for a, b in pairwise(cuts)]
        found = np.concatenate([to_float32(part) for part in parts]).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axis_of_choice", ["all", "every second row", "one expert"])
def test_mxfp4_blocks_hold_the_same_numbers(axis_of_choice: str) -> None:
    """The reference follows transformers' own reading: two 4-bit numbers a byte, times a power of two."""
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    pair = np.stack([numbers[TENSORS["blocks"] & 15], numbers[TENSORS["blocks"] >> 4]], -1)
    whole = (pair.reshape(3, 4, 2, 32) * 2.0 ** (TENSORS["scales"].astype(int) - 127)[..., None]).reshape(3, 4, 64)
    source: Source = Mxfp4(stored("blocks"), stored("scales"))
    if axis_of_choice == "every second row":
        source, whole = source.every(2, 1, axis=1), whole[:, 1::2]
    elif axis_of_choice == "one expert":
        source, whole = stack([source.slice(1, 1).reshape(4, 64)]), whole[1:2]
    assert (source.shape, source.format) == (whole.shape, "MXFP4")
    rows = np.concatenate([source.rows(read, i, i + 1) for i in range(source.n_rows)])
    found = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(found.reshape(whole.shape), whole)


def test_compositions_that_cannot_be() -> None:
    blocks = Mxfp4(stored("blocks"), stored("scales"))
    for wrong in (
        lambda: blocks.plus(1), lambda: blocks.every(2, axis=2), lambda: blocks.reshape(768),
        lambda: blocks.transpose(), lambda: stored("matrix").reshape(7, 7), lambda: stored("matrix").slice(10, 5),
        lambda: stored("a").rope_pairs(1),
        lambda: stored("matrix").take([12]), lambda: stored("matrix").reorder_heads([1, 1, 0]),
        lambda: stack([stored("matrix"), stored("a")]), lambda: concat([stored("matrix"), stored("long")]),
        lambda: stack([blocks, stored("experts")]), lambda: Mxfp4(stored("blocks"), stored("vector")),
        lambda: TensorRule("x", stored("matrix"), (1, 2)),
    ):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - each says something else
            wrong()


@pytest.fixture
def experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A tiny Llama in `tmp_path` with tensors beside its own, and a layout that has a place for them."""
    more = {f"experts.{i}.weight": RNG.standard_normal((6, 64)).astype(np.float32) for i in range(3)}
    more |= {"both.weight": RNG.standard_normal((4, 64)).astype(np.float32)}
    more |= {"x_blocks": TENSORS["blocks"], "x_scales": TENSORS["scales"]}
    tensors = random_tensors(CONFIGS["llama"], dtype="bf16") | more
    write_safetensors(tiny_checkpoint(tmp_path, "llama") / "model.safetensors", tensors)
    plain = Llama.hf_layout.__func__  # type: ignore[attr-defined]

    def layout(cls: type[Llama], config: object) -> Layout:
        made: Layout = plain(cls, config)
        made.metadata |= {"llama.expert_count": 3, "llama.expert_used_count": 1}
        parts = [Stored(f"experts.{i}.weight", (6, 64)) for i in range(3)]
        both = Stored("both.weight", (4, 64))
        blocks = Mxfp4(Stored("x_blocks", (3, 4, 2, 16), raw=True), Stored("x_scales", (3, 4, 2), raw=True))
        made.tensors += [
            TensorRule("blk.0.ffn_up_exps.weight", stack(parts)),
            TensorRule("blk.0.first.weight", both.slice(0, 1)),
            TensorRule("blk.0.second.weight", both.slice(1, 3), (3, 64)),
            TensorRule("blk.0.ffn_gate_exps.weight", blocks),
            TensorRule("blk.0.absent.weight", stack([Stored("no.weight", (6, 64))] * 2), required=False),
        ]
        return made

    monkeypatch.setattr(Llama, "hf_layout", classmethod(layout))
    return more


@pytest.mark.parametrize("chunk", [1 << 21, 100])
def test_experts_in_a_file(
    tmp_path: Path, experts: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(pipeline, "_CHUNK_WEIGHTS", chunk)
    convert(tmp_path / "tiny-llama", "q8_0", tmp_path / "out.gguf", n_threads=2)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    tensors = {t.name: t for t in reader.tensors}
    whole = np.stack([experts[f"experts.{i}.weight"] for i in range(3)])
    up = tensors["blk.0.ffn_up_exps.weight"]
    assert (up.shape.tolist(), up.tensor_type.name) == ([64, 6, 3], "Q8_0")
    assert up.data.tobytes() == gguf.quants.quantize(whole, gguf.GGMLQuantizationType.Q8_0).tobytes()
    second = gguf.quants.quantize(experts["both.weight"][1:], gguf.GGMLQuantizationType.Q8_0)
    assert tensors["blk.0.second.weight"].data.tobytes() == second.tobytes()
    assert tensors["blk.0.ffn_gate_exps.weight"].tensor_type.name == "MXFP4"  # whatever the file's type
    assert "blk.0.absent.weight" not in tensors
    label = reader.fields["general.size_label"].contents()
    assert label.startswith("3x")


def test_a_part_that_lacks(tmp_path: Path, experts: dict[str, np.ndarray]) -> None:
    tensors = random_tensors(CONFIGS["llama"], dtype="bf16") | experts
    path = tmp_path / "tiny-llama" / "model.safetensors"
    write_safetensors(path, {name: v for name, v in tensors.items() if name != "experts.1.weight"})
    with pytest.raises(GGPYError, match=r"lacks the tensor 'experts\.1\.weight'"):
        convert(tmp_path / "tiny-llama", "q8_0", tmp_path / "out.gguf")
    write_safetensors(path, tensors | {"experts.1.weight": tensors["experts.1.weight"][:5]})
    with pytest.raises(GGPYError, match=r"'experts\.1\.weight' in model\.safetensors has the shape \[5, 64\]"):
        convert(tmp_path / "tiny-llama", "q8_0", tmp_path / "out.gguf")
    write_safetensors(path, tensors | {"x_scales": np.zeros((3, 4, 2), np.float32)})
    with pytest.raises(GGPYError, match=r"'x_scales' .* has the type F32; .* blocks"):
        convert(tmp_path / "tiny-llama", "q8_0", tmp_path / "out.gguf")


def test_names_of_other_versions_and_parts_that_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    convert(folder, "f32", tmp_path / "plain.gguf")
    plain = Llama.hf_layout.__func__  # type: ignore[attr-defined]

    def layout(cls: type[Llama], config: object) -> Layout:
        made: Layout = plain(cls, config)
        made.renames = ((r"^text_model\.", "model."), (r"\.gamma$", ".weight"))
        made.left_out = ((r"vision\.", "images are not read"),)
        return made

    monkeypatch.setattr(Llama, "hf_layout", classmethod(layout))
    tensors = random_tensors(CONFIGS["llama"], dtype="bf16")
    renamed = {
        name.replace("model.", "text_model.", 1).replace("norm.weight", "norm.gamma"): tensors[name] for name in tensors
    }
    write_safetensors(folder / "model.safetensors", renamed | {"vision.a": values("a"), "vision.b": values("a")})
    notes: list[str] = []
    convert(folder, "f32", tmp_path / "renamed.gguf", note=notes.append)
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "renamed.gguf").read_bytes()
    assert notes == ["images are not read"]
    write_safetensors(folder / "model.safetensors", renamed | {"lm_head2": values("a")})
    with pytest.raises(GGPYError, match="'lm_head2', which GGUF's llama has no place for"):
        convert(folder, "f32", tmp_path / "renamed.gguf")
