"""Names of models, for commands and library alike: what each kind of name leads to, and what is said of others."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import ggpy.llm
from ggpy import LLM
from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.hub import default_model
from ggpy.hub.default_model import DEFAULT
from ggpy.hub.find_model import find_model
from ggpy.runtime.load import Model
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, saying
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the known models that were fetched, by a stand-in."""
    names: list[str] = []

    def fetch(model: Any, progress: Any) -> Path:
        names.append(model.name)
        progress(1, 2)
        return Path(model.path)

    monkeypatch.setattr(default_model, "fetch", fetch)
    return names


@pytest.fixture
def hub_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a folder behind the Hugging Face client; returns the list of the files that it handed out."""

    def serve(folder: Path) -> list[str]:
        handed: list[str] = []

        def one(repo: str, name: str, local_dir: Path) -> str:
            target = Path(local_dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / name).read_bytes())
            handed.append(name)
            return str(target)

        def every(repo: str, allow_patterns: list[str], local_dir: Path) -> str:
            for path in folder.iterdir():
                one(repo, path.name, local_dir)
            return str(local_dir)

        client = SimpleNamespace(
            list_repo_files=lambda repo: [path.name for path in folder.iterdir()],
            hf_hub_download=one,
            snapshot_download=every,
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", client)
        return handed

    return serve


def test_files_win_over_names(fetched: list[str]) -> None:
    for name in ("model.gguf", "smollm2", "without-suffix"):
        Path(name).touch()
        assert find_model(name) == find_model(Path(name)) == Path(name)
    assert fetched == []


def test_paths_that_are_not_there_are_left_to_the_reader() -> None:
    for name in ("missing.gguf", "some/where", "./folder", "a" * 5000 + ".gguf"):
        assert find_model(name) == Path(name)
        assert find_model(name, "q4_0") == Path(name)
        with pytest.raises(GGPYError):
            LLM(name)
    with pytest.raises(GGPYError, match=r"called nosuch; known are SmolLM2-135M-Instruct, hf:user/repo and modelscope"):
        find_model("nosuch")


def test_known_models_are_fetched_with_a_note(fetched: list[str]) -> None:
    notes: list[str] = []
    for name in (None, "SmolLM2-135M-Instruct", "smollm2-135m"):
        assert find_model(name, notify=notes.append) == DEFAULT.path
    assert fetched == [DEFAULT.name] * 3
    assert notes[0] == f"fetching {DEFAULT.name} …"
    assert notes[1].startswith(f"fetched {DEFAULT.name} (98 MB, Apache-2.0) to ")
    labels: list[Any] = []

    @contextmanager
    def bar(label: str) -> Iterator[Any]:
        labels.append(label)
        yield lambda done, total: labels.append((done, total))

    find_model("smollm2", progress=bar)
    assert labels == [f"fetching {DEFAULT.name}", (1, 2)]


def test_known_models_that_are_here(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model.KnownModel, "here", property(lambda model: True))
    notes: list[str] = []
    assert find_model("smollm2-135m", notify=notes.append) == DEFAULT.path
    assert (fetched, notes) == ([], [])


def test_a_type_is_for_folders(fetched: list[str], hub_of: Any, tmp_path: Path) -> None:
    Path("model.gguf").touch()
    for name in ("model.gguf", None, "smollm2-135m"):
        with pytest.raises(GGPYError, match=r"is no checkpoint folder, so its type cannot be chosen; leave --type"):
            find_model(name, "q4_0")
    assert fetched == []


def test_a_file_of_a_hub(hub_of: Any, tmp_path: Path, cache: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    convert(tiny_checkpoint(tmp_path, "qwen2"), "q8_0", repository / "model-q8_0.gguf")
    handed = hub_of(repository)
    notes: list[str] = []
    path = find_model("hf:user/repo", notify=notes.append)
    assert path == cache / "models" / "hf" / "user" / "repo" / "model-q8_0.gguf"
    assert notes == ["fetching hf:user/repo …", f"fetched hf:user/repo to {path}"]
    assert find_model("hf:user/repo/model-q8_0.gguf", notify=notes.append) == path
    with LLM("hf:user/repo") as llm:
        assert llm.path == path
    assert handed == ["model-q8_0.gguf"]
    assert len(notes) == 2


def test_a_checkpoint_of_a_hub(hub_of: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = hub_of(tiny_checkpoint(tmp_path, "qwen2"))
    path = find_model("hf:user/repo", "q4_0")
    assert path.parent == cache / "models" / "converted"
    assert path.name.startswith("repo-Q4_0-")
    count = len(handed)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what is here needs no client
    assert find_model("hf:user/repo", "q4_0") == path
    assert find_model("hf:user/repo").name.startswith("repo-Q8_0-")
    assert len(handed) == count
    with pytest.raises(GGPYError, match=r"pip install 'ggpy\[hub\]'"):
        find_model("hf:user/other")


def test_pull_says_how_to_run_a_checkpoint(hub_of: Any, tmp_path: Path, cache: Path) -> None:
    hub_of(tiny_checkpoint(tmp_path, "qwen2"))
    result = CliRunner().invoke(main, ["pull", "hf:user/repo"])
    assert result.stdout == f"{cache / 'models' / 'hf' / 'user' / 'repo'}\n"
    assert "ggpy run -m hf:user/repo" in result.stderr


def test_the_library_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    with caplog.at_level(logging.INFO, "ggpy"), LLM(folder):
        pass
    assert capfd.readouterr() == ("", "")
    assert "converting tiny-qwen2 to q8_0 …" in caplog.messages
    with pytest.raises(GGPYError, match="file_type is 4, but it must be a text"):
        LLM(folder, file_type=4)  # type: ignore[arg-type]


def test_what_was_got_wrong_comes_before_any_conversion(tmp_path: Path, cache: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    with pytest.raises(GGPYError, match="n_ctx"):
        LLM(folder, n_ctx=0)
    with pytest.raises(GGPYError, match="split_mode"):
        LLM(folder, split_mode="columns")
    assert not cache.exists()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command over a stand-in for the model; `call.paths` are the files that were loaded."""

    def load(path: Path, n_ctx: int | None, *args: Any, **placing: Any) -> Model:
        call.paths.append(path)  # type: ignore[attr-defined]
        fake = FakeRuntime(n_ctx=n_ctx or 256, script=saying("Hi"))
        return Model(FakeFile(), ByteTokenizer(), FakeTemplate(), fake)  # type: ignore[arg-type]

    def call(*args: str, input: str = "") -> Any:
        return CliRunner().invoke(main, args, input=input)

    call.paths = []  # type: ignore[attr-defined]
    monkeypatch.setattr(ggpy.llm, "load_model", load)
    monkeypatch.setattr("ggpy.eval.bench.bytes_read", lambda *args: lambda case: 1e6)
    monkeypatch.setattr("ggpy.eval.bench.Memory", lambda *args: SimpleNamespace(bandwidth=lambda *args: 1e9))
    monkeypatch.setattr("ggpy.cpu.needed.compile_missing", lambda names, notify: [])
    return call


@pytest.mark.parametrize(
    "command",
    [
        ["run", "-p", "Hi", "-m"],
        ["chat", "-m"],
        ["bench", "-p", "8", "-n", "2", "-r", "1", "-m"],
        ["tokenize", "-p", "Hi", "-m"],
        ["warmup", "-m"],
        ["inspect"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_a_folder(call: Any, command: list[str], tmp_path: Path) -> None:
    folder = str(tiny_checkpoint(tmp_path, "qwen2"))
    result = call(*command, folder, input="Hi\n")
    assert result.exit_code == 0, result.output
    assert "converting tiny-qwen2 to q8_0 …" in result.stderr
    assert "converted tiny-qwen2 to q8_0 in " in result.stderr
    result = call(*command, folder, "--type", "Q4_0", input="Hi\n")
    assert "converted tiny-qwen2 to q4_0 in " in result.stderr
    result = call(*command, folder, "--type", "q4_0", input="Hi\n")
    assert result.exit_code == 0
    assert "convert" not in result.stderr
    assert [path.name.split("-")[2] for path in call.paths] in ([], ["Q8_0", "Q4_0", "Q4_0"])
    Path("model.gguf").touch()
    result = call(*command, "model.gguf", "--type", "q4_0", input="Hi\n")
    assert result.exit_code == 1
    assert "model.gguf is no checkpoint folder" in result.stderr
    assert "'q9' is not one of" in call(*command, folder, "--type", "q9").stderr


def test_warmup_has_two_kinds_of_types(call: Any) -> None:
    assert "--types names types without a model" in call("warmup", "--type", "q4_0").stderr


def test_a_file_on_disk_needs_no_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from ggpy.hub.find_model import find_model; find_model(sys.argv[1])\n"
        "print([name for name in sys.modules if name.startswith('ggpy.hub.') or name in ('hashlib', 'subprocess')])"
    )
    (tmp_path / "model.gguf").touch()
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "model.gguf")]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("['ggpy.hub.find_model']\n", "")
