"""benchmarks/serving.py runs, and its arrivals follow from the seed alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serving.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("serving", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_arrivals() -> None:
    serving, llm = script(), SimpleNamespace(tokenize=lambda text: [hash(word) for word in text.split()])
    found = serving.arrivals(llm, 4.0, 400, seed=3)
    assert found == serving.arrivals(llm, 4.0, 400, seed=3)
    assert found != serving.arrivals(llm, 4.0, 400, seed=4)
    times = [arrival.at for arrival in found]
    assert times == sorted(times)
    assert 80 < times[-1] < 125  # 400 at 4 a second
    beginnings = [tuple(arrival.prompt[:16]) for arrival in found]
    shared = max(beginnings.count(beginning) for beginning in set(beginnings))
    assert 160 < shared < 240
    lengths = [len(a.prompt) - 256 * (beginnings.count(b) > 1) for a, b in zip(found, beginnings, strict=True)]
    assert 80 < sum(n >= 256 for n in lengths) < 160
    assert all(16 <= n <= 64 or 256 <= n <= 768 for n in lengths)


def test_it_runs(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "qwen2"), "q8_0", tmp_path / "model.gguf")
    words = ["--rates", "100,200", "--requests", "6", "-c", "1200", "-t", "2", "--parallel", "2", "--json"]
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model.gguf"), *words]
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1]).stdout
    )
    assert [result["rate"] for result in found["results"]] == [100, 200]
    for result in found["results"]:
        assert result["requests"] == 6
        for name in ("first_ms", "between_ms"):
            assert 0 < result[name][0] <= result[name][1] <= result[name][2]
        assert result["longest_ms"] >= result["between_ms"][2]
        assert result["chunks"] > 0
