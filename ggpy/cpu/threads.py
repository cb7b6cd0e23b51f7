"""The thread team: Python threads that walk a program together in machine code,
meeting at spin barriers, with no Python between operations.

Between steps workers spin for a few milliseconds, so that the next token finds them awake, then sleep.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.records import OP, as_op, as_step
from ggpy.jit import compiled

OP_BYTES = OP.itemsize
LINE = 64  # bytes of a cache line: what threads write apart lies apart

# The team's shared words, each on a cache line of its own; then one word per thread.
ARRIVED, GENERATION, JOB, STOP, STATES = (i * LINE for i in range(5))
AWAKE, ASLEEP = 0, 1
SPINS_BEFORE_YIELD = 4000
SPINS_BEFORE_SLEEP = 60_000


def default_threads() -> int:
    """Physical cores within this process's affinity and its control group's CPU limit, at least 1."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return max(1, os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add((topology / "physical_package_id").read_text() + (topology / "core_id").read_text())
        except OSError:
            cores.add(str(cpu))
    limit = float(len(cores))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = min(limit, float(quota) / float(period))
    with contextlib.suppress(OSError, ValueError):
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        if quota_us > 0:
            limit = min(limit, quota_us / period_us)
    return max(1, math.floor(limit))


def _atomic(operation: str) -> Any:
    def change(typingctx: Any, address: Any, value: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.atomic_rmw(operation, b.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "seq_cst")

        return types.int64(types.uintp, types.int64), codegen

    return intrinsic(change)


fetch_add, exchange = _atomic("add"), _atomic("xchg")


@intrinsic
def load_atomic(typingctx: Any, address: Any) -> tuple[Signature, Any]:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return b.load_atomic(b.inttoptr(args[0], ir.IntType(64).as_pointer()), "seq_cst", 8)

    return types.int64(types.uintp), codegen


@intrinsic
def call_kernel(typingctx: Any, address: Any, op: Any, step: Any, tid: Any, nth: Any) -> tuple[Signature, Any]:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64] * 4)
        b.call(b.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.intp, types.intp), codegen


@intrinsic
def cpu_relax(typingctx: Any) -> tuple[Signature, Any]:
    """Tell the core that this is a spin loop."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        triple = b.module.triple
        if triple.startswith(("x86", "i386", "i686", "amd64")):
            b.call(
                cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), codegen


if os.name == "nt":
    yield_cpu = types.ExternalFunction("SwitchToThread", types.int32())
else:
    yield_cpu = types.ExternalFunction("sched_yield", types.int32())


# (operations, their number, step, team, thread, threads)
WALK = types.void(types.uintp, types.intp, types.uintp, types.uintp, types.intp, types.intp)


@compiled(signature=WALK)
def walk(ops, n_ops, step_at, team, tid, nth):  # type: ignore[no-untyped-def]
    """Run all operations as thread `tid` of `nth`. A barrier is a counter and a
    generation: the last to arrive opens the next one."""
    bit = 1 if carray(as_step(step_at), 1)[0].small else 2
    for i in range(n_ops + 1):
        meet = i == n_ops
        if not meet:
            at = ops + types.uint64(i * OP_BYTES)
            meet = (carray(as_op(at), 1)[0].barrier & bit) != 0
        if meet and nth > 1:
            generation = load_atomic(team + types.uint64(GENERATION))
            if fetch_add(team + types.uint64(ARRIVED), 1) == nth - 1:
                exchange(team + types.uint64(ARRIVED), 0)
                fetch_add(team + types.uint64(GENERATION), 1)
            else:
                spins = 0
                while load_atomic(team + types.uint64(GENERATION)) == generation:
                    spins += 1
                    if spins < SPINS_BEFORE_YIELD:
                        cpu_relax()
                    else:
                        yield_cpu()
        if i < n_ops:
            call_kernel(carray(as_op(at), 1)[0].kernel, at, step_at, tid, nth)


@compiled(signature=types.int64(*WALK.args, types.int64))
def serve(ops, n_ops, step_at, team, tid, nth, job):  # type: ignore[no-untyped-def]
    """A worker's life: wait for the job after `job`, walk, again. Returns the last
    job done, when it has waited long or the team stops."""
    state = team + types.uint64(STATES + LINE * tid)
    while True:
        spins = 0
        while load_atomic(team + types.uint64(JOB)) == job:
            spins += 1
            if load_atomic(team + types.uint64(STOP)) != 0:
                return job
            if spins < SPINS_BEFORE_SLEEP:
                if spins & 255:
                    cpu_relax()
                else:
                    yield_cpu()
            else:
                exchange(state, ASLEEP)
                # a job posted before the state was seen would wake nobody
                if load_atomic(team + types.uint64(JOB)) == job or exchange(state, AWAKE) != ASLEEP:
                    return job
        job += 1
        walk(ops, n_ops, step_at, team, tid, nth)


@compiled(signature=types.int64(*WALK.args[:4], types.intp, types.int64[::1]))
def step_together(ops, n_ops, step_at, team, nth, sleepers):  # type: ignore[no-untyped-def]
    """Thread 0's step: post the job, walk, return 0. If workers sleep it does not: their numbers are written to
    `sleepers`, their count returned.

    Negative: nothing is posted yet; wake them and call again. Positive (a worker fell asleep just then): the job is
    posted; wake them and walk. One call for both, so that no interrupt of the Python side can come between posting and
    walking.
    """
    asleep = 0
    for tid in range(1, nth):
        if load_atomic(team + types.uint64(STATES + LINE * tid)) == ASLEEP:
            exchange(team + types.uint64(STATES + LINE * tid), AWAKE)
            sleepers[asleep] = tid
            asleep += 1
    if asleep:
        return -asleep
    fetch_add(team + types.uint64(JOB), 1)
    for tid in range(1, nth):
        if exchange(team + types.uint64(STATES + LINE * tid), AWAKE) == ASLEEP:
            sleepers[asleep] = tid
            asleep += 1
    if asleep == 0:
        walk(ops, n_ops, step_at, team, 0, nth)
    return asleep


class Team:
    """`n_threads` threads, the caller's among them, that run one program over and over."""

    def __init__(self, n_threads: int, ops: np.ndarray, step: np.ndarray) -> None:
        self.n_threads = n_threads
        self._ops, self._step = ops, step
        words = np.zeros((STATES + LINE * (n_threads + 1)) // 8 + 8, np.int64)
        self._words = words
        self._team = (words.ctypes.data + LINE - 1) // LINE * LINE
        self._sleepers = np.zeros(n_threads, np.int64)
        self._alarms = [threading.Semaphore(0) for _ in range(n_threads)]
        self._args = (ops.ctypes.data, len(ops), step.ctypes.data, self._team)
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
            job = serve(*self._args, tid, self.n_threads, job)
            if self._closed:
                return
            self._alarms[tid].acquire()

    def run(self) -> None:
        """One step: returns when every thread has finished the program."""
        while True:
            asleep = step_together(*self._args, self.n_threads, self._sleepers)
            try:
                for i in range(abs(asleep)):
                    self._alarms[int(self._sleepers[i])].release()
            finally:
                if asleep > 0:
                    walk(*self._args, 0, self.n_threads)
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
