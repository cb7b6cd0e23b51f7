"""The CUDA backend: layouts and kernels compiled and emulated without a GPU, whole models with one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.cuda.l2_prefetch import L2Prefetch
from ggpy.cuda.lower import Attention, Product, lower, weight_groups
from ggpy.cuda.weights.cache_layout import AttentionShape, CacheLayout
from ggpy.cuda.weights.layout import READ_THREADS, SUMS, ActivationLayout, MatrixLayout, MatvecShape, ring_kib
from ggpy.cuda.weights.weights import Matrix, layout_of
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.quant.formats import PACKED
from ggpy.runtime.load import find_device
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.runtime.test_types import in_type
from tests.support.blocks import one_of_each, random_blocks, slow_but
from tests.support.reference import ReferenceModel
from tests.support.tiny import CONFIGS, tiny_checkpoint

QUANTIZED = [name for name, p in PACKED.items() if not p.is_float]
H100_SHARED = 227 << 10


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    convert(tiny_checkpoint(folder, "llama", dtype="f32"), "f32", folder / "f32.gguf")
    return folder / "f32.gguf"


# ---- what needs neither GPU nor compiler


@pytest.mark.parametrize("name", PACKED)
def test_planes_lie_apart_and_aligned(name: str) -> None:
    for n_cols in (32, 256, 2048, 5504) if not PACKED[name].super_scales else (256, 2048, 5632):
        layout = MatrixLayout(PACKED[name], 7, n_cols)
        end = 0
        for plane in (layout.codes, layout.high, layout.scales, layout.supers):
            assert plane.offset == end
            assert plane.stride % 16 == 0
            end += -(-7 * plane.stride // 256) * 256
        assert layout.n_bytes == end


def test_two_kernels_of_decoding_find_room_on_a_multiprocessor() -> None:
    for name in QUANTIZED:
        for n_cols in (2048, 4096, 11008):
            shape = MatvecShape(
                PACKED[name], n_cols if not PACKED[name].super_scales else 11264, 1, ring_kib(H100_SHARED)
            )
            assert shape.slots >= 2
            assert 2 * (shape.shared_bytes + 1024) <= 228 << 10


def test_products_of_the_same_activations_become_one(plain: Path) -> None:
    with GGUFFile(plain) as file:
        program = planned(file, "cuda")
        products = [step for step in lower(program) if isinstance(step, Product)]
        assert [len(product.linears) for product in products[:4]] == [3, 1, 2, 1]  # qkv, output, gate and up, down
        assert [product.swiglu is not None for product in products[:4]] == [False, False, True, False]
        names = [info.name for group in weight_groups(lower(program)) for info in group]
        assert len(names) == len(set(names))
        assert set(names) == {info.name for info in file.tensors.values() if len(info.shape) == 2}


def test_what_is_brought_near_are_weights_that_follow(plain: Path) -> None:
    device = SimpleNamespace(can_overlap=True, l2_bytes=50 << 20, n_multiprocessors=4, shared_limit=H100_SHARED)
    with GGUFFile(plain) as file:
        steps = [step for step in lower(planned(file, "cuda")) if isinstance(step, Product | Attention)]
    products = [step for step in steps if isinstance(step, Product)]
    weights = SimpleNamespace(matrix=lambda infos: Matrix(layout_of(infos), places[infos[0].name], ()))
    places, at = {}, 1 << 20
    for product in products:
        places[product.infos[0].name] = at
        at += layout_of(product.infos).n_bytes
    ahead = L2Prefetch(device, weights, steps)  # type: ignore[arg-type]
    asked = 0
    for index, step in enumerate(steps):
        n_warps = 7
        if isinstance(step, Attention):
            address, too, piece = ahead.of_attention(step, n_warps)
            following = steps[(index + 2) % len(steps)]  # while it is at work, the product after it has begun
        else:
            address, too, piece = ahead.of_product(step, n_warps)
            following = steps[(index + 1) % len(steps)]
        if not piece:
            continue
        asked += 1
        assert isinstance(following, Product)
        layout, start = layout_of(following.infos), places[following.infos[0].name]
        half = layout.n_rows // 2 * layout.codes.stride
        assert piece % 16 == 0
        assert start <= address
        assert (too == address + half) if following.swiglu else too == 0
        assert (too or address) + n_warps * piece <= start + layout.n_rows * layout.codes.stride
        if too:
            assert address + n_warps * piece <= start + half
    assert asked > len(products) // 4
    device.can_overlap = False
    assert not any(ahead.of_product(product, 1)[2] for product in products)


def test_a_device_is_named_as_it_should() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device("cuda:1") == "cuda:1"
    for wrong in ("gpu", "cuda:", "cuda:x", ""):
        with pytest.raises(GGPYError, match="it must be 'cpu'"):
            find_device(wrong)


# ---- what needs the compiler


def need_compiler() -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")


@pytest.mark.parametrize("cc", [(9, 0), (8, 0)])
def test_kernels_compile_and_keep_to_registers(cc: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler()
    from ggpy.cuda import compile as compiler

    to_ptx = cache(compiler.to_ptx)  # once for what it says, and for what is made of it
    monkeypatch.setattr(compiler, "to_ptx", to_ptx)

    names = {
        "matvec.Q4_0.2048.1.norm.swiglu.96": "dp4a.s32.s32",
        "matvec.Q6_K.2048.2.ready.rows.96": "cp.async.cg",
        "matvec.IQ4_XS.2048.1.norm.rows.96": "dp4a.s32.s32",
        "matvec.Q2_K.2048.8.ready.rows.96": "dp4a.s32.s32",
        "matvec.Q4_0.2048.1.plain.push2.96": "st.volatile.global.v2",
        "expert_matvec.Q4_0.2048.8.norm.silu_glu.96": "dp4a.s32.s32",
        "expert_matvec.MXFP4.2880.4.joined.sum.96": "dp4a.s32.s32",
        "all_reduce.pushed.2": "ld.volatile.global.v4",
        "all_reduce.pulled.4": "ld.acquire.sys",
        "pack.IQ2_S": "",
        "attention.16.1.turn.f16.64": "ex2.approx",
        "attention.16.1.turn.q8_0.64": "ex2.approx",
        "rope_store.q8_0": "",
        "matrix_rate.warp": "mma.sync",
        "read": "L1::no_allocate.v4",
    }
    if cc == (9, 0):
        names["matrix_rate.group"] = "wgmma.mma_async"
    for name, instruction in names.items():
        text, _ = to_ptx(name, cc)
        assert instruction in text
        assert ("griddepcontrol.wait" in text) == (cc >= (9, 0) and not name.startswith(("pack", "matrix", "read")))
        assert ".local" not in text
        made = compiler.compile_kernel(name, cc)
        # For Ampere the same attention takes twelve words more than the 64 registers of two blocks a multiprocessor, of
        # a cache in 8 bits fourteen, and experts' gate and up four.
        spilled = {
            "attention.16.1.turn.f16.64": 48, "attention.16.1.turn.q8_0.64": 56,
            "expert_matvec.Q4_0.2048.8.norm.silu_glu.96": 16,
        } if cc < (9, 0) else {}  # fmt: skip
        assert made.stack <= spilled.get(name, 0)
        assert made.registers * made.threads <= 65536


def test_the_reading_kernel_reads_everything() -> None:
    need_compiler()
    from tests.support.emulated_device import EmulatedDevice

    device, blocks = EmulatedDevice(), 3
    data = np.random.default_rng(0).integers(0, 2**32, 4 * (4 * blocks * READ_THREADS + 77), dtype=np.uint32)
    sums = np.zeros(blocks * READ_THREADS, np.uint32)
    start, out = device.memory_map.add(data), device.memory_map.add(sums)
    device.kernel("read").launch(blocks, start, len(data) // 4, 2, out)
    assert sums.sum(dtype=np.uint32) == np.uint32(2 * data.sum(dtype=np.uint64) % 2**32)


def emulated(name: str, n_rows: int = 5, n_cols: int = 512) -> tuple[Any, np.ndarray]:
    """A matrix of that type packed by its kernel on the emulated device, and its weights."""
    from tests.support.emulated_device import EmulatedDevice

    layout = MatrixLayout(PACKED[name], n_rows, n_cols)
    form = FORMATS[name]
    raw = random_blocks(name, n_rows * n_cols // form.block_size).reshape(n_rows, -1)
    device = EmulatedDevice()
    to, of = device.allocate(layout.n_bytes, zero=True), device.allocate(raw.nbytes)
    device.upload(of, raw.ctypes.data, raw.nbytes)
    planes = layout.codes, layout.high, layout.scales, layout.supers
    addresses = [to + plane.offset for plane in planes]
    strides = [plane.stride for plane in planes]
    if PACKED[name].is_float:
        device.kernel(f"pack.{name}").launch(
            n_rows * n_cols // 256, of, raw.shape[1], n_rows, n_cols, addresses[0], strides[0]
        )
    else:
        grid = -(-n_rows * layout.n_blocks // 256)
        device.kernel(f"pack.{name}").launch(grid, of, raw.shape[1], n_rows, layout.n_blocks, *addresses, *strides)
    return (device, layout, addresses, strides), form.dequantize(raw)


@pytest.mark.parametrize(
    "name", slow_but(("Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "IQ2_S", "F16"), [*QUANTIZED, "F16", "F32"])
)
def test_packed_rows_are_read_back_exactly(name: str) -> None:
    need_compiler()
    (device, layout, addresses, strides), weights = emulated(name)
    tokens = np.array([3, 0, 4], np.int32)
    out = np.full((3, 512), np.nan, np.float32)
    at, to = device.memory_map.add(tokens), device.memory_map.add(out)
    device.kernel(f"embed.{name}").launch(3, at, 0, *addresses, *strides, layout.n_blocks, 512, to, 2048)
    assert np.allclose(out, weights[tokens], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", slow_but(("Q4_0", "Q4_K", "IQ4_NL", "F16"), one_of_each([*QUANTIZED, "F16", "F32"])))
def test_products_with_vectors(name: str) -> None:
    need_compiler()
    (device, _, addresses, strides), weights = emulated(name)
    x = np.random.default_rng(2).standard_normal((2, 512)).astype(np.float32)
    dtype = "f32" if PACKED[name].is_float else "q8"
    activations = ActivationLayout(dtype, 2, 512)
    at = device.allocate(activations.n_bytes)
    scales = at + activations.scales_at
    src = device.memory_map.add(x)
    stride, scale_stride = activations.code_stride, activations.scale_stride
    device.kernel(f"activations.{dtype}.512").launch(
        2, src, 2048, 0, 0, -1.0, at, stride, scales, scale_stride, shared=SUMS
    )
    ring = ring_kib(device.shared_limit)
    shape = MatvecShape(PACKED[name], 512, 2, ring)
    out = np.full((2, 5), np.nan, np.float32)
    device.kernel(f"matvec.{name}.512.2.ready.rows.{ring}").launch(
        1, *addresses, *strides, 5, 0, at, stride, scales, scale_stride, 0, -1.0, 0,
        device.memory_map.add(out), 20, 0, 0, 0, 0, 0, shared=shape.shared_bytes,
    )  # fmt: skip
    if dtype == "q8":
        blocks = x.reshape(2, 16, 32)
        scale = np.abs(blocks).max(2, keepdims=True) / 127
        x = (np.rint(blocks / scale) * scale).reshape(2, 512)
    expected = x @ weights.T
    assert np.abs(out - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_product_brings_what_follows_near() -> None:
    need_compiler()
    from ggpy.cuda.compile import to_ptx
    from tests.support.ptx_emulator import launch
    from tests.support.ptx_text import parse

    (device, _, addresses, strides), weights = emulated("Q4_0")
    x, out = np.random.default_rng(2).standard_normal(512).astype(np.float32), np.full(5, np.nan, np.float32)
    following = np.zeros(16 * 5 * 32, np.uint8)  # as much as the warps that have rows ask for
    add = device.memory_map.add
    shape = MatvecShape(PACKED["Q4_0"], 512, 1, 16)
    entry = parse(to_ptx("matvec.Q4_0.512.1.plain.rows.16", (9, 0))[0])

    def run(piece: int) -> None:
        arguments = [*addresses, *strides, 5, 0, add(x), 0, 0, 0, 0, -1.0, 0, add(out), 0, 0, 0]
        arguments += [add(following), 0, piece]
        launch(entry, device.memory_map, (1,), shape.threads, arguments, shape.shared_bytes)

    run(following.nbytes // 5 // 16 * 16)
    assert np.abs(out - weights @ x).max() < 2e-2 * np.abs(weights @ x).max()
    with pytest.raises(MemoryError, match="outside"):
        run(following.nbytes // 4 // 16 * 16)


@pytest.mark.parametrize("turning", ["turn", "turned"])
def test_attention_of_single_tokens(turning: str) -> None:
    need_compiler()
    from tests.support.emulated_device import EmulatedDevice

    n_head, head_dim, position, half = 2, 24, 13, 8
    cache = CacheLayout(2, 1, 64, head_dim)
    shape = AttentionShape(cache, n_head, 64)
    rng = np.random.default_rng(3)
    device = EmulatedDevice()
    add = device.memory_map.add
    q, k, v = (rng.standard_normal((1, n, head_dim)).astype(np.float32) for n in (n_head, 1, 1))
    cells = [np.zeros((2, 1, cache.cells, cache.head_pad), np.float16) for _ in range(2)]
    for cell in cells:
        cell[1, 0, : position + (turning == "turned"), :head_dim] = rng.standard_normal((head_dim,))
        cell[1, 0, :position, :head_dim] = rng.standard_normal((position, head_dim))
    angle = np.arange(64)[:, None] * np.linspace(1.0, 0.1, half)
    angles = np.stack([np.cos(angle), np.sin(angle)], 2).astype(np.float32)
    header, slots, positions = (np.array([n], np.int32) for n in (1, 1, position))
    parts = np.full((n_head, cache.part_bytes // 4), np.nan, np.float32)
    device.kernel(shape.kernel(turning == "turn")).launch(
        (1, n_head // shape.group, 1), add(q), 0, add(k), 0, add(v), 0, 0, 0, 0.0, add(angles), half, 1,
        add(header), add(slots), add(positions), n_head, 1, head_dim, add(cells[0]), add(cells[1]),
        cache.cells, cache.head_pad, 0, head_dim**-0.5 * 1.4426950408889634, 0, add(parts), cache.part_bytes, 0, 0, 0,
        shared=shape.shared_bytes,
    )  # fmt: skip
    if turning == "turn":
        for x in (q, k):
            c, s = angles[position, :, 0], angles[position, :, 1]
            one, other = x[..., :half].copy(), x[..., half : 2 * half].copy()
            x[..., :half], x[..., half : 2 * half] = one * c - other * s, one * s + other * c
        assert np.allclose(cells[0][1, 0, position, :head_dim], k[0, 0], atol=2e-3)
        assert np.allclose(cells[1][1, 0, position, :head_dim], v[0, 0], atol=2e-3)
    keys, values = (cell[1, 0, : position + 1, :head_dim].astype(np.float32) for cell in cells)
    scores = q[0] @ keys.T * head_dim**-0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = weights @ values / weights.sum(1, keepdims=True)
    assert np.allclose(parts[:, 4 : 4 + head_dim] / parts[:, 1:2], expected, atol=1e-4)


def emulated_logits(path: Path, ids: list[int], **options: str) -> np.ndarray:
    """The logits after each token, by the very code that a GPU runs: float32 [n_tokens, n_vocab]."""
    from ggpy.cuda import executor as module
    from tests.support.emulated_device import EmulatedDevice

    device: Any = EmulatedDevice()
    with pytest.MonkeyPatch.context() as patch, GGUFFile(path) as file:
        patch.setattr(module, "compile_missing", lambda *_: [])
        program = planned(file, "cuda")
        x = module.CudaExecutor(
            program, file, n_ctx=256, n_slots=1, n_batch=8, notify=lambda _: None, device=device, **options
        )
        logits = []
        for position, token in enumerate(ids):
            x.positions[0], x.tokens[0] = position, token
            logits.append(x.run(1, 1)[0].copy())
        x.close()
    return np.array(logits)


def test_a_whole_model_on_the_emulator(tmp_path: Path) -> None:
    """The smallest model with norms of heads."""
    need_compiler()
    path = tmp_path / "qwen3.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32"), "q4_0", path)
    ids = [7, 300]
    expected = ReferenceModel(path, int8_activations=True, half_cache=True, int8_logits=True).logits(ids)
    assert errors(emulated_logits(path, ids), expected).max() < 1e-5


# ---- what needs a GPU


@pytest.fixture
def gpu() -> None:
    from ggpy.cuda.driver import usable

    if not usable():
        pytest.skip("no NVIDIA GPU that can be used")


def both(
    path: Path, batches: list[int], n_slots: int = 1, n_ctx: int = 256, **options: str
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of some tokens in one slot by the CPU and by the GPU, cut into steps of these sizes."""
    n = sum(batches)
    ids = np.random.default_rng(1).integers(0, 456, n).astype(np.int32)
    found = []
    for device in ("cpu", "cuda"):
        with GGUFFile(path) as file:
            runtime = Runtime(file, n_ctx, n_slots=n_slots, n_threads=2, device=device, **options)
            rows, at = [], 0
            for size in batches:
                positions = np.arange(at, at + size, dtype=np.int32)
                piece = ids[at : at + size]
                rows.append(runtime.step(piece, np.zeros(size, np.int32), positions, np.arange(size)).copy())
                at += size
            runtime.close()
        found.append(np.concatenate(rows))
    return found[0], found[1]


def errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


STEPS = {"tokens": [1] * 21, "few": [2, 3, 5, 8, 3], "prompt": [70, 40, 1]}


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture(gpu: None, tmp_path: Path, kind: str, steps: str) -> None:
    path = tmp_path / "model.gguf"
    convert(tiny_checkpoint(tmp_path, kind, dtype="f32"), "f16", path)
    cpu, cuda = both(path, STEPS[steps])
    # Prompts go through half precision: operands of 11 bits, in which a token's own sums may cancel.
    assert np.median(errors(cuda, cpu)) < (1e-3 if steps != "prompt" else 2e-3)
    assert errors(cuda, cpu).max() < 1e-2


@pytest.mark.cuda
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", [*QUANTIZED, "F64"])
def test_every_type(gpu: None, plain: Path, name: str, steps: str) -> None:
    cpu, cuda = both(in_type(plain, name), STEPS[steps])
    each = errors(cuda, cpu)
    assert np.isfinite(each).all()
    if name not in PACKED or steps == "prompt":  # no rounding of activations, as the CPU has: its noise is between them
        assert np.median(each) < 5e-2
    else:  # the very same rounding, but for activations on its edge
        assert each.min() < 1e-5
        assert np.median(each) < 2e-2


@pytest.mark.cuda
def test_many_sequences_are_each_as_alone(gpu: None, plain: Path) -> None:
    path = in_type(plain, "Q4_0")
    rng = np.random.default_rng(4)
    with GGUFFile(path) as file:
        runtime = Runtime(file, 64, n_slots=20, device="cuda")
        for n in (2, 3, 8, 20):
            ids = rng.integers(0, 456, (6, n)).astype(np.int32)
            slots, outputs = np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32)
            for i in range(6):
                together = runtime.step(ids[i], slots, np.full(n, i, np.int32), outputs).copy()
            for slot in range(0, n, 3):
                for i in range(6):
                    one, zero = ids[i, slot : slot + 1], np.zeros(1, np.int32)
                    alone = runtime.step(one, zero, np.full(1, i, np.int32), zero)[0].copy()
                error = np.linalg.norm(together[slot] - alone) / np.linalg.norm(alone)
                assert error < (2e-2 if n <= 8 else 5e-2)
        runtime.close()


def compare_greedy_text(path: Path, **options: Any) -> None:
    """The CPU's text and that of a model opened with these options are the same, up to a token where the CPU's logits
    of both specs are as near each other as halves round."""
    from ggpy import LLM, SamplingParams

    answers = []
    for chosen in ({}, options):
        with LLM(path, n_ctx=128, **chosen) as llm:
            prompts = ["The capital of France is", "Once upon a time"]
            answers.append(llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24)))
    with GGUFFile(path) as file:
        runtime = Runtime(file, 128)
        for one, other in zip(*answers, strict=True):
            ours, theirs = one.outputs[0].token_ids, other.outputs[0].token_ids
            same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if same is None:
                assert ours == theirs
                continue
            ids = [*one.prompt_token_ids, *ours[:same]]
            row = runtime.step(ids, [0] * len(ids), range(len(ids)), [len(ids) - 1])[0]
            assert abs(row[ours[same]] - row[theirs[same]]) < 1e-2 * row.std()
        runtime.close()


@pytest.mark.cuda
def test_greedy_text_is_the_same(gpu: None, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen2", dtype="f32"), "f16", path)
    compare_greedy_text(path, device="cuda")


@pytest.mark.cuda
def test_too_large_a_context_is_told(gpu: None, plain: Path) -> None:
    from ggpy import LLM

    with pytest.raises(GGPYError, match="of memory are free"):
        LLM(plain, n_ctx=1 << 30, device="cuda")
