"""The GGUF reader: equal to the gguf package's on good files, one clear sentence on bad ones, and nothing else."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from tests.support.gguf_bytes import ARCHITECTURE, build, entry, string, tensor, u32, u64


def small() -> bytes:
    """A valid file with every kind of value and a few tensors."""
    entries = [
        ARCHITECTURE,
        entry("general.alignment", 4, u32(32)),
        entry("scalar.u8", 0, b"\xff"),
        entry("scalar.i16", 3, struct.pack("<h", -3)),
        entry("scalar.f32", 6, struct.pack("<f", 1.5)),
        entry("scalar.bool", 7, b"\x01"),
        entry("scalar.u64", 10, u64(1 << 63)),
        entry("scalar.i64", 11, struct.pack("<q", -5)),
        entry("scalar.f64", 12, struct.pack("<d", 0.1)),
        entry("array.tokens", 9, u32(8) + u64(4) + b"".join(map(string, ["a", "中文", "", b"\xff\xfe"]))),
        entry("array.scores", 9, u32(6) + u64(3) + struct.pack("<3f", 0, -1, 2)),
        entry("array.types", 9, u32(5) + u64(3) + struct.pack("<3i", 1, -2, 3)),
        entry("array.flags", 9, u32(7) + u64(3) + b"\x01\x00\x01"),
        entry("array.empty", 9, u32(8) + u64(0)),
    ]
    tensors = [
        tensor("token_embd.weight", [32, 3], 2, 0),  # Q4_0: 54 bytes
        tensor("blk.0.norm.weight", [7], 0, 64),  # F32: 28 bytes
        tensor("cube", [2, 3, 4], 1, 96),  # F16: 48 bytes
    ]
    return build(entries, tensors, bytes(range(144)))


@pytest.fixture
def write(tmp_path: Path):
    def write(raw: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return path

    return write


# Good files


def test_reads_every_kind_of_value(write):
    with GGUFFile(write(small())) as file:
        metadata = file.metadata
        assert (file.version, file.alignment, file.size) == (3, 32, len(small()))
        assert metadata["general.architecture"] == "llama"
        assert (metadata["scalar.u8"], metadata["scalar.i16"], metadata["scalar.f32"]) == (255, -3, 1.5)
        assert metadata["scalar.bool"] is True
        assert (metadata["scalar.u64"], metadata["scalar.i64"], metadata["scalar.f64"]) == (1 << 63, -5, 0.1)
        assert metadata["array.scores"].tolist() == [0, -1, 2]
        assert metadata["array.scores"].dtype == np.float32
        assert metadata["array.types"].tolist() == [1, -2, 3]
        assert metadata["array.flags"].tolist() == [True, False, True]
        assert metadata["array.empty"] == []
        assert metadata.type_name("array.types") == "[int32]"
        assert metadata.array("general.architecture") is None
        assert metadata.get("absent", 7) == 7
        assert "array.tokens" in metadata
        info = file.tensors["cube"]
        assert (info.type_name, info.shape, info.nbytes) == ("F16", (4, 3, 2), 48)
        assert file.data("cube").tolist() == list(range(96, 144))
        assert not file.data("cube").flags.writeable
        with pytest.raises(GGPYError, match=r"no tensor named 'output\.weight'"):
            file.data("output.weight")


def test_strings_that_are_not_utf8_keep_their_bytes(write):
    with GGUFFile(write(small())) as file:
        tokens = file.metadata["array.tokens"]
        assert tokens[:3] == ["a", "中文", ""]
        assert tokens[3].encode("utf-8", "surrogateescape") == b"\xff\xfe"
        assert file.metadata.array("array.tokens").head(2) == ["a", "中文"]
        assert len(file.metadata.array("array.tokens")) == 4


def test_version_2_and_a_file_without_tensors(write):
    with GGUFFile(write(build([ARCHITECTURE], version=2))) as file:
        assert file.version == 2
        assert file.tensors == {}


def test_data_outlives_close(write):
    file = GGUFFile(write(small()))
    data = file.data("cube")
    file.close()
    assert data[0] == 96


def assert_same_as_gguf_package(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert list(file.metadata) == list(fields)
        for name, field in fields.items():
            got, want = file.metadata[name], field.contents()
            np.testing.assert_array_equal(got, want)
        assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
        for theirs in reader.tensors:
            ours = file.tensors[theirs.name]
            assert ours.shape == tuple(int(n) for n in reversed(theirs.shape))
            assert (ours.type, ours.offset, ours.nbytes) == (theirs.tensor_type, theirs.data_offset, theirs.n_bytes)
            assert np.array_equal(file.data(ours.name), theirs.data.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("alignment", [None, 64])
def test_equals_the_gguf_package(tmp_path, alignment):
    path, rng = tmp_path / "model.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 0.25)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "日本語\n")
    writer.add_array("a.strings", ["x", "yz", "é"])
    writer.add_array("a.floats", [1.5, 2.5])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_tensor("w.f32", rng.standard_normal((3, 5)).astype(np.float32))
    writer.add_tensor("w.f16", rng.standard_normal((2, 3, 4)).astype(np.float16))
    raw = gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("w.q5_1", raw, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same_as_gguf_package(path)


def test_opening_a_large_vocabulary_takes_no_python_call_an_entry(write):
    n = 20_000
    tokens = b"".join(string(f"token{i}") for i in range(n))
    merges = b"".join(string(f"to {i}") for i in range(n))
    entries = [
        ARCHITECTURE,
        entry("tokenizer.ggml.tokens", 9, u32(8) + u64(n) + tokens),
        entry("tokenizer.ggml.merges", 9, u32(8) + u64(n) + merges),
    ]
    path = write(build(entries))
    GGUFFile(path).close()
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        with GGUFFile(path) as file:
            assert len(file.metadata.array("tokenizer.ggml.tokens")) == n
    finally:
        sys.setprofile(None)
    assert calls < n


def test_import_is_light():
    heavy = "{'numpy', 'gguf', 'numba', 'llvmlite'} & set(sys.modules)"
    code = f"import sys, ggpy.gguf.file, ggpy.quant; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


# Bad files


def one_tensor(dims: list[int], type_id: int = 0, offset: int = 0, data: bytes = bytes(64)) -> bytes:
    return build([ARCHITECTURE], [tensor("t", dims, type_id, offset)], data)


def numbers(value_type: int, count: int, raw: bytes) -> bytes:
    return build([entry("k", 9, u32(value_type) + u64(count) + raw)])


BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world, this is no model", "is not a GGUF file: it begins with b'hell'"),
    "short": (b"GG", "is not a GGUF file"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "pickle": (b"PK\x03\x04" + bytes(30), "zip archive or a pickled checkpoint"),
    "safetensors": (u64(2) + b"{}" + bytes(9), "safetensors"),
    "ggml": (b"lmgg" + bytes(40), "came before GGUF"),
    "only magic": (b"GGUF", "ends inside the version number, at least 4 bytes too early"),
    "v1": (build(version=1), "GGUF version 1"),
    "v0": (build(version=0), "GGUF version 0"),
    "v9": (build(version=9), "GGUF version 9; ggpy reads versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "no counts": (b"GGUF" + u32(3), "ends inside the tensor count"),
    "many tensors": (build(counts=(1 << 40, 0)), "claims 1099511627776 tensors"),
    "many keys": (build(counts=(0, (1 << 64) - 1)), "claims 18446744073709551615 metadata keys"),
    "long key": (build([u64(1 << 62) + bytes(20)]), "the name of metadata key number 0 is 4611686018427387904 bytes"),
    "empty key": (build([entry("", 4, u32(1))]), "is 0 bytes long"),
    "key not utf-8": (build([entry(b"\xff", 4, u32(1))]), "is not UTF-8"),
    "key twice": (build([ARCHITECTURE, ARCHITECTURE]), "the metadata key 'general.architecture' occurs twice"),
    "value type": (build([entry("k", 13, u64(1))]), "value of the metadata key 'k' is of the unknown type number 13"),
    "cut scalar": (build([entry("kkkkkkkk", 10, b"\0")]), "ends inside the value of the metadata key 'kkkkkkkk'"),
    "cut string": (build([entry("k", 8, u64(100) + b"abc")]), "at least 97 bytes too early"),
    "lying string": (build([entry("k", 8, u64(1 << 63) + b"abc")]), "claims to reach"),
    "array of arrays": (numbers(9, 1, bytes(30)), "array of arrays"),
    "array type": (numbers(77, 1, bytes(30)), "array of the unknown type number 77"),
    "cut array": (numbers(5, 100, bytes(40)), r"\(100 values\), at least 360 bytes too early"),
    "cut strings": (numbers(8, 2, string("abc") + u64(50) + b"x"), "'k', at least 49 bytes too early"),
    "no length": (numbers(8, 2, string("abcdefgh") + bytes(3)), "'k', at least 5 bytes too early"),
    "lying strings": (numbers(8, 2, u64((1 << 64) - 8) + bytes(30)), "claims to reach"),
    "endless strings": (numbers(8, 1 << 60, bytes(80)), "'k'"),
    "alignment 0": (build([entry("general.alignment", 4, u32(0))]), "power of two"),
    "alignment 48": (build([entry("general.alignment", 4, u32(48))]), "power of two"),
    "alignment type": (build([entry("general.alignment", 8, string("32"))]), "power of two"),
    "tensor name": (build(tensors=[tensor("", [1])], data=bytes(64)), "the name of tensor number 0 is 0 bytes long"),
    "tensor twice": (build(tensors=[tensor("t", [1]), tensor("t", [1], 0, 32)], data=bytes(64)), "'t' occurs twice"),
    "five dimensions": (one_tensor([1, 1, 1, 1, 1]), "'t' has 5 dimensions"),
    "zero size": (one_tensor([4, 0]), r"'t' has the impossible shape \[4, 0\]"),
    "overflow": (one_tensor([1 << 32, 1 << 31, 2]), "'t' has the impossible shape"),
    "huge": (one_tensor([1 << 62]), "'t' claims to reach"),
    "unknown type": (one_tensor([4], 99), "'t': The type number 99 is not one that ggpy knows"),
    "removed type": (one_tensor([4], 4), "'t': The type Q4_2 was removed"),
    "row": (one_tensor([33, 2], 2), "'t': A row of 33 weights cannot be stored as Q4_0"),
    "unaligned": (one_tensor([4], 0, 8), "'t' is not aligned to 32 bytes"),
    "beyond": (one_tensor([4], 0, 1 << 20), "ends inside the data of the tensor 't'"),
    "offset overflow": (one_tensor([4], 0, (1 << 64) - 32), "'t' claims to reach"),
    "cut data": (one_tensor([32]), "'t', at least 64 bytes too early; the download was probably cut"),
    "overlap": (
        build(tensors=[tensor("a", [16]), tensor("b", [4], 0, 32)], data=bytes(64)),
        "the tensors 'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize(("raw", "says"), BAD.values(), ids=BAD)
def test_bad_file_is_one_sentence(write, raw, says):
    path = write(raw)
    with pytest.raises(GGPYError, match=says) as caught:
        GGUFFile(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_cut_file_names_the_tensor_at_the_cut_and_all_that_is_missing(write):
    raw = build(tensors=[tensor("a", [16]), tensor("b", [8], 0, 64), tensor("c", [4], 0, 96)], data=bytes(112))
    with pytest.raises(GGPYError, match="ends inside the data of the tensor 'b', at least 42 bytes too early"):
        GGUFFile(write(raw[:-42]))


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(GGPYError, match="does not exist"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(GGPYError, match="is a folder"):
        GGUFFile(tmp_path)
    with pytest.raises(GGPYError, match="cannot be read"):
        GGUFFile("a\0b")


def test_every_truncation_is_refused(write):
    raw = small()
    with pytest.raises(GGPYError, match=r"'cube', at least 1 bytes too early"):
        GGUFFile(write(raw[:-1]))
    path = write(raw)
    for length in reversed(range(len(raw))):
        os.truncate(path, length)
        with pytest.raises(GGPYError):
            GGUFFile(path)


# Mutated files

SMALL = small()
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, len(SMALL) - 1), st.integers(0, 255)),
        st.tuples(st.just("u32"), st.integers(0, len(SMALL) - 4), st.integers(0, 40) | st.integers(0, (1 << 32) - 1)),
        st.tuples(
            st.just("u64"),
            st.integers(0, len(SMALL) - 8),
            st.integers(0, 300) | st.integers(0, (1 << 64) - 1) | st.sampled_from([1 << k for k in range(64)]),
        ),
        st.tuples(st.just("cut"), st.integers(0, len(SMALL)), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, len(SMALL) - 1), st.integers(1, 64)),
        st.tuples(st.just("repeat"), st.integers(0, len(SMALL) - 1), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(edits: list[tuple[str, int, int]]) -> bytes:
    raw = bytearray(SMALL)
    for kind, at, value in edits:
        if kind == "byte":
            raw[at : at + 1] = bytes([value])
        elif kind == "u32":
            raw[at : at + 4] = u32(value)
        elif kind == "u64":
            raw[at : at + 8] = u64(value)
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + value]
        else:
            raw[at:at] = raw[at : at + value]
    return bytes(raw)


@pytest.fixture(scope="module")
def mutant(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mutants") / "model.gguf"
    path.touch()
    return path


def assert_good_or_refused(path: Path, raw: bytes) -> None:
    with path.open("r+b") as rewritten:  # in place: to truncate a file first costs a disk's time, thousands of times
        rewritten.write(raw)
        rewritten.truncate()
    try:
        file = GGUFFile(path)
    except GGPYError:
        return
    with file:
        for key in file.metadata:
            value, array = file.metadata[key], file.metadata.array(key)
            assert array is None or len(array) == len(value) <= len(raw)
        for name, info in file.tensors.items():
            assert info.offset + info.nbytes <= len(raw)
            assert file.data(name).size == info.nbytes


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
@example([("u64", 8, 1 << 63)])
def test_mutated_file_is_good_or_refused(mutant, edits):
    assert_good_or_refused(mutant, mutated(edits))


def test_every_length_field_can_lie(mutant):
    """At each position of the file, numbers that lengths, counts, types and offsets must survive."""
    for at in range(len(SMALL) - 8):
        for value in (0, 9, 1 << 20, (1 << 63) - 1, (1 << 64) - 8):
            assert_good_or_refused(mutant, SMALL[:at] + u64(value) + SMALL[at + 8 :])
