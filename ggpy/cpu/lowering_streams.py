"""The CPU's side of operations on streams and on the spread of rows; see `ggpy.cpu.lowering`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu.access import EVERYONE, Access, Lowering, Places, dst_of, touch
from ggpy.graph import streams as ops

if TYPE_CHECKING:
    from ggpy.graph.program import Op


class LowerMixStreams(Lowering[ops.MixStreams]):
    def kernel(self, operation: ops.MixStreams, cache_type: str) -> str:
        return "mix_streams"

    def record(self, op: Op, operation: ops.MixStreams, places: Places, r: np.ndarray) -> None:
        x, coefficients = op.srcs
        r["n_groups"], r["n_cols"] = operation.n, x.n_cols // operation.n
        r["flag"] = coefficients.n_cols // operation.n

    def accesses(self, op: Op, operation: ops.MixStreams, small: bool) -> list[Access]:
        return [*touch(op.srcs, False, EVERYONE), *touch(dst_of(op), True, EVERYONE)]


class LowerMatchMagnitude(Lowering[ops.MatchMagnitude]):
    def kernel(self, operation: ops.MatchMagnitude, cache_type: str) -> str:
        return "match_magnitude"

    def record(self, op: Op, operation: ops.MatchMagnitude, places: Places, r: np.ndarray) -> None:
        r["n_cols"], r["eps"] = op.srcs[0].n_cols, operation.least**2


class LowerGaussianTopK(Lowering[ops.GaussianTopK]):
    def kernel(self, operation: ops.GaussianTopK, cache_type: str) -> str:
        return "gaussian_topk"

    def record(self, op: Op, operation: ops.GaussianTopK, places: Places, r: np.ndarray) -> None:
        r["n_cols"], r["scale"] = op.srcs[0].n_cols, operation.deviations
