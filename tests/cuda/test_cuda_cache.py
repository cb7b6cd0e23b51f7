"""The cache of keys and values on a GPU, in half precision and in 8 bits: stored and read by kernels that the emulator
runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.support import odd

pytest.importorskip("numba_cuda")
pytest.importorskip("cuda.bindings")

from ggpy.convert.pipeline import convert
from ggpy.cpu.isa.layout import cache_types
from ggpy.cuda import executor as executor_module
from ggpy.cuda.compile import compile_kernel, to_ptx
from ggpy.cuda.ops.flash.layout import FlashShape, WideShape
from ggpy.cuda.weights.cache_layout import AttentionShape, CacheLayout
from ggpy.cuda.weights.layout import LOG2_E
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.cache_types import cache_type
from ggpy.runtime.planned import planned
from tests.cuda.test_cuda import both, emulated_logits, errors
from tests.cuda.test_cuda_flash import attention as obvious_attention
from tests.support.blocks import slow_but
from tests.support.emulated_device import EmulatedDevice
from tests.support.ptx_emulator import launch
from tests.support.ptx_memory import Memory
from tests.support.ptx_text import parse
from tests.support.reference import ReferenceModel, q8_0
from tests.support.tiny import tiny_checkpoint

TYPES = ("f16", "q8_0", "q8_0-f16", "f16-q8_0")


def stored(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values [slots, kv heads, cells, dims] as `CacheLayout` lays them, and what these stand for."""
    if kind == "f16":
        halves = x.astype(np.float16)
        return halves.view(np.uint8).reshape(-1).copy(), halves.astype(np.float32)
    codes, scales, values = q8_0(x)
    heads = [a.reshape(*x.shape[:2], -1).view(np.uint8) for a in (codes, scales)]
    return np.concatenate(heads, 2).reshape(-1), values


def read(data: np.ndarray, cache: CacheLayout, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """`stored` backwards: codes (or halves), and what they stand for."""
    heads, dims = data[: data.size].reshape(cache.n_slots, cache.n_head_kv, -1), cache.head_pad
    if kind == "f16":
        found = heads.copy().view(np.float16).reshape(*heads.shape[:2], cache.cells, dims)
        return found, found.astype(np.float32)
    codes = heads[..., : cache.cells * dims].copy().view(np.int8).reshape(*heads.shape[:2], cache.cells, dims)
    scales = heads[..., cache.cells * dims :].copy().view(np.float16).reshape(*heads.shape[:2], cache.cells, -1)
    return codes, codes * scales.astype(np.float32).repeat(32, -1)


def angle_table(half: int, n: int = 64) -> np.ndarray:
    angle = np.arange(n)[:, None] * np.linspace(1.0, 0.1, half)
    return np.stack([np.cos(angle), np.sin(angle)], 2).astype(np.float32)


def turned(x: np.ndarray, angles: np.ndarray, neox: bool = True) -> np.ndarray:
    """A head [..., dims] at one position, whose angles [half][cosine, sine] are given: dimensions turn with the one
    `half` further on (neox), or with their neighbour."""
    half, x = len(angles), x.copy()
    first, second = (slice(0, half), slice(half, 2 * half)) if neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    one, other = x[..., first].copy(), x[..., second].copy()
    x[..., first], x[..., second] = (
        one * angles[:, 0] - other * angles[:, 1],
        one * angles[:, 1] + other * angles[:, 0],
    )
    return x


@pytest.mark.parametrize("types", slow_but(["f16", "q8_0"], TYPES))
def test_turned_and_stored(types: str) -> None:
    rng, head_dim, half = np.random.default_rng(0), 96, 16
    cache, angles = CacheLayout(2, 2, 64, head_dim, types), angle_table(half)
    device = EmulatedDevice()
    add = device.memory_map.add
    q, k, v = (rng.standard_normal((3, n, head_dim)).astype(np.float32) for n in (2, 2, 2))
    k[1] = 0.0
    wanted = [np.stack([turned(k[i], angles[p]) for i, p in enumerate((5, 6, 0))]), v.copy()]
    data = [np.zeros(n, np.uint8) for n in (cache.key_bytes, cache.value_bytes)]
    header, slots, positions = (np.array(n, np.int32) for n in ([3], [1, 1, 0], [5, 6, 0]))
    device.kernel(f"rope_store.{types}").launch(
        (1, 3), add(q), add(k), add(v), *(8 * head_dim,) * 3, 0, 0, 0.0, 0.0, add(angles), half, 1, 0, 0, 2, 2,
        head_dim, head_dim, add(header), add(slots), add(positions), add(positions), *map(add, data), cache.cells,
        cache.head_pad, cache.head_pad,
    )  # fmt: skip
    for array, kind, x in zip(data, cache_types(types), wanted, strict=True):
        codes, values = read(array, cache, kind)
        for token, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            expected = x[token].astype(np.float16) if kind == "f16" else q8_0(x[token])[0]
            found = codes[slot, :, position]
            assert np.abs(found.astype(np.float32) - expected).max() <= (1 if kind == "q8_0" else 2e-3)
            assert (found == expected).mean() > 0.9
            assert np.allclose(values[slot, :, position], x[token], atol=0.02 if kind == "q8_0" else 2e-3)


@pytest.mark.parametrize("types", ["f16", "q8_0"])
def test_what_is_cut_is_told(types: str) -> None:
    """Finite numbers become the largest that the cache holds, and the host finds out whether keys or values were."""
    rng, head_dim, device = np.random.default_rng(0), 32, EmulatedDevice()
    cache, add = CacheLayout(4, 1, 64, head_dim, types), device.memory_map.add
    told, angles = np.zeros(2, np.uint32), np.ones((64, 0, 2), np.float32)
    header, zero = np.zeros(16, np.int32), np.zeros(1, np.int32)
    header[0], header[4:6].view(np.uint64)[0] = 1, add(told)
    x, fine = (rng.standard_normal((1, 1, head_dim)).astype(np.float32) for _ in range(2))
    fine[0, 0, :3] = (60000, -65504, 65519) if types == "f16" else (60000, -65000, 65400)
    x[0, 0, :3] = 1e7, -3e38, 65520

    def launch_store(k: np.ndarray, v: np.ndarray, data: list[np.ndarray]) -> None:
        device.kernel(f"rope_store.{types}").launch(
            (1, 1), add(fine.copy()), add(k), add(v), *(4 * head_dim,) * 3, 0, 0, 0.0, 0.0, add(angles), 0, 1, 0, 0, 1,
            1, head_dim, head_dim, add(header), add(zero), add(zero), add(zero), *map(add, data), cache.cells,
            cache.head_pad, cache.head_pad,
        )  # fmt: skip

    for k, v, says in ((fine, fine, [0, 0]), (x, fine, [1, 0]), (fine, x, [0, 1])):
        told[:] = 0
        data = [np.zeros(n, np.uint8) for n in (cache.key_bytes, cache.value_bytes)]
        launch_store(k, v, data)
        assert told.tolist() == says
        for array, given in zip(data, (k, v), strict=True):
            _, found = read(array, cache, types)
            found, most = found[0, 0, 0], 65504 if types == "f16" else 127 * 515.5
            assert np.abs(np.clip(given, -most, most)[0, 0] - found).max() <= (16 if types == "f16" else 260)
            assert np.isfinite(found.astype(np.float16)).all()  # what prompts make of codes
    x[0, 0, 3], told[:] = np.nan, 0
    data = [np.zeros(n, np.uint8) for n in (cache.key_bytes, cache.value_bytes)]
    launch_store(x, x, data)
    with np.errstate(invalid="ignore"):
        assert all(np.isnan(read(array, cache, types)[1][0, 0, 0, 3]) for array in data)


ATTENTION = {
    "q8_0": ("q8_0", "turn", 2, 1, 96, 13, 1, 0, True),
    "shares": ("q8_0-f16", "turned", 2, 2, 96, 13, 2, 0, True),
    "pairs": ("f16-q8_0", "turn", 3, 1, 64, 40, 2, 0, False),
    "long": ("f16", "turn", 1, 1, 128, 300, 2, 0, False),  # more than is on its way at a time
    "long q8_0": ("q8_0", "turn", 4, 1, 128, 170, 2, 0, True),
    "window": ("f16", "turned", 4, 2, 40, 300, 2, 290, True),
    "narrow window": ("f16", "turn", 8, 1, 24, 90, 3, 33, True),
    "wide": ("f16", "turn", 2, 2, 256, 63, 4, 0, True),
    "first": ("f16", "turn", 2, 1, 80, 0, 4, 0, True),  # shares without any token
}


@pytest.mark.parametrize(
    ("types", "turning", "n_head", "n_head_kv", "head_dim", "position", "splits", "window", "neox"),
    slow_but([ATTENTION[name] for name in ("q8_0", "long", "first")], ATTENTION.values()),
)
def test_attention_of_single_tokens(
    types: str, turning: str, n_head: int, n_head_kv: int, head_dim: int, position: int, splits: int, window: int,
    neox: bool,
) -> None:  # fmt: skip
    half, turn = 8, turning == "turn"
    cache, angles = CacheLayout(2, n_head_kv, 320, head_dim, types), angle_table(half, 320)
    shape = AttentionShape(cache, n_head, 16)
    rng, device = np.random.default_rng(3), EmulatedDevice()
    add = device.memory_map.add
    q, k, v = (rng.standard_normal((1, n, head_dim)).astype(np.float32) for n in (n_head, n_head_kv, n_head_kv))
    before = [np.zeros((2, n_head_kv, cache.cells, cache.head_pad), np.float32) for _ in range(2)]
    for x in before:
        x[1, :, : position + (not turn), :head_dim] = rng.standard_normal((n_head_kv, position + (not turn), head_dim))
        if "q8_0" not in types:
            x[1, :, position + (not turn) :] = np.nan  # nobody has written what lies beyond
    kinds = cache_types(types)
    data = [stored(x, kind)[0] for x, kind in zip(before, kinds, strict=True)]
    header, slots, positions = (np.array([n], np.int32) for n in (1, 1, position))
    parts = np.full((n_head, splits, cache.part_bytes // 4), np.nan, np.float32)
    device.kernel(shape.kernel(turn)).launch(
        (splits, n_head // shape.group, 1), add(q), 0, add(k), 0, add(v), 0, 0, 0, 0.0, add(angles), half, neox,
        add(header), add(slots), add(positions), n_head, n_head_kv, head_dim, *map(add, data),
        cache.cells, cache.head_pad, window, head_dim**-0.5 * LOG2_E, 0, add(parts), cache.part_bytes, 0, 0, 0,
        shared=shape.shared_bytes,
    )  # fmt: skip
    found = [read(array, cache, kind) for array, kind in zip(data, kinds, strict=True)]
    if turn:
        q, k = turned(q, angles[position], neox), turned(k, angles[position], neox)
        for (codes, _), kind, x in zip(found, kinds, (k, v), strict=True):
            expected = x[0].astype(np.float16) if kind == "f16" else q8_0(x[0])[0]
            assert (codes[1, :, position, :head_dim] == expected).mean() > 0.9
    first = max(0, position + 1 - window) if window else 0
    keys, values = (
        numbers[1, :, first : position + 1, :head_dim].repeat(n_head // n_head_kv, 0) for _, numbers in found
    )
    scores = np.einsum("hd,hpd->hp", q[0], keys) * head_dim**-0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = np.einsum("hp,hpd->hd", weights, values) / weights.sum(1, keepdims=True)
    share = np.exp2(parts[:, :, 0] - parts[:, :, 0].max(1, keepdims=True))
    joined = np.einsum("hs,hsd->hd", share, parts[:, :, 4 : 4 + head_dim])
    assert np.allclose(joined / (share * parts[:, :, 1]).sum(1, keepdims=True), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("head_dim", "group", "fragments", "window", "types"),
    [
        (64, 4, 2, 20, "q8_0"),
        (32, 1, 1, 0, "q8_0"),
        (96, 1, 1, 0, "q8_0-f16"),
        (128, 2, 1, 0, "f16-q8_0"),
        (160, 1, 1, 0, "q8_0"),
        (256, 1, 1, 70, "q8_0"),
    ],
)
def test_attention_of_many_tokens(head_dim: int, group: int, fragments: int, window: int, types: str) -> None:
    rng, shape = np.random.default_rng(0), FlashShape(head_dim, group, fragments, types)
    cache = CacheLayout(2, 1, 150, head_dim, types)
    segments = np.array([[1, 0, 30, 70], [0, 30, 1, 140]], np.int32)  # slot, first token, tokens, first position
    cells = [rng.standard_normal((2, 1, cache.cells, head_dim)).astype(np.float32) for _ in range(2)]
    kinds = cache_types(types)
    values = [stored(x, kind)[1] for x, kind in zip(cells, kinds, strict=True)]
    q = rng.standard_normal((31, group, head_dim)).astype(np.float32) * 2
    wanted = obvious_attention(q, *values, segments, group, window)
    for x in cells:
        for slot, _, tokens, position in segments:  # nobody has written what lies beyond
            x[slot, :, position + tokens :] = np.nan
    with np.errstate(invalid="ignore"):
        data = [stored(x, kind)[0] for x, kind in zip(cells, kinds, strict=True)]
    out, memory = np.full_like(q, np.nan), Memory()
    stride = 4 * group * head_dim
    arguments = [
        memory.add(q), stride, *map(memory.add, data), cache.cells, memory.add(segments), memory.add(out), stride,
        window, 1 / math.sqrt(head_dim),
    ]  # fmt: skip
    assert shape.shared_bytes <= 99 << 10
    text = to_ptx(shape.name, (9, 0))[0]
    assert ".local" not in text
    launch(parse(text), memory, (1, 2, -(-30 * group // shape.rows)), shape.threads, arguments, shape.shared_bytes)
    assert np.linalg.norm(out - wanted) / np.linalg.norm(wanted) < 1e-3


@pytest.mark.parametrize(
    ("head_dim", "v_head_dim", "group", "window", "types"),
    [
        (288, 288, 3, 20, "f16"),
        pytest.param(288, 288, 20, 0, "f16-q8_0", marks=pytest.mark.slow),
        (96, 64, 20, 0, "q8_0"),
    ],
)
def test_attention_of_wide_heads(head_dim: int, v_head_dim: int, group: int, window: int, types: str) -> None:
    """Heads that a block of threads reads; the narrow ones have a latent cache, whose keys are values too."""
    rng, latent = np.random.default_rng(0), head_dim < 256
    shape = WideShape(head_dim, group, 1, types, v_head_dim=v_head_dim, latent=latent, positions=16)
    cache = CacheLayout(2, 1, 150, head_dim, types, v_head_dim, latent)
    segments = np.array([[1, 0, 9, 70], [0, 9, 1, 140]], np.int32)
    cells = [rng.standard_normal((2, 1, cache.cells, head_dim)).astype(np.float32) for _ in range(2 - latent)]
    kinds = cache_types(types)
    values = [stored(x, kind)[1] for x, kind in zip(cells, kinds, strict=False)]
    data = [stored(x, kind)[0] for x, kind in zip(cells, kinds, strict=False)]
    q = rng.standard_normal((10, group, head_dim)).astype(np.float32) * 2
    wanted = obvious_attention(q, values[0], values[-1], segments, group, window)[..., :v_head_dim]
    out, memory = np.full((10, group, v_head_dim), np.nan, np.float32), Memory()
    at = [memory.add(array) for array in data]
    arguments = [
        memory.add(q), 4 * group * head_dim, at[0], at[-1], cache.cells, memory.add(segments), memory.add(out),
        4 * group * v_head_dim, window, 1 / math.sqrt(head_dim),
    ]  # fmt: skip
    entry = parse(to_ptx(shape.name, (9, 0))[0])
    launch(entry, memory, (1, 2, -(-9 * group // shape.rows)), shape.threads, arguments, shape.shared_bytes)
    assert np.linalg.norm(out - wanted) / np.linalg.norm(wanted) < 1e-3


def test_wide_heads_find_room() -> None:
    """A latent cache's kernel in what every GPU has, two blocks beside each other on a Hopper GPU."""
    for types in ("f16", "q8_0"):
        latent = WideShape(576, 128, 1, types, v_head_dim=512, latent=True, positions=32)
        assert latent.shared_bytes <= 99 << 10
        assert 2 * (latent.shared_bytes + 1024) <= 228 << 10
        assert WideShape(512, 8, 1, types, positions=16).shared_bytes <= 99 << 10


def test_compiled_attention() -> None:
    for name in ("flash.128.4.1.q8_0", "flash.64.4.2.q8_0"):
        shape = FlashShape(*map(int, name.split(".")[1:4]), "q8_0")
        made = compile_kernel(name, (9, 0))
        assert made.stack == 0
        assert made.registers * shape.threads * shape.blocks <= 65536


@pytest.mark.slow
def test_a_whole_model_on_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "DEEP", 2)  # from the third token on in more shares
    path = tmp_path / "qwen3.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32"), "q4_0", path)
    ids = [7, 300, 12]
    expected = ReferenceModel(path, int8_activations=True, q8_cache=True, int8_logits=True).logits(ids)
    assert errors(emulated_logits(path, ids, cache_type="q8_0"), expected).max() < 1e-3


def emulated_steps(path: Path, steps: list[int]) -> tuple[np.ndarray, list[tuple[bool, bool]]]:
    """The logits of some tokens in steps of these sizes, and after each what has been cut so far."""
    device, ids, at = EmulatedDevice(), tokens_of(path, sum(steps)), 0
    logits, cuts = [], []
    with pytest.MonkeyPatch.context() as patch, GGUFFile(path) as file:
        patch.setattr(executor_module, "compile_missing", lambda *_: [])
        program = planned(file, "cuda")
        x = executor_module.CudaExecutor(
            program, file, n_ctx=64, n_slots=1, n_batch=16, notify=lambda _: None, device=device
        )
        for n in steps:
            x.tokens[:n], x.positions[:n], x.outputs[:n] = ids[at : at + n], np.arange(at, at + n), np.arange(n)
            logits.append(x.run(n, n).copy())
            cuts.append(x.cut)
            at += n
        x.close()
    return np.concatenate(logits), cuts


def tokens_of(path: Path, n: int) -> np.ndarray:
    with GGUFFile(path) as file:
        return np.random.default_rng(1).integers(0, file.tensors["token_embd.weight"].shape[0], n).astype(np.int32)


def test_odd_sizes_and_large_keys_on_the_emulator(tmp_path: Path) -> None:
    """Steps of one token, whose attention stores keys by itself."""
    m = odd.Sizes("qwen2", 44, 2, 1, 22, 22, 44, 97)
    weights = odd.tensors(m)
    for layer in range(2):
        weights[f"blk.{layer}.attn_k.bias"][0] = 1e6
        for head in range(m.n_head):  # of which queries want to know nothing
            for d in (0, m.n_rot // 2):
                weights[f"blk.{layer}.attn_q.weight"][m.head_dim * head + d] = 0
                weights[f"blk.{layer}.attn_q.bias"][m.head_dim * head + d] = 0
    path = odd.write(tmp_path / "model.gguf", m, "F16", weights)
    found, cuts = emulated_steps(path, [1, 1])
    assert errors(found, ReferenceModel(path, half_cache=True).logits(tokens_of(path, 2))).max() < 1e-5
    assert cuts == [(True, False)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "file_type"), [*((m, "F16") for m in odd.MODELS), (odd.MODELS[2], "BF16"), (odd.MODELS[1], "F32")]
)
def test_odd_sizes_on_the_emulator(tmp_path: Path, m: odd.Sizes, file_type: str) -> None:
    path = odd.write(tmp_path / "model.gguf", m, file_type)
    found, cuts = emulated_steps(path, [1, 1, 3, 13])
    each = errors(found, ReferenceModel(path, half_cache=True).logits(tokens_of(path, 18)))
    assert each[:2].max() < 1e-5
    assert each[:5].max() < 3e-4  # a key or value on the edge of a rounding step
    assert each.max() < 5e-3  # prompts go through half precision
    assert not any(map(any, cuts))


def test_what_a_gpu_does_not_cache(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    convert(tiny_checkpoint(tmp_path, "llama", dtype="f32"), "f32", path)
    with GGUFFile(path) as file:
        assert cache_type(file, planned(file).states, device="cuda") == "f16"
        with pytest.raises(GGPYError, match="On a GPU the cache holds f16 or q8_0, not f32"):
            cache_type(file, planned(file).states, "f32", device="cuda")
        with pytest.raises(GGPYError, match=r"f16 or q8_0, not bf16.*on the CPU"):
            cache_type(file, planned(file).states, "f16", "bf16", device="cuda")
    path = odd.write(tmp_path / "wide.gguf", odd.Sizes("llama", 12, 1, 1, 578, 4, 14, 97))
    with GGUFFile(path) as file:
        assert cache_type(file, planned(file).states, device="cpu") == "f32"
        with pytest.raises(GGPYError, match="heads of 578 dimensions are more than the 576"):
            cache_type(file, planned(file).states, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("types", [("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "q8_0")])
@pytest.mark.parametrize("steps", [[1] * 21, [2, 3, 5, 8, 3], [70, 40, 1]])
def test_as_on_the_cpu(tmp_path: Path, steps: list[int], types: tuple[str, str]) -> None:
    from ggpy.cuda.driver import usable

    if not usable():
        pytest.skip("no NVIDIA GPU that can be used")
    path = tmp_path / "model.gguf"
    convert(tiny_checkpoint(tmp_path, "qwen3", dtype="f32"), "f16", path)
    cpu, cuda = both(path, steps, cache_type_k=types[0], cache_type_v=types[1])
    # A number on the edge of a rounding step may fall to the other side.
    assert np.median(errors(cuda, cpu)) < 3e-3
    assert errors(cuda, cpu).max() < 2e-2
