"""Mixtures of experts on a GPU, by the very code that it runs: the choice of experts, the products of those chosen for
few tokens and for many, and models of them; against numpy, and on a card against the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
pytest.importorskip("cuda.bindings")

from ggpy.convert.pipeline import convert
from ggpy.cuda import executor as module
from ggpy.cuda.compile import to_ptx
from ggpy.cuda.ops.matmul.launch import TILINGS, most_tiles
from ggpy.cuda.ops.matmul.layout import HalfActivations
from ggpy.cuda.weights.layout import SUMS, ActivationLayout, ExpertShape, ring_kib, route_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.tensor_parallel import Rank, shard
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import Packed
from tests.cuda.test_cuda import STEPS, both, emulated, errors, gpu  # noqa: F401
from tests.cuda.test_cuda_invariant import running
from tests.cuda.test_cuda_matmul import difference, half_activations, random_matrix
from tests.cuda.test_cuda_operations import ATTENTION, compare, programmed
from tests.graph.test_operations import CASES, SHAPES, Case
from tests.support.blocks import one_of_each, slow_but
from tests.support.emulated_device import EmulatedDevice
from tests.support.hf_families_moe import CASES as FAMILIES
from tests.support.ptx_emulator import launch
from tests.support.ptx_text import parse
from tests.support.tensors import write_tensors

# ---- the choice of experts

# experts, used, gating, groups, groups used, best of a group that count, normalised; with a bias, with a factor an
# expert
ROUTES = [
    (7, 3, "softmax", 0, 0, 0, False, False, False),
    (130, 8, "softmax", 0, 0, 0, True, False, True),
    (33, 4, "softmax", 0, 0, 0, False, True, False),
    (5, 5, "softmax_topk", 0, 0, 0, False, True, False),
    (64, 6, "sigmoid", 8, 3, 2, True, True, False),
    (160, 6, "softmax", 8, 3, 1, False, False, False),
    (6, 2, "sigmoid", 6, 4, 2, False, False, True),
    (1, 1, "sigmoid", 0, 0, 0, False, False, False),
]


def chosen_in_numpy(
    logits: np.ndarray, bias: np.ndarray, n_used: int, gating: str, n_groups: int, n_groups_used: int, n_best: int
) -> tuple[np.ndarray, np.ndarray]:
    """The experts, and everyone's weight before it is normalised."""
    weights = {
        "softmax": np.exp(logits - logits.max(1, keepdims=True)), "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax_topk": logits,
    }[gating]  # fmt: skip
    if gating == "softmax":
        weights = weights / weights.sum(1, keepdims=True)
    scores = weights + bias
    if n_groups:
        groups = scores.reshape(len(scores), n_groups, -1)
        best = np.sort(groups, -1)[..., -n_best:].sum(-1)
        kept = np.argsort(-best, 1, kind="stable")[:, :n_groups_used]
        inside = np.zeros_like(best, bool)
        np.put_along_axis(inside, kept, True, 1)
        scores = np.where(inside[..., None], groups, -np.inf).reshape(scores.shape)
    return np.argsort(-scores, 1, kind="stable")[:, :n_used], weights


@pytest.mark.parametrize(
    ("n_experts", "n_used", "gating", "n_groups", "n_groups_used", "n_best", "normalize", "biased", "scaled"), ROUTES
)
def test_route(
    n_experts: int, n_used: int, gating: str, n_groups: int, n_groups_used: int, n_best: int, normalize: bool,
    biased: bool, scaled: bool,
) -> None:  # fmt: skip
    """Every other token's logits, and the biases, are whole numbers, many of them equal: the lower expert is first."""
    rng, device = np.random.default_rng(n_experts), EmulatedDevice()
    add, n = device.memory_map.add, 9
    logits = np.full((n, n_experts + 3), np.nan, np.float32)
    logits[:, :n_experts] = 3 * rng.standard_normal((n, n_experts))
    logits[::2] = np.round(logits[::2])
    bias = rng.integers(0, 3, n_experts).astype(np.float32) if biased else np.zeros(n_experts, np.float32)
    each = rng.uniform(0.5, 2, n_experts).astype(np.float32)
    out = np.full((n, 2 * n_used + 1), -1, np.int32)
    name = f"route.{n_experts}.{n_used}.{gating}.{n_groups}.{n_groups_used}.{n_best}.{int(normalize)}"
    device.kernel(name).launch(
        n, add(logits), logits.strides[0], add(bias) if biased else 0, add(each) if scaled else 0, 1.5, add(out),
        out.strides[0], shared=route_bytes(n_experts, n_used, n_groups),
    )  # fmt: skip
    logits = logits[:, :n_experts]
    experts, weights = chosen_in_numpy(logits, bias, n_used, gating, n_groups, n_groups_used, n_best)
    assert (out[:, :n_used] == experts).all()
    expected = np.take_along_axis(weights.astype(np.float64), experts, 1)
    if gating == "softmax_topk":
        expected = np.exp(expected - expected.max(1, keepdims=True))
    if normalize or gating == "softmax_topk":
        expected /= expected.sum(1, keepdims=True)
    expected = 1.5 * expected * (each[experts] if scaled else 1.0)
    assert np.allclose(out[:, n_used : 2 * n_used].view(np.float32), expected, rtol=1e-5, atol=0)
    assert (out[:, -1] == -1).all()


def test_experts_are_chosen_whatever_the_logits_are() -> None:
    """No number may lead a kernel outside the experts' weights."""
    device, logits = EmulatedDevice(), np.full((3, 7), np.nan, np.float32)
    logits[1:] = np.inf
    logits[2, 3:] = -np.inf
    out = np.full((3, 6), -1, np.int32)
    device.kernel("route.7.3.softmax.0.0.0.1").launch(
        3, device.memory_map.add(logits), 28, 0, 0, 1.0, device.memory_map.add(out), 24, shared=route_bytes(7, 3, 0)
    )
    assert ((out[:, :3] >= 0) & (out[:, :3] < 7)).all()
    assert all(len(set(row)) == 3 for row in out[:, :3].tolist())


# ---- products


N_EXPERTS, N_USED, N_TOKENS = 3, 2, 2
ROUTE = [[2, 0], [2, 1]]  # the experts of two tokens


def routed(rng: np.random.Generator, experts: np.ndarray) -> np.ndarray:
    """Rows as `route` leaves them: the experts, their weights, and what pads a row."""
    rows = np.full((len(experts), 2 * experts.shape[1] + 3), -1, np.int32)
    rows[:, : experts.shape[1]] = experts
    rows[:, experts.shape[1] : -3] = rng.uniform(0.5, 2, experts.shape).astype(np.float32).view(np.int32)
    return rows


def rounded(x: np.ndarray, packed: Packed) -> np.ndarray:
    """Activations as products with few tokens read them."""
    if packed.is_float:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.rint(blocks / scale) * scale).reshape(x.shape)


@pytest.mark.parametrize(
    "name", slow_but(("MXFP4", "F16"), one_of_each([name for name in PACKED if name not in ("BF16", "F32")]))
)
def test_vectors_of_experts(name: str) -> None:
    """Gate and up of two tokens, made activations; then down of the experts of one, whose 16 blocks a row end within a
    chunk, summed up on top of what was there."""
    packed, n_cols, n_rows = PACKED[name], 512, 5
    (device, _, addresses, strides), weights = emulated(name, N_EXPERTS * 2 * n_rows, n_cols)
    rng, add, ring = np.random.default_rng(3), device.memory_map.add, ring_kib(device.shared_limit)
    chosen = np.array(ROUTE)
    route = routed(rng, chosen)
    bias = rng.standard_normal((N_EXPERTS, 2 * n_rows)).astype(np.float32)
    weights = weights.reshape(N_EXPERTS, 2 * n_rows, n_cols).astype(np.float64)
    x, dtype = rng.standard_normal((N_TOKENS, n_cols)).astype(np.float32), "f32" if packed.is_float else "q8"
    layout = ActivationLayout(dtype, N_TOKENS, n_cols)
    at = device.allocate(layout.n_bytes)
    made = at, layout.code_stride, at + layout.scales_at, layout.scale_stride
    device.kernel(f"activations.{dtype}.{n_cols}").launch(
        N_TOKENS, add(x), x.strides[0], 0, 0, -1.0, at, layout.code_stride, *made[2:], shared=SUMS
    )
    out = np.full((N_TOKENS * N_USED, n_rows + 1), np.nan, np.float32)
    shape = ExpertShape(packed, n_cols, N_USED, "tokens", ring)
    device.kernel(f"expert_matvec.{name}.{n_cols}.{N_USED}.tokens.silu_glu.{ring}").launch(
        1, *addresses, *strides, N_TOKENS, 0, n_rows, 2 * n_rows, add(route), route.strides[0], *made, 0, -1.0,
        add(bias), add(out), out.strides[0], 0, 0, 0, 0, 0, shared=shape.shared_bytes(N_TOKENS),
    )  # fmt: skip
    products = np.einsum("tjrc,tc->tjr", weights[chosen], rounded(x, packed)) + bias[chosen]
    gate, up = products[..., :n_rows], products[..., n_rows:]
    expected = (gate / (1 + np.exp(-gate)) * up).reshape(-1, n_rows)
    assert np.abs(out[:, :n_rows] - expected).max() < 1e-4 * np.abs(expected).max()

    rows = rng.standard_normal((N_USED, n_cols)).astype(np.float32)
    plus = rng.standard_normal(2 * n_rows).astype(np.float32)
    total, there = np.full((2, 2 * n_rows), np.nan, np.float32), np.array([1], np.int32)
    shape = ExpertShape(packed, n_cols, N_USED, "joined", ring)
    device.kernel(f"expert_matvec.{name}.{n_cols}.{N_USED}.joined.sum.{ring}").launch(
        1, *addresses, *strides, 2, add(there), 2 * n_rows, 2 * n_rows, add(route), route.strides[0], add(rows), 0, 0,
        0, 0, -1.0, add(bias), add(total), total.strides[0], add(plus), 0, 0, 0, 0, shared=shape.shared_bytes(2),
    )  # fmt: skip
    products = np.einsum("jrc,jc->jr", weights[chosen[0]], rounded(rows, packed)) + bias[chosen[0]]
    expected = route[0, N_USED : 2 * N_USED].view(np.float32) @ products + plus
    assert np.abs(total[0] - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.isnan(total[1]).all()  # only one token was there


@pytest.mark.parametrize("spread", [True, False])
def test_tiles_of_experts(spread: bool) -> None:
    """As many tokens of an expert as fill two tiles, of others one or none; a Hopper tile, which waits in pairs."""
    name, tiling, n_tokens, n_used, n_experts, n_rows, n_cols = "Q4_0", "64x32hps4", 37, 2, 5, 70, 288
    rng, device, shape = np.random.default_rng(4), EmulatedDevice(), TILINGS["64x32hps4"]
    add = device.memory_map.add
    chosen = np.stack([np.full(n_tokens, 3), np.where(np.arange(n_tokens) == 5, 1, 4)], 1)
    route = routed(rng, chosen)
    order, most = np.full(n_tokens * n_used, -1, np.int32), most_tiles(n_tokens * n_used, n_experts, shape.tokens)
    tiles = np.full((1 + most, 4), -1, np.int32)
    device.kernel("group_experts").launch(
        1, add(route), route.strides[0], n_used, n_tokens, 0, n_experts, shape.tokens, add(order), add(tiles),
        shared=8 * n_experts,
    )  # fmt: skip
    assert sorted(order.tolist()) == list(range(n_tokens * n_used))
    assert tiles[0, 0] == 5
    assert tiles[1:6, :3].tolist() == [[1, 0, 1], [3, 1, 32], [3, 33, 5], [4, 38, 32], [4, 70, 4]]
    flat = chosen.reshape(-1)
    assert flat[order].tolist() == sorted(flat.tolist())

    data, values = random_matrix(name, n_experts * n_rows, n_cols)
    rows = n_tokens if spread else n_tokens * n_used
    x = rng.standard_normal((rows, n_cols)).astype(np.float32)
    activations, bias = half_activations(x), rng.standard_normal((n_experts, n_rows)).astype(np.float32)
    out = np.full((n_tokens * n_used, n_rows + 2), np.nan, np.float32)
    base, memory = add(activations), device.memory_map
    entry = parse(to_ptx(f"matmul.{name}.{tiling}.experts", (9, 0))[0])
    arguments = [
        add(out), out.strides[0], base, base + HalfActivations(rows, n_cols).scales_at, add(data), add(bias),
        n_tokens * n_used, n_rows, n_cols, 0, add(order), add(tiles), n_used if spread else 1, n_experts,
    ]  # fmt: skip
    launch(entry, memory, (most, 2), shape.threads, arguments, shape.shared_bytes(PACKED[name], True))
    each = x.repeat(n_used, 0) if spread else x
    wanted = np.einsum("irc,ic->ir", values.reshape(n_experts, n_rows, n_cols)[flat], each) + bias[flat]
    assert difference(out[:, :n_rows], wanted) < 1e-3
    assert np.isnan(out[:, n_rows:]).all()


# ---- graphs


def mixture(case: Case) -> Case:
    """A case of `tests.graph.test_operations` after a layer of attention."""
    return Case({**ATTENTION.shapes, **case.shapes}, lambda g, x: case.build(g, ATTENTION.build(g, x)), case.types)


MIXTURES = {
    name: mixture(CASES[name])
    for name in (
        "experts by softmax", "experts with factors", "experts, chosen alone", "experts by sigmoid, bias, groups",
        "one expert", "a mixture of one", "experts by softmax, groups by their best", "experts without gates",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", slow_but(("experts by sigmoid, bias, groups", "experts without gates"), MIXTURES))
def test_mixtures(tmp_path: Path, name: str) -> None:
    compare(MIXTURES[name], tmp_path / "tensors.gguf", [1, 12, 3])


@pytest.mark.slow
def test_a_token_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    """Generated alone, together and beside others; in prompts of other lengths."""
    case, device = MIXTURES["experts, chosen alone"], EmulatedDevice()
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **case.shapes}, case.types)
    with pytest.MonkeyPatch.context() as patch, GGUFFile(tmp_path / "tensors.gguf") as file:
        patch.setattr(module, "compile_missing", lambda *_: [])
        executor: Any = module.CudaExecutor(
            programmed(case, file)[2], file, n_ctx=32, n_slots=4, n_batch=12, notify=lambda _: None, device=device,
            batch_invariant=True,
        )  # fmt: skip

        def logits(tokens: list[int], slots: list[int], positions: list[int], generated: bool) -> np.ndarray:
            n = len(tokens)
            executor.tokens[:n], executor.slots[:n], executor.positions[:n] = tokens, slots, positions
            executor.outputs[:n] = np.arange(n)
            return np.array(executor.run(n, n, generated))

        alone = logits([7], [0], [0], True)
        assert np.array_equal(logits([3, 7, 5], [1, 2, 3], [0, 0, 0], True)[1:2], alone)
        tokens = list(range(2, 12))
        whole = logits(tokens, [0] * 10, list(range(10)), False)
        assert np.array_equal(logits(tokens[:3], [1] * 3, [0, 1, 2], False), whole[:3])
        assert np.array_equal(logits(tokens[3:4], [1], [3], False), whole[3:4])
        executor.close()


def test_splitting_rows_of_a_mixture_is_refused(tmp_path: Path) -> None:
    case = MIXTURES["experts by softmax"]
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **case.shapes})
    with GGUFFile(tmp_path / "tensors.gguf") as file:
        graph, logits, _ = programmed(case, file)
        with pytest.raises(GGPYError, match=r"mixtures of experts are not divided by rows yet; .*--split-mode layer"):
            shard(graph, logits, Rank(0, 2))


# ---- what needs a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_on_a_gpu(gpu: None, tmp_path: Path, name: str) -> None:  # noqa: F811
    """Prompts of several tiles, too, and steps of all sizes that have graphs of their own."""
    from ggpy.cuda.driver import Device

    compare(MIXTURES[name], tmp_path / "tensors.gguf", [1, 40, 3, 1, 8, 2, 9], Device())


def converted(folder: Path, name: str, to: str) -> Path:
    FAMILIES[name].write(folder)
    convert(folder, to, folder / "model.gguf", note=lambda _: None)
    return folder / "model.gguf"


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("qwen3moe, whole blocks", "q4_0"), ("qwen3moe, whole blocks", "q8_0"), ("qwen3moe, four used", "f16"),
        ("qwen3moe, a dense layer", "f16"), ("qwen3moe, fused", "f16"), ("gpt-oss, mxfp4", "q8_0"),
        ("gpt-oss, two used", "f16"),
    ],
)  # fmt: skip
def test_models_of_experts(gpu: None, tmp_path: Path, name: str, to: str, steps: str) -> None:  # noqa: F811
    """Rounding may choose another expert where two are as good, but of few tokens. Of prompts the CPU alone rounds
    activations to 8 bits, which is most of what lies between them."""
    cpu, cuda = both(converted(tmp_path, name, to), STEPS[steps], n_ctx=112)
    each = errors(cuda, cpu)
    assert np.isfinite(each).all()
    assert np.median(each) < (3e-3 if to == "f16" else 0.15 if steps == "prompt" else 5e-2)


@pytest.mark.cuda
def test_a_mixture_has_the_same_bits_in_any_batch_on_a_gpu(gpu: None, tmp_path: Path) -> None:  # noqa: F811
    n, ids = 40, np.random.default_rng(1).integers(0, 456, (16, 41))
    with running(converted(tmp_path, "qwen3moe, whole blocks", "q4_0"), 16, 64) as runtime:
        for slot in range(16):
            runtime.step(ids[slot, :n], [slot] * n, range(n), [])
        alone = runtime.step(ids[3, n:], [3], [n], [0], 1)[0].copy()
        for size in (2, 8, 9, 16):
            slots = [3, *(slot for slot in range(16) if slot != 3)][:size]
            rows = runtime.step(ids[slots, n], slots, [n] * size, range(size), size)
            assert np.array_equal(rows[0], alone)
        whole = runtime.step(ids[5, :n], [5] * n, range(n), range(n)).copy()
        for size in (1, 7, 33):
            for at in range(0, n, size):
                part = range(at, min(n, at + size))
                assert np.array_equal(runtime.step(ids[5, part], [5] * len(part), part, range(len(part))), whole[part])
