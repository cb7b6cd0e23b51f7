"""Checkpoint folders by way of the cache: converted once, again when the folder changed, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert import pipeline
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.hub import converted as module
from ggpy.hub.converted import content_key
from ggpy.hub.find_model import find_model
from tests.support.tiny import random_tensors, tiny_checkpoint, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX locks and signals")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    return tiny_checkpoint(tmp_path, "qwen3", num_hidden_layers=1)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the conversions made."""
    made: list[str] = []
    run = pipeline.convert

    def counted(folder: Path, file_type: str, *args: Any, **options: Any) -> Any:
        made.append(file_type)
        return run(folder, file_type, *args, **options)

    monkeypatch.setattr(pipeline, "convert", counted)
    return made


def kept(folder: Path) -> list[str]:
    home = folder.parent / "cache" / "models" / "converted"
    return sorted(path.name for path in home.iterdir()) if home.exists() else []


def test_second_use_converts_nothing(folder: Path, conversions: list[str]) -> None:
    notes: list[str] = []
    path = find_model(folder, notify=notes.append)
    assert conversions == ["q8_0"]
    assert kept(folder) == [path.name]
    assert path.name.startswith("tiny-qwen3-Q8_0-")
    assert [note.split(" in ")[0] for note in notes] == [
        "converting tiny-qwen3 to q8_0 …",
        "converted tiny-qwen3 to q8_0",
    ]
    assert str(path) in notes[-1]
    assert find_model(str(folder), notify=notes.append) == path
    assert find_model(folder, "Q8_0") == path
    assert (len(notes), conversions) == (2, ["q8_0"])
    with GGUFFile(path) as file:
        assert file.metadata["general.name"] == "tiny-qwen3"


def test_the_type_is_chosen(folder: Path, conversions: list[str]) -> None:
    paths = {find_model(folder, file_type) for file_type in (None, "q4_0", "f16", "q4_0")}
    assert conversions == ["q8_0", "q4_0", "f16"]
    assert sorted(path.name.split("-")[2] for path in paths) == ["F16", "Q4_0", "Q8_0"]
    for wrong in ("q9", "../q8_0", ""):
        with pytest.raises(GGPYError, match=rf"no type '{wrong}'; choose one of f32,"):
            find_model(folder, wrong)
    assert len(kept(folder)) == 3


def test_the_folder_is_known_by_what_it_holds_and_by_its_name(
    folder: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find_model(folder)
    monkeypatch.chdir(folder)
    assert find_model(".") == path
    moved = folder.parent / "elsewhere" / folder.name
    moved.parent.mkdir()
    monkeypatch.chdir(folder.parent)
    folder.rename(moved)
    assert find_model(moved) == path
    assert conversions == ["q8_0"]
    renamed = moved.rename(moved.parent / "another")  # the name stands in the file
    assert find_model(renamed).name.startswith("another-Q8_0-")


def rewrite(name: str, **entries: Any) -> Any:
    def change(folder: Path) -> None:
        before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        time_of = (folder / name).stat().st_mtime_ns if (folder / name).exists() else time.time_ns()
        (folder / name).write_text(json.dumps({**before, **entries}))
        os.utime(folder / name, ns=(time_of, time_of))  # not noticed by its time

    return change


def add_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")


def train_on(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_safetensors(folder / "model.safetensors", random_tensors(config, seed=1))


def patch_one_weight(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\1")


def swap_weights_and_keep_the_time(folder: Path) -> None:
    before = (folder / "model.safetensors").stat()
    train_on(folder)
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "model.safetensors").stat().st_size == before.st_size


CHANGES = {
    "config": rewrite("config.json", rope_theta=5000.0),
    "tokenizer config": rewrite("tokenizer_config.json", chat_template="{{ messages }}"),
    "tokenizer": rewrite("tokenizer.json", normalizer=None),
    "sampling": rewrite("generation_config.json", top_k=7),
    "a new file": rewrite("special_tokens_map.json", eos_token="<|endoftext|>"),
    "a template in a folder": add_template,
    "weights": train_on,
    "a single weight": patch_one_weight,
    "weights of the same time and size": swap_weights_and_keep_the_time,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_converted_again(folder: Path, conversions: list[str], change: Any) -> None:
    path, notes = find_model(folder), []
    change(folder)
    again = find_model(folder, notify=notes.append)
    assert again != path
    assert len(conversions) == 2
    assert kept(folder) == sorted([path.name, again.name])
    assert notes[-1].startswith("1 earlier conversion of this name beside it (")
    assert find_model(folder) == again
    assert len(conversions) == 2


def test_changes_of_no_account_change_nothing(folder: Path) -> None:
    key = content_key(folder)
    (folder / "README.md").write_text("read me")
    (folder / "pytorch_model.bin").write_bytes(b"weights once more")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.json").write_text("{}")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("learn this")
    os.utime(folder / "config.json")
    (folder / "gone.json").symlink_to("nowhere")
    assert content_key(folder) == key
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert content_key(folder) != key


def test_large_files_are_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no weights is read whole up to a size; a large one is not, and is not read to its end."""
    monkeypatch.setattr(module, "_WHOLE", 1 << 10)
    (folder / "vocab.json").write_bytes(b" " * (1 << 20))
    os.utime(folder / "vocab.json", ns=(1, 1))
    key = content_key(folder)
    read = bytearray((folder / "vocab.json").read_bytes())
    read[100_000] ^= 1  # in no sample
    (folder / "vocab.json").write_bytes(read)
    os.utime(folder / "vocab.json", ns=(1, 1))
    assert content_key(folder) == key
    os.utime(folder / "vocab.json", ns=(1, 2))
    assert content_key(folder) != key


@posix
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "trap.json")
    os.mkfifo(folder / "trap.safetensors")
    assert content_key(folder)


def test_every_source_of_the_converter_counts() -> None:
    """Modules that are imported by name alone would not be found by following imports."""
    found = module._converter_sources()
    wanted = {f"ggpy.{room}.{path.stem}" for room in ("convert", "models") for path in (ROOT / room).glob("*.py")}
    assert {name.removesuffix(".__init__") for name in wanted} <= set(found)
    assert "ggpy.quant.encode" in found


def test_another_converter_converts_again_and_takes_the_place(
    folder: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = find_model(folder)
    other_type = find_model(folder, "q4_0")
    monkeypatch.setattr(module, "_converter_key", lambda: "01234567")
    notes: list[str] = []
    new = find_model(folder, notify=notes.append)
    assert new.name == old.name.replace(old.stem[-8:], "01234567")
    assert kept(folder) == sorted([new.name, other_type.name])
    assert len(notes) == 2
    assert conversions == ["q8_0", "q4_0", "q8_0"]


def test_progress_is_in_bytes(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    labels: list[str] = []

    @contextmanager
    def bar(label: str) -> Iterator[Any]:
        labels.append(label)
        yield lambda done, total: seen.append((done, total))
        labels.append("end")

    notes: list[str] = []
    path = find_model(folder, notify=notes.append, progress=bar)
    assert labels == ["converting tiny-qwen3 to q8_0", "end"]
    assert len(notes) == 1  # the end alone: whoever watches a bar saw the beginning
    assert seen[-1] == (path.stat().st_size,) * 2
    assert seen == sorted(seen)
    find_model(folder, progress=bar)
    assert len(labels) == 2


def test_errors_are_the_converters_and_come_before_any_bar(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bar(label: str) -> Any:
        pytest.fail("nothing is converted")

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GGPYError, match=r"empty has no config\.json, so it is not a Hugging Face checkpoint\."):
        find_model(empty, progress=bar)
    rewrite("config.json", architectures=["OddForCausalLM"], model_type="odd")(folder)
    with pytest.raises(GGPYError, match="OddForCausalLM"):
        find_model(folder, progress=bar)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(GGPYError, match="a pickle"):
        find_model(folder, progress=bar)
    assert kept(folder) == []


def test_what_the_disk_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1))  # type: ignore[attr-defined]
        with pytest.raises(GGPYError, match=r"more than is free in .*; make room"):
            find_model(folder)
    assert kept(folder) == []
    (folder / "tokenizer.json").chmod(0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: open(path / "x"))  # noqa: SIM115
        with pytest.raises(GGPYError, match=r"Cannot read .*: Not a directory\."):
            find_model(folder)
    monkeypatch.setenv("GGPY_CACHE", "/dev/null/nowhere")
    with pytest.raises(GGPYError, match=r"cannot be used: .*; set GGPY_CACHE"):
        find_model(folder)


def test_a_folder_that_changes_meanwhile(folder: Path) -> None:
    @contextmanager
    def meddling(label: str) -> Iterator[Any]:
        rewrite("generation_config.json", top_k=3)(folder)
        yield lambda done, total: None

    with pytest.raises(GGPYError, match="tiny-qwen3 changed while it was converted, so nothing was kept"):
        find_model(folder, progress=meddling)
    assert kept(folder) == []


def test_an_interruption_leaves_nothing(folder: Path) -> None:
    @contextmanager
    def interrupting(label: str) -> Iterator[Any]:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        yield interrupt

    with pytest.raises(KeyboardInterrupt):
        find_model(folder, progress=interrupting)
    assert kept(folder) == []


HELD_UP = """
import os, sys, time
from ggpy.convert.pipeline import PlannedTensor
encode, go = PlannedTensor.encode, sys.argv[2]
def held_up(*args):
    while not os.path.exists(go):
        time.sleep(0.01)
    return encode(*args)
PlannedTensor.encode = held_up
"""
FIND = """
from ggpy.hub.find_model import find_model
print(find_model(sys.argv[1], notify=lambda text: print(text, file=sys.stderr)))
"""
INSPECT = "sys.argv = ['ggpy', 'inspect', sys.argv[1]]; from ggpy.cli.entry import main; main()"


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    """A process that converts the folder, and goes on when there is a file `go`."""
    command = [sys.executable, "-c", HELD_UP + code, str(folder), str(folder.parent / "go")]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def begun(folder: Path) -> None:
    """Wait until a conversion writes."""
    until = time.monotonic() + 60
    while not any(name.endswith(".partial") for name in kept(folder)):
        assert time.monotonic() < until
        time.sleep(0.01)


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing(folder: Path, how: signal.Signals) -> None:
    process = start(folder, INSPECT)
    assert process.stderr is not None
    assert process.stderr.readline() == "converting tiny-qwen3 to q8_0 …\n"
    assert len(kept(folder)) == 2  # what is written, and the lock
    process.send_signal(how)
    (folder.parent / "go").touch()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\n")
    assert kept(folder) == []


@posix
def test_two_processes_convert_once(folder: Path) -> None:
    first = start(folder, FIND)
    begun(folder)
    second = start(folder, FIND)
    assert second.stderr is not None
    assert second.stderr.readline() == "another process is converting tiny-qwen3; waiting for it\n"
    (folder.parent / "go").touch()
    (path, said), (other, heard) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert path == other
    assert "converted tiny-qwen3" in said
    assert heard == ""
    assert kept(folder) == [Path(path.strip()).name]


@posix
def test_who_waits_goes_on_where_the_other_is_killed(folder: Path) -> None:
    first = start(folder, FIND)
    begun(folder)
    notes: list[str] = []
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(find_model(folder, notify=notes.append)))
    waiting.start()
    while not notes:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    waiting.join(60)
    assert [note.split(" tiny")[0] for note in notes] == ["another process is converting", "converting", "converted"]
    assert kept(folder) == [found[0].name]


@posix
def test_what_a_killed_process_left_is_removed_even_if_the_folder_changed(folder: Path) -> None:
    first = start(folder, FIND)
    begun(folder)
    first.kill()
    first.communicate()
    rewrite("generation_config.json", top_k=3)(folder)
    path = find_model(folder)
    assert [name for name in kept(folder) if not name.endswith(".lock")] == [path.name]


def test_the_model_answers_as_its_converted_file_does(folder: Path, tmp_path: Path) -> None:
    convert(folder, "q4_0", tmp_path / "plain.gguf")
    greedy = SamplingParams(temperature=0, max_tokens=8)
    with LLM(tmp_path / "plain.gguf") as llm, LLM(folder, file_type="q4_0") as other:
        assert other.path.name.startswith("tiny-qwen3-Q4_0-")
        ids = llm.tokenize("The capital of France")
        assert np.array_equal(llm.logits(ids), other.logits(ids))
        texts = [one.generate("The capital", greedy)[0].outputs[0].token_ids for one in (llm, other)]
        assert texts[0] == texts[1]
        assert llm.file.metadata["tokenizer.chat_template"] == other.file.metadata["tokenizer.chat_template"]


def test_a_converted_folder_is_found_without_the_converter(folder: Path) -> None:
    find_model(folder)
    code = (
        "import sys; from ggpy.hub.find_model import find_model; find_model(sys.argv[1])\n"
        "heavy = ('numpy', 'numba', 'safetensors', 'rich', 'ggpy.convert', 'ggpy.models')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
