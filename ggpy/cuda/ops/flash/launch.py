"""The host side of attention over many tokens. Imports no numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.cuda.ops.flash.layout import FlashShape
from ggpy.cuda.weights.cache_layout import CacheLayout
from ggpy.cuda.weights.layout import LOG2_E

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device


def _shapes(cache: CacheLayout, n_head: int, softcap: float, sinks: bool) -> list[FlashShape]:
    """Kernel shapes of 16 rows a warp and, where a warp's registers hold them, of 32: twice the work for the same
    reads."""
    group = n_head // cache.n_head_kv
    fragments = (1, 2) if cache.head_pad <= 96 else (1,)
    return [FlashShape(cache.head_dim, group, n, cache.types, softcap, sinks) for n in fragments]


def kernel_names(cache: CacheLayout, n_head: int, softcap: float = 0.0, sinks: bool = False) -> list[str]:
    """Names of the kernels that `attention` may launch, to be compiled ahead."""
    return [shape.name for shape in _shapes(cache, n_head, softcap, sinks)]


def attention(
    device: Device,
    cache: CacheLayout,
    *,
    q: int,
    q_stride: int,
    keys: int,
    values: int,
    segments: int,
    n_segments: int,
    max_tokens: int,
    dst: int,
    dst_stride: int,
    n_head: int,
    window: int,
    scale: float,
    softcap: float = 0.0,
    sinks: int = 0,
) -> None:
    """dst[token, head] = softmax(scale * q . k) v over the cells that each token sees: of its slot, up to its own
    position, the last `window` of them if that is not 0.

    q, dst: float32 rows [token][n_head * head_dim], `q_stride` and `dst_stride` bytes apart; keys, values: a layer's
    cache, the batch already in it; segments: int32 [n_segments][4] on the device, runs of tokens of one slot at
    consecutive positions: slot, first token, tokens, position of the first; max_tokens: of the longest one; softcap:
    scores become softcap * tanh(score / softcap) where it is not 0; sinks: float32 [n_head], scores that take part
    without a value, or 0.
    """
    shapes = _shapes(cache, n_head, softcap, bool(sinks))
    rows = max_tokens * shapes[0].group

    def blocks(shape: FlashShape) -> int:
        return -(-rows // shape.rows) * cache.n_head_kv * n_segments

    # the larger tile only where there are more than enough for all multiprocessors
    shape = shapes[-1] if blocks(shapes[-1]) >= 4 * device.n_multiprocessors else shapes[0]
    device.kernel(shape.name).launch(
        (cache.n_head_kv, n_segments, -(-rows // shape.rows)),
        q, q_stride, keys, values, cache.cells, segments, dst, dst_stride, window,
        scale / (softcap * LOG2_E) if softcap else scale, *((sinks,) if sinks else ()),
        shared=shape.shared_bytes,
    )  # fmt: skip
