"""Checkpoint folders read without trust: headers that lie, missing shards, names that lead elsewhere, pickles."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import stored, tiny_checkpoint, to_float32, write_safetensors

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.safetensors import SafetensorsFile
from ggpy.errors import GGPYError


def put(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((7, 5)).astype(t) for name, t in (("a", "f4"), ("b", "f2"), ("c", "f8"))}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, values in tensors.items():
        rows = file.tensors[name].rows(2, 6)
        assert rows.dtype == (np.float32 if name == "c" else values.dtype)
        np.testing.assert_array_equal(rows, values[2:6].astype(rows.dtype))
    file.close()


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    values = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 12)
    write_safetensors(tmp_path / "x.safetensors", {"a": stored(values, "bf16"), "v": stored(values[0], "bf16")})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    rows = file.tensors["a"].rows(1, 2)
    assert rows.dtype == np.uint16
    np.testing.assert_allclose(to_float32(rows)[0], values[1], rtol=1e-2)
    assert file.tensors["v"].rows(0, 1).shape == (1, 12)
    file.close()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b"\xff", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a": 1, "a": 2}', b"", "stands twice"),
        ({"a": 3}, b"", "unknown type None"),
        ({"a": entry([2], [0, 8], "F33")}, bytes(8), "unknown type 'F33'"),
        ({"a": entry([-2], [0, 8])}, bytes(8), r"impossible shape \[-2\]"),
        ({"a": entry([2.0], [0, 8])}, bytes(8), "impossible shape"),
        ({"a": entry([True, 2], [0, 8])}, bytes(8), "impossible shape"),
        ({"a": entry([1] * 9, [0, 4])}, bytes(4), "impossible shape"),
        ({"a": entry([1 << 40, 1 << 40], [0, 8])}, bytes(8), "takes 4835703278458516698824704 bytes"),
        ({"a": entry([2], [0, 4])}, bytes(8), "takes 8 bytes, its offsets give 4"),
        ({"a": entry([2], [8, 0])}, bytes(8), "impossible offsets"),
        ({"a": entry([2], [0])}, bytes(8), "impossible offsets"),
        ({"a": entry([2], None)}, bytes(8), "impossible offsets"),
        ({"a": entry([2], [0, 8])}, bytes(7), "cut short"),
        ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12), "'b' overlaps 'a'"),
        ({"a": entry([2], [0, 8]), "b": entry([2], [12, 20])}, bytes(20), "gap before the tensor 'b'"),
        ({"a": entry([2], [0, 8])}, bytes(9), "its tensors end at byte"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        SafetensorsFile(put(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 62), struct.pack("<Q", 9) + b"{}"])
def test_files_too_short_for_their_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(GGPYError, match="not a sound safetensors file"):
        SafetensorsFile(tmp_path / "x.safetensors")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_files_end_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes change, opening gives a sound file or a GGPYError, and reading stays inside the file."""
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    write_safetensors(path, {"a": np.ones((3, 4), np.float32), "b.weight": np.ones(5, np.float16)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with suppress(GGPYError):
        file = SafetensorsFile(path)
        for tensor in file.tensors.values():
            assert tensor.start + tensor.nbytes <= len(content)
            with suppress(GGPYError):
                tensor.rows(0, tensor.n_rows)
        file.close()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": np.ones((3, 4), np.float32)})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-8])
    with pytest.raises(GGPYError, match="became shorter"):
        file.tensors["a"].rows(0, 3)
    file.close()


# Folders


def test_shards(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", shards=3)
    with Checkpoint(folder) as checkpoint:
        names = set(checkpoint.tensors)
        assert {t.file.path.name for t in checkpoint.tensors.values()} == {
            f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
        }
    (folder / "model.safetensors.index.json").unlink()
    with Checkpoint(folder) as checkpoint:  # the shards' own names are enough
        assert set(checkpoint.tensors) == names


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, indexed: bool) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(GGPYError, match=r"lacks the shard model-00002-of-00003\.safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "C:x", "..", "", 3, None, "x\0y", ["model.safetensors"]],
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, shard: Any) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    write_safetensors(tmp_path / "model.safetensors", {"model.norm.weight": np.ones(4, np.float32)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(GGPYError, match="not a file of the folder"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": ["a"]}', "no 'weight_map'"),
        ('{"weight_map": {"ghost": "model.safetensors"}}', "promises the tensor 'ghost'"),
    ],
)
def test_broken_indexes(tmp_path: Path, index: str, message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(GGPYError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "x.pt"]
)
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(GGPYError, match=f"{name}, a pickle, which can run any code"):
        Checkpoint(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(GGPYError, match="is not a checkpoint folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(GGPYError, match="has no config"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GGPYError, match=r"holds no \.safetensors file"):
        Checkpoint(tmp_path)
    with pytest.raises(GGPYError, match="name the folder that holds it"):
        Checkpoint(tmp_path / "config.json")
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", {name: np.ones(4, np.float32)})
    with pytest.raises(GGPYError, match="several weight files"):
        Checkpoint(tmp_path)


def test_the_folders_code_is_not_run(tmp_path: Path) -> None:
    from ggpy.convert.pipeline import convert

    folder = tiny_checkpoint(tmp_path, "qwen")
    for name in ("modeling_qwen.py", "tokenization_qwen.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    convert(folder, "q4_0", tmp_path / "out.gguf")
    assert not (tmp_path / "owned").exists()
