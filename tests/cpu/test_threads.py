"""The team of threads, on programs of callbacks: barriers hold, and who waits for long gives its CPU away."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from ggpy.cpu import threads
from ggpy.cpu.isa.layout import OP, STEP
from ggpy.cpu.isa.waiting import FUTEX
from ggpy.cpu.threads import Team


@contextmanager
def team(n_threads: int, n_ops: int, work: Callable[[int, int], None]) -> Iterator[tuple[Team, Callable[[], None]]]:
    """A team, and a step of a program whose operations, each behind a barrier, call work(operation, thread)."""
    ops, step = np.zeros(n_ops, OP), np.zeros(1, STEP)
    start = ops.ctypes.data

    def kernel(op: int, step: int, thread: int, threads: int) -> None:
        work((op - start) // OP.itemsize, thread)

    call = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_ssize_t)(kernel)
    ops["kernel"], ops["barrier"] = ctypes.cast(call, ctypes.c_void_p).value, 3
    found = Team(n_threads)
    try:
        yield found, partial(found.run, start, n_ops, step.ctypes.data)
    finally:
        found.close()


@pytest.mark.parametrize(("n_threads", "cpus"), [(1, 2), (2, 2), (2, 1), (5, 2), (9, 9)])
def test_all_meet_before_the_next_operation(n_threads: int, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: cpus)
    done: list[int] = []
    with team(n_threads, 7, lambda op, thread: done.append(op)) as (_, step):
        for turn in range(12):
            done.clear()
            step()
            assert done == sorted(list(range(7)) * n_threads)
            time.sleep((0, 0.001, 0.03)[turn % 3])  # awake, napping, asleep


@pytest.mark.skipif(not FUTEX, reason="only lets others run here")
@pytest.mark.parametrize("slow", [0, 1])
def test_who_waits_for_long_gives_its_cpu_away(slow: int) -> None:
    with team(2, 2, lambda op, thread: time.sleep(0.3 * (thread == slow))) as (_, step):
        began = time.process_time()
        step()
        assert time.process_time() - began < 0.2  # of 0.6 s
        time.sleep(0.1)
        began = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - began < 0.1


def test_programs_take_turns() -> None:
    done: list[tuple[int, int]] = []
    with team(2, 3, lambda op, thread: done.append((1, op))) as (found, first):
        ops, step = np.zeros(2, OP), np.zeros(1, STEP)

        def kernel(op: int, step: int, thread: int, threads: int) -> None:
            done.append((2, (op - ops.ctypes.data) // OP.itemsize))

        call = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_ssize_t)(kernel)
        ops["kernel"], ops["barrier"] = ctypes.cast(call, ctypes.c_void_p).value, 3
        for _ in range(9):
            done.clear()
            first()
            found.run(ops.ctypes.data, 2, step.ctypes.data)
            assert done == sorted(2 * [*((1, i) for i in range(3)), *((2, i) for i in range(2))])
