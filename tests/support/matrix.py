"""Matrices of cases, of which a sample is run: one in which every value of each parameter meets every value of each
other one (all-pairs testing: faults that take three values at once are rare). `pytest --whole` runs all.

    @pytest.mark.matrix                       pairs of values
    @pytest.mark.matrix(strength=1)           every value of each parameter once
    @pytest.mark.matrix(possible=f)           only cases for which f(**parameters) is true, whole or not
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest

Value = tuple[str, str]  # a parameter, and what stands for one of its values


def covering(cases: Sequence[Iterable[Value]], strength: int = 2) -> list[int]:
    """Indices of cases that hold every combination of `strength` values which occurs in any case, chosen greedily; of
    cases that hold as many, the one whose values were chosen least."""
    uses: Counter[Value] = Counter()
    cases = [sorted(case) for case in cases]
    held = [set(combinations(values, min(strength, len(values)))) for values in cases]
    missing = set().union(*held)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda i: (len(held[i] & missing), -sum(uses[v] for v in cases[i]), -i))
        chosen.append(best)
        uses.update(cases[best])
        missing -= held[best]
    return sorted(chosen)


def left_out(items: Sequence[pytest.Item], whole: bool) -> set[pytest.Item]:
    """The tests that are not to run: cases that are not possible, and, but for `whole`, those outside the samples."""
    functions: dict[object, list[pytest.Function]] = {}
    found: set[pytest.Item] = set()
    for item in items:
        mark = item.get_closest_marker("matrix")
        if mark is None or not isinstance(item, pytest.Function):
            continue
        possible = mark.kwargs.get("possible")
        if possible and not possible(**item.callspec.params):
            found.add(item)
        elif not whole:
            functions.setdefault((item.path, item.originalname), []).append(item)
    for cases in functions.values():
        mark = cases[0].get_closest_marker("matrix")
        assert mark is not None
        values = [[(name, repr(value)) for name, value in case.callspec.params.items()] for case in cases]
        chosen = set(covering(values, mark.kwargs.get("strength", 2)))
        found |= {case for i, case in enumerate(cases) if i not in chosen}
    return found
