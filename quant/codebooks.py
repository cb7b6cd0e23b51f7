"""The codebooks of the IQ1, IQ2 and IQ3 formats: each row of a grid is four or eight neighbouring weights, given by the
places of their magnitudes among those of the format. The grids are the `gguf` package's."""

from __future__ import annotations

from functools import cache

import numpy as np

#: Of eight weights, whose number of minus signs is even, the signs by those of the first seven; bit j: weight j is
#: negative.
EIGHT_SIGNS = tuple(seven | (seven.bit_count() & 1) << 7 for seven in range(128))


@cache
def grid(name: str) -> np.ndarray:
    """uint8 [rows, columns]: places in the `grid_map` of "IQ1_S" (IQ1_M has the same grid), "IQ2_XXS", …"""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return np.searchsorted(np.array(kind.grid_map), kind.grid.reshape(kind.grid_shape)).astype(np.uint8)
