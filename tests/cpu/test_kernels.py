"""Every kernel of every tier this CPU has, against the plain tier, and the plain tier against numpy in float64."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

from ggpy.codegen.compile_workers import compiled_by_others
from ggpy.codegen.kernel_files import is_kept
from ggpy.codegen.native import is_cached, kernel_cache, tiers
from ggpy.cpu import kernels
from ggpy.cpu.builds import build
from ggpy.cpu.isa.layout import (
    OP,
    STEP,
    TOKEN_BLOCK_BYTES,
    attention_scratch_bytes,
    cache_types,
    cell_bytes,
    part_bytes,
    planes,
    tile_widths,
)
from ggpy.cpu.needed import COMPILE_WORKER
from ggpy.graph.state import PART
from ggpy.paths import cache_dir
from ggpy.quant import FORMATS
from ggpy.quant.formats import PACKED
from tests.support.blocks import random_blocks
from tests.support.reference import bf16, q8_0

TIERS = [tier for tier in tiers() if tier != "plain"]
N_COLS = 512


@pytest.fixture(scope="module", autouse=True)
def compiled_side_by_side(request: pytest.FixtureRequest) -> None:
    """Compile the kernels that this module's tests need on several processors, as one alone takes minutes."""
    wanted = {}
    for item in request.session.items:
        here = getattr(item, "module", None) is request.module
        params = getattr(getattr(item, "callspec", None), "params", {}) if here else {}
        tier, name, cache_type = (params.get(key) for key in ("tier", "name", "cache_type"))
        if cache_type in ("f16", "f32", "q8_0"):
            wanted[f"attention.{cache_type} {tier}"] = True
        if tier and name:
            wanted |= {f"linear.{name} {tier}": True, f"linear.{name} plain": True, f"pack.{name}": True}
    missing = [w for w in wanted if not is_cached(kernels.file_name(*w.split(" ")))]
    workers = min(len(missing) // 8, os.cpu_count() or 1)
    if workers > 1 and is_kept(kernel_cache()):
        missing.sort(key=lambda w: not w.startswith("attention"))  # what takes longest first
        assert len(list(compiled_by_others(COMPILE_WORKER, missing, workers, cache_dir()))) == len(missing)


def call(name: str, tier: str, op: np.ndarray, step: np.ndarray, thread: int = 0, threads: int = 1) -> None:
    if not op["key_pad"][0]:  # a key takes as many dimensions in the cache as it has
        op["key_pad"] = op["head_dim"]
    kernels.kernel(name, tier).call(op.ctypes.data, step.ctypes.data, thread, threads)


def records() -> tuple[np.ndarray, np.ndarray]:
    """An operation and a step, with what is seldom another value."""
    op, step = np.zeros(1, OP), np.zeros(1, STEP)
    op["n_used"] = op["causal"] = op["norm"] = 1
    return op, step


def aligned(n_bytes: int) -> np.ndarray:
    memory = np.zeros(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes]


@cache
def weights(name: str, n_rows: int, n_cols: int = N_COLS) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks of a type, and what they stand for in float64: every code occurs."""
    rng = np.random.default_rng(len(name) + n_rows)
    form = FORMATS[name]
    if PACKED[name].is_float:
        values = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        raw = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[name].view(np.uint8)
    else:
        blocks = random_blocks(name, n_rows * n_cols // form.block_size, len(name) + n_rows)
        raw = blocks.reshape(n_rows, -1)
    return np.ascontiguousarray(raw), form.dequantize(raw).astype(np.float64)


@cache
def product(
    name: str,
    tier: str,
    n_rows: int,
    n_tokens: int,
    accumulate: bool = False,
    n_cols: int = N_COLS,
    form: str = "q8",
) -> tuple[np.ndarray, np.ndarray]:
    """(what a tier computes, what float64 gives) for n_tokens random rows, padded with what must not count."""
    p = PACKED[name]
    raw, exact = weights(name, n_rows, n_cols)
    n_stripes = -(-n_rows // 16)
    packed = aligned(p.matrix_bytes(n_rows, n_cols))
    pack = kernels.kernel(f"pack.{name}").call
    codes = aligned(64)
    for s in range(n_stripes):
        pack(
            raw.ctypes.data,
            packed.ctypes.data,
            n_rows,
            n_cols,
            raw.shape[1],
            p.stripe_bytes(n_cols),
            s,
            s + 1,
            codes.ctypes.data,
        )
    rng = np.random.default_rng(n_tokens)
    x = np.full((n_tokens, -(-n_cols // 16) * 16), np.nan, np.float32)
    x[:, :n_cols] = rng.standard_normal((n_tokens, n_cols))
    x[0, : min(32, n_cols)] = 0.0
    bias = np.zeros(16 * n_stripes, np.float32)
    bias[:n_rows] = rng.standard_normal(n_rows)
    out = np.full((n_tokens, 16 * n_stripes), 0.5 if accumulate else np.nan, np.float32)
    ones, columns = np.ones(x.shape[1], np.float32), p.padded(n_cols)
    form, token_bytes = ("f32", 4 * columns) if p.is_float else (form, n_cols // 32 * TOKEN_BLOCK_BYTES)
    tiles = aligned(n_tokens * planes(form) * token_bytes)
    op, step = records()
    step["n_tokens"] = n_tokens
    op["n_cols"], op["token_bytes"], op["eps"] = n_cols, token_bytes, -1.0
    op["src"], op["src_stride"], op["weight"] = x.ctypes.data, x.strides[0], ones.ctypes.data
    op["dst"] = tiles.ctypes.data
    call(f"quantize_activations.{form}", tier, op, step)
    op["n_cols"], op["src"], op["weight"], op["bias"] = columns, tiles.ctypes.data, packed.ctypes.data, bias.ctypes.data
    op["dst"], op["dst_stride"], op["accumulate"] = out.ctypes.data, out.strides[0], accumulate
    op["stripe_bytes"], op["n_stripes"] = p.stripe_bytes(n_cols), n_stripes
    call(f"linear.{name}.q16" if form == "q16" else f"linear.{name}", tier, op, step)
    assert not out[:, n_rows:].any() or accumulate  # rows past the last stay zero
    return out[:, :n_rows], x[:, :n_cols].astype(np.float64) @ exact.T + bias[:n_rows] + 0.5 * accumulate


@pytest.mark.matrix(strength=1)  # 2.5 s to compile a type for a tier
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 13, 16, 37])
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("tier", TIERS)
def test_products_equal_the_plain_tier(tier, name, n_tokens):
    ours, exact = product(name, tier, 40, n_tokens)
    plain, _ = product(name, "plain", 40, n_tokens)
    assert np.abs(ours - plain).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("name", PACKED)
def test_the_plain_tier_errs_only_by_rounded_activations(name):
    plain, exact = product(name, "plain", 40, 13)
    # int8 in blocks of 32: each activation is off by up to 1/254 of its block's largest, uniformly: 0.0023 of it on
    # average
    bound = 1e-6 if PACKED[name].is_float else 0.02
    assert np.abs(plain - exact).max() < bound * np.abs(exact).max()


# What output matrices are kept in, and a type with minima and one scale for 32.
@pytest.mark.matrix(strength=1)
@pytest.mark.parametrize("name", ["Q6_K", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tier", ["plain", *TIERS])
def test_logits_are_products_of_16_bits(tier, name):
    """A bound that is 200 times tighter than for 8 bits (above), as what these leave is rounded to a 254th."""
    for n_tokens, accumulate in ((1, False), (2, False), (13, False), (13, True)):
        ours, exact = product(name, tier, 40, n_tokens, accumulate, form="q16")
        plain, _ = product(name, "plain", 40, n_tokens, accumulate, form="q16")
        assert np.abs(ours - exact).max() < 1e-4 * np.abs(exact).max()
        assert np.abs(ours - plain).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("name", PACKED)
def test_embedding_rows_are_the_files_own(name):
    raw, exact = weights(name, 40)
    ids = np.array([39, 0, 7, 7], np.int32)
    out, scratch = np.zeros((4, N_COLS), np.float32), aligned(64)
    op, step = records()
    step["n_tokens"], rows = 4, raw[ids]
    op["weight"], op["weight_stride"], op["n_cols"] = rows.ctypes.data, rows.shape[1], N_COLS
    op["dst"], op["dst_stride"], op["scratch"] = out.ctypes.data, out.strides[0], scratch.ctypes.data
    call(f"embed.{name}", "plain", op, step)
    assert np.array_equal(out, exact[ids].astype(np.float32))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_byte_that_is_a_scale(name):
    """Exponents whose power of two is subnormal or overflows with the number; small floats, subnormal too."""
    form = FORMATS[name]
    blocks = random_blocks(name, 256)
    blocks[:, : form.type_size - form.block_size // 2] = np.arange(256)[:, None]
    with np.errstate(over="ignore"):
        exact = form.dequantize(blocks)
    out = np.zeros((1, exact.size), np.float32)
    (op, step), scratch = records(), aligned(64)
    step["n_tokens"] = 1
    op["weight"], op["weight_stride"], op["n_cols"] = blocks.ctypes.data, blocks.size, exact.size
    op["dst"], op["dst_stride"], op["scratch"] = out.ctypes.data, out.strides[0], scratch.ctypes.data
    call(f"embed.{name}", "plain", op, step)
    assert np.array_equal(out[0], exact.ravel())


@pytest.mark.parametrize("tier", ["plain", *TIERS])
def test_a_product_adds_to_what_is_there(tier):
    ours, exact = product("Q4_0", tier, 16, 3, accumulate=True)
    assert np.abs(ours - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("tier", ["plain", *TIERS])
@pytest.mark.parametrize("n_tokens", [1, 7, 21])
def test_norm_is_in_the_preparation(tier, n_tokens):
    rng = np.random.default_rng(0)
    n_cols = 96
    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    out = np.zeros(n_tokens * n_cols, np.float32)
    op, step = records()
    step["n_tokens"] = n_tokens
    op["n_cols"], op["token_bytes"], op["eps"] = n_cols, 4 * n_cols, 1e-5
    op["src"], op["src_stride"], op["weight"] = x.ctypes.data, x.strides[0], weight.ctypes.data
    op["dst"] = out.ctypes.data
    call("quantize_activations.f32", tier, op, step)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * weight
    start = 0
    while start < n_tokens:
        width = max(w for w in tile_widths(tier, True) if w <= n_tokens - start)
        tile = out[start * n_cols : (start + width) * n_cols].reshape(n_cols, width)
        assert np.allclose(tile.T, expected[start : start + width], rtol=1e-5, atol=1e-6)
        start += width


def cached(x: np.ndarray, cache_type: str, pad: int, is_key: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values [heads, n_ctx, dims] as `ggpy.cpu.ops.attention` lays them out, bytes [heads, n_ctx / 16, …], and
    the numbers found there."""
    n_head, n_ctx, _ = x.shape

    def laid_out(part: np.ndarray) -> np.ndarray:
        part = part.reshape(n_head, n_ctx // 16, 16, -1)
        return np.ascontiguousarray(part.swapaxes(2, 3) if is_key else part).reshape(*part.shape[:2], -1).view(np.uint8)

    if cache_type == "q8_0":
        codes, scales, found = q8_0(x)
        by_position = scales.reshape(n_head, n_ctx // 16, 16, -1).swapaxes(2, 3)
        by_position = np.ascontiguousarray(by_position).reshape(n_head, n_ctx // 16, -1).view(np.uint8)
        return np.concatenate([laid_out(codes), by_position], -1), found
    found = bf16(x) if cache_type == "bf16" else x.astype({"f16": np.float16, "f32": np.float32}[cache_type])
    kept = (found.view(np.uint32) >> 16).astype(np.uint16) if cache_type == "bf16" else found
    return laid_out(kept if is_key else np.pad(kept, ((0, 0), (0, 0), (0, pad - x.shape[-1])))), found


def is_attention(tier: str, cache_type: str, head_dim: int, **others: int) -> bool:
    """True for cases that there are: q8_0 has blocks of 32; how two types go together, and how bf16 is dequantized, is
    no matter of the tier."""
    alone = "-" not in cache_type and cache_type != "bf16"
    return not ("q8_0" in cache_type and head_dim % 32) and (alone or tier in ("plain", *TIERS[:1]))


@pytest.mark.matrix(possible=is_attention)
@pytest.mark.parametrize("cache_type", ["f16", "f32", "q8_0", "bf16", "q8_0-f16", "f16-q8_0"])
@pytest.mark.parametrize(("head_dim", "n_head", "n_head_kv"), [(64, 6, 2), (80, 4, 4), (24, 5, 1), (128, 16, 2)])
@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize(
    ("n_past", "n_tokens", "window"), [(0, 1, 0), (300, 1, 0), (250, 9, 0), (310, 2, 20), (5, 40, 7)]
)
@pytest.mark.parametrize("tier", ["plain", *TIERS])
def test_attention(tier, cache_type, head_dim, n_head, n_head_kv, n_past, n_tokens, window, small):
    check_attention(tier, cache_type, head_dim, n_head, n_head_kv, n_past, n_tokens, window, small)


def check_attention(
    tier: str, cache_type: str, head_dim: int, n_head: int, n_head_kv: int, n_past: int, n_tokens: int, window: int,
    small: int,
) -> None:  # fmt: skip
    """Attention of n_tokens after n_past others in their slot, against float64."""
    rng = np.random.default_rng(n_past + head_dim)
    n_ctx, pad = 384, -(-head_dim // 16) * 16
    cache_k, cache_v = cache_types(cache_type)
    k, v = (rng.standard_normal((n_head_kv, n_ctx, head_dim)).astype(np.float32) for _ in range(2))
    (keys, k), (values, v) = cached(k, cache_k, head_dim, True), cached(v, cache_v, pad, False)
    slot = 1  # slot 0 holds what must not be seen
    keys, values = (np.concatenate([np.full_like(t, 99), t], 1) for t in (keys, values))
    starts = np.array([0, n_ctx])
    q = rng.standard_normal((n_tokens, n_head, head_dim)).astype(np.float32)
    out = np.zeros((n_tokens, n_head * head_dim), np.float32)
    parts = np.full((n_tokens, n_head, -(-n_ctx // PART), pad + 16), np.nan, np.float32)
    scratch = aligned(attention_scratch_bytes(head_dim, pad))
    segments = np.array([[slot, 0, n_tokens, n_past]], np.int32)
    op, step = records()
    step["n_tokens"], step["n_segments"], step["small"], step["segments"] = n_tokens, 1, small, segments.ctypes.data
    op["max_parts"] = parts.shape[2]
    op["src"], op["src_stride"] = q.ctypes.data, q[0].nbytes
    op["dst"], op["dst_stride"] = out.ctypes.data, out.strides[0]
    op["src2"], op["scratch"] = parts.ctypes.data, scratch.ctypes.data
    op["cache_k"], op["cache_v"], op["n_ctx"] = keys.ctypes.data, values.ctypes.data, n_ctx
    op["starts"], op["head_cells"] = starts.ctypes.data, 2 * n_ctx
    op["n_head"], op["n_head_kv"], op["head_dim"], op["v_dim"], op["head_pad"] = (
        n_head,
        n_head_kv,
        head_dim,
        head_dim,
        pad,
    )
    op["window"], op["scale"] = window, head_dim**-0.5
    call(f"attention.{cache_type}", tier, op, step)
    if small:  # the preparation that follows joins the parts: at a norm weight of 1 it gives them back
        n_cols = n_head * head_dim
        positions, row, ones = (
            np.arange(n_past, n_past + n_tokens, dtype=np.int32),
            np.zeros((n_tokens, -(-n_cols // 8) * 8), np.float32),
            np.ones(4096, np.float32),
        )
        op["weight"], op["eps"], op["combine"], op["n_cols"] = ones.ctypes.data, -1.0, 1, n_cols
        op["dst"], op["token_bytes"], op["src"] = row.ctypes.data, row.strides[0], out.ctypes.data
        room = aligned(part_bytes(pad) + 4 * (n_cols + 64))
        room[:] = 255  # whatever lies there is no number
        op["scratch"], step["positions"] = room.ctypes.data, positions.ctypes.data
        call("quantize_activations.f32", tier, op, step)
        widths, start = tile_widths(tier, True), 0
        while start < n_tokens:
            width = max(w for w in widths if w <= n_tokens - start)
            out[start : start + width] = row[start : start + width].reshape(-1, width).T[:, :n_cols]
            start += width
    for i in range(n_tokens):
        last = n_past + i
        seen = slice(max(0, last - window + 1) if window else 0, last + 1)
        for h in range(n_head):
            kh, vh = (t[h // (n_head // n_head_kv), seen].astype(np.float64) for t in (k, v))
            scores = kh @ q[i, h] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            expected = weights @ vh / weights.sum()
            assert np.allclose(out[i, h * head_dim : (h + 1) * head_dim], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache_type", ["f16", "f32", "q8_0", "bf16"])
@pytest.mark.parametrize("tier", ["plain", *TIERS[:1]])
def test_the_cache_holds_what_is_stored(tier, cache_type):
    rng = np.random.default_rng(0)
    n_tokens, n_head_kv, head_dim, n_ctx = 37, 2, 64, 64
    k, v = (rng.standard_normal((n_tokens, n_head_kv, head_dim)).astype(np.float32) for _ in range(2))
    v[3] = 0
    caches = [np.zeros(2 * n_head_kv * n_ctx * cell_bytes(cache_type, head_dim), np.uint8) for _ in range(2)]
    positions, slots = np.arange(5, 5 + n_tokens, dtype=np.int32), np.ones(n_tokens, np.int32)
    op, step = records()
    step["n_tokens"], step["positions"], step["slots"] = n_tokens, positions.ctypes.data, slots.ctypes.data
    op["src2"], op["src2_stride"], op["src3"], op["src3_stride"] = (
        k.ctypes.data,
        k[0].nbytes,
        v.ctypes.data,
        v[0].nbytes,
    )
    starts = np.array([0, n_ctx])
    op["cache_k"], op["cache_v"], op["n_ctx"] = caches[0].ctypes.data, caches[1].ctypes.data, n_ctx
    op["starts"], op["head_cells"] = starts.ctypes.data, 2 * n_ctx
    op["n_head_kv"], op["head_dim"], op["v_dim"], op["head_pad"] = n_head_kv, head_dim, head_dim, head_dim
    call(f"rope_store.{cache_type}", tier, op, step)  # n_rot is 0: keys are not turned
    for x, found, is_key in ((k, caches[0], True), (v, caches[1], False)):
        padded = np.zeros((n_head_kv, n_ctx, head_dim), np.float32)
        padded[:, positions] = x.swapaxes(0, 1)
        expected, _ = cached(padded, cache_type, head_dim, is_key)
        assert np.array_equal(found.reshape(n_head_kv, 2, -1)[:, 1], expected.reshape(n_head_kv, -1))


def assembly(name: str, tier: str) -> str:
    return str(build(name, tier, kernels.OF_OPERATIONS)._library.get_asm_str())


@pytest.mark.parametrize(
    ("tier", "instruction"), [("avx512vnni", "vpdpbusd"), ("avx2vnni", "vpdpbusd"), ("avx2", "vpmaddubsw")]
)
def test_the_tier_uses_its_instruction(tier, instruction):
    if tier not in TIERS:
        pytest.skip(f"this CPU has no {tier}")
    asm = assembly("linear.Q4_0", tier)
    assert instruction in asm
    assert "vpshufb" in assembly("linear.IQ4_NL", tier)  # the table
    if tier == "avx512vnni":
        assert "%zmm" in asm
        assert "%ymm" not in asm
