"""The thread team: Python threads that walk a program together in machine code,
meeting at spin barriers, with no Python between operations.

Between steps workers spin for a few milliseconds, so that the next token finds them awake, then sleep.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np

from ggpy.cpu.kernels import kernel
from ggpy.cpu.layout import LINE, STATES, STOP

CPUS = Path("/sys/devices/system/cpu")
LIMITS = Path("/sys/fs/cgroup")
PLACE = ("physical_package_id", "core_id")  # of a CPU: the threads of one core share it


def _macos_performance_cores() -> int:
    """Of Apple's two kinds of cores the number of fast ones; 0 elsewhere."""
    if sys.platform != "darwin":
        return 0
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    with contextlib.suppress(OSError, AttributeError):
        name = b"hw.perflevel0.physicalcpu"
        ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return value.value


def default_threads() -> int:
    """Physical cores within this process's affinity and its control group's CPU limit, at least 1.

    Of cores of several kinds only those at least half as fast as the fastest: work is shared out evenly, and a slower
    one would keep all others waiting.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
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
    cores = [core for core, speed in capacity.items() if 2 * speed >= fastest]
    limit = float(len(cores))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (LIMITS / "cpu.max").read_text().split()
        limit = min(limit, float(quota) / float(period))
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((LIMITS / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((LIMITS / "cpu" / "cpu.cfs_period_us").read_text())
        if quota_us > 0:
            limit = min(limit, quota_us / period_us)
    return max(1, math.floor(limit))


class Team:
    """`n_threads` threads, the caller's among them, that run one program over and over."""

    def __init__(self, n_threads: int, ops: np.ndarray, step: np.ndarray) -> None:
        self.n_threads = n_threads
        self._ops, self._step = ops, step
        words = np.zeros((STATES + LINE * (n_threads + 1)) // 8, np.int64)
        self._words = words
        self._team = (words.ctypes.data + LINE - 1) // LINE * LINE
        self._sleepers = np.zeros(n_threads, np.int64)
        self._alarms = [threading.Semaphore(0) for _ in range(n_threads)]
        self._serve, self._step_together, self._walk = (
            kernel(name).call for name in ("serve", "step_together", "walk")
        )
        self._args = (ops.ctypes.data, len(ops), step.ctypes.data, self._team)
        self._where_sleepers = self._sleepers.ctypes.data
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(tid,), daemon=True, name=f"ggpy-{tid}")
            for tid in range(1, n_threads)
        ]
        for worker in self._workers:
            worker.start()

    def _work(self, tid: int) -> None:
        job = 0
        while True:
            job = self._serve(*self._args, tid, self.n_threads, job)
            if self._closed:
                return
            self._alarms[tid].acquire()

    def run(self) -> None:
        """One step: returns when every thread has finished the program."""
        while True:
            asleep = self._step_together(*self._args, self.n_threads, self._where_sleepers)
            try:
                for i in range(abs(asleep)):
                    self._alarms[int(self._sleepers[i])].release()
            finally:
                if asleep > 0:
                    self._walk(*self._args, 0, self.n_threads)
            if asleep >= 0:
                return

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._words[(self._team - self._words.ctypes.data + STOP) // 8] = 1
        for alarm in self._alarms:
            alarm.release()
        for worker in self._workers:
            worker.join()
