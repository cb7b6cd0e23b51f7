"""Samples of matrices of cases."""

from __future__ import annotations

from itertools import product

from tests.support.matrix import covering


def test_every_pair_is_in_a_sample() -> None:
    sizes = {"a": 5, "b": 4, "c": 3, "d": 2}
    cases = [
        list(zip(sizes, map(str, values), strict=True)) for values in product(*map(range, sizes.values()))
    ]  # 120 of them
    chosen = [set(cases[i]) for i in covering(cases)]
    for (x, m), (y, n) in product(sizes.items(), sizes.items()):
        for i, j in product(range(m), range(n)):
            assert x == y or any({(x, str(i)), (y, str(j))} <= case for case in chosen)
    assert len(chosen) <= 24  # 20 at least, as 5 values meet 4
    assert len(covering(cases, 1)) == 5


def test_what_never_occurs_is_not_asked_for() -> None:
    assert covering([[("a", "0"), ("b", "1")], [("a", "1"), ("b", "0")]]) == [0, 1]
    assert covering([[("a", "0")], [("a", "1")]]) == [0, 1]  # of one parameter there are no pairs
