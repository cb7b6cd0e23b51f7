"""Operations on rows of several streams side by side, as AltUp has them (Gemma 3n, arXiv 2301.13310), and on the spread
of a row's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.graph.operations import Operation


@dataclass(frozen=True)
class MixStreams(Operation):
    """`n` equal runs of columns mixed by coefficients of each row: run o of the result is run o modulo n plus, for each
    run i, coefficient o * n + i times run i."""

    n: int


@dataclass(frozen=True)
class MatchMagnitude(Operation):
    """Rows scaled to the root mean square of another value's rows; their own counts as `least` at least."""

    least: float


@dataclass(frozen=True)
class GaussianTopK(Operation):
    """max(0, x - cutoff), where the cutoff is a row's mean plus `deviations` times its standard deviation (arXiv
    2506.06644): of normally distributed numbers a fixed share is left."""

    deviations: float
