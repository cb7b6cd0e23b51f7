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

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.safetensors import SafetensorsFile
from ggpy.errors import GGPYError
from tests.support.tiny import stored, tiny_checkpoint, to_float32, write_safetensors


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


def test_data_is_placed_by_order_and_type(tmp_path: Path) -> None:
    """Tensors lie one behind the other in the order of their offsets, whatever the order and the names of the header;
    types of which weights are not converted take their place as well."""
    header = {
        "z": entry([2], [16, 24]), "empty": entry([0], [16, 16]), "f8": entry([3], [8, 11], "F8_E4M3"),
        "f4": entry([4], [11, 13], "F4"), "bool": entry([3], [13, 16], "BOOL"), "a": entry([2], [0, 8]),
    }  # fmt: skip
    path = put(tmp_path / "x.safetensors", header, np.arange(6, dtype=np.float32).tobytes())
    file = SafetensorsFile(path)
    data = path.stat().st_size - 24
    assert {t.name: (t.start - data, t.nbytes) for t in file.tensors.values()} == {
        name: (e["data_offsets"][0], e["data_offsets"][1] - e["data_offsets"][0]) for name, e in header.items()
    }
    assert file.tensors["z"].rows(0, 1).tolist() == [[4.0, 5.0]]
    with pytest.raises(GGPYError, match=r"'f8' in x\.safetensors has the type F8_E4M3"):
        file.tensors["f8"].rows(0, 1)
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
        (b"{", b"", "invalid JSON"),
        (b"[]", b"", "invalid JSON"),
        (b"\xff", b"", "invalid UTF-8"),
        (b"[" * 100_000, b"", "invalid JSON"),
        (b'{"a": 1, "a": 2}', b"", "expected struct TensorInfo"),
        ({"a": 3}, b"", "expected struct TensorInfo"),
        ({"a": entry([2], [0, 8], "F33")}, bytes(8), "unknown variant `F33`"),
        ({"a": entry([-2], [0, 8])}, bytes(8), "integer `-2`"),
        ({"a": entry([2.0], [0, 8])}, bytes(8), "floating point `2.0`"),
        ({"a": entry([True, 2], [0, 8])}, bytes(8), "boolean `true`"),
        ({"a": entry([1 << 40, 1 << 40], [0, 8])}, bytes(8), "overflow"),
        ({"a": entry([2], [0, 4])}, bytes(8), "invalid shape, data type, or offset"),
        ({"a": entry([2], [8, 0])}, bytes(8), "invalid offset for tensor `a`"),
        ({"a": entry([2], [0])}, bytes(8), "expected a tuple of size 2"),
        ({"a": entry([2], None)}, bytes(8), "expected a tuple of size 2"),
        ({"a": entry([2], [0, 8])}, bytes(7), "file not fully covered"),
        ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12), "invalid offset for tensor `b`"),
        ({"a": entry([2], [0, 8]), "b": entry([2], [12, 20])}, bytes(20), "invalid offset for tensor `b`"),
        ({"a": entry([2], [0, 8])}, bytes(9), "file not fully covered"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(GGPYError, match=f"not a sound safetensors file: .*{message}"):
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


def files_of(folder: Path) -> set[str]:
    with Checkpoint(folder) as checkpoint:
        return {tensor.file.path.name for tensor in checkpoint.tensors.values()}


def test_the_weights_that_transformers_would_load(tmp_path: Path) -> None:
    """The choice of `from_pretrained` in a folder: the file that config.json names, the whole file, the index."""
    folder = tiny_checkpoint(tmp_path, "qwen2", shards=2)
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    tiny_checkpoint(tmp_path, "qwen2")
    with Checkpoint(folder) as checkpoint:  # a whole file beside the index of an earlier save
        assert {t.file.path.name for t in checkpoint.tensors.values()} == {"model.safetensors"}
        assert checkpoint.notes == [
            "model.safetensors is read; model.safetensors.index.json and what it lists are not."
        ]
    for name in shards:
        (folder / name).rename(tmp_path / name)
    assert files_of(folder) == {"model.safetensors"}  # the leftover index names shards that are gone
    for name in shards:
        (tmp_path / name).rename(folder / name)
    tiny_checkpoint(tmp_path, "qwen2", transformers_weights="model.safetensors.index.json")
    assert files_of(folder) == shards
    tiny_checkpoint(tmp_path, "qwen2", transformers_weights="../model.safetensors")
    with pytest.raises(GGPYError, match="'transformers_weights', no file of the folder"):
        Checkpoint(folder)


def test_other_files_beside_the_weights(tmp_path: Path) -> None:
    """Variants, Mistral's own format, pickles and adapters: the weights are found, or a sentence says what is there."""
    folder = tiny_checkpoint(tmp_path, "llama")
    for name in ("model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        write_safetensors(folder / name, {"x": np.ones(4, np.float32)})
    (folder / "pytorch_model.bin").write_bytes(b"")
    with Checkpoint(folder) as checkpoint:
        assert {t.file.path.name for t in checkpoint.tensors.values()} == {"model.safetensors"}
        assert "adapter_model.safetensors is not applied" in checkpoint.notes[0]
    (folder / "model.safetensors").unlink()
    assert files_of(folder) == {"model.fp16.safetensors"}  # a variant that stands alone
    write_safetensors(folder / "model.bf16.safetensors", {"x": np.ones(4, np.float32)})
    with pytest.raises(GGPYError, match=r"several sets of weights \(model\.bf16\.safetensors, model\.fp16"):
        Checkpoint(folder)
    (folder / "model.bf16.safetensors").unlink()
    (folder / "model.fp16.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert files_of(folder) == {"model-00001-of-00001.safetensors"}
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(GGPYError, match=r"consolidated\.safetensors, weights under the names of Mistral's own code"):
        Checkpoint(folder)
    (folder / "consolidated.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(GGPYError, match=r"adapter_model\.safetensors, an adapter and no model"):
        Checkpoint(folder)


def test_what_an_index_forgot_is_the_models_too(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["lm_head.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(folder) as checkpoint:
        assert "lm_head.weight" in checkpoint.tensors


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "C:x", "..", "", 3, None, "x\0y", ["model.safetensors"]],
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, shard: Any) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
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
        ('{"weight_map": {"ghost": "part.safetensors"}}', "promises the tensor 'ghost'"),
    ],
)
def test_broken_indexes(tmp_path: Path, index: str, message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
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
    with pytest.raises(GGPYError, match="several sets of weights"):
        Checkpoint(tmp_path)


def test_the_folders_code_is_not_run(tmp_path: Path) -> None:
    from ggpy.convert.pipeline import convert

    folder = tiny_checkpoint(tmp_path, "qwen")
    for name in ("modeling_qwen.py", "tokenization_qwen.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    convert(folder, "q4_0", tmp_path / "out.gguf")
    assert not (tmp_path / "owned").exists()
