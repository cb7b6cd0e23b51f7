"""Models whose matrices are shared by ranks: how a graph is divided, and that the ranks do together what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cuda import errors, need_compiler
from test_split import N_LAYER, logits, model, running  # noqa: F401 - a fixture among them

from ggpy.errors import GGPYError
from ggpy.gguf_file import GGUFFile
from ggpy.graph import Graph
from ggpy.models.base import HyperParameters
from ggpy.quant import by_id
from ggpy.runtime import architecture, planned
from ggpy.tensor_parallel import Rank, divided, raw_rows, vector


def shares(file: GGUFFile, count: int) -> list[tuple[Graph, Any]]:
    graph = Graph(file)
    whole = architecture(file).build(graph)
    return [divided(graph, whole, Rank(index, count)) for index in range(count)]


def weight(file: GGUFFile, info: Any) -> np.ndarray:
    if len(info.shape) == 1:
        return vector(file, info)
    return by_id(info.type).dequantize(raw_rows(file, info)).reshape(info.shape)


@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen", "q8_0"), ("qwen2", "f16")])
@pytest.mark.parametrize("count", [1, 2])
def test_shares_make_up_the_model(model: Any, kind: str, file_type: str, count: int) -> None:  # noqa: F811
    """Every weight's rows or columns are somebody's, once, and heads and columns fit together."""
    with GGUFFile(model(kind, file_type)) as file:
        hp: HyperParameters = architecture(file).hparams
        graphs = [graph for graph, _ in shares(file, count)]
        for nodes in zip(*(graph.nodes for graph in graphs), strict=True):
            first = nodes[0]
            if first.kind == "attention":
                assert sum(node.params["n_head"] for node in nodes) == hp.n_head
                assert sum(node.params["n_head_kv"] for node in nodes) == hp.n_head_kv
                assert sum(node.n_cols for node in nodes) == hp.n_head * hp.head_dim
                for node in nodes:
                    q, k, v = node.inputs
                    assert (q.n_cols, k.n_cols) == (node.n_cols, v.n_cols)
                    assert (q.first, k.first, v.first)[q.node is k.node :] != (1, 1)
            if first.kind != "linear":
                continue
            info, bias = first.weights["weight"], first.weights["bias"]
            assert info is not None
            whole = weight(file, file.tensors[info.name])
            parts = [weight(file, node.weights["weight"]) for node in nodes]
            if first.params.get("partial"):
                assert np.array_equal(np.concatenate(parts, 1), whole)
                assert all(node.weights["bias"] is None for node in nodes[1:])
            elif parts[0].shape == whole.shape:
                assert count == 1 or info.name in ("token_embd.weight", "output.weight")
            elif "qkv" in info.name:
                n = whole.shape[0] // 3
                each = [part.reshape(3, -1, whole.shape[1]) for part in parts]
                assert np.array_equal(np.concatenate(each, 1), whole.reshape(3, n, -1))
            else:
                assert np.array_equal(np.concatenate(parts), whole)
                if bias:
                    both = [weight(file, node.weights["bias"]) for node in nodes]
                    assert np.array_equal(np.concatenate(both), weight(file, file.tensors[bias.name]))


def test_what_cannot_be_divided(model: Any) -> None:  # noqa: F811
    with GGUFFile(model("llama", "q4_0")) as file, pytest.raises(GGPYError, match="do not divide into 64 shares"):
        shares(file, 64)


# ---- ranks on emulated GPUs


def ranks(file: GGUFFile, count: int, devices: list[Any], **options: Any) -> Any:
    from ggpy.cuda.executor import CudaExecutor
    from ggpy.cuda.ranks import RanksExecutor

    return RanksExecutor([
        CudaExecutor(
            planned(file, "cuda", Rank(index, count))[1], file, n_ctx=64, notify=lambda _: None, device=devices[index],
            rank=Rank(index, count), **options,
        )
        for index in range(count)
    ])  # fmt: skip


@pytest.mark.parametrize(("kind", "file_type"), [("llama", "q4_0"), ("qwen", "f16")])
@pytest.mark.parametrize("steps", [[1, 1], [3, 9, 1]])
def test_ranks_do_what_one_does(
    model: Any, monkeypatch: pytest.MonkeyPatch, kind: str, file_type: str, steps: list[int]  # noqa: F811
) -> None:
    need_compiler()
    from emulated_device import EmulatedDevice

    monkeypatch.setattr("ggpy.cuda.executor.compile_missing", lambda *_: [])
    path: Path = model(kind, file_type)
    with running(path) as cpu, running(path) as divided_runtime, GGUFFile(path) as file:
        divided_runtime._executor.close()
        x = divided_runtime._executor = ranks(
            file, 2, [EmulatedDevice(0), EmulatedDevice(1)], n_slots=1, n_batch=16
        )
        ours, theirs = logits(divided_runtime, steps), logits(cpu, steps)
        assert ours.shape == theirs.shape
        # Sums in another order put other activations on the edge between two codes.
        assert np.median(errors(ours, theirs)) < (2e-2 if file_type == "q4_0" else 1e-3)
        # and every rank by itself would have given the same bits
        for rank in x.ranks:
            rank.tokens[0], rank.slots[0], rank.positions[0], rank.outputs[0] = 7, 0, 20, 0
        for _ in zip(*(rank.start(1, 1) for rank in x.ranks), strict=True):
            pass
        one, other = (rank.finish(1).copy() for rank in x.ranks)
        assert np.array_equal(one, other)
