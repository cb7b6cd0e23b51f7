"""Every operation of the graph language by itself and beside others, in every tier, against numpy: prompts of several
lengths in one slot, then token by token, so that state is carried on, with another sequence in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggpy.codegen.native import tiers
from ggpy.cpu import kernels
from ggpy.cpu.executor import CpuExecutor
from ggpy.cpu.isa.layout import CACHE_TYPES
from ggpy.cpu.needed import activation_dtype
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph, Value
from ggpy.graph.operations import Temperature
from ggpy.graph.plan import plan
from ggpy.graph.rope import Rope
from tests.support.evaluate import evaluate
from tests.support.tensors import write_tensors

N_VOCAB, N_EMBD, N_CTX = 61, 42, 1000
EPS = 1e-5
ROPE = Rope("neox", 8, (1.0, 0.3, 0.1, 0.03))
SHAPES: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, N_EMBD), "output.weight": (N_VOCAB, N_EMBD)}

Build = Callable[[Graph, Value], Value]


class Case:
    """A graph between embedding and logits, with the tensors that it needs beside those."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        build: Build,
        types: dict[str, str] | None = None,
        changes: dict[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    ) -> None:
        self.shapes, self.build, self.types, self.changes = shapes, build, types, changes


def attention(q_heads: int, kv_heads: int, width: int, v_width: int = 0, n: int = 1, **options: object) -> Case:
    """n layers of attention, each with products around it."""
    v_width = v_width or width
    shapes: dict[str, tuple[int, ...]] = {"sinks": (q_heads,)}
    for layer in range(n):
        shapes |= {
            f"q{layer}.weight": (q_heads * width, N_EMBD), f"k{layer}.weight": (kv_heads * width, N_EMBD),
            f"v{layer}.weight": (kv_heads * v_width, N_EMBD), f"o{layer}.weight": (N_EMBD, q_heads * v_width),
            f"qn{layer}.weight": (width,), f"kn{layer}.weight": (width,),
        }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        for layer in g.layers(n):
            given = {name: value[layer] if isinstance(value, list) else value for name, value in options.items()}
            q, k, v = (
                g.linear(x, f"{name}{layer}", heads * wide)
                for name, heads, wide in (("q", q_heads, width), ("k", kv_heads, width), ("v", kv_heads, v_width))
            )
            shared = given.get("kv_layer") is not None
            y = g.attention(
                q, None if shared else k, None if shared else v, layer=layer, n_head=q_heads, n_head_kv=kv_heads,
                q_norm=f"qn{layer}", k_norm=f"kn{layer}", eps=EPS, **{"rope": ROPE, **given},  # type: ignore[arg-type]
            )  # fmt: skip
            x = g.add(x, g.linear(y, f"o{layer}", N_EMBD))
        return x

    return Case(shapes, build)


def latent(n_head: int, rank: int, n_rot: int, n: int = 1, **options: object) -> Case:
    """Multi-head latent attention: queries into the latent space and values out of it by a matrix a head."""
    inner = 32
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(n):
        shapes |= {
            f"q{layer}.weight": (n_head * (inner + n_rot), N_EMBD), f"kv{layer}.weight": (rank + n_rot, N_EMBD),
            f"kvn{layer}.weight": (rank,), f"k_b{layer}.weight": (n_head, rank, inner),
            f"v_b{layer}.weight": (n_head, inner, rank), f"o{layer}.weight": (N_EMBD, n_head * inner),
        }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        for layer in g.layers(n):
            q, kv = g.linear(x, f"q{layer}", n_head * (inner + n_rot)), g.linear(x, f"kv{layer}", rank + n_rot)
            plain = g.head_linear(g.select_columns(q, n_head, 0, inner), f"k_b{layer}", n_head, rank)
            q = g.concat(plain, g.select_columns(q, n_head, inner, n_rot), n_head)
            k = g.concat(g.norm(kv.columns(0, rank), f"kvn{layer}", EPS), kv.columns(rank, n_rot))
            y = g.attention(
                q, k, None, layer=layer, n_head=n_head, n_head_kv=1, rope=ROPE, rope_first=rank, v_of_k=rank,
                scale=(inner + n_rot) ** -0.5, **options,  # type: ignore[arg-type]
            )  # fmt: skip
            x = g.add(x, g.linear(g.head_linear(y, f"v_b{layer}", n_head, inner), f"o{layer}", N_EMBD))
        return x

    return Case(shapes, build)


def latent_of_odd_width(g: Graph, x: Value) -> Value:
    """Keys whose width is no multiple of 16, heads that share one, values that are less than half of it."""
    q, k = g.linear(x, "q", 3 * 38), g.linear(x, "k", 38)
    y = g.attention(q, k, None, layer=0, n_head=3, n_head_kv=1, rope=ROPE, v_of_k=14, rope_first=3)
    return g.add(x, g.linear(y, "o", N_EMBD))


def experts(n_experts: int, n_used: int, n_ff: int, type_name: str = "F32", **options: object) -> Case:
    shapes: dict[str, tuple[int, ...]] = {
        "router.weight": (n_experts, N_EMBD), "bias": (n_experts,), "bias2": (n_experts,), "norm.weight": (N_EMBD,),
        "gate.weight": (n_experts, n_ff, N_EMBD), "up.weight": (n_experts, n_ff, N_EMBD),
        "gate.bias": (n_experts, n_ff), "down.weight": (n_experts, N_EMBD, n_ff),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        x = g.norm(x, "norm", EPS)
        route = g.route(g.linear(x, "router", n_experts), n_used, **options)  # type: ignore[arg-type]
        gate, up = g.expert_linear(x, "gate", n_ff, route), g.expert_linear(x, "up", n_ff, route)
        made = g.expert_linear(g.glu(gate, up, "silu"), "down", N_EMBD, route)
        return g.add(x, g.combine(made, route))

    return Case(shapes, build, dict.fromkeys(("gate.weight", "up.weight", "down.weight"), type_name))


def plain_experts(g: Graph, x: Value) -> Value:
    """Their activation is no gate."""
    route = g.route(g.linear(x, "router", 5), 2)
    made = g.activation(g.expert_linear(x, "up", 20, route), "relu2")
    return g.add(x, g.combine(g.expert_linear(made, "down", N_EMBD, route), route))


def weighed_experts(g: Graph, x: Value) -> Value:
    """Weights multiply what experts are given."""
    route = g.route(g.linear(x, "router", 5), 2, gating="sigmoid")
    gate, up = (g.expert_linear(g.weigh(x, route), name, 20, route) for name in ("gate", "up"))
    given = g.expert_linear(g.glu(gate, up, "silu"), "down", N_EMBD, route)
    return g.add(x, g.combine(given, route, weighted=False))


def convolution(width: int, activation: str | None) -> Case:
    def build(g: Graph, x: Value) -> Value:
        y = g.conv_state(g.linear(x, "in", 3 * N_EMBD).columns(N_EMBD, N_EMBD), "conv", width, 0, activation)
        return g.add(x, g.conv_state(y, "other", width, 1))

    shapes = {"in.weight": (3 * N_EMBD, N_EMBD), "conv.weight": (N_EMBD, width), "conv.bias": (N_EMBD,)}
    return Case({**shapes, "other.weight": (N_EMBD, width)}, build)


def delta(n_k: int, n_v: int, d_k: int, d_v: int, tiled: bool, at: str = "", layer: int = 0) -> Case:
    """The delta rule of a layer, whose tensors' names begin with `at`."""
    shapes = {
        "q.weight": (n_k * d_k, N_EMBD), "k.weight": (n_k * d_k, N_EMBD), "v.weight": (n_v * d_v, N_EMBD),
        "a.weight": (n_v, N_EMBD), "b.weight": (n_v, N_EMBD), "o.weight": (N_EMBD, n_v * d_v), "scale": (n_v,),
        "shift": (n_v,),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        rows = {"q": n_k * d_k, "k": n_k * d_k, "v": n_v * d_v, "a": n_v, "b": n_v}
        q, k, v, a, b = (g.linear(x, at + name, n) for name, n in rows.items())
        q, k = (g.norm(heads, None, 1e-6, "l2", d_k) for heads in (q, k))
        decay = g.scale_columns(g.activation(g.shift_columns(a, at + "shift"), "softplus"), at + "scale")
        q, beta = g.scale(q, 0.7), g.activation(b, "sigmoid")
        y = g.delta_rule(q, k, v, decay, beta, layer=layer, n_k_head=n_k, n_v_head=n_v, tiled=tiled)
        return g.add(x, g.linear(g.norm(y, None, EPS, width=d_v), at + "o", N_EMBD))

    named = {at + name: shape for name, shape in shapes.items()}
    return Case(named, build, changes={at + "scale": lambda drawn: -0.1 * np.abs(drawn)})


def scan(
    n_head: int, head_dim: int, d_state: int, n_groups: int, a_shape: tuple[int, ...], skip: bool = True, at: str = "",
    layer: int = 0,
) -> Case:  # fmt: skip
    """The scan of a layer, whose tensors' names begin with `at`."""
    wide, mixed = n_head * head_dim, n_groups * d_state
    shapes = {
        "x.weight": (wide, N_EMBD), "dt.weight": (n_head, N_EMBD), "dt.bias": (n_head,), "b.weight": (mixed, N_EMBD),
        "c.weight": (mixed, N_EMBD), "o.weight": (N_EMBD, wide), "a": a_shape, "d": (n_head, *a_shape[2:]),
        "shift": (n_head,),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        dt = g.linear(x, at + "dt", n_head)
        values, b, c = (g.linear(x, at + name, rows) for name, rows in (("x", wide), ("b", mixed), ("c", mixed)))
        if skip:
            dt = g.shift_columns(dt, at + "shift")
        d = at + "d" if skip else None
        y = g.ssm_scan(values, dt, b, c, layer=layer, n_head=n_head, n_groups=n_groups, a=at + "a", d=d)
        return g.add(x, g.linear(g.norm(y, None, EPS), at + "o", N_EMBD))

    named = {at + name: shape for name, shape in shapes.items()}
    return Case(named, build, changes={at + "a": lambda drawn: -0.3 * np.abs(drawn)})


def columns(g: Graph, x: Value) -> Value:
    wide = g.linear(x, "wide", 6 * 14)
    picked = g.select_columns(wide, 6, 3, 7)
    x = g.add(x, g.mul(picked, g.shift_columns(g.select_columns(wide.columns(0, 42), 3, 0, 14), "shift")))
    return g.concat(x.columns(1, 10), wide.columns(3, 32), 2)


def mixture_of_one(g: Graph, x: Value) -> Value:
    """Its router is a vector, its experts are matrices."""
    route = g.route(g.linear(x, "router", 1), 1, gating="sigmoid")
    gate, up = (g.expert_linear(x, name, 20, route) for name in ("gate", "up"))
    return g.add(x, g.combine(g.expert_linear(g.glu(gate, up, "silu"), "down", N_EMBD, route), route))


def streams(g: Graph, x: Value) -> Value:
    """Three streams mixed to two and one to three, brought to the magnitude of another, and cut."""
    wide = g.linear(x, "wide", 6 * 14)
    mixed = g.mix_streams(x, wide.columns(3, 6), 3)
    spread = g.mix_streams(mixed.columns(14, 14), g.activation(wide.columns(20, 3), "tanh"), 1)
    matched = g.match_magnitude(g.add(g.linear(x, "square", N_EMBD), spread), x, 1e-2)
    return g.add(matched, g.gaussian_topk(g.shift_columns(wide.columns(14, 42), "shift"), 0.7))


def layer_norms(g: Graph, x: Value) -> Value:
    x = g.add(g.add(x, g.embed_positions("positions", N_EMBD)), g.embed_types("types", N_EMBD))
    return g.norm(g.linear(g.norm(x, "norm", EPS, "layer"), "square", N_EMBD), "group", EPS, width=14)


CASES: dict[str, Case] = {
    "heads of odd width": attention(3, 1, 10),
    "no rope, scale, softcap": attention(4, 2, 12, rope=None, scale=0.9, softcap=1.5),
    "values of another width": attention(4, 2, 24, 10),
    "sinks": attention(4, 2, 16, sinks="sinks"),
    "norm after rope": attention(2, 1, 16, norm_after_rope=True),
    "alibi": attention(6, 3, 16, alibi=8.0, rope=None),
    "window in a ring": attention(4, 2, 16, n=2, window=[20, 0]),
    "chunks": attention(4, 2, 16, chunk=24),
    "another layer's keys and values": attention(4, 2, 16, n=3, kv_layer=[None, None, 0], window=[9, 0, 9]),
    "temperature": attention(4, 2, 16, temperature=Temperature(0.5, 7, 1), rope_first=6),
    "latent cache": latent(5, 64, 8),
    "latent cache of many heads": latent(32, 32, 8, 2, temperature=Temperature(0.1, 5)),
    "latent cache of odd width": Case(
        {"q.weight": (114, N_EMBD), "k.weight": (38, N_EMBD), "o.weight": (N_EMBD, 42)}, latent_of_odd_width
    ),
    "experts by softmax": experts(7, 3, 37, normalize=True),
    "experts with factors": experts(6, 2, 20, normalize=True, expert_scale="bias2"),
    "experts, chosen alone": experts(5, 5, 20, gating="softmax_topk"),
    "experts by sigmoid, bias, groups": experts(
        12, 3, 18, gating="sigmoid", bias="bias", n_groups=4, n_groups_used=2, normalize=True, scale=2.5
    ),
    "experts by softmax, groups by their best": experts(12, 3, 18, n_groups=4, n_groups_used=2, group_best=1),
    "one expert": experts(6, 1, 16),
    "streams": Case(
        {"wide.weight": (84, N_EMBD), "square.weight": (N_EMBD, N_EMBD), "shift": (N_EMBD,)},
        streams,
        changes={"shift": lambda drawn: drawn + 50},
    ),
    "experts without gates": Case(
        {"router.weight": (5, N_EMBD), "up.weight": (5, 20, N_EMBD), "down.weight": (5, N_EMBD, 20)}, plain_experts
    ),
    "experts of weighed rows": Case(
        {
            "router.weight": (5, N_EMBD),
            "gate.weight": (5, 20, N_EMBD),
            "up.weight": (5, 20, N_EMBD),
            "down.weight": (5, N_EMBD, 20),
        },
        weighed_experts,
    ),
    "convolution": convolution(3, None),
    "convolution and silu": convolution(4, "silu"),
    "delta rule": delta(2, 4, 16, 16, True),
    "delta rule of odd sizes": delta(2, 6, 11, 21, False),
    "delta rule of wide heads": delta(1, 1, 9, 75, True),
    "a mixture of one": Case(
        {
            "router.weight": (N_EMBD,),
            "gate.weight": (20, N_EMBD),
            "up.weight": (20, N_EMBD),
            "down.weight": (N_EMBD, 20),
            "down.bias": (N_EMBD,),
        },
        mixture_of_one,
    ),
    "Mamba's scan": scan(90, 1, 16, 1, (90, 16)),
    "Mamba's scan of odd sizes": scan(50, 1, 5, 2, (50, 5), skip=False),
    "Mamba-2's scan": scan(4, 16, 32, 2, (4, 1)),
    "Mamba-2's scan of odd sizes": scan(6, 21, 13, 3, (6,)),
    "Mamba-2's scan of wide heads": scan(2, 75, 6, 1, (2, 1)),
    "columns": Case({"wide.weight": (84, N_EMBD), "shift": (N_EMBD,)}, columns),
    "layer norms, positions and types": Case(
        {
            "positions.weight": (N_CTX, N_EMBD),
            "types.weight": (2, N_EMBD),
            "square.weight": (N_EMBD, N_EMBD),
            "norm.weight": (N_EMBD,),
            "norm.bias": (N_EMBD,),
            "group.weight": (14,),
        },
        layer_norms,
    ),
}


def compare(case: Case, path: Path, steps: list[int], n_threads: int = 2) -> None:
    """Run a case in steps of so many tokens, each followed by some of another sequence, against the whole at once."""
    write_tensors(path, {**SHAPES, **case.shapes}, case.types, changes=case.changes)
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, sum(steps))
    with GGUFFile(path) as file:
        graph = Graph(file)
        logits = graph.output(graph.select_outputs(case.build(graph, graph.embed(N_EMBD))), N_VOCAB)
        expected = evaluate(graph, logits, tokens, np.arange(len(tokens)))
        executor = CpuExecutor(
            plan(graph, logits, activation_dtype), file, n_ctx=N_CTX, n_slots=2, n_batch=64, n_threads=n_threads,
            cache_type="f32", notify=lambda note: None,
        )  # fmt: skip
        try:
            done = other = 0
            for n in steps:
                extra = min(3, N_CTX - other)
                both = n + extra
                executor.tokens[:both] = np.concatenate([tokens[done : done + n], tokens[other : other + extra]])
                executor.slots[:both] = [1] * n + [0] * extra
                executor.positions[:both] = [*range(done, done + n), *range(other, other + extra)]
                executor.outputs[:both] = np.arange(both)
                found = executor.run(both, both)
                for start, count, at in ((done, n, 0), (other, extra, n)):
                    here = expected[start : start + count]
                    error = np.abs(found[at : at + count] - here).max() / np.abs(expected).max()
                    assert error < 3e-5, f"{n} tokens at {start}: {error}"
                done, other = done + n, other + extra
        finally:
            executor.close()


@pytest.mark.parametrize("name", CASES)
def test_operation(tmp_path: Path, name: str) -> None:
    compare(CASES[name], tmp_path / "tensors.gguf", [7, 1, 1, 30, 2, 1])


@pytest.mark.matrix(strength=1)
@pytest.mark.parametrize("tier", tiers()[1:])
@pytest.mark.parametrize("name", CASES)
def test_operation_in_every_tier(tmp_path: Path, name: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "isa", lambda: tier)
    compare(CASES[name], tmp_path / "tensors.gguf", [9, 1], n_threads=1)


def run(case: Case, path: Path, steps: list[int], n_threads: int, cache_type: str = "f32") -> np.ndarray:
    """The results of one sequence's rows, evaluated in steps of so many tokens."""
    write_tensors(path, {**SHAPES, **case.shapes}, case.types, changes=case.changes)
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, sum(steps))
    with GGUFFile(path) as file:
        graph = Graph(file)
        logits = graph.output(graph.select_outputs(case.build(graph, graph.embed(N_EMBD))), N_VOCAB)
        executor = CpuExecutor(
            plan(graph, logits, activation_dtype), file, n_ctx=N_CTX, n_slots=1, n_batch=64, n_threads=n_threads,
            cache_type=cache_type, notify=lambda note: None,
        )  # fmt: skip
        try:
            found, done = [], 0
            for n in steps:
                executor.tokens[:n], executor.positions[:n] = tokens[done : done + n], np.arange(done, done + n)
                executor.outputs[:n] = np.arange(n)
                found.append(executor.run(n, n).copy())
                done += n
            return np.concatenate(found)
        finally:
            executor.close()


@pytest.mark.parametrize("name", CASES)
def test_results_depend_on_neither_steps_nor_threads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tensors.gguf"
    together = run(CASES[name], path, [64, 1], 1)
    assert np.array_equal(together, run(CASES[name], path, [5, 30, 1, 1, 20, 3, 5], 2))


@pytest.mark.matrix(strength=1)
@pytest.mark.parametrize("tier", [tiers()[0], "plain"])
@pytest.mark.parametrize("cache_type", CACHE_TYPES[1:])
def test_latent_cache_of_every_type(
    tmp_path: Path, cache_type: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of many rows read it as float32, a single token's as it is: to the same numbers."""
    monkeypatch.setattr(kernels, "isa", lambda: tier)
    case, path = latent(20, 64, 32), tmp_path / "tensors.gguf"
    exact = run(case, path, [20, 3], 1)
    found = run(case, path, [20, 3], 1, cache_type)
    assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    assert np.array_equal(found, run(case, path, [1, 19, 2, 1], 2, cache_type))


@pytest.mark.parametrize("name", ["window in a ring", "chunks", "another layer's keys and values"])
def test_a_ring_goes_round(tmp_path: Path, name: str) -> None:
    """Several times the cells of a ring, in large steps and small ones."""
    compare(CASES[name], tmp_path / "tensors.gguf", [61, 1] * 14)


def test_experts_in_quantized_weights(tmp_path: Path) -> None:
    """Rows of an expert form tiles of their own: as many tokens at once give what each gives alone."""
    matrices = ("gate.weight", "up.weight", "down.weight")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, 64), "output.weight": (N_VOCAB, 64)}
    shapes |= {"router.weight": (5, 64), "norm.weight": (64,)} | dict.fromkeys(matrices, (5, 64, 64))
    path = write_tensors(tmp_path / "tensors.gguf", shapes, dict.fromkeys(matrices, "Q8_0"))
    with GGUFFile(path) as file:
        graph = Graph(file)
        x = graph.norm(graph.embed(64), "norm", EPS)
        route = graph.route(graph.linear(x, "router", 5), 2)
        gate, up = (graph.expert_linear(x, name, 64, route) for name in ("gate", "up"))
        y = graph.combine(graph.expert_linear(graph.glu(gate, up, "silu"), "down", 64, route), route)
        logits = graph.output(graph.select_outputs(y), N_VOCAB)
        executor = CpuExecutor(
            plan(graph, logits, activation_dtype), file, n_ctx=64, n_slots=1, n_batch=48, n_threads=2,
            cache_type="f32", notify=lambda note: None,
        )  # fmt: skip
        try:
            tokens = np.random.default_rng(0).integers(0, N_VOCAB, 48)
            executor.tokens[:], executor.positions[:], executor.outputs[:] = tokens, np.arange(48), np.arange(48)
            together = executor.run(48, 48).copy()
            expected = evaluate(graph, logits, tokens, np.arange(48))
            assert np.abs(together - expected).max() < 0.02 * np.abs(expected).max()
            for i in (0, 17, 47):
                executor.tokens[0], executor.positions[0], executor.outputs[0] = tokens[i], 0, 0
                assert np.array_equal(executor.run(1, 1)[0], together[i])
        finally:
            executor.close()


def test_matrices_of_heads_in_quantized_weights(tmp_path: Path) -> None:
    """Columns of a head are some of a row of activations: in tiles of any width, and in chunks, they give the same."""
    width, n_head = 544, 3
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, 64), "output.weight": (N_VOCAB, 64)}
    shapes |= {"in.weight": (n_head * width, 64), "head.weight": (n_head, 32, width), "out.weight": (64, n_head * 32)}
    path = write_tensors(tmp_path / "tensors.gguf", shapes, {"head.weight": "Q8_0"})
    with GGUFFile(path) as file:
        graph = Graph(file)
        made = graph.head_linear(graph.linear(graph.embed(64), "in", n_head * width), "head", n_head, 32)
        logits = graph.output(graph.select_outputs(graph.linear(made, "out", 64)), N_VOCAB)
        executor = CpuExecutor(
            plan(graph, logits, activation_dtype), file, n_ctx=64, n_slots=1, n_batch=48, n_threads=2,
            cache_type="f32", notify=lambda note: None,
        )  # fmt: skip
        try:
            tokens = np.random.default_rng(0).integers(0, N_VOCAB, 48)
            executor.tokens[:], executor.positions[:], executor.outputs[:] = tokens, np.arange(48), np.arange(48)
            together = executor.run(48, 48).copy()
            expected = evaluate(graph, logits, tokens, np.arange(48))
            assert np.abs(together - expected).max() < 0.02 * np.abs(expected).max()
            executor.tokens[:3] = tokens[[0, 17, 47]]
            executor.outputs[:3] = np.arange(3)
            apart = executor.run(3, 3)
            assert np.array_equal(apart, together[[0, 17, 47]])
        finally:
            executor.close()
