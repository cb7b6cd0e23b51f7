"""`ggpy bench` over a stand-in for the model, and the kernel that reads memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ggpy.eval.bench
import ggpy.llm
from ggpy.cli.bench import _about_memory
from ggpy.cli.bench_plot import draw
from ggpy.cli.main import main
from ggpy.errors import GGPYError
from ggpy.eval.bench import Case, Measurement, Memory, last_level_cache, measure, plan_cases
from ggpy.runtime.load import Model
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate

MODEL = "fake.gguf"


class FakeMemory:
    def __init__(self, n_threads: int) -> None:
        pass

    def bandwidth(self, n_bytes: float) -> float:
        return 2e9 if n_bytes == 1e6 else 0.0


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    Path(MODEL).touch()
    monkeypatch.setattr(ggpy.eval.bench, "Memory", FakeMemory)
    monkeypatch.setattr(ggpy.eval.bench, "bytes_read", lambda file, cache: lambda case: 1e6)

    def bench(*args: str) -> Result:
        def load(path: Path, n_ctx: int, n_threads: int | None, notify: Any, n_slots: int, **placing: Any) -> Model:
            bench.runtime = FakeRuntime(n_ctx=n_ctx, n_slots=n_slots)  # type: ignore[attr-defined]
            return Model(FakeFile(), ByteTokenizer(), FakeTemplate(), bench.runtime)  # type: ignore[arg-type, attr-defined]

        monkeypatch.setattr(ggpy.llm, "load_model", load)
        return CliRunner().invoke(main, ["bench", "-m", MODEL, *args])

    return bench


def fails(result: Result, message: str, status: int = 1) -> None:
    assert result.exit_code == status, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_json(bench: Any) -> None:
    result = bench("-p", "20", "-n", "4", "-r", "3", "-o", "json")
    assert result.exit_code == 0, result.stderr
    prefill, decode = json.loads(result.stdout)
    assert {"test", "n_prompt", "n_gen", "n_threads", "tok_s", "samples"} <= set(prefill)
    assert (prefill["test"], prefill["n_prompt"], prefill["n_gen"], prefill["n_threads"]) == ("pp20", 20, 0, 1)
    assert (decode["test"], decode["n_prompt"], decode["n_gen"]) == ("tg4", 0, 4)
    assert len(prefill["samples"]) == 3
    assert sorted(decode["samples"])[1] == decode["tok_s"]
    assert prefill["bandwidth_share"] is None
    assert decode["bandwidth_share"] == pytest.approx(1e6 * decode["tok_s"] / 2e9, abs=1e-4)


def test_depths_and_batches(bench: Any) -> None:
    result = bench("-p", "20", "-n", "2", "-d", "30,0", "--parallel", "3,1", "-r", "1", "-o", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = ["pp20", "tg2", "tg2 x3", "pp20 @ d30", "tg2 @ d30", "tg2 x3 @ d30"]
    assert [row["test"] for row in found] == names
    assert [(row["n_depth"], row["n_parallel"]) for row in found[4:]] == [(30, 1), (30, 3)]
    assert bench.runtime.n_ctx == 50
    assert bench.runtime.n_slots == 3
    # The stand-in refuses to attend to a cell that was never written, so every slot was filled to its depth.
    assert all((bench.runtime.of(slot, 32)[0] >= 0).all() for slot in range(3))
    assert bench.runtime.batches.count(3) == 2 * (2 + 2)  # a step of three: warm-up and sample, at both depths


def test_table_and_plot(bench: Any, tmp_path: Path) -> None:
    result = bench("-p", "0", "-n", "4", "-r", "1", "-d", "0,8", "--plot", "out.svg")
    header, rule, *rows, blank, memory = result.stdout.splitlines()
    assert {len(header), len(rule)} == {len(row) for row in rows}
    assert "| tg4 " in rows[0]
    assert "| tg4 @ d8 " in rows[1]
    assert "±" in rows[0]
    assert "%" in rows[0]
    assert not blank
    assert "% of 2.0 GB/s" in rows[0]
    assert "a step reads 0.00 GB; the rate is one thread's with a buffer of that size, which the last-level" in memory
    assert "drawn in out.svg" in result.stderr
    assert ElementTree.parse("out.svg").getroot().tag.endswith("svg")


def test_memory_is_named_by_where_the_model_ran(bench: Any) -> None:
    """The device that ran the model, not the one asked for: the GPU may have held no layer of it."""
    result = bench("-p", "0", "-n", "4", "-r", "1", "--device", "cuda")
    assert "one thread's with a buffer" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "message", "status"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure", 1),
        (("-p", "50", "-c", "40"), "pp50 takes 50 tokens, but the context holds 40", 1),
        (("-d", "1,x"), "'1,x' is no number", 2),
        (("-p", ""), "is no number", 2),
        (("-n", "-4"), "-4 is out of range: from 0.", 2),
        (("--parallel", "1,0"), "0 is out of range: from 1 to 512.", 2),
        (("--plot", "out.png", "-d", "0,1"), "does not end in .svg", 1),
        (("--plot", "none/out.svg", "-d", "0,1"), "there is no folder", 1),
        (("--plot", "out.svg"), "needs several depths", 1),
    ],
)
def test_bad_arguments_are_one_sentence(bench: Any, args: tuple[str, ...], message: str, status: int) -> None:
    fails(bench(*args), message, status)


def test_an_interrupt_keeps_the_rows(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = FakeRuntime.step

    def interrupted(self: FakeRuntime, *batch: Any) -> Any:
        if batch[2][0] >= 8:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(FakeRuntime, "step", interrupted)
    result = bench("-p", "0", "-n", "4", "-d", "0,8", "-r", "1")
    assert result.exit_code == 130
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.strip() == "interrupted after 1 of 2 measurements"


def test_more_sequences_than_slots() -> None:
    with pytest.raises(GGPYError, match="more sequences than the 2 there"):
        next(measure(FakeRuntime(), 1, [Case(0, 4, 0, 3)], 1))


def test_plot_marks_every_point() -> None:
    cases = plan_cases([512], [64], [0, 1024, 4096], [1, 8])
    results = [Measurement(case, 2, [100.0 + i]) for i, case in enumerate(cases)]
    root = ElementTree.fromstring(draw(results, "a <model> & more.gguf"))
    name = "{http://www.w3.org/2000/svg}"
    text = [t.text for t in root.iter(name + "text")]
    assert "a <model> & more.gguf, 2 threads" in text
    assert {"reading a prompt, tok/s", "generating, tok/s", "generating together, tok/s", "4096"} <= set(text)
    lines = [line.get("points") for line in root.iter(name + "polyline")]
    assert sorted(len((points or "").split()) for points in lines) == [2, 2, 2, 3, 3, 3]


def test_the_reading_kernel_reads_everything() -> None:
    from ggpy.cpu.kernels import kernel

    data = np.random.default_rng(0).integers(0, 2**32, 3 * 1024, dtype=np.uint32)
    sums = np.zeros(16, np.uint32)
    kernel("read").call(data.ctypes.data, data.nbytes, sums.ctypes.data)
    assert (sums == data.reshape(-1, 16).sum(0, dtype=np.uint32)).all()


def test_bandwidth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_level_cache() >= 1 << 18
    monkeypatch.setattr(ggpy.eval.bench, "last_level_cache", lambda: 1 << 20)
    memory = Memory(2)
    assert memory.bandwidth(100.0, 0.0) > 1e7
    assert memory.bandwidth(3e6, 0.0) > 1e7
    assert 2e6 < len(memory._buffer) <= 3e6  # as much as a model of that size, each thread its own part
    assert memory.bandwidth(1e12, 0.0) > 1e7
    assert len(memory._buffer) == 128 << 20  # of memory no more than what shows its rate


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ([9e7], "a step reads 0.09 GB; the rate is 2 threads' with a buffer of that size, which the last-level cache"),
        ([9e9, 2e10], "reads 9.00 to 20.0 GB; the rate is 2 threads' with a buffer of that size, more than the"),
        ([9e7, 9e9], "reads 0.09 to 9.00 GB; the rate is 2 threads' with a buffer of that size."),
    ],
)
def test_which_memory_it_was_is_said(monkeypatch: pytest.MonkeyPatch, read: list[float], said: str) -> None:
    monkeypatch.setattr(ggpy.eval.bench, "last_level_cache", lambda: 1 << 30)
    assert said in _about_memory(read, 2, True)
    assert "the GPU's with a buffer of that size." in _about_memory(read, 2, False)


def test_the_limit_is_of_what_a_step_reads() -> None:
    """The bandwidth of a buffer of as many bytes, measured before and after: a share above 1 would mean that the limit
    is that of something else."""
    asked: list[float] = []

    def bandwidth(n_bytes: float) -> float:
        asked.append(n_bytes)
        return float(len(asked))

    cases = [Case(0, 4), Case(0, 4, 8)]
    found = measure(FakeRuntime(), 1, cases, 1, bytes_per_step=lambda case: 1e6 + case.n_depth, bandwidth=bandwidth)
    assert [m.bandwidth for m in found] == [2.0, 4.0]
    assert asked == [1e6, 1e6, 1e6 + 8, 1e6 + 8]
