"""A model's file that someone cuts or writes to while it is open: a sentence, never a signal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf import shards
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.runtime import Runtime
from tests.support.tiny import tiny_checkpoint

CHANGED = "was cut or written to while it was in use; load the model again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    convert(tiny_checkpoint(folder, "llama", dtype="f32"), "f32", folder / "whole.gguf")
    return folder / "whole.gguf"


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "model.gguf"))


def step(runtime: Runtime, token: int = 5) -> np.ndarray:
    return runtime.step([token], [0], [0], [0]).copy()


def load_and_step(file: GGUFFile) -> None:
    runtime = Runtime(file, 16, n_threads=2)
    try:
        step(runtime)
    finally:
        runtime.close()


def test_a_file_cut_while_it_is_open(path: Path) -> None:
    with GGUFFile(path) as file:
        name, info = next(iter(file.tensors.items()))
        kept = file.data(name)
        os.truncate(path, info.offset + 8)
        with pytest.raises(GGPYError, match=CHANGED):
            file.data(name)
        assert kept.sum()
        os.truncate(path, 0)
        assert file.read(name, 0, 0).size == 0
        assert "a" in file.metadata["tokenizer.ggml.tokens"]  # decoded now, from what was read at first


def test_a_file_cut_while_it_generates(path: Path) -> None:
    with GGUFFile(path) as file:
        runtime = Runtime(file, 16, n_threads=2)
        try:
            before = step(runtime)
            os.truncate(path, min(info.offset for info in file.tensors.values()))
            for _ in range(2):
                with pytest.raises(GGPYError, match=CHANGED):
                    step(runtime)
        finally:
            runtime.close()
    assert np.isfinite(before).all()


def test_a_file_moved_to_its_place_changes_nothing(path: Path) -> None:
    with GGUFFile(path) as file:
        runtime = Runtime(file, 16, n_threads=2)
        try:
            before = step(runtime)
            (path.parent / "other").write_bytes(b"another")
            os.replace(path.parent / "other", path)
            assert np.array_equal(step(runtime), before)
        finally:
            runtime.close()


def test_a_file_written_to_while_it_is_loaded(path: Path) -> None:
    with GGUFFile(path) as file:
        with open(path, "r+b") as out:  # of the same size
            out.seek(-4, 2)
            out.write(b"1234")
        os.utime(path, ns=(1, 1))  # whatever the clock's steps
        with pytest.raises(GGPYError, match=CHANGED):
            Runtime(file, 16, n_threads=2)


def test_a_file_cut_while_it_is_packed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GGUFFile, "check_unchanged", lambda file: None)
    with GGUFFile(path) as file:
        read = file.read

        def cut_first(name: str, start: int, length: int) -> np.ndarray:
            os.truncate(path, file.size // 2)
            return read(name, start, length)

        file.read = cut_first  # type: ignore[method-assign]
        with pytest.raises(GGPYError, match=CHANGED):
            load_and_step(file)


@pytest.mark.parametrize("first", [24, 1000])
def test_a_header_larger_than_what_is_read_first(whole: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    with GGUFFile(whole) as file:
        expected = dict(file.metadata.items()), file.tensors
    monkeypatch.setattr(shards, "_FIRST_READ", first)
    with GGUFFile(whole) as file:
        np.testing.assert_equal(dict(file.metadata.items()), expected[0])
        assert file.tensors == expected[1]
    monkeypatch.setattr(shards, "_MOST_HEADER", 1200)
    with pytest.raises(GGPYError, match="its metadata takes more than"):
        GGUFFile(whole)


def test_where_files_are_read_by_turns(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading as on Windows, which has no `preadv`: only from the file's own position."""
    with GGUFFile(whole) as file:
        expected = {name: file.data(name) for name in file.tensors}
        monkeypatch.delattr(os, "preadv", raising=False)
        for name, data in expected.items():
            assert np.array_equal(file.data(name), data)
