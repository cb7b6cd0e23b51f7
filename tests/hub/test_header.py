"""A model's header by its name: from a file, a folder that would be converted, or parts of a file at a hub."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.gguf.shards import RangeShard
from ggpy.hub.header import open_header
from ggpy.runtime.planned import planned
from tests.support.families import CONFIGS, family_checkpoint


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    convert(family_checkpoint(tmp_path, "llama3"), "q4_0", tmp_path / "model.gguf")  # which compiles
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "model.gguf"


def same(one: GGUFFile, other: GGUFFile) -> bool:
    """True for the same keys, tensors, size and program, which has rope factors too, values that are no header."""
    first, second = ((list(f.metadata), f.tensors, f.size, repr(planned(f))) for f in (one, other))
    return first == second


@pytest.mark.parametrize("kind", ["llama3", *sorted(set(CONFIGS) - {"llama3"})])
def test_a_folder_is_planned_as_it_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = family_checkpoint(tmp_path, kind)
    convert(folder, "q5_1", tmp_path / "model.gguf")  # which compiles
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    with GGUFFile(tmp_path / "model.gguf") as file, open_header(folder, "Q5_1") as header:
        assert same(file, header)
    assert not (tmp_path / "cache").exists()


class Hub:
    """A stand-in for the hub's client. `read`: every range of bytes that was asked for."""

    def __init__(self, files: dict[str, Path], parts: bool = True) -> None:
        self.files, self.read = files, list[tuple[int, int]]()
        if parts:
            self.HfFileSystem = lambda: self
        self.list_repo_files = lambda repo: list(files)

    def info(self, path: str) -> dict[str, Any]:
        return {"size": self.files[path.removeprefix("user/repo/")].stat().st_size}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.read.append((start, end))
        return self.files[path.removeprefix("user/repo/")].read_bytes()[start:end]


def test_a_model_of_a_hub_is_read_in_parts(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = tmp_path / "big.gguf"  # the header and no more is read
    big.write_bytes(made.read_bytes().ljust(64 << 20, b"\0"))
    monkeypatch.setattr("ggpy.gguf.shards._FIRST_READ", 1 << 10)
    hub = Hub({"a/model.gguf": big, "README.md": made})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in ("hf:user/repo", "hf:user/repo/a/model.gguf"):
        hub.read.clear()
        with GGUFFile(big) as file, open_header(name) as header:
            assert same(file, header)
        reads = sorted(hub.read)
        assert sum(end - start for start, end in reads) < made.stat().st_size
        assert all(before[1] <= after[0] for before, after in pairwise(reads))  # nothing twice
    assert not (tmp_path / "cache").exists()
    with pytest.raises(GGPYError, match=r"no file b\.gguf; it has a/model\.gguf"):
        open_header("hf:user/repo/b.gguf")
    with pytest.raises(GGPYError, match="leave --type"):
        open_header("hf:user/repo", "q4_0")


def test_what_has_to_be_fetched_is_said(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def client(fake: object) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)

    client(Hub({"model.safetensors": made}))
    with pytest.raises(GGPYError, match=r"hf:user/repo has to be fetched first \(ggpy pull hf:user/repo\): .* no GGUF"):
        open_header("hf:user/repo")
    client(Hub({"model.gguf": made}, parts=False))
    with pytest.raises(GGPYError, match=r"to be fetched first .* reads no parts"):
        open_header("hf:user/repo")
    with pytest.raises(GGPYError, match=r"to be fetched first .* read whole"):
        open_header("modelscope:user/repo")
    with pytest.raises(GGPYError, match=r"SmolLM2-135M-Instruct has to be fetched first, 93\.\d+ MiB: ggpy pull Smol"):
        open_header()
    with pytest.raises(GGPYError, match="no known model is called what"):
        open_header("what")

    def broken(repo: str) -> None:
        raise OSError("no network\nat all")

    client(SimpleNamespace(list_repo_files=broken))
    with pytest.raises(GGPYError, match=r"^hf:user/repo could not be read: no network\.$"):
        open_header("hf:user/repo")
    client(None)
    with pytest.raises(GGPYError, match="needs the package huggingface_hub"):
        open_header("hf:user/repo")


def test_a_file_that_is_cut_meanwhile(made: Path) -> None:
    data = made.read_bytes()
    with pytest.raises(GGPYError, match="was cut or written to"):
        GGUFFile.over([RangeShard(made, len(data), lambda offset, length: data[offset : offset + length // 2])])
