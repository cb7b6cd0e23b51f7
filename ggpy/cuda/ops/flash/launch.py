"""The host side of attention over many tokens. Imports no numba."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ggpy.cuda.ops.flash.layout import FlashShape, WideShape
from ggpy.cuda.weights.cache_layout import CacheLayout
from ggpy.cuda.weights.layout import LOG2_E

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.graph.operations import Attention


@dataclass(frozen=True)
class FlashKind:
    """Options of the kernels, as `FlashShape` has them, by which layers of one width differ."""

    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    chunked: bool = False
    two_way: bool = False

    @staticmethod
    def of(a: Attention) -> FlashKind:
        return FlashKind(a.softcap, a.sinks is not None, bool(a.alibi), bool(a.chunk), not a.causal)


@lru_cache(maxsize=64)
def _shapes(shared_limit: int, cache: CacheLayout, n_head: int, kind: FlashKind) -> Sequence[FlashShape]:
    """Kernel shapes of 16 rows a warp and, where a warp's registers hold them, of 32: twice the work for the same
    reads."""
    if cache.wide:
        return [_wide_shape(shared_limit, cache, n_head, kind, False)]
    group = n_head // cache.n_head_kv
    fragments = (1, 2) if max(cache.head_pad, cache.value_pad) <= 96 else (1,)
    return [
        FlashShape(
            cache.head_dim, group, n, cache.types, kind.softcap, kind.sinks, cache.value_dim, kind.alibi, kind.chunked,
            kind.two_way,
        )
        for n in fragments
    ]  # fmt: skip


@lru_cache(maxsize=64)
def _wide_shape(shared_limit: int, cache: CacheLayout, n_head: int, kind: FlashKind, in_parts: bool) -> WideShape:
    def shape(positions: int) -> WideShape:
        return WideShape(
            cache.head_dim, n_head // cache.n_head_kv, 1, cache.types, kind.softcap, kind.sinks and not in_parts,
            cache.value_dim, kind.alibi, kind.chunked, kind.two_way, cache.latent, in_parts, positions,
        )  # fmt: skip

    return shape(32) if shape(32).shared_bytes <= shared_limit else shape(16)


def kernel_names(device: Device, cache: CacheLayout, n_head: int, kind: FlashKind) -> list[str]:
    """Names of the kernels that `attention` may launch, to be compiled ahead."""
    return [shape.name for shape in _shapes(device.shared_limit, cache, n_head, kind)]


def parts(
    device: Device, cache: CacheLayout, n_head: int, kind: FlashKind, n_tokens: int, splits: int
) -> tuple[str, tuple[int, int, int], int]:
    """The kernel for single tokens of heads that a block reads (`CacheLayout.wide`): its name, grid and shared memory.
    It takes the arguments of `ggpy.cuda.ops.flash.wide`, scores as `score_scale` has them."""
    shape = _wide_shape(device.shared_limit, cache, n_head, kind, True)
    return shape.name, (cache.n_head_kv, n_tokens, splits * -(-shape.group // shape.rows)), shape.shared_bytes


def score_scale(scale: float, softcap: float) -> float:
    """The scale of scores, times log2 e, as kernels take it: where these are capped, their tanh is taken of it."""
    return scale / (softcap * LOG2_E) if softcap else scale


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
    kind: FlashKind = FlashKind(),
    sinks: int = 0,
    slopes: int = 0,
) -> None:
    """dst[token, head] = softmax(scale * q . k) v over the cells that each token sees: of its slot, up to its own
    position, the last `window` of them if that is not 0, or those of its own run of `window` (chunked), or the whole
    segment, no further than `window` away if that is not 0 (two-way).

    q, dst: float32 rows [token][n_head * head_dim], of keys and of values, `q_stride` and `dst_stride` bytes apart;
    keys, values: a layer's cache, the batch already in it; segments: int32 [n_segments][4] on the device, runs of
    tokens of one slot at consecutive positions: slot (two-way: the cell of position 0, a multiple of 64), first token,
    tokens, position of the first; max_tokens: of the longest one; sinks: float32 [n_head], scores that take part
    without a value, or 0; slopes: float32 [n_head], by which scores fall with the distance, times log2 e, or 0.
    """
    shapes = _shapes(device.shared_limit, cache, n_head, kind)
    rows = max_tokens * shapes[0].group

    def blocks(shape: FlashShape) -> int:
        return -(-rows // shape.rows) * cache.n_head_kv * n_segments

    # the larger tile only where there are more than enough for all multiprocessors
    shape = shapes[-1] if blocks(shapes[-1]) >= 4 * device.n_multiprocessors else shapes[0]
    name, shared_bytes = _kernel(shape)
    device.kernel(name).launch(
        (cache.n_head_kv, n_segments, -(-rows // shape.rows)),
        q, q_stride, keys, values, cache.cells, segments, dst, dst_stride, window,
        score_scale(scale, kind.softcap), *(vector for vector in (sinks, slopes) if vector),
        shared=shared_bytes,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _kernel(shape: FlashShape) -> tuple[str, int]:
    """A kernel's name and its bytes of shared memory, made once, not at every launch."""
    return shape.name, shape.shared_bytes
