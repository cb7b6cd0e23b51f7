"""The host side of a large step's products: which kernels, which tiles, which grids. Imports no numba.

`quantize_activations` or `quantize_swiglu` leaves what one or several `matmul` read. All only queue kernels on the
device's stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ggpy.cuda.ops.matmul.layout import HalfActivations, Tiling
from ggpy.cuda.weights.layout import MatrixLayout
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import Packed

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device

QUANTIZE_THREADS = 512  # the most that work on a token's activations
QUANTIZE_SHARED = 8 * QUANTIZE_THREADS // 32  # two floats a warp

# Every shape of tile that there is a kernel for; of one size the best first, for formats that it has room for.
TILINGS: dict[str, Tiling] = {
    tiling.name: tiling
    for tiling in (
        Tiling(128, 256, 8, 1, 4, hopper=True),
        Tiling(128, 128, 8, 1, 4, hopper=True),
        Tiling(64, 128, 4, 1, 4, hopper=True, splits=2),
        *(Tiling(64, 64, 4, 1, 4, hopper=True, splits=n) for n in (4, 2, 1)),
        *(Tiling(128, 32, 4, 1, 4, hopper=True, splits=n) for n in (4, 2)),
        Tiling(64, 32, 4, 1, 6, hopper=True, splits=4, paired=True),
        *(Tiling(64, 32, 4, 1, 4, hopper=True, splits=n) for n in (4, 2)),
        Tiling(128, 128, 2, 2, 4, blocks=2),
        *(Tiling(64, 64, 4, 1, 3, splits=n) for n in (2, 1)),
        *(Tiling(64, 32, 4, 1, 4, splits=n) for n in (4, 2, 1)),
    )
}
# Microseconds that a round of blocks takes, one on every multiprocessor: at its start and end, and every 1000 columns;
# then the same where each multiprocessor holds as many as it can. Of Q4_0 on an H100; only the ratios matter.
COSTS: dict[tuple[int, int, bool], tuple[float, float, float, float]] = {
    (128, 256, True): (17.0, 8.9, 14.5, 11.1),
    (128, 128, True): (14.5, 7.0, 14.5, 7.0),
    (64, 128, True): (9.0, 3.4, 9.0, 3.7),
    (64, 64, True): (9.0, 2.0, 9.0, 2.0),
    (128, 32, True): (8.0, 3.7, 8.0, 3.7),
    (64, 32, True): (7.0, 1.9, 7.0, 1.9),
    (128, 128, False): (10.0, 13.1, 14.0, 21.3),
    (64, 64, False): (10.0, 3.7, 10.0, 3.8),
    (64, 32, False): (10.0, 1.7, 10.0, 1.8),
}
# The same of what is not split, where that is another kernel: an estimate, from tiles of twice the rows and tokens.
COSTS_UNSPLIT = {(64, 64, True): (9.0, 5.0, 9.0, 5.0)}


@lru_cache(maxsize=64)
def tilings(
    packed: Packed, cc: tuple[int, int], batch_invariant: bool = False, experts: bool = False
) -> tuple[Tiling, ...]:
    """Tilings for a format, one of each size, with as many teams as shared memory has room for. batch_invariant: those
    of one team, all of which sum up the columns in one order. experts: of the chosen experts' matrices."""
    hopper = cc == (9, 0)
    large = cc in ((8, 0), (8, 7)) or (10, 0) <= cc < (12, 0)
    room = (227 if hopper else 163 if large else 99) << 10
    found: dict[tuple[int, int], Tiling] = {}
    for tiling in TILINGS.values():
        split = batch_invariant and tiling.splits > 1
        if tiling.hopper == hopper and not split and tiling.shared_bytes(packed, experts) <= room:
            found.setdefault((tiling.rows, tiling.tokens), tiling)
    return tuple(found.values())


def _cost(tiling: Tiling, n_rows: int, n_cols: int, n_tokens: int, n_multiprocessors: int, n_experts: int = 0) -> float:
    """Estimated time of a product with a tiling, in microseconds. n_experts: as many share the tokens alike."""
    kind = tiling.rows, tiling.tokens, tiling.hopper
    unsplit = COSTS_UNSPLIT.get(kind) if tiling.splits == 1 else None
    start, column, full_start, full_column = unsplit or COSTS[kind]
    alone, full = start + column * n_cols / 1000, full_start + full_column * n_cols / 1000
    n_groups = max(1, min(n_experts, n_tokens))
    blocks = n_groups * -(-n_rows // tiling.rows) * -(-n_tokens // (n_groups * tiling.tokens))
    rounds, rest = divmod(blocks, n_multiprocessors * tiling.blocks)
    return rounds * full + (0 if rest == 0 else alone if rest <= n_multiprocessors else full)


def choose_tiling(
    packed: Packed,
    n_rows: int,
    n_cols: int,
    n_tokens: int,
    cc: tuple[int, int],
    n_multiprocessors: int,
    batch_invariant: bool = False,
    n_experts: int = 0,
) -> Tiling:
    """The tiling estimated to take the least time; n_experts: of a product with so many, which tokens choose from."""
    return min(
        tilings(packed, cc, batch_invariant, n_experts > 0),
        key=lambda tiling: _cost(tiling, n_rows, n_cols, n_tokens, n_multiprocessors, n_experts),
    )


def kernel_names(
    layout: MatrixLayout,
    cc: tuple[int, int],
    aligned: bool = True,
    batch_invariant: bool = False,
    experts: bool = False,
) -> list[str]:
    """Names of the kernels that `quantize_activations`, `quantize_swiglu` and `matmul` may launch for a matrix, to be
    compiled ahead. aligned: whether rows that are multiples of 16 columns begin at multiples of 16 bytes."""
    width = _width(layout.n_cols) if aligned else 1
    quantizing = [f"quantize_activations.{kind}.{width}" for kind in ("norm", "swiglu")]
    return quantizing + [
        f"matmul.{layout.packed.name}.{tiling.name}{'.experts' if experts else ''}"
        for tiling in tilings(layout.packed, cc, batch_invariant, experts)
    ]


def activation_bytes(layout: MatrixLayout, n_tokens: int) -> int:
    """Bytes of one input as products read it."""
    return HalfActivations(n_tokens, layout.n_cols).n_bytes


def _width(n_cols: int, *places: int) -> int:
    """Columns that `_quantize` loads at once: four where rows, addresses and strides are multiples of 16, else one."""
    return 1 if any(value % 16 for value in (n_cols, *places)) else 4


def quantize_activations(
    device: Device,
    layout: MatrixLayout,
    *,
    src: int,
    src_stride: int,
    rows: int,
    weight: int,
    eps: float,
    n_tokens: int,
    activations: int,
) -> None:
    """activations = src, each token divided by its root mean square and multiplied by `weight` if eps >= 0.

    src: float32 rows, `src_stride` bytes apart; rows: int32 [n_tokens], which of them, or 0: one after the other;
    weight: float32 [n_cols], or 0; eps: added to the mean square; activations: HalfActivations.
    """
    _quantize(device, "norm", layout.n_cols, src, src_stride, 0, 0, rows, eps, weight, n_tokens, activations)


def quantize_swiglu(
    device: Device,
    layout: MatrixLayout,
    *,
    gate: int,
    gate_stride: int,
    up: int,
    up_stride: int,
    n_tokens: int,
    activations: int,
) -> None:
    """activations = silu(gate) * up, both float32 [n_tokens][layout.n_cols], their rows so many bytes apart."""
    _quantize(device, "swiglu", layout.n_cols, gate, gate_stride, up, up_stride, 0, -1.0, 0, n_tokens, activations)


def _quantize(
    device: Device,
    kind: str,
    n_cols: int,
    src: int,
    src_stride: int,
    up: int,
    up_stride: int,
    rows: int,
    eps: float,
    weight: int,
    n_tokens: int,
    activations: int,
) -> None:
    padded = HalfActivations(n_tokens, n_cols).stride // 2
    width = _width(n_cols, src, src_stride, up, up_stride, weight)
    device.kernel(f"quantize_activations.{kind}.{width}").launch(
        n_tokens,
        src, src_stride, up, up_stride, rows, n_cols, padded, eps, weight, activations,
        threads=min(QUANTIZE_THREADS, -(-padded // 512) * 32),
        shared=QUANTIZE_SHARED,
    )  # fmt: skip


def matmul(
    device: Device,
    layout: MatrixLayout,
    weight: int,
    activations: int,
    *,
    n_tokens: int,
    bias: int,
    dst: int,
    dst_stride: int,
    accumulate: bool,
    batch_invariant: bool = False,
) -> None:
    """dst[token, row] = activations[token] . weight[row] + bias[row], or that added to dst.

    weight: address of a matrix as `layout` lays it; activations: as `quantize_activations` left them for `n_tokens`;
    bias: float32 [n_rows], or 0; dst: float32 rows, `dst_stride` bytes apart; batch_invariant: a token's sums are the
    same bits whatever tokens there are beside it.
    """
    n_rows, n_cols = layout.n_rows, layout.n_cols
    tiling = _tiling(
        layout.packed.name, n_rows, n_cols, n_tokens, device.cc, device.n_multiprocessors, batch_invariant, 0
    )
    device.kernel(f"matmul.{layout.packed.name}.{tiling.name}").launch(
        (-(-n_tokens // tiling.tokens), -(-n_rows // tiling.rows)),
        dst, dst_stride, activations, activations + HalfActivations(n_tokens, n_cols).scales_at, weight, bias,
        n_tokens, n_rows, n_cols, accumulate, shared=_shared_bytes(layout.packed.name, tiling),
    )  # fmt: skip


@dataclass(frozen=True)
class ExpertRows:
    """The rows that a product of chosen experts makes: `n_used` of each of `n_tokens`, of `n_experts`. spread:
    activations are a token's; else each row has its own. order, tiles: places for what `group_experts` finds."""

    n_experts: int
    n_tokens: int
    n_used: int
    spread: bool
    order: int
    tiles: int

    @property
    def n(self) -> int:
        return self.n_tokens * self.n_used

    @property
    def n_activations(self) -> int:
        return self.n_tokens if self.spread else self.n


def expert_tiling(device: Device, layout: MatrixLayout, rows: ExpertRows, batch_invariant: bool = False) -> Tiling:
    """The tiling of a product of chosen experts, whose matrices `layout` has one after the other."""
    return _tiling(
        layout.packed.name, layout.n_rows // rows.n_experts, layout.n_cols, rows.n, device.cc,
        device.n_multiprocessors, batch_invariant, rows.n_experts,
    )  # fmt: skip


def most_tiles(n: int, n_experts: int, n_tokens: int) -> int:
    """The most tiles of `n_tokens` that n rows of some experts can make."""
    groups = min(n, n_experts)
    return groups + (n - groups) // n_tokens


def expert_matmul(
    device: Device,
    layout: MatrixLayout,
    weight: int,
    activations: int,
    tiling: Tiling,
    rows: ExpertRows,
    *,
    bias: int,
    dst: int,
    dst_stride: int,
    accumulate: bool,
) -> None:
    """dst[i, row] = activations of row i . weight[expert of i, row] + bias[expert of i, row], or that added to dst, for
    rows in the order of tokens that `group_experts` has put in tiles of `tiling`; else as `matmul`."""
    n_rows, n_cols = layout.n_rows // rows.n_experts, layout.n_cols
    scales = activations + HalfActivations(rows.n_activations, n_cols).scales_at
    device.kernel(f"matmul.{layout.packed.name}.{tiling.name}.experts").launch(
        (most_tiles(rows.n, rows.n_experts, tiling.tokens), -(-n_rows // tiling.rows)),
        dst, dst_stride, activations, scales, weight, bias, rows.n, n_rows, n_cols, accumulate,
        rows.order, rows.tiles, rows.n_used if rows.spread else 1, rows.n_experts,
        shared=_shared_bytes(layout.packed.name, tiling, True),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _tiling(
    name: str,
    n_rows: int,
    n_cols: int,
    n_tokens: int,
    cc: tuple[int, int],
    n_multiprocessors: int,
    batch_invariant: bool,
    n_experts: int,
) -> Tiling:
    return choose_tiling(PACKED[name], n_rows, n_cols, n_tokens, cc, n_multiprocessors, batch_invariant, n_experts)


@lru_cache(maxsize=256)
def _shared_bytes(name: str, tiling: Tiling, experts: bool = False) -> int:
    """`Tiling.shared_bytes`, which is asked for at every launch: counting them took a third of a prompt's time on the
    host."""
    return tiling.shared_bytes(PACKED[name], experts)
