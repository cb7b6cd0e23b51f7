"""The host side of a large step's products: which kernels, which tiles, which grids. Imports no numba."""

from __future__ import annotations

from ggpy.cuda.matmul_layout import Tiling

TILINGS: dict[str, Tiling] = {
    tiling.name: tiling
    for tiling in (
        Tiling(128, 128, 2, 2, 4, blocks=2),
        Tiling(64, 128, 2, 2, 4, blocks=2),
        Tiling(128, 64, 4, 1, 4, blocks=2),
        Tiling(64, 64, 2, 2, 4, blocks=2),
        Tiling(128, 32, 4, 1, 4, blocks=2),
        Tiling(64, 32, 4, 1, 6, blocks=3),
        Tiling(128, 128, 8, 1, 4, hopper=True, blocks=2),
        Tiling(128, 256, 8, 1, 4, hopper=True),
        Tiling(64, 128, 4, 1, 4, hopper=True, blocks=3),
        Tiling(64, 256, 4, 1, 4, hopper=True),
        Tiling(256, 128, 8, 1, 4, hopper=True),
        Tiling(64, 64, 4, 1, 6, hopper=True, blocks=3),
        Tiling(64, 32, 4, 1, 8, hopper=True, blocks=4),
        Tiling(64, 16, 4, 1, 8, hopper=True, blocks=4),
    )
}
