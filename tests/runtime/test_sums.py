"""The memory that a model is said to take, against what is then allocated and what the process holds once all of it has
been written to."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.cpu.executor import CpuExecutor
from ggpy.cpu.memory import Memory
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.host.memory import within
from ggpy.runtime.drafter import drafter_of
from ggpy.runtime.host_memory import CHECKPOINTS
from ggpy.runtime.load import load_draft, load_model
from ggpy.runtime.placement import ENOUGH_CONTEXT, Placement
from ggpy.runtime.prediction_head import PredictionHead
from ggpy.runtime.runtime import Runtime
from tests.support import hf_predictors
from tests.support.families import CONFIGS, family_checkpoint

SLACK = 256 << 10  # bytes: what is small lies beside other things of the process, or where others were


def arrays(part: Any) -> list[np.ndarray]:
    """Every array that a part of an executor holds memory by, each once, and none that is a view of another."""
    found: dict[int, np.ndarray] = {}
    seen: dict[int, Any] = {}  # which keeps what has been seen alive, so that no other takes its id

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, np.ndarray):
            if isinstance(value.base, np.ndarray):
                visit(value.base)
            else:
                found[id(value)] = value
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif type(value).__module__.startswith("ggpy.cpu") and hasattr(value, "__dict__"):
            visit(vars(value))

    visit(part)
    return list(found.values())


def anonymous() -> int:
    """Bytes of memory that this process holds and no file does."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


KINDS = sorted(CONFIGS)
N_CTX, N_SLOTS = dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), 96), 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("sums")
        convert(family_checkpoint(folder, kind), "q8_0", folder / "model.gguf")
        return folder / "model.gguf"

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_is_what_is_taken(model: Callable[[str], Path], kind: str) -> None:
    n_ctx = N_CTX.get(kind, 512)
    with GGUFFile(model(kind)) as file:
        placement = Placement(file, n_slots=N_SLOTS, n_threads=2)
        stages, batch = placement.place(n_ctx)
        (use,) = placement.uses(stages, n_ctx, batch)

        def run() -> Runtime:
            runtime = Runtime(file, n_ctx, 2, placement=placement)
            runtime.step([1], [0], [0], [0])
            return runtime

        run().close()  # loads the kernels
        gc.collect()
        before = anonymous()
        runtime = run()
        assert runtime.n_batch == batch
        taken = arrays(runtime.executor)
        for array in taken:
            array.reshape(-1).view(np.uint8)[::512] |= 0
        held = anonymous() - before
        runtime.close()
    assert sum(array.nbytes for array in taken) == pytest.approx(use.total, rel=0.05)
    if sys.platform == "linux":
        assert held == pytest.approx(use.total, abs=0.05 * use.total + SLACK)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3_5_moe"])
def test_the_first_layers_alone(model: Callable[[str], Path], kind: str) -> None:
    """The CPU's part where GPUs have the last layers."""
    with GGUFFile(model(kind)) as file:
        placement = Placement(file, n_slots=N_SLOTS, n_threads=2)
        program = placement.program(False)
        cut = program.cut_layers[0]
        use = placement.sums.on_cpu(cut, 512, 256, 0)
        executor = CpuExecutor(
            program.stage(0, cut), file, n_ctx=512, n_slots=N_SLOTS, n_batch=256, n_threads=2,
            cache_type="f16", notify=lambda note: None,
        )  # fmt: skip
        taken = sum(array.nbytes for array in arrays(executor))
        executor.close()
        assert use.total == pytest.approx(taken, abs=0.05 * taken + SLACK)
        assert use.total < placement.sums.on_cpu(placement.n_layer, 512, 256, 0).total


def test_windows_take_the_step_that_is_used(tmp_path: Path) -> None:
    """Rings hold a window and a step: by how many tokens a step is cut short counts, also where it is chosen here."""
    convert(family_checkpoint(tmp_path, "gemma3", max_position_embeddings=8192), "q8_0", tmp_path / "model.gguf")
    with GGUFFile(tmp_path / "model.gguf") as file:
        states = {}
        for n_batch in (16, 512, None):
            placement = Placement(file, n_batch=n_batch)
            stages, batch = placement.place(4096)
            (use,) = placement.uses(stages, 4096, batch)
            memory = Memory(placement.program(False), file, 4096, 1, batch, 1, placement.cache_type("cpu"))
            assert use.state == sum(array.nbytes for array in arrays(memory.states) if array.dtype == np.uint8)
            states[n_batch] = use.state
        assert states[16] < states[512] == states[None]


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_checkpoints_and_parked_conversations_are_counted(tmp_path: Path, kind: str) -> None:
    """The limits of what an engine keeps beside the slots, against copies as they are made."""
    convert(family_checkpoint(tmp_path, kind, max_position_embeddings=8192), "q8_0", tmp_path / "model.gguf")
    with GGUFFile(tmp_path / "model.gguf") as file:
        placement = Placement(file, n_slots=2, engine=True, cache_ram=1 << 20)
        stages, batch = placement.place(4096)
        (use,) = placement.uses(stages, 4096, batch)
        memory = Memory(placement.program(False), file, 4096, 2, batch, 1, placement.cache_type("cpu"))
        checkpoint = sum(part.nbytes for part in memory.states.checkpoint(0, 0))
        limits = placement.host_memory(stages, 4096, batch)
        assert limits.checkpoints == 2 * CHECKPOINTS * checkpoint > 0
        assert use.kept == limits.total == limits.checkpoints + (1 << 20)
        assert use.total == use.weights + use.working + use.state + use.kept
        (shared,) = placement.uses(stages, 4096, batch, kv_cells=4096 + 64)  # between them, and not 4096 for each
        memory = Memory(placement.program(False), file, 4096, 2, batch, 1, placement.cache_type("cpu"), 4096 + 64)
        taken = sum(array.nbytes for array in arrays(memory.states))
        assert shared.state == pytest.approx(taken, rel=0.05)
        assert shared.state < use.state
        short = placement.sums.host_memory(placement.n_layer, 4096, batch, 8 * checkpoint, "cpu")
        assert short.checkpoints == 2 * checkpoint  # a quarter of what is free


def test_a_model_that_drafts_is_counted(model: Callable[[str], Path]) -> None:
    notes: list[str] = []
    main = load_model(model("qwen3"), 512, 2, notes.append, draft=model("qwen3"), n_slots=3, engine=True)
    draft = load_draft(model("qwen3"), main, notes.append)
    with drafter_of(model("qwen3"), False, 3, 2) as drafter:
        placement = Placement(main.file, n_slots=3, n_threads=2, engine=True, drafter=drafter)
        stages, batch = placement.place(512)
        (use,) = placement.uses(stages, 512, batch, draft_ctx=main.runtime.draft_ctx)
    assert main.runtime.draft_ctx == draft.runtime.n_ctx == 512
    taken = sum(array.nbytes for array in arrays(draft.runtime.executor))
    draft.close()
    main.close()
    assert use.drafts == pytest.approx(taken, rel=0.05)
    assert use.total == use.weights + use.working + use.state + use.kept + use.drafts


@pytest.mark.parametrize("case", ["qwen3_5_text", "glm4_moe, own matrices"])
def test_a_head_that_drafts_is_counted(tmp_path: Path, case: str) -> None:
    hf_predictors.write(tmp_path / "checkpoint", case)
    convert(tmp_path / "checkpoint", "q8_0", tmp_path / "model.gguf")
    with GGUFFile(tmp_path / "model.gguf") as file, drafter_of(None, True, 3, 2) as drafter:
        placement = Placement(file, n_slots=3, n_threads=2, drafter=drafter)
        stages, batch = placement.place(512)
        (use,) = placement.uses(stages, 512, batch)
        runtime = Runtime(file, 512, 2, placement=placement)
        head = PredictionHead(runtime, print)
        own = {id(array) for array in arrays(runtime.executor)}
        taken = sum(array.nbytes for array in arrays(head._executor) if id(array) not in own)
        head.close()
        runtime.close()
    assert use.drafts == pytest.approx(taken, rel=0.05)


def test_contexts_leave_room_for_who_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model's slots have the whole context where memory holds it; at least what is enough."""
    for kind in ("llama", "qwen3"):
        convert(family_checkpoint(tmp_path, kind, max_position_embeddings=1 << 17), "q8_0", tmp_path / f"{kind}.gguf")
    monkeypatch.setattr("ggpy.runtime.placement.available_memory", lambda: 48 << 20)
    with GGUFFile(tmp_path / "llama.gguf") as file, drafter_of(tmp_path / "qwen3.gguf", False, 1, 2) as drafter:
        alone, beside = Placement(file, n_threads=2), Placement(file, n_threads=2, drafter=drafter)
        most = beside.largest(1 << 17)
        assert ENOUGH_CONTEXT < most < alone.largest(1 << 17)
        found = {}
        for n_ctx in (256, 8192, most):
            stages, batch = beside.place(n_ctx)
            found[n_ctx] = draft_ctx = beside.draft_context(stages, n_ctx, batch, None)
            assert within(beside.uses(stages, n_ctx, batch, draft_ctx=draft_ctx))
        assert found == {256: 256, 8192: 8192, most: found[most]}
        assert ENOUGH_CONTEXT <= found[most] < ENOUGH_CONTEXT + 512
        with pytest.raises(GGPYError, match=r"and .* MiB for drafts \(--draft, --spec mtp\), but 48.00 MiB"):
            beside.context(most + 256, lambda note: None)


def test_conversations_kept_for_a_gpu_are_counted(model: Callable[[str], Path], gpus: Any) -> None:
    gpus(1 << 40)
    with GGUFFile(model("llama")) as file:
        for cache_ram, kept in ((None, []), (0, []), (1 << 20, [("cpu", 1 << 20)])):
            placement = Placement(file, "cuda", n_slots=2, engine=True, cache_ram=cache_ram)
            stages, batch = placement.place(512)
            uses = placement.uses(stages, 512, batch)
            assert [(use.device, use.total) for use in uses if use.device == "cpu"] == kept
            assert placement.host_memory(stages, 512, batch).parked == (cache_ram or 0)
            assert placement.context(512, lambda note: None) == 512
        with pytest.raises(GGPYError, match=r"tokens needs 1024.00 TiB for earlier turns \(--cache-ram\), but .* GiB"):
            Placement(file, "cuda", engine=True, cache_ram=1 << 50).context(512, lambda note: None)


def test_an_encoder_is_counted_with_whole_sequences(model: Callable[[str], Path]) -> None:
    with GGUFFile(model("bert")) as file:
        placement = Placement(file, n_batch=8)
        assert placement.place(96)[1] == 96
        small, large = (placement.uses(*placement.place(n)[:1], n, placement.place(n)[1])[0] for n in (32, 96))
        assert large.working > 1.5 * small.working


def test_ranks_are_summed_once_for_all_contexts(model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("ggpy.cuda.driver.device_count", lambda: 2)
    monkeypatch.setattr("ggpy.cuda.memory.available", lambda name: 1 << 30)
    from ggpy.cuda import memory

    counted = memory.rank_bytes
    monkeypatch.setattr("ggpy.cuda.memory.rank_bytes", lambda *args: calls.append(args) or counted(*args))
    with GGUFFile(model("llama")) as file:
        placement = Placement(file, "cuda:0,1", split_mode="row")
        assert placement.largest(1 << 40) > 4096
    assert len(calls) == 2 * len({args[2] for args in calls})  # two ranks, for each size of step
