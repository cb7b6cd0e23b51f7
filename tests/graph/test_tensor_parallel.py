"""Models whose matrices are shared by ranks: how a graph is divided, and that the ranks do together what one does."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.gguf.slices import raw_rows, read_vector
from ggpy.graph.language import Graph
from ggpy.graph.operations import Attention, Linear
from ggpy.graph.tensor_parallel import Rank, shard
from ggpy.models import architecture_of
from ggpy.models.base import HyperParameters
from ggpy.quant import by_id
from ggpy.runtime.placement import Placement, Stage
from ggpy.sampling.sample_spec import SAMPLE_SPEC, sampled_by_last_step
from tests.cuda.test_cuda import compare_greedy_text, errors
from tests.graph.test_operations import CASES, N_EMBD, SHAPES
from tests.runtime.test_split import STEPS, compare, logits, running
from tests.support.families import family_checkpoint
from tests.support.tensors import write_tensors

N_LAYER = 2
GEMMA = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 96}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(kind: str, file_type: str) -> Path:
        path = tmp_path_factory.mktemp("ranks") / "model.gguf"
        options: dict[str, Any] = GEMMA if kind == "gemma2" else {"dtype": "f32"}
        convert(family_checkpoint(path.parent, kind, num_hidden_layers=N_LAYER, **options), file_type, path)
        return path

    return make


def shares(file: GGUFFile, count: int) -> list[tuple[Graph, Any]]:
    graph = Graph(file)
    whole = architecture_of(file).build(graph)
    return [shard(graph, whole, Rank(index, count)) for index in range(count)]


def weight(file: GGUFFile, info: Any) -> np.ndarray:
    if len(info.shape) == 1:
        return read_vector(file, info)
    return by_id(info.type).dequantize(raw_rows(file, info)).reshape(info.shape)


@pytest.mark.parametrize(
    ("kind", "file_type", "count"),
    [("llama", "q4_0", 1), ("llama", "q4_0", 2), ("qwen", "q8_0", 2), ("qwen2", "f16", 2), ("qwen3", "f16", 2)],
)
def test_shares_make_up_the_model(model: Any, kind: str, file_type: str, count: int) -> None:
    """Every weight's rows or columns are somebody's, once, and heads and columns fit together."""
    with GGUFFile(model(kind, file_type)) as file:
        hp: HyperParameters = architecture_of(file).hparams
        graphs = [graph for graph, _ in shares(file, count)]
        for nodes in zip(*(graph.nodes for graph in graphs), strict=True):
            operations = [node.operation for node in nodes]
            if isinstance(operations[0], Attention):
                assert sum(operation.n_head for operation in operations) == hp.n_head
                assert sum(operation.n_head_kv for operation in operations) == hp.n_head_kv
                assert sum(node.n_cols for node in nodes) == hp.n_head * hp.head_dim
                for node in nodes:
                    q, k, v = node.inputs
                    assert (q.n_cols, k.n_cols) == (node.n_cols, v.n_cols)
                    assert (q.first, k.first, v.first)[q.node is k.node :] != (1, 1)
            if not isinstance(operations[0], Linear):
                continue
            info, bias = operations[0].weight, operations[0].bias
            whole = weight(file, file.tensors[info.name])
            stages = [weight(file, operation.weight) for operation in operations]
            if operations[0].partial:
                assert np.array_equal(np.concatenate(stages, 1), whole)
                assert all(operation.bias is None for operation in operations[1:])
            elif stages[0].shape == whole.shape:
                assert count == 1 or info.name in ("token_embd.weight", "output.weight")
            elif "qkv" in info.name:
                n = whole.shape[0] // 3
                each = [stage.reshape(3, -1, whole.shape[1]) for stage in stages]
                assert np.array_equal(np.concatenate(each, 1), whole.reshape(3, n, -1))
            else:
                assert np.array_equal(np.concatenate(stages), whole)
                if bias:
                    both = [weight(file, operation.bias) for operation in operations]
                    assert np.array_equal(np.concatenate(both), weight(file, file.tensors[bias.name]))


def test_what_cannot_be_divided(model: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file, pytest.raises(GGPYError, match="do not divide into 64 shares"):
        shares(file, 64)


def test_attention_whose_heads_have_numbers_of_their_own(tmp_path: Path) -> None:
    case = CASES["sinks"]
    path = write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **case.shapes})
    with GGUFFile(path) as file:
        graph = Graph(file)
        result = case.build(graph, graph.embed(N_EMBD))
        with pytest.raises(GGPYError, match="is not divided by heads; split the model by layers"):
            shard(graph, result, Rank(0, 2))


# ---- ranks on emulated GPUs, two of them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file_type", "steps"),
    [("llama", "q4_0", [1, 1]), ("qwen", "f16", [3, 9, 1]), ("gemma2", "f16", [3, 9, 1])],
)
def test_ranks_on_emulated_gpus(model: Any, emulated: list[Any], kind: str, file_type: str, steps: list[int]) -> None:
    options: dict[str, Any] = {"device": "cuda:0,1", "split_mode": "row"}
    with running(model(kind, file_type)) as cpu, running(model(kind, file_type), **options) as shared:
        assert shared.stages == [Stage("cuda:0,1", 0, N_LAYER)]
        assert len(emulated) == 2
        ours, theirs = logits(shared, steps), logits(cpu, steps)
        assert ours.shape == theirs.shape
        # Sums in another order put other activations on the edge between two codes.
        assert np.median(errors(ours, theirs)) < (2e-2 if file_type == "q4_0" else 1e-3)
        # The ranks hold the same residual stream: each would have given the same logits, bit for bit.
        ranks = shared.executor.ranks  # type: ignore[attr-defined]
        for rank in ranks:
            rank.tokens[0], rank.slots[0], rank.positions[0], rank.outputs[0] = 7, 0, 20, 0
        for _ in zip(*(rank.start(1, 1) for rank in ranks), strict=True):
            pass
        one, other = (rank.finish(1).copy() for rank in ranks)
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_ranks_choose_the_same_tokens(model: Any, emulated: list[Any]) -> None:
    """One step ahead of the host, each rank feeding itself."""
    n, specs = 4, np.zeros(1, SAMPLE_SPEC)
    specs["candidates"], specs["temperature"], specs["top_p"], specs["least"] = 1, 1.0, 2.0, -np.inf
    with running(model("llama", "q4_0"), device="cuda:0,1", split_mode="row") as shared:
        under_way = [shared.sample([5], [0], [0], specs)]
        tokens = []
        for position in range(1, n):
            under_way.append(shared.sample([sampled_by_last_step(0)], [0], [position], specs))
            tokens += under_way[position - 1].tokens()
        tokens += under_way[-1].tokens()
    with running(model("llama", "q4_0"), device="cuda:0,1", split_mode="row") as shared:
        for position, token in enumerate([5, *tokens[:-1]]):
            assert int(shared.step([token], [0], [position], [0])[0].argmax()) == tokens[position]


# ---- who gets what


def test_shares_are_placed_where_they_fit(model: Any, gpus: Any) -> None:
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40, 1 << 40, 1 << 40)
        place = Placement(file, "cuda:0,2", split_mode="row")
        assert place.place(64)[0] == [Stage("cuda:0,2", 0, N_LAYER)]
        assert "share their matrices' rows" in place.describe(place.place(64)[0])
        assert Placement(file, "cuda:1", split_mode="row").place(64)[0] == [Stage("cuda:1", 0, N_LAYER)]
        assert Placement(file, "cpu", split_mode="row").place(64)[0] == [Stage("cpu", 0, N_LAYER)]
        needed = max(use.total for use in place.sums.on_ranks(["", ""], 1, 64, 64, [0, 0])) * 20 // 19 + 1
        gpus(needed, needed)
        stages = Placement(file, "cuda", split_mode="row").place(64)[0]
        assert stages == [Stage("cpu", 0, N_LAYER - 1), Stage("cuda:0,1", N_LAYER - 1, N_LAYER)]
        gpus(needed, 1 << 40)
        with pytest.raises(GGPYError, match=r"2 of 2 layers .* 1 layers would fit"):
            Placement(file, "cuda", 2, split_mode="row").place(64)


def test_gpus_that_cannot_share_rows() -> None:
    from ggpy.cuda.tensor_parallel import require_peers

    def device(index: int, cc: tuple[int, int], reached: bool) -> Any:
        return SimpleNamespace(index=index, cc=cc, reach=lambda other: reached)

    require_peers([device(0, (9, 0), True), device(1, (9, 0), True)])
    with pytest.raises(GGPYError, match="of one kind only"):
        require_peers([device(0, (9, 0), True), device(1, (8, 0), True)])
    with pytest.raises(GGPYError, match="GPU 1 cannot reach the memory of GPU 0"):
        require_peers([device(0, (9, 0), True), device(1, (9, 0), False)])


def test_doctor_says_whether_gpus_can_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggpy.cli.doctor import _gpus

    class Device:
        name, cc, reached = "A GPU", (9, 0), True

        def __init__(self, index: int) -> None:
            self.index = index

        def memory(self) -> tuple[int, int]:
            return 1 << 30, 2 << 30

        def reach(self, other: Any) -> bool:
            return self.reached

        def close(self) -> None:
            pass

    for name, stand_in in (("Device", Device), ("device_count", lambda: 2), ("driver_version", lambda: "13.0")):
        monkeypatch.setattr(f"ggpy.cuda.driver.{name}", stand_in)
    assert "can share the rows" in dict(_gpus())["GPUs"]
    Device.reached = False
    assert "GPU 0 cannot reach" in dict(_gpus())["GPUs"]


def test_sharing_rows_without_gpus_is_told(model: Any) -> None:
    notes: list[str] = []
    with running(model("llama", "q4_0"), split_mode="row", notify=notes.append) as runtime:
        assert runtime.device == "cpu"
    assert [note for note in notes if "-sm" in note]


# ---- ranks on GPUs


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n_gpu_layers", [1, 2])
@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen", "f16"), ("qwen3", "f16")])
def test_rows_on_two_gpus(two_gpus: None, model: Any, kind: str, file_type: str, n_gpu_layers: int, steps: str) -> None:
    compare(
        model(kind, file_type), steps, file_type, device="cuda:0,1", n_gpu_layers=n_gpu_layers, split_mode="row",
    )  # fmt: skip


@pytest.mark.cuda
def test_greedy_text_of_shared_rows(two_gpus: None, model: Any) -> None:
    compare_greedy_text(model("qwen2", "f16"), device="cuda:0,1", split_mode="row")


ALONE = """
import sys, time
from ggpy.cuda.driver import Device
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.runtime import Runtime

Device.patience = 1 << 22
with GGUFFile(sys.argv[1]) as file:
    ranks = Runtime(file, 64, device="cuda:0,1", split_mode="row").executor.ranks
    started = time.perf_counter()
    try:
        ranks[0].run(1, 1)
    except GGPYError as error:
        print(f"after {time.perf_counter() - started:.1f} s: {error}")
"""


@pytest.mark.cuda
def test_a_gpu_left_alone_is_told(two_gpus: None, model: Any) -> None:
    """A test in a process of its own, as a GPU's context cannot be used again after a fault."""
    path = str(model("llama", "q4_0"))
    result = subprocess.run([sys.executable, "-c", ALONE, path], capture_output=True, text=True, timeout=240)
    print(result.stdout, result.stderr[-2000:])
    assert "The GPU failed while running the model" in result.stdout
