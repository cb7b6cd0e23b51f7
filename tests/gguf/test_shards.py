"""Models split into several files: read as one, and one sentence where the files do not make one model."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile, TensorInfo
from ggpy.gguf.shards import shard_names
from ggpy.gguf.slices import TensorSlice, raw_rows
from ggpy.llm import LLM
from ggpy.runtime.runtime import Runtime
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.gguf_bytes import ARCHITECTURE, build, entry, string, tensor, u32
from tests.support.shards import split
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    convert(tiny_checkpoint(folder, "qwen2"), "q4_0", folder / "model.gguf")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def shards(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shards of seven tensors, the first without any: the embedding lies in the second."""
    return split(whole, tmp_path_factory.mktemp("shards"), 7, first_empty=True)


@pytest.fixture
def mine(whole: Path, tmp_path: Path) -> list[Path]:
    """Shards that a test may write to."""
    return split(whole, tmp_path, 9)


def alike(file: GGUFFile, whole: GGUFFile) -> None:
    """The same metadata, tensors and data, whatever their place."""
    assert [key for key in file.metadata if not key.startswith("split.")] == list(whole.metadata)
    for key in whole.metadata:
        np.testing.assert_array_equal(file.metadata[key], whole.metadata[key])
    assert list(file.tensors) == list(whole.tensors)
    for name, info in whole.tensors.items():
        found = file.tensors[name]
        assert (found.type, found.shape, found.nbytes) == (info.type, info.shape, info.nbytes)
        assert np.array_equal(file.data(name), whole.data(name))


def test_any_shard_opens_the_model(whole: Path, shards: list[Path]) -> None:
    assert len(shards) > 3
    with GGUFFile(whole) as one:
        for path in shards:
            with GGUFFile(path) as file:
                alike(file, one)
                assert (file.path, file.paths) == (shards[0], shards)
                assert file.size == sum(path.stat().st_size for path in shards)
                assert file.metadata["split.count"] == len(shards)
                file.check_unchanged()


def test_random_access(whole: Path, shards: list[Path]) -> None:
    rng = np.random.default_rng(0)
    with GGUFFile(whole) as one, GGUFFile(shards[1]) as file:
        for name in rng.choice(list(one.tensors), 200):
            info = file.tensors[name]
            start = int(rng.integers(info.nbytes))
            length = int(rng.integers(info.nbytes - start + 1))
            expected = one.read(name, start, length)
            assert np.array_equal(file.read(name, start, length), expected)
            buffer = bytearray(length)
            file.read_into(memoryview(buffer), info.offset + start)
            assert buffer == expected.tobytes()
            index, offset = file.place(info.offset + start)
            assert shards[index].read_bytes()[offset : offset + length] == buffer
        info = one.tensors["blk.1.ffn_down.weight"]
        rows = [(3, 40), (64, 96)]
        assert np.array_equal(
            raw_rows(file, TensorSlice.of(file.tensors[info.name], rows, (32, 96))),
            raw_rows(one, TensorSlice.of(info, rows, (32, 96))),
        )


def test_where_files_are_read_by_turns(whole: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    with GGUFFile(whole) as one, GGUFFile(shards[0]) as file:
        alike(file, one)


def logits(path: Path) -> np.ndarray:
    with GGUFFile(path) as file:
        runtime = Runtime(file, 16, n_threads=2)
        try:
            return runtime.step([5, 70, 301, 9], [0] * 4, [0, 1, 2, 3], [0, 1, 2, 3]).copy()
        finally:
            runtime.close()


def test_a_split_model_computes_the_same(whole: Path, shards: list[Path]) -> None:
    expected = logits(whole)
    assert np.isfinite(expected).all()
    assert np.array_equal(logits(shards[0]), expected)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(whole, n_ctx=64) as one, LLM(shards[2], n_ctx=64) as llm:
        assert llm.generate("The capital", params)[0].outputs[0].token_ids == (
            one.generate("The capital", params)[0].outputs[0].token_ids
        )


def test_links_to_files_of_other_names(whole: Path, shards: list[Path], tmp_path: Path) -> None:
    """Folders of links, as the cache of Hugging Face's client has them: a link's own name counts."""
    for path in shards:
        (tmp_path / path.name).symlink_to(path)
    with GGUFFile(tmp_path / shards[1].name) as file, GGUFFile(whole) as one:
        alike(file, one)
        assert file.path == tmp_path / shards[0].name


# Shards that are written to


def changed(path: Path) -> str:
    return rf"{path.name} was cut or written to while it was in use; load the model again"


@pytest.mark.parametrize("which", [0, 2])
def test_a_shard_written_to_while_the_model_is_open(mine: list[Path], which: int) -> None:
    with GGUFFile(mine[0]) as file:
        os.utime(mine[which], ns=(1, 1))
        with pytest.raises(GGPYError, match=changed(mine[which])):
            file.check_unchanged()
        with pytest.raises(GGPYError, match=changed(mine[which])):
            Runtime(file, 16, n_threads=2)


def test_a_shard_cut_while_the_model_is_open(mine: list[Path]) -> None:
    with GGUFFile(mine[0]) as file:
        os.truncate(mine[1], 64)
        for name, info in file.tensors.items():
            if file.place(info.offset)[0] == 1:
                with pytest.raises(GGPYError, match=changed(mine[1])):
                    file.data(name)
            else:
                file.data(name)


def test_every_file_is_closed(mine: list[Path]) -> None:
    file = GGUFFile(mine[1])
    file.close()
    file.close()
    for path, name in zip(mine, ("token_embd.weight", "blk.0.ffn_down.weight", "output.weight"), strict=False):
        with pytest.raises(GGPYError, match=rf"{path.name} was closed; open it again"):
            file.data(name)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="cannot count open files")
def test_what_is_refused_stays_closed(mine: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.truncate(mine[-1], mine[-1].stat().st_size - 32)
    with pytest.raises(GGPYError, match=rf"{mine[-1].name} ends inside the data of the tensor"):
        GGUFFile(mine[0])
    assert len(os.listdir("/proc/self/fd")) == before


# Files that make no model


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def shard(
    number: int,
    count: int,
    names: str,
    *,
    total: int | None = 3,
    keys: list[bytes] | None = None,
    architecture: bytes | None = None,
) -> bytes:
    """A shard with a small tensor for each letter of `names`; numbered from 1."""
    entries = [entry("split.no", 2, u16(number - 1)), entry("split.count", 2, u16(count))]
    if total is not None:
        entries.append(entry("split.tensors.count", 5, u32(total)))
    if architecture is None and number == 1:
        architecture = ARCHITECTURE
    tensors = [tensor(name, [8], 0, 32 * i) for i, name in enumerate(names)]
    data = b"".join(name.encode() * 32 for name in names)
    return build([*([architecture] if architecture else []), *(keys or []), *entries], tensors, data)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write m-00001-of-0000N.gguf …, without those that are None; gives the first path."""

    def write(*shards: bytes | None) -> Path:
        paths = [tmp_path / name for name in shard_names(f"m-00001-of-{len(shards):05d}.gguf")]
        for path, raw in zip(paths, shards, strict=True):
            if raw is not None:
                path.write_bytes(raw)
        return paths[0]

    return write


GOOD = shard(1, 3, "a"), shard(2, 3, "b"), shard(3, 3, "c")
APART = "; fetch all shards of one model into a folder of their own."
ODD: dict[str, tuple[tuple[bytes | None, ...], str]] = {
    "one missing": (
        (GOOD[0], None, GOOD[2]),
        "m-00002-of-00003.gguf is missing: the model is split into 3 files, to be kept in one folder; fetch what is "
        "missing into it.",
    ),
    "two missing": ((GOOD[0], None, None), "m-00002-of-00003.gguf is missing (and 1 more): the model is split into 3"),
    "another count": (
        (GOOD[0], shard(2, 4, "b"), GOOD[2]),
        "m-00002-of-00003.gguf says that it is shard 2 of 4, but its name makes it shard 2 of 3" + APART,
    ),
    "another number": (
        (GOOD[0], shard(3, 3, "b"), GOOD[2]),
        "m-00002-of-00003.gguf says that it is shard 3 of 3, but its name makes it shard 2 of 3" + APART,
    ),
    "a copy of the first": ((GOOD[0], GOOD[0], GOOD[2]), "m-00002-of-00003.gguf says that it is shard 1 of 3, but"),
    "a whole model": (
        (GOOD[0], build([ARCHITECTURE], [tensor("b", [8])], bytes(32)), GOOD[2]),
        "m-00002-of-00003.gguf holds a whole model, but its name makes it shard 2 of 3" + APART,
    ),
    "another architecture": (
        (*GOOD[:2], shard(3, 3, "c", architecture=entry("general.architecture", 8, string("qwen3")))),
        "m-00003-of-00003.gguf is a shard of another model than m-00001-of-00003.gguf: its 'general.architecture' is "
        "'qwen3', and there it is 'llama'" + APART,
    ),
    "a tensor more": (
        (*GOOD[:2], shard(3, 3, "cd", total=4)),
        "m-00003-of-00003.gguf is a shard of another model than m-00001-of-00003.gguf: its 'split.tensors.count' is 4, "
        "and there it is 3" + APART,
    ),
    "a tensor twice": (
        (*GOOD[:2], shard(3, 3, "b")),
        "m-00003-of-00003.gguf is a shard of another model than m-00002-of-00003.gguf: both hold the tensor 'b'"
        + APART,
    ),
    "a tensor too few": (
        (*GOOD[:2], shard(3, 3, "")),
        "m-00001-of-00003.gguf belongs to a model of 3 tensors ('split.tensors.count'), but its 3 shards hold 2"
        + APART,
    ),
    "empty": ((*GOOD[:2], b""), "m-00003-of-00003.gguf is empty; fetch or convert the model again."),
    "no GGUF": ((*GOOD[:2], b"<html>"), "m-00003-of-00003.gguf is not a GGUF file: it is a web page"),
    "cut": (
        (*GOOD[:2], GOOD[2][:-8]),
        "m-00003-of-00003.gguf ends inside the data of the tensor 'c', at least 8 bytes",
    ),
    "a name of its own": (
        (shard(2, 3, "a"), *GOOD[1:]),
        "m-00001-of-00003.gguf is shard 2 of 3 of a model, and the others are found by its name, which does not end in "
        "-00002-of-00003.gguf; give each shard its name back.",
    ),
    "a number beyond": (
        (shard(5, 3, "a"), *GOOD[1:]),
        "m-00001-of-00003.gguf is not a valid GGUF file: it claims to be one of 3 shards (of 65535 at most), with 4 "
        "for 'split.no'; fetch it again.",
    ),
    "no number": (
        (build([ARCHITECTURE, entry("split.count", 2, u16(3))]), *GOOD[1:]),
        "m-00001-of-00003.gguf is not a valid GGUF file: it claims to be one of 3 shards (of 65535 at most), without "
        "'split.no' to say which; fetch it again.",
    ),
    "a boundless count": (
        (build([ARCHITECTURE, entry("split.count", 4, u32(1 << 31)), entry("split.no", 4, u32(0))]), *GOOD[1:]),
        "m-00001-of-00003.gguf is not a valid GGUF file: it claims to be one of 2147483648 shards (of 65535 at most), "
        "with 0 for 'split.no'; fetch it again.",
    ),
    "no count": (
        (build([ARCHITECTURE, entry("split.count", 8, string("3"))]), *GOOD[1:]),
        "m-00001-of-00003.gguf: the metadata key 'split.count' must be one whole number; found '3'.",
    ),
    "total": (
        (shard(1, 3, "a", total=None, keys=[entry("split.tensors.count", 8, string("3"))]), *GOOD[1:]),
        "m-00001-of-00003.gguf: the metadata key 'split.tensors.count' must be one whole number; found '3'.",
    ),
}


def test_good_shards(write: Write) -> None:
    with GGUFFile(write(*GOOD)) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert [file.data(name).tobytes() for name in "abc"] == [b"a" * 32, b"b" * 32, b"c" * 32]
        size = len(GOOD[0])
        assert file.tensors["b"] == TensorInfo("b", 0, "F32", (8,), size + len(GOOD[1]) - 32, 32)
        assert [file.place(at) for at in (0, size - 1, size, size + 1)] == [(0, 0), (0, size - 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("raws", "says"), ODD.values(), ids=ODD)
def test_odd_shards_are_one_sentence(write: Write, raws: tuple[bytes | None, ...], says: str) -> None:
    path = write(*raws)
    with pytest.raises(GGPYError) as caught:
        GGUFFile(path)
    sentence = str(caught.value)
    assert says in sentence
    assert sentence.startswith(str(path.parent))
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_first_shard_is_missing(write: Write) -> None:
    first = write(None, *GOOD[1:])
    with pytest.raises(GGPYError, match=r"m-00001-of-00003\.gguf is missing: the model is split into 3 files"):
        GGUFFile(first.with_name("m-00003-of-00003.gguf"))


@pytest.mark.parametrize("name", ["model.gguf", "m-1-of-3.gguf", "m-00001-of-00002.gguf", "m-00001-of-00003.GGUF"])
def test_shards_of_other_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[0])
    with pytest.raises(GGPYError, match="is shard 1 of 3 of a model, and the others are found by its name, which does"):
        GGUFFile(tmp_path / name)


def test_a_whole_model_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "m-00002-of-00003.gguf"
    for keys in (
        [],
        [entry("split.count", 2, u16(0))],
        [entry("split.count", 2, u16(1)), entry("split.no", 2, u16(0))],
    ):
        path.write_bytes(build([ARCHITECTURE, *keys], [tensor("a", [8])], bytes(32)))
        with GGUFFile(path) as file:
            assert file.paths == [path]


def test_shards_without_a_count_of_tensors(write: Write) -> None:
    with GGUFFile(write(*(shard(i + 1, 3, "abc"[i], total=None) for i in range(3)))) as file:
        assert list(file.tensors) == ["a", "b", "c"]


def test_names_of_shards() -> None:
    assert shard_names("m.gguf") == ["m.gguf"]
    assert shard_names("a/m-00002-of-00002.gguf") == ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]
    assert shard_names("\n-00001-of-00001.gguf") == ["\n-00001-of-00001.gguf"]
    for none in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-00001-of-99999.gguf", "m-00001-of-00002.gguf "):
        assert shard_names(none) == [none]


def test_a_mutated_shard_is_good_or_refused(write: Write) -> None:
    """At each position of the second shard, numbers that lengths, counts and offsets must survive."""
    first = write(*GOOD)
    second, raw = first.with_name("m-00002-of-00003.gguf"), GOOD[1]
    opened = 0
    for at in range(len(raw) - 8):
        for value in (0, 9, (1 << 64) - 8):
            second.write_bytes(raw[:at] + value.to_bytes(8, "little") + raw[at + 8 :])
            try:
                file = GGUFFile(first)
            except GGPYError:
                continue
            opened += 1
            with file:
                assert all(file.data(name).size == info.nbytes for name, info in file.tensors.items())
    assert opened > 50
