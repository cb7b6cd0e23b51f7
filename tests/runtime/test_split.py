"""Models split over devices: who gets which layers, and that stages do what the whole does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.cpu.executor import CpuExecutor
from ggpy.cuda.memory import cache_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.program import Program
from ggpy.graph.state import Reach
from ggpy.runtime.host_memory import CHECKPOINTS
from ggpy.runtime.load import find_device, find_gpu_layers, find_kv_memory
from ggpy.runtime.pipeline import PipelineExecutor
from ggpy.runtime.placement import Placement, Stage
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.cuda.test_cuda import compare_greedy_text, errors, gpu, need_compiler  # noqa: F401 - a fixture among them
from tests.support.families import family_checkpoint
from tests.support.tiny import CONFIGS, tiny_checkpoint

N_LAYER = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str, file_type: str) -> Path:
        if (kind, file_type) not in made:
            folder = tmp_path_factory.mktemp("split")
            made[kind, file_type] = path = folder / "model.gguf"
            convert(tiny_checkpoint(folder, kind, dtype="f32", num_hidden_layers=N_LAYER), file_type, path)
        return made[kind, file_type]

    return make


# ---- cutting a program


@pytest.mark.parametrize("kind", CONFIGS)
def test_parts_hold_every_operation_once(model: Any, kind: str) -> None:
    with GGUFFile(model(kind, "q4_0")) as file:
        program = planned(file)
        stages = [program.stage(0, 1), program.stage(1, 3), program.stage(3, 4)]
        assert [stage.layers for stage in stages] == [[0], [1, 2], [3]]
        assert [op for stage in stages for op in stage.ops] == list(program.ops)
        assert [stage.logits for stage in stages] == [None, None, program.logits]
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            assert stage.hidden_out == (following.hidden_in if following else None)
            names = {info.name for op in stage.ops for info in op.operation.tensors}
            assert {name.split(".")[1] for name in names if name.startswith("blk")} == set(map(str, stage.layers))
        assert program.stage(0, 4) == program


def run_parts(
    file: GGUFFile, program: Program, cuts: list[int], steps: list[tuple[list[int], list[int]]]
) -> list[np.ndarray]:
    """The logits of each step (positions, outputs) in two slots in turn, by executors of the CPU."""
    ids = np.random.default_rng(1).integers(0, 456, 64).astype(np.int32)
    edges = [0, *cuts, N_LAYER]
    stages = [
        CpuExecutor(
            program.stage(first, last), file, n_ctx=64, n_slots=2, n_batch=32, n_threads=2, cache_type="f16",
            notify=lambda _: None,
        )
        for first, last in pairwise(edges)
    ]  # fmt: skip
    x = PipelineExecutor(stages)
    found = []
    for slot, (positions, outputs) in enumerate(steps):
        n, m = len(positions), len(outputs)
        x.tokens[:n], x.slots[:n], x.positions[:n], x.outputs[:m] = ids[positions], slot % 2, positions, outputs
        found.append(x.run(n, m).copy())
    x.close()
    return found


@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen3", "f16"), ("qwen", "q8_0")])
def test_a_program_cut_anywhere_gives_the_same_logits(model: Any, kind: str, file_type: str) -> None:
    steps = [
        (list(range(20)), list(range(20))),
        (list(range(7)), []),
        ([20], [0]),
        ([7, 8, 9], [2]),
        ([21], [0]),
    ]
    with GGUFFile(model(kind, file_type)) as file:
        program = planned(file)
        expected = run_parts(file, program, [], steps)
        for cuts in ([1], [3], [1, 2], [1, 2, 3]):
            for ours, theirs in zip(run_parts(file, program, cuts, steps), expected, strict=True):
                assert np.array_equal(ours, theirs)


# ---- who gets which layers


def sizes(placement: Placement, n_ctx: int) -> list[int]:
    """Bytes of the last n layers on a GPU, by n; slack for what is left to the program itself."""
    taken = [0]
    for n in range(1, N_LAYER + 1):
        taken.append(placement._gpu_bytes(N_LAYER - n, N_LAYER, n_ctx, batch=512) * 20 // 19 + 1)
    return taken


def test_as_many_layers_as_fit_go_to_the_gpu(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        needed = sizes(Placement(file, "cuda"), 64)
        for n in range(N_LAYER + 1):
            gpus(needed[n])
            stages = Placement(file, "cuda").place(64)[0]
            assert sum(stage.n_layers for stage in stages if stage.on_gpu) == n
            assert stages[0].first == 0
            assert stages[-1].last == N_LAYER
            if 0 < n < N_LAYER:
                assert stages == [Stage("cpu", 0, N_LAYER - n), Stage("cuda:0", N_LAYER - n, N_LAYER)]


def test_layers_that_cannot_be_parted_stay_together(model: Any, gpus: Any, monkeypatch: Any) -> None:
    """As where layers read keys and values of earlier ones: here a stage can begin with the third alone."""
    with GGUFFile(model("llama", "q4_0")) as file:
        needed = sizes(Placement(file, "cuda"), 64)
        monkeypatch.setattr(Program, "cut_layers", property(lambda program: [2] if len(program.layers) > 2 else []))
        for free, first in ((needed[3], 2), (needed[1], 4), (1 << 40, 0)):
            gpus(free)
            on_gpu = [stage for stage in Placement(file, "cuda").place(64)[0] if stage.on_gpu]
            assert on_gpu == ([Stage("cuda:0", first, N_LAYER)] if first < N_LAYER else [])
        gpus(needed[3], needed[3])
        assert Placement(file, "cuda:0,1").place(64)[0] == [Stage("cuda:0", 0, 2), Stage("cuda:1", 2, 4)]
        asked = Placement(file, "cuda", 3)
        assert asked.place(64)[0] == [Stage("cpu", 0, 2), Stage("cuda:0", 2, 4)]
        assert asked.reduced is not None
        assert asked.reduced.startswith("the GPU takes 2 of the 3 layers asked for")
        assert all(Placement(file, "cuda", n).reduced is None for n in (0, 2, 4, 99, None))


@pytest.mark.parametrize(("asked", "on_gpu"), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (99, 4)])
def test_layers_asked_for(model: Any, gpus: Any, asked: int, on_gpu: int) -> None:
    gpus(1 << 40)
    with GGUFFile(model("llama", "q4_0")) as file:
        stages = Placement(file, "cuda", asked).place(64)[0]
        assert sum(stage.n_layers for stage in stages if stage.on_gpu) == on_gpu
        assert len(stages) == (1 if on_gpu in (0, N_LAYER) else 2)
        assert Placement(file, "cpu", asked).place(64)[0] == [Stage("cpu", 0, N_LAYER)]


def test_too_many_layers_are_told_with_how_many_would_fit(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        needed = sizes(Placement(file, "cuda"), 64)
        gpus(needed[2])
        with pytest.raises(GGPYError, match=r"3 of 4 layers .* 64 tokens need .* are free on cuda:0; 2 .* \(-ngl 2\)"):
            Placement(file, "cuda", 3).place(64)[0]
        with pytest.raises(GGPYError, match=r"4 of 4 layers .*\(-ngl 2\)"):
            Placement(file, "cuda", 99).context(64, lambda _: None)
        gpus(1000)
        with pytest.raises(GGPYError, match=r"not one layer fits: take the CPU \(-ngl 0\)"):
            Placement(file, "cuda", 1).place(64)[0]


def test_several_gpus_share_by_their_memory(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 30, 1 << 30)
        assert Placement(file, "cuda").place(64)[0] == [Stage("cuda:0", 0, 4)]  # the first is enough
        assert Placement(file, "cuda:1").place(64)[0] == [Stage("cuda:1", 0, 4)]
        both = Placement(file, "cuda:0,1").place(64)[0]
        assert [stage.device for stage in both] == ["cuda:0", "cuda:1"]
        assert both[0].last == both[1].first
        assert both[1].n_layers in (1, 2)  # the output is there too
        needed = sizes(Placement(file, "cuda"), 64)
        gpus(needed[2], needed[2])
        assert [stage.device for stage in Placement(file, "cuda").place(64)[0]] == ["cuda:0", "cuda:1"]
        gpus(needed[1], needed[1])
        stages = Placement(file, "cuda").place(64)[0]
        assert [stage.device for stage in stages] == ["cpu", "cuda:0", "cuda:1"]
        assert [stage.first for stage in stages[1:]] == [stage.last for stage in stages[:-1]]
        gpus(needed[4], 1 << 40, needed[4])
        stages = Placement(file, "cuda:0,1,2").place(64)[0]
        assert max(stages, key=lambda stage: stage.n_layers).device == "cuda:1"


def test_a_gpu_that_cannot_be_used_is_left_out_unless_it_was_named(model: Any, gpus: Any, monkeypatch: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        few = sizes(Placement(file, "cuda"), 64)[2]

        def available(gpu: str) -> int:
            if gpu == "cuda:1":
                raise GGPYError("too old")
            return few

        gpus(few, few, few)
        monkeypatch.setattr("ggpy.cuda.memory.available", available)
        stages, _ = Placement(file, "cuda").place(64)
        assert [stage.device for stage in stages] == ["cuda:0", "cuda:2"]
        with pytest.raises(GGPYError, match="too old"):
            Placement(file, "cuda:0,1").place(64)


def test_the_context_is_what_memory_holds(model: Any, gpus: Any) -> None:
    notes: list[str] = []
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        assert Placement(file, "cuda").context(None, notes.append) == 512
        assert notes == ["context 512 tokens"]
        needed = sizes(Placement(file, "cuda"), 512)
        gpus(needed[4] - 100)  # layers are left to the CPU before the context shrinks
        assert Placement(file, "cuda").context(None, notes.append) == 512
        assert Placement(file, "cuda", 99).context(None, notes.append) == 256
        assert "memory holds no more" in notes[-1]
        assert sum(stage.n_layers for stage in Placement(file, "cuda").place(512)[0] if stage.on_gpu) == 3
        gpus(1000)
        assert Placement(file, "cuda").context(64, notes.append) == 64


def test_what_a_placement_found_out_serves_the_runtime(model: Any, gpus: Any, monkeypatch: Any) -> None:
    """Planning and sizing take longer than all else that a start does before the weights."""
    calls: list[str] = []

    def counted(name: str, of: Any) -> Any:
        return lambda *args: calls.append(name) or of(*args)

    executor = SimpleNamespace(max_sampled=0, max_top_k=0, close=lambda: None)
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 30)
        monkeypatch.setattr("ggpy.runtime.placement.planned", counted("planned", planned))
        monkeypatch.setattr("ggpy.cuda.memory.available", counted("available", lambda name: 1 << 30))
        monkeypatch.setattr(Runtime, "_executor_of", lambda *args: executor)
        placement = Placement(file, "cuda", n_slots=3)
        n_ctx = placement.context(None, lambda note: None)
        runtime = Runtime(file, n_ctx, placement=placement)
        assert sorted(calls) == ["available", "planned"]
        assert (runtime.n_ctx, runtime.n_slots, runtime.n_batch) == (512, 3, 512)
        assert runtime.stages == [Stage("cuda:0", 0, N_LAYER)]


def test_the_cpus_cache_has_the_gpus_types(model: Any, gpus: Any) -> None:
    """A float32 model's cache is float32 where the CPU has it alone."""
    with GGUFFile(model("llama", "f32")) as file:
        gpus(1 << 40)
        half = Placement(file, "cuda", 2).uses([Stage("cpu", 0, 2), Stage("cuda:0", 2, 4)], 64, 64)[0]
        whole = Placement(file, "cpu").uses([Stage("cpu", 0, 4)], 64, 64)[0]
        assert half.state * 4 == whole.state


def test_steps_take_fewer_tokens_before_layers_go_to_the_cpu(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40, 1 << 40)
        placement = Placement(file, "cuda")
        assert placement.place(4096)[1] == 2048
        assert Placement(file, "cuda:0,1").place(4096)[1] == 1024
        for batch in (1024, 512):
            gpus(placement._gpu_bytes(0, N_LAYER, 4096, batch) * 20 // 19 + 1)
            assert Placement(file, "cuda").place(4096) == ([Stage("cuda:0", 0, 4)], batch)
            assert Placement(file, "cuda").context(None, lambda _: None) >= 256
        assert placement.place(64)[1] == 64  # no more than a slot holds
        assert Placement(file, "cuda", n_batch=16).place(4096)[1] == 16
        assert Placement(file, "cuda", 2).place(4096)[1] == 512


def test_a_limit_for_the_cache_counts_on_a_gpu_too(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        whole = Placement(file, "cuda").uses([Stage("cuda:0", 0, N_LAYER)], 512, 512)[0].state
        assert Placement(file, "cuda", kv_memory=whole).context(None, lambda _: None) == 512
        assert Placement(file, "cuda", kv_memory=whole - 1).context(None, lambda _: None) == 256
        assert Placement(file, "cuda", kv_memory=1e-6).context(None, lambda _: None) in (256, 512)
        with pytest.raises(GGPYError, match=r"512 tokens needs .* --kv-memory allows .*; 256 tokens would fit"):
            Placement(file, "cuda", kv_memory=whole - 1).context(512, lambda _: None)


def test_what_layers_carry_on_is_counted_and_cut_back_to_nowhere(tmp_path: Path, gpus: Any) -> None:
    """A slot's on the GPU, and its checkpoints in host memory; wherever the layers are divided."""
    layers = ["conv", "full_attention", "conv", "conv"]
    convert(family_checkpoint(tmp_path, "lfm2", layer_types=layers, num_hidden_layers=4), "f16", tmp_path / "x.gguf")
    carried = 2 * 64 * 4  # the last two rows of 64 columns, float32
    with GGUFFile(tmp_path / "x.gguf") as file:
        gpus(1 << 40)
        placement = Placement(file, "cuda", n_slots=3, engine=True)
        caches = cache_bytes(placement.program(True).attentions, 64, 3, 64)
        for n, on_gpu in ((4, 3), (3, 2), (2, 2)):
            stages = [Stage("cuda:0", 4 - n, 4)] if n == 4 else [Stage("cpu", 0, 4 - n), Stage("cuda:0", 4 - n, 4)]
            *host, gpu = placement.uses(stages, 64, 64)
            assert gpu.state == (caches if n > 2 else 0) + 2 * 3 * on_gpu * carried  # of two lengths
            assert host[0].kept == CHECKPOINTS * 3 * 3 * carried
            assert placement.reach(stages, 64, 64) == Reach(carried=True)


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (None, None), ("2G", 2 << 30), ("512MiB", 512 << 20), ("1.5k", 1536), ("100", 100), (7, 7), ("50%", 0.5),
        (" 0.25 ", 0.25), (0.5, 0.5), ("1.0", 1.0), ("100 %", 1.0), ("9" * 18 + "T", sys.maxsize),
    ],
)  # fmt: skip
def test_limits_for_the_cache(asked: Any, limit: Any) -> None:
    found = find_kv_memory(asked)
    assert (found, type(found)) == (limit, type(limit))


@pytest.mark.parametrize(
    "wrong", ["", "0", 0, "0%", "101%", 1.5, "1.5", -1, "-1", "2X", "nan", float("nan"), True, "0.5B", "1e3"]
)
def test_other_limits_are_refused(wrong: Any) -> None:
    with pytest.raises(GGPYError, match=r"kv_memory is .* must be bytes \(2G"):
        find_kv_memory(wrong)


def test_numbers_of_layers_and_devices() -> None:
    assert find_gpu_layers(None) is None
    assert find_gpu_layers("auto") is None
    assert find_gpu_layers("12") == find_gpu_layers(12) == 12
    assert find_gpu_layers("0") == 0
    assert (find_gpu_layers("all") or 0) > 10000
    assert (find_gpu_layers(-1) or 0) > 10000
    for wrong in ("-2", "some", "", -2, True, 1.5):
        with pytest.raises(GGPYError, match="n_gpu_layers is"):
            find_gpu_layers(wrong)  # type: ignore[arg-type]
    assert find_device("cuda:0,1") == "cuda:0,1"
    for wrong in ("cuda:0,", "cuda:0,0", "cuda:,1", "cuda:0;1"):
        with pytest.raises(GGPYError, match="for both"):
            find_device(wrong)


# ---- stages on GPUs that are emulated


@contextmanager
def running(path: Path, **options: Any) -> Iterator[Runtime]:
    with GGUFFile(path) as file:
        runtime = Runtime(file, 64, n_batch=16, n_threads=2, **options)
        try:
            yield runtime
        finally:
            runtime.close()


def logits(runtime: Runtime, steps: list[int]) -> np.ndarray:
    """The logits of some tokens in each slot, cut into steps of these sizes; steps between the first and the last are
    asked for none."""
    rows = []
    for slot in range(runtime.n_slots):
        ids = np.random.default_rng(slot + 1).integers(0, 456, sum(steps)).astype(np.int32)
        at = 0
        for index, n in enumerate(steps):
            outputs = np.arange(0 if 0 < index < len(steps) - 1 else n)
            rows.append(runtime.step(ids[at : at + n], np.full(n, slot), np.arange(at, at + n), outputs).copy())
            at += n
    return np.concatenate(rows)


WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "CPU and GPU": ({"device": "cuda", "n_gpu_layers": 1}, ["cpu", "cuda:0"]),
    "two GPUs": ({"device": "cuda:0,1"}, ["cuda:0", "cuda:1"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [[1, 1], [3, 9, 1]])
def test_parts_on_emulated_gpus(tmp_path: Path, emulated: list[Any], way: str, steps: list[int]) -> None:
    path = tmp_path / "model.gguf"
    # Heads and the feed-forward are equally wide, so that their buffers are the same.
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32", intermediate_size=128), "q4_0", path)
    options, devices = WAYS[way]
    with running(path) as cpu, running(path, **options) as split:
        assert [stage.device for stage in split.stages] == devices
        assert len(emulated) == len(devices) - devices.count("cpu")
        ours, theirs = logits(split, steps), logits(cpu, steps)
    assert ours.shape == theirs.shape
    assert errors(ours, theirs).min() < 1e-5
    assert np.median(errors(ours, theirs)) < 2e-2


def test_layers_without_kernels_and_those_before_them_stay_on_the_cpu(tmp_path: Path, emulated: list[Any]) -> None:
    path, notes = tmp_path / "model.gguf", []
    layers = ["full_attention", "conv", "conv", "full_attention", "full_attention"]
    convert(family_checkpoint(tmp_path, "lfm2", layer_types=layers, num_hidden_layers=5, conv_L_cache=40), "f16", path)
    with running(path) as cpu, running(path, device="cuda", notify=notes.append) as split:
        assert split.stages == [Stage("cpu", 0, 3), Stage("cuda:0", 3, 5)]
        assert "the GPU has no kernels yet for convolutions of 40 tokens: the CPU runs the first 3 layers" in notes
        assert errors(logits(split, [1, 1]), logits(cpu, [1, 1])).max() < 1e-3
    with GGUFFile(path) as file:
        assert Placement(file, "cuda", 5).place(64)[0] == split.stages


# ---- stages on GPUs


STEPS = {"tokens": [1] * 12, "few": [2, 3, 5, 8, 3], "prompt": [16, 16, 9, 1]}


def compare(path: Path, steps: str, file_type: str, **options: Any) -> None:
    """Check that a split model is as close to the CPU as a whole model on a GPU is, by the bounds of `test_cuda`. An
    activation on the edge between two codes changes all that follows it in its slot, so there are several slots."""
    with running(path, n_slots=6) as cpu, running(path, n_slots=6, **options) as split:
        ours, theirs = logits(split, STEPS[steps]), logits(cpu, STEPS[steps])
    assert ours.shape == theirs.shape
    each = errors(ours, theirs)
    if file_type == "f16":
        assert np.median(each) < (2e-3 if steps == "prompt" else 1e-3)
        assert each.max() < 1e-2
    elif steps == "prompt":
        assert np.median(each) < 5e-2
    else:
        assert each.min() < 1e-5
        assert np.median(each) < 2e-2


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n", [0, 1, 3, 4])
@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen3", "f16")])
def test_layers_on_cpu_and_gpu(gpu: None, model: Any, kind: str, file_type: str, n: int, steps: str) -> None:  # noqa: F811
    compare(model(kind, file_type), steps, file_type, device="cuda", n_gpu_layers=n)


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen3", "f16")])
def test_layers_on_two_gpus(two_gpus: None, model: Any, kind: str, file_type: str, n: int, steps: str) -> None:
    compare(model(kind, file_type), steps, file_type, device="cuda:0,1", n_gpu_layers=n)


@pytest.mark.cuda
@pytest.mark.parametrize("cuts", [[1], [1, 2, 3]])
def test_parts_on_one_gpu_follow_each_other(gpu: None, model: Any, cuts: list[int]) -> None:  # noqa: F811
    """Prompts are queued ahead piece by piece, and no stage may overtake the one before it."""
    from ggpy.cuda.driver import Device
    from ggpy.cuda.executor import CudaExecutor

    steps = [16, 16, 16, 1, 1]
    with running(model("llama", "q4_0"), device="cuda") as whole, GGUFFile(model("llama", "q4_0")) as file:
        expected = logits(whole, steps)
        program = planned(file, "cuda")
        edges = [0, *cuts, N_LAYER]
        stages = [
            CudaExecutor(
                program.stage(first, last),
                file,
                n_ctx=64,
                n_slots=1,
                n_batch=16,
                notify=lambda _: None,
                device=Device(0),
            )
            for first, last in pairwise(edges)
        ]
        whole._executor.close()
        whole._executor = PipelineExecutor(stages)
        for _ in range(3):
            assert np.array_equal(logits(whole, steps), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("n_gpu_layers", [0, 2, "all"])
def test_greedy_text_of_a_split_model(gpu: None, model: Any, n_gpu_layers: int | str) -> None:  # noqa: F811
    compare_greedy_text(model("qwen2", "f16"), device="cuda", n_gpu_layers=n_gpu_layers)


@pytest.mark.cuda
def test_memory_that_runs_out_is_told(gpu: None, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A driver without memory where there should be enough: its error is passed on."""
    from ggpy.cuda.driver import Device

    path, allocate = model("llama", "q4_0"), Device.allocate

    def full(self: Device, n_bytes: int, *, zero: bool = False) -> int:
        return allocate(self, n_bytes if n_bytes <= 1 << 18 else 1 << 50, zero=zero)

    monkeypatch.setattr(Device, "allocate", full)
    with GGUFFile(path) as file, pytest.raises(GGPYError, match=r"GPU 0 \(.*\) ran out of memory .* GiB are free; end"):
        Runtime(file, 64, device="cuda")
