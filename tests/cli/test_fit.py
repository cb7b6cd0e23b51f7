"""`ggpy fit`: figures for people and for programs, and what fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from tests.support.families import family_checkpoint

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ggpy.runtime.placement.available_memory", lambda: GIB)


def fit(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["fit", *map(str, options)])
    return result.exit_code, result.stdout if result.exit_code in (0, 1) and result.stdout else result.stderr


def figures(*options: object) -> dict[str, Any]:
    status, text = fit(*options, "-o", "json")
    answer = json.loads(text)
    assert status == (0 if answer["fits"] else 1)
    return dict(answer)


def test_a_table(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "llama", max_position_embeddings=8192)
    status, text = fit("-m", folder)
    assert status == 0
    assert "context 8192 tokens, steps of 512, cache f16" in text
    assert "state: keys and values, 2 layers: 1.00 KiB a token" in text
    assert "It fits; up to " in text
    assert not (tmp_path / "cache").exists()
    rows = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines() if line.endswith("iB")}
    assert rows["free"] == ["1.00", "GiB"]
    assert rows["state"] == ["8.00", "MiB"]


def test_a_folder_and_its_file_take_the_same(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "gemma3")
    convert(folder, "q4_0", tmp_path / "model.gguf")
    one, other = figures("-m", folder, "--type", "q4_0"), figures("-m", tmp_path / "model.gguf")
    assert {**one, "model": ""} == {**other, "model": ""}


def test_what_options_change(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "llama", max_position_embeddings=8192)
    (plain,) = figures("-m", folder, "-c", 4096)["devices"]
    assert plain["total"] == plain["weights"] + plain["state"] + plain["working"] + plain["earlier"]
    (four,) = figures("-m", folder, "-c", 4096, "--parallel", 4)["devices"]
    assert (four["state"], four["weights"]) == (4 * plain["state"], plain["weights"])
    (eight_bits,) = figures("-m", folder, "-c", 4096, "-ctk", "q8_0", "-ctv", "q8_0")["devices"]
    assert eight_bits["state"] == plain["state"] * 17 // 32
    (threads,) = figures("-m", folder, "-c", 4096, "-t", 64)["devices"]
    assert threads["working"] > plain["working"]


def test_who_drafts_is_counted(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "llama", max_position_embeddings=8192)
    draft = family_checkpoint(tmp_path / "draft", "qwen3", max_position_embeddings=1024)
    (plain,) = figures("-m", folder, "-c", 4096)["devices"]
    answer = figures("-m", folder, "-c", 4096, "--draft", draft)
    (beside,) = answer["devices"]
    assert answer["draft_n_ctx"] == 1024
    assert beside["drafts"] == beside["total"] - plain["total"] - (beside["earlier"] - plain["earlier"]) > 1 << 20
    (alone,) = figures("-m", draft, "-c", 1024, "--cache-ram", 0)["devices"]
    assert beside["drafts"] == pytest.approx(alone["total"] - alone["earlier"], rel=0.02)
    _, text = fit("-m", folder, "-c", 4096, "--draft", draft)
    assert "in the first 1024 tokens of a context" in text
    status, text = fit("-m", folder, "--spec", "mtp")
    assert status == 1
    assert "has no block that predicts further tokens" in text
    assert "leave one of them out" in fit("-m", folder, "--spec", "ngram", "--draft", draft)[1]


def test_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = family_checkpoint(tmp_path, "llama", max_position_embeddings=1 << 20)
    chosen = figures("-m", folder)
    assert chosen["n_ctx"] == chosen["largest_context"] < 1 << 20
    assert 0.9 * GIB < chosen["devices"][0]["total"] <= 0.95 * GIB
    assert figures("-m", folder, "-c", chosen["n_ctx"])["fits"]
    assert not figures("-m", folder, "-c", chosen["n_ctx"] + 256)["fits"]
    assert figures("-m", folder, "--kv-memory", "8M")["n_ctx"] == 8192
    assert not figures("-m", folder, "--kv-memory", "8M", "-c", 9000)["fits"]
    monkeypatch.setattr("ggpy.runtime.placement.available_memory", lambda: 1 << 20)
    status, text = fit("-m", folder)
    assert (status, text.splitlines()[-1]) == (1, "It does not fit: not even a small context does.")


def test_sequences_share_what_memory_holds(tmp_path: Path) -> None:
    """One whole context has to fit; what sequences find beside it they share."""
    folder = family_checkpoint(tmp_path, "llama", max_position_embeddings=1 << 16)
    few = figures("-m", folder, "--kv-memory", "20M", "--parallel", 4, "-c", 16384)
    assert (few["shared_tokens"], few["devices"][0]["state"], few["fits"]) == (20480, 20 << 20, True)
    _, text = fit("-m", folder, "--kv-memory", "20M", "--parallel", 4, "-c", 16384)
    assert "context 16384 tokens for each of 4 sequences, which share 20480, steps of 512" in text
    assert figures("-m", folder, "--kv-memory", "20M", "--parallel", 4)["n_ctx"] == 20480
    assert not figures("-m", folder, "--kv-memory", "20M", "--parallel", 4, "-c", 20544)["fits"]
    enough = figures("-m", folder, "--kv-memory", "64M", "--parallel", 4, "-c", 16384)
    assert (enough["shared_tokens"], enough["devices"][0]["state"]) == (None, 64 << 20)


def test_earlier_turns_are_counted(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "llama")
    (usual,) = figures("-m", folder)["devices"]
    assert usual["earlier"] == pytest.approx(0.095 * GIB, rel=0.05)
    (none,) = figures("-m", folder, "--cache-ram", "0")["devices"]
    assert none["earlier"] == 0
    many = figures("-m", folder, "--cache-ram", "300M")
    assert (many["devices"][0]["earlier"], many["parked_at_most"], many["fits"]) == (300 << 20, 300 << 20, True)
    assert not figures("-m", folder, "--cache-ram", "1G")["fits"]


def test_windows_and_states_of_one_size(tmp_path: Path) -> None:
    folder = family_checkpoint(tmp_path, "gemma3", max_position_embeddings=8192)
    answer = figures("-m", folder, "-c", 8192)
    windows, whole = sorted(answer["states"], key=lambda state: state["bytes_per_token"])
    assert windows["bytes_per_token"] == 0 < windows["positions"] < 8192 == whole["positions"]
    assert answer["devices"][0]["state"] == windows["bytes_per_sequence"] + whole["bytes_per_sequence"]
    assert answer["checkpoints_at_most"] == 6 * windows["bytes_per_sequence"]
    hybrid = figures("-m", family_checkpoint(tmp_path, "qwen3_5"))
    assert {"convolution", "recurrent", "keys and values"} == {state["kind"] for state in hybrid["states"]}


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggpy.cuda.driver.device_count", lambda: 2)
    monkeypatch.setattr("ggpy.cuda.memory.available", lambda name: 4 * GIB)
    folder = family_checkpoint(tmp_path, "llama", num_hidden_layers=4)
    two = figures("-m", folder, "--device", "cuda", "-ngl", 2)["devices"]
    assert [(use["device"], use["layers"], use["free"]) for use in two] == [("cpu", 2, GIB), ("cuda:0", 2, 4 * GIB)]
    kept = figures("-m", folder, "--device", "cuda", "--cache-ram", "1M")["devices"]
    assert [(use["device"], use["layers"], use["earlier"]) for use in kept] == [("cpu", 0, 1 << 20), ("cuda:0", 4, 0)]
    shared = figures("-m", folder, "--device", "cuda:0,1", "-sm", "row")["devices"]
    assert [(use["device"], use["layers"]) for use in shared] == [("cuda:0", 4), ("cuda:1", 4)]
    assert shared[0]["state"] == shared[1]["state"]


def test_it_imports_no_compiler(tmp_path: Path) -> None:
    import subprocess

    folder = family_checkpoint(tmp_path, "llama")
    code = f"from ggpy.cli.main import main\ntry: main(['fit', '-m', {str(folder)!r}])\nexcept SystemExit: pass\n"
    code += "import sys; sys.exit('numba' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.DEVNULL).returncode == 0
