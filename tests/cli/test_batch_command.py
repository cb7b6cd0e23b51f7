"""`ggpy batch` from the outside: killed, gone on with, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint

N = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    convert(tiny_checkpoint(folder, "qwen2"), "q8_0", folder / "model.gguf")
    return folder / "model.gguf"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    body = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"a {i}", **body}}
        for i in range(N)
    ]
    lines.insert(7, {"custom_id": "bad", "method": "POST", "url": "/v1/completions", "body": {"prompt": "", **body}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "ggpy", "batch", *map(str, words), "-t", "2", "-c", "128", "--parallel", "2"]


def run(*words: Any) -> tuple[int, str, str]:
    result = subprocess.run(command(*words), capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_killed_again_and_again(model: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    kept = b""
    for stop in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command("-m", model, asked, out), stderr=subprocess.PIPE, text=True)
        ends = time.monotonic() + 240
        while not out.exists() or len(out.read_bytes()) < len(kept) + 2000:
            assert process.poll() is None, "it was over before it could be stopped"
            assert time.monotonic() < ends
            time.sleep(0.005)
        process.send_signal(stop)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == (-9 if stop == signal.SIGKILL else 130)
        assert stop == signal.SIGKILL or "the same command goes on" in said
        found = out.read_bytes()
        assert found.startswith(kept)
        kept = found[: found.rindex(b"\n") + 1]
        assert len(kept.splitlines()) < N
        if stop == signal.SIGKILL:
            out.write_bytes(kept + b'{"id": "batch_req_12')  # as if the kill had come within a write
    status, text, said = run("-m", model, asked, out)
    assert (status, text) == (0, "")
    assert f"{len(kept.splitlines())} of {N + 1} were answered before" in said
    assert out.read_bytes().startswith(kept)
    rows = {row["custom_id"]: row["response"] for row in map(json.loads, out.read_bytes().splitlines())}
    assert len(rows) == len(out.read_bytes().splitlines()) == N + 1
    assert rows.pop("bad")["status_code"] == 400
    with LLM(model, n_ctx=128, n_threads=2) as llm:
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        outputs = llm.generate([f"a {i}" for i in range(N)], params)
    assert [rows[f"r{i}"]["body"]["choices"][0]["text"] for i in range(N)] == [o.outputs[0].text for o in outputs]
    before = out.read_bytes()
    status, text, said = run("-m", "no-such-model.gguf", asked, out)  # nothing to do, so that no model is opened
    assert (status, text) == (0, "")
    assert out.read_bytes() == before


def test_what_is_said(model: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    status, text, said = run("-m", model, asked, out)
    assert (status, text) == (0, "")
    assert f"100%  {N + 1} of {N + 1}" in said
    assert f"{out}: {N + 1} results, of which 1 failed" in said
    other = tmp_path / "other.jsonl"
    other.write_text('{"custom_id": "r1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}\n')
    status, _, said = run("-m", model, other, out)
    assert status == 0
    assert f"{N} results of requests that are not in" in said


def test_errors_before_a_model_is_opened(asked: Path, tmp_path: Path) -> None:
    asked.write_text('{"custom_id": "a"}\n{"custom_id": "a"}\n')
    status, text, said = run("-m", "no-such-model.gguf", asked, tmp_path / "out.jsonl")
    assert (status, text) == (1, "")
    assert said == f"error: {asked}, line 2 has the custom_id 'a' of line 1; change one.\n"
    assert not (tmp_path / "out.jsonl").exists()
