"""Graphs that no fused step computes whole, by the very code that a GPU runs: operations by themselves, attention that
differs by layer, and plans whose buffers are written again while products still read them; against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
pytest.importorskip("cuda.bindings")

from ggpy.convert.pipeline import convert
from ggpy.cuda import executor as module
from ggpy.cuda.lower import lower, unsupported
from ggpy.cuda.ops.elementwise import ACTIVATIONS as KERNEL_ACTIVATIONS
from ggpy.cuda.ops.elementwise import FUNCTIONS
from ggpy.cuda.recurrent import Recurrent
from ggpy.cuda.rowwise import NARROW, WIDE
from ggpy.gguf.file import GGUFFile
from ggpy.graph import operations as ops
from ggpy.graph.language import Graph, Value
from ggpy.graph.plan import plan
from ggpy.graph.program import Program
from ggpy.graph.rope import Rope
from ggpy.graph.state import KVState
from ggpy.models import architecture_of
from ggpy.quant.formats import activation_dtype
from ggpy.runtime.planned import planned
from tests.cuda.test_cuda import STEPS, both, errors, gpu  # noqa: F401
from tests.graph.test_operations import (
    CASES,
    EPS,
    N_EMBD,
    N_VOCAB,
    ROPE,
    SHAPES,
    Case,
    attention,
    delta,
    scan,
)
from tests.support.blocks import slow_but
from tests.support.emulated_device import EmulatedDevice
from tests.support.evaluate import elementwise, evaluate
from tests.support.families import CONFIGS as FAMILIES
from tests.support.families import family_checkpoint
from tests.support.tensors import write_tensors
from tests.support.tiny import CONFIGS

# ---- kernels

ELEMENTWISE = [
    ops.Add(), ops.Mul(), ops.SigmoidGate(), ops.Scale(0.3), ops.Softcap(2.5), *map(ops.Activation, ops.ACTIVATIONS),
    *map(ops.GLU, (*ops.ACTIVATIONS, "swiglu_oai")),
]  # fmt: skip


@pytest.mark.parametrize("operation", ELEMENTWISE, ids=lambda operation: operation.function)
def test_elementwise(operation: ops.Elementwise) -> None:
    """Three rows of an odd width, on strides of more than their columns."""
    rng, device = np.random.default_rng(0), EmulatedDevice()
    x = np.stack([np.linspace(-100, 100, 301), *rng.standard_normal((2, 301)) * [[3], [0.1]]]).astype(np.float32)
    x[0, 290:] = [0, -0.0, 1e4, -1e4, 1e-4, -1e-6, 0.24, -0.26, 5, -7.5, 8]
    y, out = rng.standard_normal((3, 304)).astype(np.float32), np.full((3, 320), np.nan, np.float32)
    add = device.memory_map.add
    device.kernel(f"elementwise.{operation.function}").launch(
        (2, 3), add(x), x.strides[0], add(y), y.strides[0], operation.constant, add(out), out.strides[0], 301
    )
    with np.errstate(over="ignore"):
        expected = elementwise(operation, x.astype(np.float64), y[:, :301].astype(np.float64))
    assert np.allclose(out[:, :301], expected, rtol=3e-6, atol=5e-7)
    assert np.isnan(out[:, 301:]).all()


def test_every_function_of_the_language_has_a_kernel() -> None:
    assert set(KERNEL_ACTIVATIONS) == set(ops.ACTIVATIONS)
    others = {
        operation.function
        for operation in ELEMENTWISE
        if operation.function.removesuffix("_glu") not in ops.ACTIVATIONS
    }
    assert set(FUNCTIONS) == others
    assert {type(operation) for operation in ELEMENTWISE} == set(ops.Elementwise.__subclasses__())


@pytest.mark.parametrize("threads", [NARROW, WIDE])
@pytest.mark.parametrize(
    ("kind", "n_runs", "alike"),
    [("rms", 1, False), ("rms", 3, True), ("layer", 1, False), ("layer", 2, False), ("l2", 3, True)],
)
def test_norm(kind: str, n_runs: int, alike: bool, threads: int) -> None:
    rng, device, width = np.random.default_rng(0), EmulatedDevice(), 301
    x = rng.standard_normal((4, n_runs * width)).astype(np.float32) + 1
    out = np.full((4, n_runs * width + 3), np.nan, np.float32)
    weight, bias = rng.standard_normal((2, width if alike else n_runs * width)).astype(np.float32)
    add = device.memory_map.add
    device.kernel(f"norm.{kind}.{threads}").launch(
        (n_runs, 4), add(x), x.strides[0], 0 if kind == "l2" else add(weight), add(bias) if kind == "layer" else 0,
        0 if alike else 4 * width, width, EPS, add(out), out.strides[0], shared=threads // 4,
    )  # fmt: skip
    runs = x.astype(np.float64).reshape(4, n_runs, width)
    if kind == "layer":
        runs = runs - runs.mean(-1, keepdims=True)
    squares = (runs * runs).sum(-1, keepdims=True)
    runs = runs / np.sqrt((squares if kind == "l2" else squares / width) + EPS)
    if kind != "l2":
        runs = runs * weight.reshape(-1, width)
    if kind == "layer":
        runs = runs + bias.reshape(-1, width)
    assert np.allclose(out[:, :-3], runs.reshape(4, -1), rtol=1e-5, atol=1e-6)
    assert np.isnan(out[:, -3:]).all()


def test_convolution_of_long_runs() -> None:
    """Runs of more tokens than a block has: one from zeros, one that leaves its state in the place that it began with,
    a short one, and none."""
    rng, device, n_cols, width = np.random.default_rng(0), EmulatedDevice(), 5, 4
    x, out = rng.standard_normal((420, 8)).astype(np.float32), np.full((420, 6), np.nan, np.float32)
    weight, bias = rng.standard_normal((n_cols, width)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    state = rng.standard_normal((3, 2, width - 1, n_cols)).astype(np.float32)
    runs = np.int32([[2, 0, 131, 0], [0, 131, 286, 7], [1, 417, 2, 30], [2, 0, 0, 0]])
    before, add = state.copy(), device.memory_map.add
    device.kernel("conv_state.4.silu").launch(
        (1, len(runs), 3), add(x), x.strides[0], add(weight), add(bias), add(state), state[0, 0].nbytes, add(runs),
        add(out), out.strides[0], n_cols,
    )  # fmt: skip
    for slot, first, count, position in runs[:3].tolist():
        own = x[first : first + count, :n_cols].astype(np.float64)
        given = np.concatenate([before[slot, position % 2] * (position > 0), own])
        y = sum(weight[:, j] * given[j : j + count] for j in range(width)) + bias
        assert np.allclose(out[first : first + count, :n_cols], y / (1 + np.exp(-y)), rtol=1e-5, atol=1e-6)
        assert np.array_equal(state[slot, (position + count) % 2], given[-3:].astype(np.float32))
    assert np.isnan(out[419:]).all()
    assert np.isnan(out[:, n_cols:]).all()


# ---- graphs


def programmed(case: Case, file: GGUFFile) -> tuple[Graph, Value, Program]:
    graph = Graph(file)
    logits = case.build(graph, graph.embed(N_EMBD))
    if not logits.node.outputs_only:
        logits = graph.output(graph.select_outputs(logits), N_VOCAB)
    return graph, logits, plan(graph, logits, activation_dtype)


def compare(case: Case, path: Path, steps: list[int], device: Any = None) -> None:
    """Run a case in steps of so many tokens of one sequence, then twice a token of it beside one of another, and the
    last again where its state was saved, loaded in the other's place, copied, evaluated in vain, and put back, against
    the whole at once in numpy. A cache of halves, and prompts of more than eight tokens in halves, leave few digits."""
    write_tensors(path, {**SHAPES, **case.shapes}, case.types, changes=case.changes)
    n = sum(steps) + 2
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, n)
    with pytest.MonkeyPatch.context() as patch, GGUFFile(path) as file:
        if device is None:
            patch.setattr(module, "compile_missing", lambda *_: [])
        graph, logits, program = programmed(case, file)
        expected = evaluate(graph, logits, tokens, np.arange(n))
        assert unsupported(program) is None
        executor: Any = module.CudaExecutor(
            program, file, n_ctx=100, n_slots=2, n_batch=max(steps), notify=lambda _: None,
            device=device or EmulatedDevice(),
        )  # fmt: skip

        def step(positions: list[int], slots: list[int]) -> float:
            count = len(positions)
            executor.tokens[:count], executor.slots[:count] = tokens[positions], slots
            executor.positions[:count], executor.outputs[:count] = positions, np.arange(count)
            found = executor.run(count, count)
            return float(np.abs(found - expected[positions]).max() / np.abs(expected).max())

        at = 0
        for count in steps:
            error = step(list(range(at, at + count)), [1] * count)
            assert error < (4e-3 if count > 8 else 2e-3), f"{count} tokens at {at}: {error}"
            at += count
        for other in range(2):
            kept = executor.save(1, at)
            assert step([at, other], [1, 0]) < 2e-3
            at += 1
        executor.load(0, iter(kept), n - 1, n - 1)
        aside = executor.checkpoint(0, n - 1)
        assert bool(aside) == any(not isinstance(state, KVState) for state in program.states)
        assert step([n - 1], [0]) < 2e-3
        if aside:
            executor.copy_state(0, 1, n)
            assert step([n - 1], [1]) < 2e-3
            assert step([n - 1, 0], [0, 1]) < 2e-3
            executor.restore(1, iter(aside), n - 1)
            assert step([n - 1], [1]) < 2e-3
            with pytest.raises(ValueError, match="several runs"):
                step([0, 1, 1], [0, 1, 0])
        if kept:
            with pytest.raises(ValueError, match="another context"):
                executor.load(0, iter([*kept[:-1], kept[-1][1:]]), n, n)
        executor.close()


SUPPORTED = [
    "heads of odd width", "no rope, scale, softcap", "sinks", "norm after rope", "window in a ring",
    "another layer's keys and values", "values of another width", "temperature", "alibi", "chunks", "latent cache",
    "latent cache of many heads", "latent cache of odd width", "convolution", "convolution and silu", "delta rule",
    "delta rule of odd sizes", "delta rule of wide heads", "Mamba's scan", "Mamba's scan of odd sizes",
    "Mamba-2's scan", "Mamba-2's scan of odd sizes", "Mamba-2's scan of wide heads",
]  # fmt: skip
TESTED = "no rope, scale, softcap", "another layer's keys and values", "latent cache of odd width"


@pytest.mark.parametrize("name", slow_but(TESTED, SUPPORTED))
def test_cases_of_the_language(tmp_path: Path, name: str) -> None:
    compare(CASES[name], tmp_path / "tensors.gguf", [1, 12, 3, 1])


def test_everything_that_carries_state(tmp_path: Path) -> None:
    """A convolution, the delta rule and both scans, of odd sizes, in a model without attention."""
    parts = [
        CASES["convolution and silu"],
        delta(2, 6, 11, 21, False, "delta.", 2),
        scan(50, 1, 5, 2, (50, 5), False, "one.", 3),
        scan(6, 21, 13, 3, (6,), True, "two.", 4),
    ]

    def build(g: Graph, x: Value) -> Value:
        for part in parts:
            x = part.build(g, x)
        return x

    shapes, changes = (
        {k: v for part in parts for k, v in (getattr(part, kind) or {}).items()} for kind in ("shapes", "changes")
    )
    compare(Case(shapes, build, changes=changes), tmp_path / "tensors.gguf", [1, 12, 3, 1])


def test_a_delta_rule_does_not_write_where_it_reads(tmp_path: Path) -> None:
    """Its blocks are run in any order on a GPU: where the plan gives its result the place of keys before their norm, it
    does not make that norm itself."""

    def build(g: Graph, x: Value) -> Value:
        q, k, v, a, b = (g.linear(x, name, n) for name, n in (("q", 32), ("k", 32), ("v", 32), ("a", 2), ("b", 2)))
        q = g.scale(g.norm(q, None, EPS, "l2", 16), 0.7)
        k = g.norm(k, None, EPS, "l2", 16)
        decay = g.scale_columns(g.activation(g.shift_columns(a, "shift"), "softplus"), "scale")
        y = g.delta_rule(q, k, v, decay, g.activation(b, "sigmoid"), layer=0, n_k_head=2, n_v_head=2)
        return g.add(x, g.linear(y, "o", N_EMBD))

    usual = delta(2, 2, 16, 16, True)
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **usual.shapes})
    absorbed = []
    with GGUFFile(tmp_path / "tensors.gguf") as file:
        for case in (usual, Case(usual.shapes, build)):
            (step,) = (s for s in lower(programmed(case, file)[2]) if isinstance(s, Recurrent))
            assert step.op.dst
            assert step.op.dst.buffer not in [src.buffer for src in step.srcs]
            absorbed.append(len(step.absorbed))
    assert absorbed == [7, 0]


def test_rare_kinds_of_attention(tmp_path: Path) -> None:
    """All in one kernel, as each takes seconds to compile: ALiBi in chunks, queries that grow and are turned in their
    middle, values of another width."""
    case = attention(4, 2, 16, 10, alibi=8.0, chunk=8, temperature=ops.Temperature(0.5, 7, 1), rope_first=6)
    compare(case, tmp_path / "tensors.gguf", [1, 12])


def test_attention_that_differs_by_layer(tmp_path: Path) -> None:
    """Heads of other widths, and other numbers of them, other ropes or none, windows, caps."""
    base = attention(4, 2, 16, n=3, rope=[ROPE, None, Rope("interleaved", 12, tuple(0.5**i for i in range(6)))],
                     window=[5, 0, 0], softcap=[0.0, 2.0, 0.0], scale=[None, 0.1, 0.3])  # fmt: skip
    wide = attention(3, 1, 24)

    def build(g: Graph, x: Value) -> Value:
        x = base.build(g, x)
        q, k, v = (g.linear(x, f"wide_{name}", heads * 24) for name, heads in (("q", 3), ("k", 1), ("v", 1)))
        y = g.attention(q, k, v, layer=3, n_head=3, n_head_kv=1, rope=ROPE)
        return g.add(x, g.linear(y, "wide_o", N_EMBD))

    shapes = {
        f"wide_{name[0]}.weight": shape for name, shape in wide.shapes.items() if name[0] in "qkvo" and name[1] == "0"
    }
    compare(Case({**base.shapes, **shapes}, build), tmp_path / "tensors.gguf", [1, 12, 1])


ATTENTION = attention(4, 2, 16)


def attend(g: Graph, x: Value, layer: int) -> Value:
    q, k, v = (g.linear(x, f"{name}0", heads * 16) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
    return g.attention(q, k, v, layer=layer, n_head=4, n_head_kv=2, rope=ROPE)


SQUARE, VECTOR = (N_EMBD, N_EMBD), (N_EMBD,)


def after_attention(build: Any, **shapes: tuple[int, ...]) -> Case:
    """A case of what follows a layer of attention; tensors named NAME are NAME.weight, NAME_bias NAME.bias."""
    named = {name.replace("_bias", ".bias") if "_bias" in name else f"{name}.weight": s for name, s in shapes.items()}
    return Case({**ATTENTION.shapes, **named}, lambda g, x: build(g, ATTENTION.build(g, x)))


def columns(g: Graph, x: Value) -> Value:
    """Columns picked, and views of columns, some of which begin off a multiple of 16 bytes and feed products."""
    wide = g.linear(x, "wide", 84)
    picked = g.select_columns(wide, 6, 3, 7)
    x = g.add(x, g.mul(picked, g.select_columns(wide.columns(0, 42), 3, 0, 14)))
    x = g.shift_columns(g.scale_columns(g.scale_columns(x, "one"), "many"), "shift")
    both = g.concat(g.linear(wide.columns(3, 40), "narrow", N_EMBD), wide.columns(5, 63), n_groups=21)
    return g.add(x, g.linear(both, "joined", N_EMBD))


def norms(g: Graph, x: Value) -> Value:
    """A norm whose result a square product may overwrite; one without a weight, taken in by a product; logits behind
    operations by themselves."""
    x = g.add(g.add(x, g.embed_positions("positions", N_EMBD)), g.embed_types("types", N_EMBD))
    x = g.norm(g.linear(g.norm(x, "norm", EPS, "layer"), "square", N_EMBD), "group", EPS, width=14)
    x = g.linear(g.norm(x, None, EPS), "square", N_EMBD)
    x = g.norm(g.select_outputs(x), "norm", EPS, "layer")
    return g.softcap(g.output(x, N_VOCAB), 1.5)


def overwriting(g: Graph, x: Value) -> Value:
    """Products added to what they read, activations read again after an operation that took their source's place."""
    x = g.linear(g.activation(x, "relu"), "square", N_EMBD)
    x = g.add(x, g.linear(x, "other", N_EMBD))
    y = g.activation(x, "tanh")
    first = g.activation(g.linear(y, "square", N_EMBD), "silu")
    return g.mul(g.linear(y, "other", N_EMBD), first)


def gated(g: Graph, x: Value) -> Value:
    """Gated units that a product absorbs, that a norm reads, whose gate something else reads, and two at a time."""

    def branch(x: Value, name: str, activation: str = "silu") -> tuple[Value, Value]:
        gate, up = g.linear(x, f"gate{name}", 37), g.linear(x, f"up{name}", 37)
        return g.glu(gate, up, activation), gate

    one, _ = branch(x, "1")
    two, _ = branch(g.norm(x, None, EPS), "2")
    x = g.add(x, g.add(g.linear(one, "down1", N_EMBD), g.linear(two, "down2", N_EMBD)))
    three, _ = branch(x, "1")
    x = g.add(x, g.linear(g.norm(three, "sub", EPS), "down1", N_EMBD))
    four, gate = branch(x, "2")
    five, _ = branch(x, "1", "gelu_tanh")
    x = g.add(x, g.linear(g.add(g.add(four, gate), five), "down2", N_EMBD))
    six, gate = branch(x, "1")
    return g.add(x, g.add(g.linear(six, "down1", N_EMBD), g.linear(gate, "down2", N_EMBD)))


def norm_of_queries(g: Graph, x: Value) -> Value:
    """Attention that normalises queries alone."""
    q, k, v = (g.linear(x, f"{name}0", heads * 16) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
    y = g.attention(q, k, v, layer=1, n_head=4, n_head_kv=2, rope=ROPE, q_norm="qn0", eps=EPS)
    return g.add(x, g.linear(y, "o0", N_EMBD))


def gate_of_attention(g: Graph, x: Value) -> Value:
    """Attention read by two products, one after another attention, which is gated before a third."""
    one = attend(g, x, 1)
    x = g.add(x, g.linear(one, "o0", N_EMBD))
    two = attend(g, x, 2)
    x = g.add(x, g.linear(g.gate(two, g.linear(x, "q0", 64)), "o0", N_EMBD))
    return g.add(x, g.linear(one, "other", N_EMBD))


AFTER = {
    "columns": after_attention(columns, wide=(84, N_EMBD), narrow=(N_EMBD, 40), joined=(N_EMBD, 105)),
    "norms": after_attention(
        norms, positions=(100, N_EMBD), types=(2, N_EMBD), square=SQUARE, norm=VECTOR, norm_bias=VECTOR, group=(14,)
    ),
    "overwriting": after_attention(overwriting, square=SQUARE, other=SQUARE),
    "gated": after_attention(
        gated, gate1=(37, N_EMBD), up1=(37, N_EMBD), gate2=(37, N_EMBD), up2=(37, N_EMBD), down1=(N_EMBD, 37),
        down2=(N_EMBD, 37), sub=(37,),
    ),
    "norm of queries": after_attention(norm_of_queries),
    "wide heads": attention(3, 1, 264, n=2, window=[7, 0]),
    "gate of attention": after_attention(gate_of_attention, other=(N_EMBD, 64)),
}  # fmt: skip
AFTER["columns"].shapes |= {"one": (1,), "many": VECTOR, "shift": VECTOR}


@pytest.mark.parametrize("name", slow_but(("columns", "norms", "overwriting", "gated"), AFTER))
def test_graphs(tmp_path: Path, name: str) -> None:
    compare(AFTER[name], tmp_path / "tensors.gguf", [1, 12, 3])


# ---- families


FAMILIES_RUN = (
    "gemma2", "gemma3_text", "lfm2", "qwen3_5_text", "mamba2", "falcon_h1", "nemotron_h_moe", "qwen3_next",
)  # fmt: skip


@pytest.mark.parametrize("kind", slow_but(("gemma2",), FAMILIES_RUN))
def test_families(tmp_path: Path, kind: str) -> None:
    """A prompt, then tokens one by one, past the window."""
    path = tmp_path / "model.gguf"
    windows = {"num_hidden_layers": 2, "sliding_window_pattern": 2} if kind.startswith("gemma") else {}
    convert(family_checkpoint(tmp_path, kind, **windows), "f16", path)
    tokens = np.random.default_rng(0).integers(0, 456, 21)
    device: Any = EmulatedDevice()
    with pytest.MonkeyPatch.context() as patch, GGUFFile(path) as file:
        patch.setattr(module, "compile_missing", lambda *_: [])
        graph = Graph(file)
        logits = architecture_of(file).build(graph)
        expected = evaluate(graph, logits, tokens, np.arange(len(tokens)))
        program = plan(graph, logits, activation_dtype)
        assert unsupported(program) is None
        executor = module.CudaExecutor(
            program, file, n_ctx=64, n_slots=1, n_batch=18, notify=lambda _: None, device=device
        )
        for first, last in ((0, 18), (18, 19), (19, 20), (20, 21)):
            n = last - first
            executor.tokens[:n], executor.positions[:n] = tokens[first:last], np.arange(first, last)
            executor.outputs[:n] = np.arange(n)
            error = np.abs(executor.run(n, n) - expected[first:last]).max() / np.abs(expected).max()
            assert error < 5e-3
        executor.close()


# ---- what needs a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("name", [*SUPPORTED, *AFTER])
def test_graphs_on_a_gpu(gpu: None, tmp_path: Path, name: str) -> None:  # noqa: F811
    """Prompts of several tiles, too, and steps of all sizes that have graphs of their own."""
    from ggpy.cuda.driver import Device

    compare(AFTER.get(name) or CASES[name], tmp_path / "tensors.gguf", [1, 40, 3, 1, 8, 2, 9], Device())


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in CONFIGS])
def test_every_family(gpu: None, tmp_path: Path, kind: str, steps: str) -> None:  # noqa: F811
    path = tmp_path / "model.gguf"
    convert(family_checkpoint(tmp_path, kind), "f16", path)
    with GGUFFile(path) as file:
        program = planned(file, "cuda")
    reason = unsupported(program)
    if program.whole_sequences:
        pytest.skip("texts are evaluated whole: see test_cuda_encoders")
    if reason:
        pytest.skip(f"no kernels yet for {reason}")
    cpu, cuda = both(path, STEPS[steps], n_ctx=112)
    each = errors(cuda, cpu)
    mixed = any(isinstance(op.operation, ops.Route) for op in program.ops)
    if mixed and steps == "prompt":  # halves choose another expert where two are nearly as good: later tokens see that
        assert np.median(each) < 2e-2
    else:
        assert np.median(each) < (1e-3 if steps != "prompt" else 3e-3)
        assert np.quantile(each, 0.9 if mixed else 1.0) < 2e-2
