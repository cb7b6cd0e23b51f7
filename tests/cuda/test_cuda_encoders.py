"""Models whose tokens see the whole text, by the very code that a GPU runs: several texts in a step, against numpy; and
whole models on a GPU, against the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
pytest.importorskip("cuda.bindings")

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.cuda import executor as module
from ggpy.cuda.lower import unsupported
from ggpy.engine.embed import Embedder, TokenizedText
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph, Value
from ggpy.graph.plan import plan
from ggpy.quant.formats import activation_dtype
from tests.cuda.test_cuda import gpu  # noqa: F401
from tests.graph.test_operations import EPS, N_EMBD, N_VOCAB, ROPE, SHAPES
from tests.support import hf_families_bert, hf_families_encoders
from tests.support.emulated_device import EmulatedDevice
from tests.support.evaluate import evaluate
from tests.support.tensors import write_tensors

WIDE, HEADS = 3 * 16, 3
LAYERS = {"window": {"window": 9, "rope": ROPE}, "alibi": {"alibi": 8.0, "rope": None}}
TENSORS: dict[str, tuple[int, ...]] = {
    "positions.weight": (90, N_EMBD), "types.weight": (2, N_EMBD), "norm.weight": (N_EMBD,), "norm.bias": (N_EMBD,),
    "cls.weight": (5, N_EMBD), "cls.bias": (5,), "sinks": (HEADS,),
}  # fmt: skip
for name in LAYERS:
    TENSORS |= {f"{name}_{part}.weight": (WIDE, N_EMBD) for part in "qkv"} | {f"{name}_o.weight": (N_EMBD, WIDE)}


def encoder(g: Graph, pooling: str) -> Value:
    x = g.add(g.embed(N_EMBD), g.add(g.embed_types("types", N_EMBD), g.embed_positions("positions", N_EMBD)))
    x = g.norm(x, "norm", EPS, "layer")
    for layer in g.layers(len(LAYERS)):
        name, options = list(LAYERS.items())[layer]
        q, k, v = (g.linear(x, f"{name}_{part}", WIDE) for part in "qkv")
        y = g.attention(q, k, v, layer=layer, n_head=HEADS, n_head_kv=HEADS, causal=False, **options)  # type: ignore[arg-type]
        x = g.norm(g.add(x, g.linear(y, f"{name}_o", N_EMBD)), "norm", EPS, "layer")
    return g.linear(g.pool(x, pooling), "cls", 5)


@pytest.mark.parametrize("pooling", ["mean", pytest.param("cls", marks=pytest.mark.slow)])
def test_texts_side_by_side(tmp_path: Path, pooling: str) -> None:
    """Texts of one tile and of two, and one of a single token, each in a slot of its own; then two, as they are."""
    path = write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **TENSORS})
    rng, device = np.random.default_rng(0), cast("Any", EmulatedDevice())
    texts = [rng.integers(0, N_VOCAB, n) for n in (70, 1, 13)]
    types = [np.arange(len(text)) // 7 % 2 for text in texts]
    with GGUFFile(path) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compile_missing", lambda *_: [])
        graph = Graph(file)
        pooled = encoder(graph, pooling)
        program = plan(graph, pooled, activation_dtype)
        assert unsupported(program) is None
        executor: Any = module.CudaExecutor(
            program, file, n_ctx=90, n_slots=4, n_batch=90, notify=lambda _: None, device=device
        )
        assert program.n_types == 2

        def rows(chosen: list[int], pools: bool) -> np.ndarray:
            """The rows of some texts, the first in the last slot."""
            count = sum(len(texts[i]) for i in chosen)
            executor.tokens[:count] = np.concatenate([texts[i] for i in chosen])
            executor.types[:count] = np.concatenate([types[i] for i in chosen])
            executor.positions[:count] = np.concatenate([np.arange(len(texts[i])) for i in chosen])
            executor.slots[:count] = np.concatenate([[3 - at] * len(texts[i]) for at, i in enumerate(chosen)])
            ends = np.cumsum([len(texts[i]) for i in chosen]) - 1
            outputs = ends if pools else np.arange(count)
            executor.unpooled, executor.outputs[: len(outputs)] = not pools, outputs
            return executor.run(count, len(outputs)).copy()  # type: ignore[no-any-return]

        def expected(i: int) -> np.ndarray:
            return evaluate(graph, pooled, texts[i], np.array([len(texts[i]) - 1]), types[i])

        found, wanted = rows([0, 1, 2], True), np.concatenate([expected(i) for i in range(3)])
        assert np.abs(found - wanted).max() < 4e-3 * np.abs(wanted).max()
        each, wanted = rows([1, 2], False), expected(1)
        assert each.shape == (14, 5)  # of one token, its row is the text's
        assert np.abs(each[:1] - wanted).max() < 4e-3 * np.abs(wanted).max()
        mean_or_first = each[1:].mean(0) if pooling == "mean" else each[1]
        assert np.abs(mean_or_first - expected(2)).max() < 4e-3 * np.abs(expected(2)).max()
        executor.slots[:2], executor.positions[:2] = 0, [3, 4]
        with pytest.raises(ValueError, match="a text in pieces"):
            executor.run(2, 1)
        assert not executor.save(0, 2)
        executor.close()


def rows_of(path: Path, families: Any, name: str, device: str, n_texts: int = 4) -> tuple[np.ndarray, str]:
    """The rows of a family's first texts, and the device that ran the model."""
    case, texts = families.CASES[name], families.TEXTS[:n_texts]
    with LLM(path, n_ctx=100, n_threads=2, n_parallel=2, device=device) as llm:
        ran = llm.runtime.device
        assert llm.runtime.n_batch > 100 or name.startswith("qwen3")  # several texts, where none has a cache
        if not getattr(case, "ranks", False):
            return np.stack([one.outputs.embedding for one in llm.embed(texts, normalize=False)]), ran
        embedder = Embedder(llm.runtime, llm.runtime.n_types)
        given = [TokenizedText(text, families.second(text)) for text in texts]
        return np.stack([r for step in embedder.steps(given) for r in embedder.run([given[i] for i in step])]), ran


@pytest.mark.slow
def test_a_reranker_on_an_emulated_gpu(tmp_path: Path, emulated: list[Any]) -> None:
    """From texts to scores: types of tokens, first rows, two matrices behind them."""
    hf_families_encoders.write(tmp_path, "bert reranker")
    convert(tmp_path, "f16", tmp_path / "out.gguf", n_threads=1)
    on_cpu, _ = rows_of(tmp_path / "out.gguf", hf_families_encoders, "bert reranker", "cpu", 2)
    on_gpu, device = rows_of(tmp_path / "out.gguf", hf_families_encoders, "bert reranker", "cuda", 2)
    assert device == "cuda"
    assert len(emulated) == 1
    assert np.abs(on_gpu - on_cpu).max() < 5e-3 * np.abs(on_cpu).max()


# ---- what needs a GPU


CASES = [(families, name) for families in (hf_families_bert, hf_families_encoders) for name in families.CASES]


@pytest.mark.cuda
@pytest.mark.parametrize(("families", "name"), CASES, ids=[name for _, name in CASES])
def test_every_encoder(gpu: None, tmp_path: Path, families: Any, name: str) -> None:  # noqa: F811
    families.write(tmp_path, name)
    convert(tmp_path, "f16", tmp_path / "out.gguf", n_threads=1)
    on_cpu, _ = rows_of(tmp_path / "out.gguf", families, name, "cpu")
    on_gpu, device = rows_of(tmp_path / "out.gguf", families, name, "cuda")
    if device == "cpu":
        pytest.skip("the GPU has no kernels for it yet")
    each = np.linalg.norm(on_gpu - on_cpu, axis=1) / np.linalg.norm(on_cpu, axis=1)
    assert np.median(each) < 5e-3
    assert np.quantile(each, 0.5 if "experts" in name else 1.0) < 2e-2  # two may be as good to a rounding
