"""Sizes that fit no vector: every operation in every tier, and whole models, count what is there and no more."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ggpy.cpu import executor, kernels
from ggpy.cpu.isa.layout import tile_widths
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.runtime.runtime import Runtime
from tests.cpu.test_kernels import TIERS, aligned, call, check_attention, product, records
from tests.runtime.test_runtime import decode, error, errors, prefill, running
from tests.support import odd
from tests.support.reference import ReferenceModel

EVERY = ["plain", *TIERS]
WIDTHS = (4, 12, 54, 66, 100)


def widths_of(tier: str, n_tokens: int) -> list[int]:
    """The tiles that so many tokens are cut into."""
    found = []
    while n_tokens:
        found.append(max(w for w in tile_widths(tier, True) if w <= n_tokens))
        n_tokens -= found[-1]
    return found


@pytest.mark.parametrize("n_cols", WIDTHS)
@pytest.mark.parametrize("tier", EVERY)
def test_a_norm_divides_by_the_true_width(tier: str, n_cols: int) -> None:
    """Whatever a row is padded with counts for nothing, and activations are padded with zeros."""
    rng, n_tokens, padded, stride = np.random.default_rng(n_cols), 13, -(-n_cols // 8) * 8, -(-n_cols // 16) * 16
    x, weight = np.full((n_tokens, stride), np.nan, np.float32), np.full(stride, np.inf, np.float32)
    x[:, :n_cols], weight[:n_cols] = rng.standard_normal((n_tokens, n_cols)), rng.standard_normal(n_cols)
    (op, step), out = records(), np.full(n_tokens * padded, np.nan, np.float32)
    step["n_tokens"] = n_tokens
    op["n_cols"], op["token_bytes"], op["eps"] = n_cols, 4 * padded, 1e-5
    op["src"], op["src_stride"], op["weight"] = x.ctypes.data, x.strides[0], weight.ctypes.data
    op["dst"] = out.ctypes.data
    call("quantize_activations.f32", tier, op, step)
    x = x[:, :n_cols].astype(np.float64)
    expected = np.zeros((n_tokens, padded))
    expected[:, :n_cols] = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight[:n_cols]
    for start, end in pairwise(np.cumsum([0, *widths_of(tier, n_tokens)])):
        tile = out[start * padded : end * padded].reshape(padded, end - start)
        assert np.allclose(tile.T, expected[start:end], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 5, 13, 17])
@pytest.mark.parametrize(("n_rows", "n_cols"), [(97, 12), (33, 54), (1, 66), (40, 100)])
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tier", EVERY)
def test_products(tier: str, name: str, n_rows: int, n_cols: int, n_tokens: int) -> None:
    ours, exact = product(name, tier, n_rows, n_tokens, n_cols=n_cols)
    assert np.abs(ours - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_embedding_rows(name: str) -> None:
    rng, n_cols = np.random.default_rng(0), 54
    raw = FORMATS[name].quantize(rng.standard_normal((97, n_cols)).astype(np.float32))
    ids, out = np.array([96, 0, 5], np.int32), np.full((3, 64), 7, np.float32)
    (op, step), scratch = records(), aligned(64)
    step["n_tokens"], rows = 3, raw[ids]
    op["weight"], op["weight_stride"], op["n_cols"] = rows.ctypes.data, rows.shape[1], n_cols
    op["dst"], op["dst_stride"], op["scratch"] = out.ctypes.data, out.strides[0], scratch.ctypes.data
    call(f"embed.{name}", "plain", op, step)
    assert np.array_equal(out[:, :n_cols], FORMATS[name].dequantize(raw)[ids])
    assert (out[:, n_cols:] == 7).all()


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize(
    ("head_dim", "n_head", "n_head_kv", "n_past", "n_tokens", "window"),
    [(12, 3, 1, 300, 1, 0), (20, 5, 5, 3, 3, 0), (36, 4, 2, 250, 17, 0), (50, 6, 1, 5, 40, 7), (2, 1, 1, 0, 1, 0)],
)
@pytest.mark.parametrize("tier", EVERY)
def test_attention(
    tier: str, cache_type: str, head_dim: int, n_head: int, n_head_kv: int, n_past: int, n_tokens: int, window: int,
    small: int,
) -> None:  # fmt: skip
    check_attention(tier, cache_type, head_dim, n_head, n_head_kv, n_past, n_tokens, window, small)


@pytest.mark.parametrize("neox", [0, 1])
@pytest.mark.parametrize(("head_dim", "n_rot"), [(12, 12), (20, 10), (36, 36), (50, 38), (2, 2)])
@pytest.mark.parametrize("tier", ["plain", *TIERS[:1]])
def test_heads_are_normalised_and_turned(tier: str, head_dim: int, n_rot: int, neox: int) -> None:
    rng, n_tokens, n_ctx, pad, half = np.random.default_rng(1), 3, 64, -(-head_dim // 16) * 16, n_rot // 2
    q, k, v = (rng.standard_normal((n_tokens, n, head_dim)).astype(np.float32) for n in (3, 1, 1))
    norms = [rng.standard_normal(head_dim).astype(np.float32) for _ in range(2)]
    angle = rng.standard_normal((n_ctx, half))
    angles = np.stack([np.cos(angle), np.sin(angle)], 2).astype(np.float32)
    keys, values = np.zeros((n_ctx // 16, head_dim, 16), np.float32), np.zeros((n_ctx, pad), np.float32)
    positions, slots = np.array([0, 17, 62], np.int32), np.zeros(n_tokens, np.int32)
    wanted = []
    for x, norm in zip((q, k), norms, strict=True):
        x = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * norm
        c, s = (np.cos(angle[positions])[:, None], np.sin(angle[positions])[:, None])
        one, two = (slice(0, half), slice(half, n_rot)) if neox else (slice(0, n_rot, 2), slice(1, n_rot, 2))
        a, b = x[..., one].copy(), x[..., two].copy()
        x[..., one], x[..., two] = a * c - b * s, a * s + b * c
        wanted.append(x)
    op, step = records()
    step["n_tokens"], step["positions"], step["slots"] = n_tokens, positions.ctypes.data, slots.ctypes.data
    op["angles"] = angles.ctypes.data
    for at, stride, x in (("src", "src_stride", q), ("src2", "src2_stride", k), ("src3", "src3_stride", v)):
        op[at], op[stride] = x.ctypes.data, x[0].nbytes
    op["weight"], op["weight2"], op["eps"] = norms[0].ctypes.data, norms[1].ctypes.data, 1e-6
    start = np.zeros(1, np.int64)
    op["cache_k"], op["cache_v"], op["n_ctx"] = keys.ctypes.data, values.ctypes.data, n_ctx
    op["starts"], op["head_cells"] = start.ctypes.data, n_ctx
    op["n_head"], op["n_head_kv"], op["head_dim"], op["v_dim"], op["head_pad"] = 3, 1, head_dim, head_dim, pad
    op["n_rot"], op["neox"] = n_rot, neox
    call("rope_store.f32", tier, op, step)
    assert np.allclose(q, wanted[0], rtol=1e-5, atol=1e-6)
    found = keys.swapaxes(1, 2).reshape(n_ctx, head_dim)
    assert np.allclose(found[positions], wanted[1][:, 0], rtol=1e-5, atol=1e-6)
    assert np.array_equal(values[positions, :head_dim], v[:, 0])
    assert not values[:, head_dim:].any()


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("m", odd.MODELS, ids=str)
def test_whole_models(tmp_path: Path, m: odd.Sizes, n_threads: int) -> None:
    path = odd.write(tmp_path / "model.gguf", m)
    ids = np.random.default_rng(2).integers(0, m.n_vocab, 37).astype(np.int32)
    expected = ReferenceModel(path).logits(ids)
    with running(path, n_ctx=37, n_slots=2, n_threads=n_threads) as runtime:
        whole = prefill(runtime, ids)
        assert whole.shape == expected.shape
        assert error(whole, expected) < 1e-5
        assert np.array_equal(decode(runtime, ids, slot=1), whole)
        at = 0
        for n in (1, 2, 3, 5, 13, 13):
            part = np.arange(at, at + n)
            assert np.array_equal(runtime.step(ids[part], np.zeros(n), part, np.arange(n)), whole[part])
            at += n


@pytest.mark.parametrize("file_type", ["F16", "BF16"])
@pytest.mark.parametrize("m", odd.MODELS[:3], ids=str)
def test_whole_models_of_halves(tmp_path: Path, m: odd.Sizes, file_type: str) -> None:
    path = odd.write(tmp_path / "model.gguf", m, file_type)
    ids = np.random.default_rng(2).integers(0, m.n_vocab, 21).astype(np.int32)
    with running(path, n_threads=2) as runtime:
        assert error(prefill(runtime, ids), ReferenceModel(path, half_cache=True).logits(ids)) < 1e-4


def test_a_quantized_model_with_heads_of_12(tmp_path: Path) -> None:
    """Its rows are whole blocks, its heads, rows of matrices and vocabulary are not."""
    m = odd.Sizes("qwen2", 96, 8, 2, 12, 10, 160, 97)
    path = odd.write(tmp_path / "model.gguf", m, "Q8_0")
    ids = np.random.default_rng(2).integers(0, m.n_vocab, 37).astype(np.int32)
    expected = ReferenceModel(path, int8_activations=True, half_cache=True).logits(ids)
    with running(path, n_slots=2, n_threads=2) as runtime:
        whole = prefill(runtime, ids)
        assert np.array_equal(decode(runtime, ids, slot=1), whole)
    # where no activation fell to the other side of a rounding step
    assert errors(whole, expected).min() < 1e-5
    assert errors(whole, expected).max() < 2e-2


@pytest.mark.parametrize("tier", ["plain", *TIERS[1:]])
def test_whole_models_in_every_tier(tmp_path: Path, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "isa", lambda: tier)
    monkeypatch.setattr(executor, "compile_missing", lambda *_: [])
    for m in odd.MODELS[1:3]:
        path = odd.write(tmp_path / "model.gguf", m)
        ids = np.random.default_rng(2).integers(0, m.n_vocab, 17).astype(np.int32)
        with running(path, n_threads=2) as runtime:
            assert error(prefill(runtime, ids), ReferenceModel(path).logits(ids)) < 1e-5


def test_a_bad_token_leaves_nothing_behind(tmp_path: Path) -> None:
    """NaN in what pads a row would stay there, and spoil every later token."""
    m, bad = odd.MODELS[1], 5
    weights = odd.tensors(m)
    weights["token_embd.weight"][:, 0] = np.arange(m.n_vocab) == bad  # what the one token alone has, …
    for layer in range(2):
        weights[f"blk.{layer}.attn_output.weight"][0] = weights[f"blk.{layer}.ffn_down.weight"][0] = 0
    weights["blk.0.ffn_norm.weight"][0] = 1e25  # … and what then is too large for float32
    path = odd.write(tmp_path / "model.gguf", m, weights=weights)
    ids = np.arange(6, 27, dtype=np.int32)
    with running(path, n_threads=2) as runtime:
        expected = prefill(runtime, ids)
        assert np.isfinite(expected).all()
        assert np.isnan(prefill(runtime, np.full(21, bad, np.int32))).all()
        assert np.array_equal(prefill(runtime, ids), expected)


def test_blocks_want_whole_rows(tmp_path: Path) -> None:
    with pytest.raises(GGPYError, match=r"A row of \d+ weights cannot be stored as Q8_0.*blocks hold 32"):
        odd.write(tmp_path / "model.gguf", odd.MODELS[1], "Q8_0")
    path = odd.write(tmp_path / "model.gguf", odd.MODELS[1], "F16")
    data = bytearray(path.read_bytes())
    at = data.index(b"output.weight") + len(b"output.weight") + 4 + 16  # its type follows two dimensions
    assert data[at] == 1
    data[at] = FORMATS["Q8_0"].id
    path.write_bytes(data)
    with pytest.raises(GGPYError, match=r"output\.weight.*54.*Q8_0|Q8_0.*54"), GGUFFile(path) as file:
        Runtime(file, 64)


def test_odd_heads_are_refused(tmp_path: Path) -> None:
    path = odd.write(tmp_path / "model.gguf", odd.Sizes("llama", 12, 3, 1, 5, 4, 14, 97))
    with GGUFFile(path) as file, pytest.raises(GGPYError, match="heads have 5 dimensions; ggpy needs an even number"):
        Runtime(file, 64)
