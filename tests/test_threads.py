"""How many threads a run takes by itself."""

from __future__ import annotations

import pytest

from ggpy.cpu import threads


def cpus(folder, *described):
    for i, files in enumerate(described):
        for name, text in files.items():
            at = folder / f"cpu{i}" / name
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(f"{text}\n")


def core(package, number, **more):
    return {"topology/physical_package_id": package, "topology/core_id": number, **more}


@pytest.mark.parametrize(
    ("described", "n"),
    [
        ([core(0, 0), core(0, 0), core(0, 1), core(0, 1)], 2),  # two threads a core
        ([core(0, 0), core(1, 0), core(1, 1)], 3),
        ([core(-1, -1)] * 4, 4),  # the system does not know
        ([{}] * 3, 3),
        ([core(0, i, cpu_capacity=c) for i, c in enumerate((420, 420, 1024, 1024, 800))], 3),  # of several kinds
    ],
)
def test_threads_are_physical_cores_of_one_kind(monkeypatch, tmp_path, described, n):
    cpus(tmp_path, *described)
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "LIMITS", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(len(described))), raising=False)
    assert threads.default_threads() == n
