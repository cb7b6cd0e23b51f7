"""Products of large steps for CUDA: compiled without a GPU, run by an emulator, and by a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.blocks import one_of_each, slow_but

pytest.importorskip("numba_cuda")

from ggpy.cuda.compile import compile_kernel, to_ptx
from ggpy.cuda.driver import Device, device_count
from ggpy.cuda.ops.matmul.launch import (
    TILINGS,
    activation_bytes,
    choose_tiling,
    kernel_names,
    matmul,
    quantize_activations,
    quantize_swiglu,
    tilings,
)
from ggpy.cuda.ops.matmul.layout import HalfActivations
from ggpy.cuda.weights.layout import MatrixLayout, Plane, bits_above, numbers
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import BLOCK, Packed
from tests.support.ptx_emulator import launch
from tests.support.ptx_memory import Memory
from tests.support.ptx_text import parse

TYPES = list(PACKED)


def random_matrix(name: str, n_rows: int, n_cols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A packed matrix, bytes as `MatrixLayout` lays them, and its values, float32 [n_rows, n_cols]."""
    rng, p = np.random.default_rng(seed), PACKED[name]
    layout = MatrixLayout(p, n_rows, n_cols)
    data = rng.integers(0, 256, layout.n_bytes, dtype=np.uint8)  # what no plane covers is never used

    def put(plane: Plane, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows).view(np.uint8).reshape(n_rows, -1)
        view = data[plane.offset : plane.offset + plane.stride * n_rows].reshape(n_rows, plane.stride)
        view[:, : rows.shape[1]] = rows

    padded = layout.padded_cols
    if p.is_float:
        values = np.zeros((n_rows, padded), np.float32)
        values[:, :n_cols] = rng.standard_normal((n_rows, n_cols)) * 0.05
        if p.name == "F32":
            put(layout.codes, values)
        elif p.name == "F16":
            put(layout.codes, values.astype(np.float16))
            values = values.astype(np.float16).astype(np.float32)
        else:
            bits = values.view(np.uint32) >> 16
            put(layout.codes, bits.astype(np.uint16))
            values = (bits << 16).astype(np.uint32).view(np.float32)
        return data, values[:, :n_cols]

    n = layout.n_blocks
    low, high = (-128, 128) if p.bits == 8 else (0, 1 << p.bits)
    codes = rng.integers(low, high, (n_rows, n, BLOCK))
    if numbers(p):
        stored_codes, above = looked_up(codes, p.bits)
        put(layout.codes, stored_codes)
        if above is not None:
            put(layout.high, above)
        codes = np.array(numbers(p))[codes] * p.unit
    else:
        put_codes(p, layout, codes, put)
        codes = codes - p.offset
    scale, minimum = random_scales(p, layout, n_rows, rng, put)
    values = scale * codes.reshape(n_rows, n, p.n_scales, -1) + p.minimum_sign * minimum
    return data, values.reshape(n_rows, padded).astype(np.float32)[:, :n_cols]


def looked_up(codes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The planes `codes` and `high`, a last axis of words, of codes [..., 32] that kernels look up."""
    words = np.zeros((*codes.shape[:-1], 4), np.uint32)
    for w in range(4):
        for k in range(4):
            words[..., w] |= (codes[..., 4 * w + k] << 4 * k | codes[..., 16 + 4 * w + k] << 16 + 4 * k).astype(
                np.uint32
            )
    if bits == 4:
        return words, None
    low = words & 0x33333333
    pairs = np.stack([low[..., 0] | low[..., 1] << 2, low[..., 2] | low[..., 3] << 2], -1)
    third = sum((words[..., w] >> 2 & 0x11111111) << w for w in range(4))
    return pairs, third if bits == 3 else None


def put_codes(p: Packed, layout: MatrixLayout, codes: np.ndarray, put: Callable[[Plane, np.ndarray], None]) -> None:
    """Codes that kernels take as they are."""
    n_rows, n, _ = codes.shape
    if p.bits == 8:
        put(layout.codes, codes.reshape(n_rows, n, 2, 16).swapaxes(1, 2).astype(np.int8))
    else:
        put(layout.codes, (codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4).astype(np.uint8))
    if bits_above(p):
        field, above = bits_above(p), codes >> 4
        words = np.zeros((n_rows, n, field, 4), np.uint8)
        per_word = 8 // field
        for group in range(8):
            word, k = divmod(group, per_word)
            words[:, :, word] |= (above[..., 4 * group : 4 * group + 4] << (field * k)).astype(np.uint8)
        put(layout.high, words)


def random_scales(
    p: Packed, layout: MatrixLayout, n_rows: int, rng: np.random.Generator, put: Callable[[Plane, np.ndarray], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima, [n_rows, blocks, scales of a block, 1], such that values lie around 0.1."""
    n, scales = layout.n_blocks, p.n_scales
    largest = max(map(abs, p.table)) * p.unit if p.table else 1 << p.bits
    none = np.zeros((n_rows, n, scales, 1), np.float32)
    if p.scales == "half":
        kept = (rng.uniform(0.5, 1.0, (n_rows, n, scales, 1 + p.minima)) * 0.4 / largest).astype(np.float16)
        put(layout.scales, kept)
        kept = kept.astype(np.float32)
        return kept[..., :1], kept[..., 1:] if p.minima else none
    if p.scales == "power":
        exponents = rng.integers(118, 124, (n_rows, n, 1, 1))
        put(layout.scales, exponents.astype(np.uint8))
        return 2.0 ** (exponents - 128.0), none
    tops = rng.uniform(0.5, 1.0, (n_rows, -(-n // 8), 1 + p.minima)) * (0.2 if p.scales == "super" else 0.005) / largest
    tops = tops.astype(np.float16)
    put(layout.supers, tops)
    top = tops.astype(np.float32).repeat(8, 1)[:, :n, None, :]
    if p.scales == "super":
        return top + none, none
    low, high, kind = (-128, 128, np.int8) if p.scales == "signed byte" else (0, 64, np.uint8)
    if p.scales == "nibbles":
        pairs = rng.integers(0, 16, (n_rows, n, 2, 2))
        put(layout.scales, (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8))
    else:
        pairs = rng.integers(low, high, (n_rows, n, scales, 1 + p.minima)).astype(kind)
        put(layout.scales, pairs.view(np.uint8))
    return top[..., :1] * pairs[..., :1], top[..., 1:] * pairs[..., 1:] if p.minima else none


def half_activations(x: np.ndarray) -> np.ndarray:
    """The bytes that the kernels make from float32 [n_tokens, n_cols]."""
    layout = HalfActivations(*x.shape)
    padded = np.zeros((x.shape[0], layout.stride // 2), np.float32)
    padded[:, : x.shape[1]] = x
    largest = np.abs(x).max(1)
    power = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(largest, 1e-30))), -116) - 10)
    ordered = (padded / power[:, None]).reshape(len(x), -1, 8, 2).swapaxes(2, 3)
    data = np.zeros(layout.n_bytes, np.uint8)
    data[: layout.stride * len(x)] = np.ascontiguousarray(ordered.astype(np.float16)).view(np.uint8).reshape(-1)
    data[layout.scales_at : layout.scales_at + 4 * len(x)] = power.astype(np.float32).view(np.uint8)
    return data


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("name", "tiling"),
    slow_but(
        [("Q4_0", "64x32s2"), ("F16", "64x32s2")],
        [(name, t) for name in one_of_each(TYPES) for t in ("64x32s2", "64x32hps4")] + [("Q4_0", "64x64hs2")],
    ),
)
def test_emulated_product(name: str, tiling: str) -> None:
    if TILINGS[tiling].shared_bytes(PACKED[name]) > 227 << 10:
        pytest.skip("no room for this format")
    n_tokens, n_rows, n_cols = 35, 70, 256 + 32 * 3  # nothing whole
    rng = np.random.default_rng(1)
    shape, packed = TILINGS[tiling], PACKED[name]
    data, values = random_matrix(name, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32) * 100
    activations, layout = half_activations(x), HalfActivations(n_tokens, n_cols)
    bias = rng.standard_normal(n_rows).astype(np.float32)
    out = rng.standard_normal((n_tokens, n_rows + 2)).astype(np.float32)
    wanted = out[:, :n_rows].astype(np.float64) + x.astype(np.float64) @ values.astype(np.float64).T + bias
    edge = out[:, n_rows:].copy()
    entry = parse(to_ptx(f"matmul.{name}.{tiling}", (9, 0))[0])
    memory = Memory()
    base = memory.add(activations)
    arguments = [
        memory.add(out), 4 * (n_rows + 2), base, base + layout.scales_at, memory.add(data), memory.add(bias),
        n_tokens, n_rows, n_cols, 1,
    ]  # fmt: skip
    grid = (-(-n_tokens // shape.tokens), -(-n_rows // shape.rows))
    launch(entry, memory, grid, shape.threads, arguments, shape.shared_bytes(packed))
    assert difference(out[:, :n_rows], wanted) < 1e-3
    assert (out[:, n_rows:] == edge).all()


@pytest.mark.parametrize(("kind", "n_cols"), [("norm", 352), ("norm", 100), ("swiglu", 352), ("swiglu", 33)])
def test_emulated_activations(kind: str, n_cols: int) -> None:
    rng, n_tokens, whole = np.random.default_rng(2), 5, n_cols % 16 == 0
    entry = parse(to_ptx(f"quantize_activations.{kind}.{4 if whole else 1}", (9, 0))[0])
    layout = HalfActivations(n_tokens, n_cols)
    src, up = (rng.standard_normal((9, n_cols)).astype(np.float32) * 1000 for _ in range(2))
    weight, rows = rng.standard_normal(n_cols).astype(np.float32), np.array([3, 0, 8, 7, 7], np.int32)
    x, eps = src[rows].astype(np.float64), 1e-5
    if kind == "norm":
        wanted = x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight
    else:
        with np.errstate(over="ignore"):
            wanted = x / (1 + np.exp(-x)) * up[rows]
    memory, out = Memory(), rng.integers(0, 256, layout.n_bytes, dtype=np.uint8)
    arguments = [
        memory.add(src), 4 * n_cols, memory.add(up), 4 * n_cols, memory.add(rows), n_cols, layout.stride // 2,
        eps if kind == "norm" else -1.0, memory.add(weight) if kind == "norm" else 0, memory.add(out),
    ]  # fmt: skip
    launch(entry, memory, (n_tokens,), 64, arguments, 256)
    scales = out[layout.scales_at :].view(np.float32)[:n_tokens]
    halves = out[: layout.stride * n_tokens].view(np.float16).reshape(n_tokens, -1, 2, 8).swapaxes(2, 3)
    found = halves.reshape(n_tokens, -1).astype(np.float64) * scales[:, None]
    assert np.abs(halves.astype(np.float32)).max() < 2048
    assert (found[:, n_cols:] == 0).all()
    assert difference(found[:, :n_cols], wanted) < 1e-3


@pytest.mark.parametrize("cc", [(9, 0), (8, 0)])
@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q6_K", "IQ4_XS"])
def test_compiled_product(name: str, cc: tuple[int, int]) -> None:
    packed = PACKED[name]
    for shape in tilings(packed, cc):
        text, _ = to_ptx(f"matmul.{name}.{shape.name}", cc)
        assert ("wgmma.mma_async" in text) == shape.hopper == (cc == (9, 0))
        assert ("mma.sync.aligned.m16n8k16" in text) != shape.hopper
        assert "cp.async.cg.shared.global" in text
        assert ".local" not in text
        assert shape.shared_bytes(packed) <= (227 << 10 if cc == (9, 0) else 163 << 10)
    made = compile_kernel(f"matmul.{name}.{tilings(packed, cc)[-1].name}", cc)
    assert made.stack == 0
    assert made.registers * made.threads <= 65536


def test_every_size_has_a_kernel() -> None:
    """Whatever the batch, the tiling chosen is one that is compiled ahead, and large batches take large tiles."""
    for packed in PACKED.values():
        for cc in ((8, 0), (8, 6), (9, 0), (12, 0)):
            layout = MatrixLayout(packed, 4096, 4096)
            names = kernel_names(layout, cc)
            for n_tokens in (9, 33, 100, 512, 5000):
                shape = choose_tiling(packed, 4096, 4096, n_tokens, cc, 100)
                assert f"matmul.{packed.name}.{shape.name}" in names
            assert shape.rows * shape.tokens == max(t.rows * t.tokens for t in tilings(packed, cc))


# ---- on a GPU

on_gpu = [pytest.mark.cuda, pytest.mark.skipif(not device_count(), reason="no GPU")]


class Arrays:
    """numpy arrays in the GPU's memory."""

    def __init__(self) -> None:
        self.device = Device()

    def put(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        address = self.device.allocate(array.nbytes + 1024)
        self.device.upload(address, array.ctypes.data, array.nbytes)
        self.device.synchronize()
        return address

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        out = np.empty_like(like)
        self.device.download(out.ctypes.data, address, out.nbytes)
        self.device.synchronize()
        return out


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    ("n_tokens", "n_rows", "n_cols"), [(9, 64, 256), (40, 333, 992), (130, 200, 2048), (515, 4096, 512)]
)
class TestOnGpu:
    pytestmark = on_gpu

    def test_product(self, name: str, n_tokens: int, n_rows: int, n_cols: int) -> None:
        gpu, rng, packed = Arrays(), np.random.default_rng(n_tokens), PACKED[name]
        columns = 1 if packed.is_float else 256 if packed.super_scales else BLOCK
        if n_cols % columns:
            n_cols = n_cols // columns * columns
        data, values = random_matrix(name, n_rows, n_cols)
        layout = MatrixLayout(packed, n_rows, n_cols)
        x = rng.standard_normal((n_tokens + 3, n_cols)).astype(np.float32) * 30
        scale, bias = rng.standard_normal(n_cols).astype(np.float32), rng.standard_normal(n_rows).astype(np.float32)
        rows = rng.integers(0, n_tokens + 3, n_tokens).astype(np.int32)
        out = rng.standard_normal((n_tokens, n_rows)).astype(np.float32)
        picked = x[rows].astype(np.float64)
        normed = picked / np.sqrt((picked**2).mean(1, keepdims=True) + 1e-6) * scale
        wanted = normed @ values.astype(np.float64).T + bias
        device, weight, activations = gpu.device, gpu.put(data), gpu.device.allocate(activation_bytes(layout, n_tokens))
        quantize_activations(
            device, layout, src=gpu.put(x), src_stride=4 * n_cols, rows=gpu.put(rows), weight=gpu.put(scale), eps=1e-6,
            n_tokens=n_tokens, activations=activations,
        )  # fmt: skip
        dst, beyond = gpu.put(out), gpu.put(bias)
        for accumulate in (False, True):
            matmul(
                device, layout, weight, activations, n_tokens=n_tokens, bias=beyond, dst=dst, dst_stride=4 * n_rows,
                accumulate=accumulate,
            )  # fmt: skip
            assert difference(gpu.get(dst, out), wanted * (1 + accumulate)) < 1e-3

    def test_gated(self, name: str, n_tokens: int, n_rows: int, n_cols: int) -> None:
        if name != "F16":
            pytest.skip("the preparation is the same for all")
        gpu, rng = Arrays(), np.random.default_rng(n_tokens)
        data, values = random_matrix(name, n_rows, n_cols)
        layout = MatrixLayout(PACKED[name], n_rows, n_cols)
        gate, up = (rng.standard_normal((n_tokens, n_cols)).astype(np.float32) * 3 for _ in range(2))
        wanted = (gate / (1 + np.exp(-gate.astype(np.float64))) * up) @ values.astype(np.float64).T
        activations = gpu.device.allocate(activation_bytes(layout, n_tokens))
        quantize_swiglu(
            gpu.device, layout, gate=gpu.put(gate), gate_stride=4 * n_cols, up=gpu.put(up), up_stride=4 * n_cols,
            n_tokens=n_tokens, activations=activations,
        )  # fmt: skip
        out = np.full((n_tokens, n_rows), np.nan, np.float32)
        dst = gpu.put(out)
        matmul(
            gpu.device, layout, gpu.put(data), activations, n_tokens=n_tokens, bias=0, dst=dst, dst_stride=4 * n_rows,
            accumulate=False,
        )  # fmt: skip
        assert difference(gpu.get(dst, out), wanted) < 1e-3
