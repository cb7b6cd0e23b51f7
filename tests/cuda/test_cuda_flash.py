"""Attention over many tokens for CUDA: compiled without a GPU, run by an emulator, and by a GPU where there is one."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.support.blocks import slow_but

pytest.importorskip("numba_cuda")

from ggpy.cuda.compile import compile_kernel, to_ptx
from ggpy.cuda.driver import Device, device_count
from ggpy.cuda.ops.flash.launch import attention as launch_attention
from ggpy.cuda.ops.flash.layout import FlashShape
from ggpy.cuda.weights.cache_layout import CacheLayout
from tests.support.ptx_emulator import launch
from tests.support.ptx_memory import Memory
from tests.support.ptx_text import parse


def attention(q, keys, values, segments, group, window):  # type: ignore[no-untyped-def]
    """The obvious way, in double precision; q [token][query head][head_dim]."""
    _, n_head, head_dim = q.shape
    out = np.zeros(q.shape)
    for slot, first, tokens, position in segments:
        where = slice(first, first + tokens)
        cells = np.arange(keys.shape[2])
        back = position + np.arange(tokens)[:, None] - cells
        seen = (back >= 0) & ((back < window) | (window == 0))
        for head in range(n_head):
            k, v = (a[slot, head // group, :, :head_dim].astype(np.float64) for a in (keys, values))
            scores = np.where(seen, q[where, head].astype(np.float64) @ k.T / math.sqrt(head_dim), -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[where, head] = weights / weights.sum(1, keepdims=True) @ v
    return out


@pytest.mark.parametrize(
    ("head_dim", "group", "fragments", "window"),
    slow_but(
        [(64, 4, 2, 20), (18, 1, 1, 0)],
        [
            (64, 1, 1, 0),
            (64, 4, 2, 20),
            (80, 1, 1, 0),
            (96, 3, 1, 0),
            (128, 2, 2, 0),
            (256, 1, 1, 70),
            (144, 1, 1, 0),
            (18, 1, 1, 0),
        ],
    ),
)
def test_emulated_attention(head_dim: int, group: int, fragments: int, window: int) -> None:
    rng, shape, n_head_kv = np.random.default_rng(0), FlashShape(head_dim, group, fragments), 1
    cache = CacheLayout(2, n_head_kv, 150, head_dim)
    segments = np.array([[1, 0, 30, 70], [0, 30, 1, 140]], np.int32)  # slot, first token, tokens, first position
    n_tokens, longest = 31, 30
    keys, values = (np.zeros((2, n_head_kv, cache.cells, cache.head_pad), np.float16) for _ in range(2))
    for array in (keys, values):
        array[..., :head_dim] = rng.standard_normal((*array.shape[:3], head_dim))
    q = rng.standard_normal((n_tokens, n_head_kv * group, head_dim)).astype(np.float32) * 2
    wanted = attention(q, keys, values, segments, group, window)
    for slot, _, tokens, position in segments:  # nobody has written what lies beyond
        keys[slot, :, position + tokens :] = values[slot, :, position + tokens :] = np.nan
    out, memory = np.full_like(q, np.nan), Memory()
    stride = 4 * n_head_kv * group * head_dim
    arguments = [
        memory.add(q), stride, memory.add(keys), memory.add(values), cache.cells, memory.add(segments),
        memory.add(out), stride, window, 1 / math.sqrt(head_dim),
    ]  # fmt: skip
    grid = (n_head_kv, len(segments), -(-longest * group // shape.rows))
    entry = parse(to_ptx(shape.name, (9, 0))[0])
    launch(entry, memory, grid, shape.threads, arguments, shape.shared_bytes)
    assert np.linalg.norm(out - wanted) / np.linalg.norm(wanted) < 1e-3


@pytest.mark.parametrize("cc", [(9, 0), (8, 0)])
@pytest.mark.parametrize("sizes", [(64, 4, 2), (80, 1, 2), (96, 1, 1), (128, 4, 1), (256, 1, 1)])
def test_compiled_attention(sizes: tuple[int, int, int], cc: tuple[int, int]) -> None:
    shape = FlashShape(*sizes)
    text, _ = to_ptx(shape.name, cc)
    assert (
        len(re.findall(r"mma\.sync\.aligned\.m16n8k16", text))
        == shape.head_pad * shape.fragments * shape.positions // 64
    )
    assert "ldmatrix.sync.aligned.m8n8.x4.trans" in text
    assert "cp.async.cg.shared.global" in text
    assert ".local" not in text
    assert shape.shared_bytes <= 99 << 10
    made = compile_kernel(shape.name, cc)
    assert made.stack == 0
    assert made.registers * shape.threads * shape.blocks <= 65536


@pytest.mark.cuda
@pytest.mark.skipif(not device_count(), reason="no GPU")
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 3), (80, 1), (96, 2), (128, 4), (128, 1), (256, 1), (18, 2)])
def test_attention_on_gpu(head_dim: int, group: int, window: int) -> None:
    rng, device, n_head_kv = np.random.default_rng(0), Device(), 2
    cache = CacheLayout(3, n_head_kv, 600, head_dim)
    segments = np.array([[2, 0, 100, 37], [0, 100, 1, 555], [1, 101, 270, 0]], np.int32)
    n_tokens, n_head = 371, n_head_kv * group
    keys, values = (np.zeros((3, n_head_kv, cache.cells, cache.head_pad), np.float16) for _ in range(2))
    for array in (keys, values):
        array[..., :head_dim] = rng.standard_normal((*array.shape[:3], head_dim))
    q = rng.standard_normal((n_tokens, n_head, head_dim)).astype(np.float32) * 2
    wanted = attention(q, keys, values, segments, group, window)
    for slot, _, tokens, position in segments:
        keys[slot, :, position + tokens :] = values[slot, :, position + tokens :] = np.nan
    out = np.full_like(q, np.nan)
    addresses = []
    for array in (q, keys, values, segments, out):
        addresses.append(device.allocate(array.nbytes))
        device.upload(addresses[-1], array.ctypes.data, array.nbytes)
    stride = 4 * n_head * head_dim
    launch_attention(
        device, cache, q=addresses[0], q_stride=stride, keys=addresses[1], values=addresses[2], segments=addresses[3],
        n_segments=3, max_tokens=270, dst=addresses[4], dst_stride=stride, n_head=n_head, window=window,
        scale=1 / math.sqrt(head_dim),
    )  # fmt: skip
    device.download(out.ctypes.data, addresses[4], out.nbytes)
    device.synchronize()
    assert np.linalg.norm(out - wanted) / np.linalg.norm(wanted) < 1e-3
