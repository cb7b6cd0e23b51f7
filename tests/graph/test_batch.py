"""A batch's description, cut into runs of tokens."""

from __future__ import annotations

import numpy as np

from ggpy.graph.batch import token_segments


def test_segments_are_runs_of_one_slot() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        slots, positions = [], []
        for _ in range(rng.integers(1, 6)):
            n, start = rng.integers(1, 5), rng.integers(0, 9)
            slots += [int(rng.integers(0, 3))] * n
            positions += range(start, start + n)
        found = token_segments(np.array(slots, np.int32), np.array(positions, np.int32))
        assert found.dtype == np.int32
        expected: list[list[int]] = []
        for i, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            last = expected[-1] if expected else None
            if last and last[0] == slot and last[3] + last[2] == position:
                last[2] += 1
            else:
                expected.append([slot, i, 1, position])
        assert found.tolist() == expected
