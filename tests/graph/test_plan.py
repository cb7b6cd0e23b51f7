"""From graphs to programs: what is fused, and that any graph computes what its nodes say, fused or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.cpu.executor import CpuExecutor
from ggpy.cpu.needed import activation_dtype
from ggpy.gguf.file import GGUFFile
from ggpy.graph import operations as ops
from ggpy.graph.language import Graph, Value
from ggpy.graph.plan import fuse, place, plan, verify
from ggpy.graph.rope import Rope
from ggpy.models import architecture_of
from tests.support.evaluate import evaluate
from tests.support.tiny import tiny_checkpoint

N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF, N_VOCAB = 96, 3, 1, 32, 256, 512
EPS = 1e-5
ROPES = [Rope("interleaved", 32, tuple(10000 ** (-i / 16) for i in range(16))), Rope("neox", 8, (1.0, 0.3, 0.1, 0.03))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's form in float32: two layers, whose weights the graphs below use as they like."""
    folder = tmp_path_factory.mktemp("plan")
    convert(tiny_checkpoint(folder, "smollm2", dtype="f32"), "f32", folder / "model.gguf")
    return folder / "model.gguf"


def attention(g: Graph, x: Value, layer: int) -> Value:
    at = f"blk.{layer}."
    q, k, v = (
        g.linear(x, f"{at}attn_{name}", heads * HEAD_DIM) for name, heads in zip("qkv", (N_HEAD, N_HEAD_KV, N_HEAD_KV),
        strict=True)
    )  # fmt: skip
    return g.attention(
        q, k, v, layer=layer, n_head=N_HEAD, n_head_kv=N_HEAD_KV, rope=ROPES[layer % 2], q_norm="", k_norm="", eps=EPS,
        window=(0, 5)[layer % 2],
    )  # fmt: skip


def output(g: Graph, x: Value) -> Value:
    return g.output(g.norm(g.select_outputs(x), "output_norm", EPS), N_VOCAB)


def compare(path: Path, build: Callable[[Graph], Value], n: int) -> None:
    """Run a graph on the CPU for n tokens at once, and then for one more."""
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, n + 1)
    with GGUFFile(path) as file:
        graph = Graph(file)
        logits = build(graph)
        program = plan(graph, logits, activation_dtype)
        executor = CpuExecutor(
            program, file, n_ctx=64, n_slots=1, n_batch=32, n_threads=2, cache_type="f32", notify=lambda note: None
        )
        try:
            for first, last in ((0, n), (n, n + 1)):
                count = last - first
                executor.tokens[:count], executor.positions[:count] = tokens[first:last], np.arange(first, last)
                executor.slots[:count], executor.outputs[:1] = 0, count - 1
                found = executor.run(count, 1).copy()
                expected = evaluate(graph, logits, tokens[:last], np.array([last - 1]))
                assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
        finally:
            executor.close()


def kinds(program: Any) -> list[str]:
    return [type(op.operation).__name__ for op in program.ops]


def test_a_decoder_layer_is_fused(path: Path) -> None:
    """Norms fused into activations and sums into products: the operations left of a layer, and no others."""
    with GGUFFile(path) as file:
        graph = Graph(file)
        program = plan(graph, architecture_of(file).build(graph), activation_dtype)
    layer = [
        "QuantizeActivations", "Linear", "Linear", "Linear", "RopeStore", "Attend", "QuantizeActivations", "Linear",
        "QuantizeActivations", "Linear", "Linear", "GLU", "QuantizeActivations", "Linear",
    ]  # fmt: skip
    assert kinds(program) == ["Embed", *2 * layer, "QuantizeActivations", "Linear"]
    assert sum(op.accumulates for op in program.ops) == 4
    widths = Counter((buffer.n_cols, buffer.outputs_only) for buffer in program.buffers)
    assert widths[N_EMBD, False] == 3  # the residual stream, and two for queries and what they find


def test_what_cannot_be_fused_runs_by_itself(path: Path) -> None:
    """Norms around a branch: the one after it is read by a sum, so both stand alone."""

    def build(g: Graph) -> Value:
        x = g.scale(g.embed(N_EMBD), N_EMBD**0.5)
        branch = g.linear(attention(g, g.norm(x, "blk.0.attn_norm", EPS), 0), "blk.0.attn_output", N_EMBD)
        x = g.add(x, g.norm(branch, "blk.0.ffn_norm", EPS))
        return g.softcap(output(g, x), 30.0)

    with GGUFFile(path) as file:
        graph = Graph(file)
        program = plan(graph, build(graph), activation_dtype)
    assert Counter(kinds(program)) >= Counter(["Scale", "Norm", "Add", "Softcap"])
    assert not any(op.accumulates for op in program.ops)
    compare(path, build, 7)


@pytest.mark.parametrize("n", [1, 3, 17])
def test_layers_of_two_ropes_and_a_window(path: Path, n: int) -> None:
    def build(g: Graph) -> Value:
        x = g.embed(N_EMBD)
        for layer in range(2):
            x = g.add(x, g.linear(attention(g, x, layer), f"blk.{layer}.attn_output", N_EMBD))
        return output(g, x)

    compare(path, build, n)


@pytest.mark.parametrize("seed", range(12))
def test_any_graph_computes_what_it_says(path: Path, seed: int) -> None:
    """Nodes drawn at random, each reading values at random: read twice, by sums and products, across each other."""
    rng = np.random.default_rng(seed)

    def build(g: Graph) -> Value:
        x = g.embed(N_EMBD)
        attended = attention(g, g.norm(x, "blk.1.attn_norm", EPS), 1)
        values = [x, g.linear(attended, "blk.1.attn_output", N_EMBD), *([attended] if seed % 2 else [])]
        for _ in range(14):
            a, b = (values[rng.integers(max(0, len(values) - 4), len(values))] for _ in range(2))
            activation = str(rng.choice(ops.ACTIVATIONS))
            makes: list[Callable[[], Value]] = [
                lambda a=a: g.norm(a, "blk.0.ffn_norm", EPS),
                lambda a=a: g.linear(a, f"blk.{rng.integers(2)}.attn_output", N_EMBD),
                lambda a=a, b=b: g.add(a, b),
                lambda a=a, b=b: g.add(a, g.linear(b, "blk.0.attn_output", N_EMBD)),
                lambda a=a, b=b: g.add(g.linear(g.norm(b, "blk.1.ffn_norm", EPS), "blk.1.attn_output", N_EMBD), a),
                lambda a=a, b=b: g.scale(g.mul(a, g.norm(b, "blk.0.attn_norm", EPS)), 0.5),
                lambda a=a, b=b: g.gate(a, b),
                lambda a=a: g.softcap(a, 3.0),
                lambda a=a, f=activation: g.activation(g.norm(a, "blk.0.ffn_norm", EPS), f),
                lambda a=a, f=activation: g.linear(
                    g.glu(g.linear(a, "blk.0.ffn_gate", N_FF), g.linear(a, "blk.0.ffn_up", N_FF), f),
                    "blk.0.ffn_down", N_EMBD,
                ),
            ]  # fmt: skip
            values.append(makes[rng.integers(len(makes))]())
        for value in values[-6:-1]:
            values.append(g.add(values[-1], g.norm(value, "blk.1.ffn_norm", EPS)))
        if seed % 3:
            return output(g, values[-1])
        selected = g.select_outputs(values[-1])  # read by more than norms and products
        return g.output(g.add(g.norm(selected, "output_norm", EPS), g.activation(selected, "relu")), N_VOCAB)

    compare(path, build, int(rng.integers(1, 20)))


def test_columns_of_a_normed_value_are_what_a_product_reads(path: Path) -> None:
    """Such a norm, or selection of rows, stands alone: what products take in is whole rows."""

    def build(g: Graph) -> Value:
        x = g.embed(N_EMBD)
        x = g.add(x, g.linear(attention(g, x, 0), "blk.0.attn_output", N_EMBD))
        wide = g.linear(x, "blk.0.ffn_gate", N_FF)
        selected = g.select_outputs(g.norm(wide, None, EPS))
        return g.output(g.norm(selected.columns(32, N_EMBD), "output_norm", EPS), N_VOCAB)

    compare(path, build, 7)

    def normed(g: Graph) -> Value:
        x = g.embed(N_EMBD)
        x = g.add(x, g.linear(attention(g, x, 0), "blk.0.attn_output", N_EMBD))
        wide = g.norm(g.linear(x, "blk.0.ffn_gate", N_FF), None, EPS)
        return g.output(g.select_outputs(g.linear(wide.columns(16, N_EMBD), "blk.0.attn_output", N_EMBD)), N_VOCAB)

    compare(path, normed, 7)


def test_columns_of_attention_are_read_when_its_parts_are_joined(path: Path) -> None:
    """A product joins attention's parts where it reads all of it; where it reads columns, they are joined before."""

    def build(g: Graph) -> Value:
        x = g.embed(N_EMBD)
        q = g.linear(x, "blk.0.ffn_gate", N_FF)
        k, v = (g.linear(x, f"blk.0.attn_{name}", HEAD_DIM) for name in "kv")
        mixed = g.attention(
            q, k, v, layer=0, n_head=N_FF // HEAD_DIM, n_head_kv=1, rope=ROPES[0], q_norm="", k_norm="", eps=EPS
        )
        return output(g, g.add(x, g.linear(mixed.columns(HEAD_DIM, N_EMBD), "blk.0.attn_output", N_EMBD)))

    compare(path, build, 7)


def test_a_value_in_the_wrong_place_is_found(path: Path) -> None:
    with GGUFFile(path) as file:
        graph = Graph(file)
        logits = architecture_of(file).build(graph)
        steps = fuse(graph.nodes, logits, activation_dtype)
    program = place(steps, logits)
    verify(program, steps)
    index = next(i for i, op in enumerate(program.ops) if isinstance(op.operation, ops.GLU))
    steps[index - 1], steps[index - 2] = steps[index - 2], steps[index - 1]  # gate and up change places
    with pytest.raises(AssertionError):
        verify(program, steps)
