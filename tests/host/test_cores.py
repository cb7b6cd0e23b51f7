"""How many CPUs and cores this process may use."""

from __future__ import annotations

import pytest

from ggpy.host import cgroups, cores


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
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(len(described))), raising=False)
    assert cores.usable_cores() == n
    assert cores.usable_cpus() == len(described)


V1 = "4:cpuset:/\n2:cpu,cpuacct:/a/b\n"


@pytest.mark.parametrize(
    ("membership", "files", "n"),
    [
        ("0::/a/b\n", {}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000"}, 3),  # the process's own group
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 20000"}, 2),  # the tightest, rounded down
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "900000 100000"}, 3),
        ("0::/host/path\n", {"cpu.max": "400000 100000"}, 4),  # in a container
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, 8),  # another's
        ("0::/a\n", {"a/cpu.max": "10000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, 8),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"a/b/cpu.max": "100000 100000"}, 8),
        (V1 + "0::/\n", {"cpu.max": "500000 100000"}, 5),
    ],
)
def test_quotas(monkeypatch, tmp_path, membership, files, n):
    for name, text in {**files, "membership": membership}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if name != "membership" else text)
    monkeypatch.setattr(cores, "CPUS", tmp_path / "none")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cpus() == cores.usable_cores() == n
