"""Products of large steps for CUDA: compiled here without a GPU, run by an emulator, and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from ptx_emulator import Memory, launch, parse

from ggpy.cuda.compile import to_ptx
from ggpy.cuda.layout import MatrixLayout
from ggpy.cuda.matmul_launch import TILINGS
from ggpy.cuda.matmul_layout import HalfActivations
from ggpy.quant.packed import BLOCK, PACKED

TYPES = list(PACKED)


def random_matrix(name: str, n_rows: int, n_cols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A packed matrix, bytes as `MatrixLayout` lays them, and its values, float32 [n_rows, n_cols]."""
    rng, p = np.random.default_rng(seed), PACKED[name]
    layout = MatrixLayout(p, n_rows, n_cols)
    data = rng.integers(0, 256, layout.n_bytes, dtype=np.uint8)  # what no plane covers is never used

    def put(plane: object, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows).view(np.uint8).reshape(n_rows, -1)
        view = data[plane.offset : plane.offset + plane.stride * n_rows].reshape(n_rows, plane.stride)  # type: ignore[attr-defined]
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
    low, high = (-128, 128) if p.signed else (0, 1 << p.bits)
    codes = rng.integers(low, high, (n_rows, n, BLOCK))
    if p.bits == 8:
        put(layout.codes, codes.reshape(n_rows, n, 2, 16).swapaxes(1, 2).astype(np.int8))
    else:
        put(layout.codes, (codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4).astype(np.uint8))
    if p.high_bits:
        field, above = p.high_bits, codes >> 4
        words = np.zeros((n_rows, n, field, 4), np.uint8)
        per_word = 8 // field
        for group in range(8):
            word, k = divmod(group, per_word)
            words[:, :, word] |= (above[..., 4 * group : 4 * group + 4] << (field * k)).astype(np.uint8)
        put(layout.high, words)
    shape = (n_rows, n)
    if p.header:
        supers = (n_rows, -(-padded // 256), 2 if p.minima else 1)
        top = (rng.uniform(0.5, 1.0, supers) * 1e-4 * 16 / (1 << p.bits)).astype(np.float16)
        put(layout.supers, top)
        top = top.astype(np.float32).repeat(8, 1)[:, :n]
        byte = rng.integers(-128, 128, (*shape, 2)).astype(np.int8) if p.signed_scales else rng.integers(0, 64, (*shape, 2))
        put(layout.levels, byte.astype(np.uint8))
        both = byte.astype(np.float32)
        if p.minima:
            scale, minimum = (both[..., :1] * top[..., :1]).repeat(32, 2), both[..., 1:] * top[..., 1:]
        else:
            scale, minimum = (both * top).repeat(16, 2), 0
    else:
        kept = (rng.uniform(0.5, 1.0, (*shape, 1 + p.minima)) * 0.4 / (1 << p.bits)).astype(np.float16)
        put(layout.levels, kept)
        kept = kept.astype(np.float32)
        scale, minimum = kept[..., :1], kept[..., 1:] if p.minima else 0
    values = scale * (codes - p.offset) + p.minimum_sign * minimum
    return data, values.reshape(n_rows, padded).astype(np.float32)[:, :n_cols]


def half_activations(x: np.ndarray) -> np.ndarray:
    """What the prepare kernels leave of float32 [n_tokens, n_cols]."""
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


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tiling", ["64x32s2", "64x64hs2", "128x128h"])
def test_emulated_product(name: str, tiling: str) -> None:
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
def test_emulated_prepare(kind: str, n_cols: int) -> None:
    rng, n_tokens, whole = np.random.default_rng(2), 5, n_cols % 16 == 0
    entry = parse(to_ptx(f"matmul_prepare.{kind}.{4 if whole else 1}", (9, 0))[0])
    layout = HalfActivations(n_tokens, n_cols)
    src, up = (rng.standard_normal((9, n_cols)).astype(np.float32) * 1000 for _ in range(2))
    weight, rows = rng.standard_normal(n_cols).astype(np.float32), np.array([3, 0, 8, 7, 7], np.int32)
    x, eps = src[rows].astype(np.float64), 1e-5
    if kind == "norm":
        wanted = x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight
    else:
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
