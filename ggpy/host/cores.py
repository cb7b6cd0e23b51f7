"""The number of CPUs that this process may use: by its affinity and its control groups."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

from ggpy.host import cgroups

CPUS = Path("/sys/devices/system/cpu")
PLACE = ("physical_package_id", "core_id")  # of a CPU: the threads of one core share it


def cpus() -> int:
    """CPUs that this process may run on."""
    return len(_affinity() or ()) or os.cpu_count() or 1


def usable_cpus() -> int:
    """CPUs that this process may keep busy at a time, at least 1: conversion and compiling spread over them."""
    return _within_quota(cpus())


def usable_cores() -> int:
    """Physical cores that this process may keep busy at a time, at least 1: the default for running a model.

    Where there are several kinds of cores, only those at least half as fast as the fastest count: work is divided
    evenly, and a slower core would keep all others waiting.
    """
    allowed = _affinity()
    if allowed is None:  # not Linux
        return max(1, _macos_performance_cores() or os.cpu_count() or 1)
    capacity: dict[str, int] = {}  # by physical core
    for cpu in allowed:
        folder = CPUS / f"cpu{cpu}"
        core = f"cpu{cpu}"
        with contextlib.suppress(OSError, ValueError):
            package, number = (int((folder / "topology" / name).read_text()) for name in PLACE)
            if number >= 0:  # some systems do not know
                core = f"{package}:{number}"
        capacity[core] = 1024
        with contextlib.suppress(OSError, ValueError):
            capacity[core] = int((folder / "cpu_capacity").read_text())
    fastest = max(capacity.values(), default=0)
    return _within_quota(sum(2 * speed >= fastest for speed in capacity.values()))


def _affinity() -> set[int] | None:
    """The CPUs that this process may run on; None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _within_quota(n: int) -> int:
    """This number of CPUs, or as many whole ones as the tightest control group gives time for."""
    limits = (_quota(version, group) for version, group in cgroups.groups("cpu", cgroups.MEMBERSHIP, cgroups.MOUNT))
    return max(1, math.floor(min([n, *(limit for limit in limits if limit is not None)])))


def _quota(version: int, group: Path) -> float | None:
    """CPUs whose time a control group may take; None where it sets no limit."""
    try:
        if version == 2:
            quota, period = map(int, (group / "cpu.max").read_text().split())  # "max" without a limit: ValueError
        else:
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _macos_performance_cores() -> int:
    """The number of performance cores of an Apple CPU; 0 elsewhere."""
    if sys.platform != "darwin":
        return 0
    import ctypes

    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    with contextlib.suppress(OSError, AttributeError):
        name = b"hw.perflevel0.physicalcpu"
        ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return value.value
