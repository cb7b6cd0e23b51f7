"""The walk over a program in machine code: each thread calls every kernel by address and meets the others at barriers,
where it spins for a while and then sleeps."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import exchange, fetch_add, load_atomic, store_i64
from ggpy.cpu.isa.layout import (
    ARRIVED,
    ASLEEP,
    AWAKE,
    BARRIER_SLEEPERS,
    FEWEST_SPINS,
    GENERATION,
    IDLE,
    JOB,
    JOB_SLEEPERS,
    LINE,
    MORE_SPINS,
    MOST_PATIENCE,
    NAP,
    NAPS,
    OP,
    PATIENCE,
    PROBE,
    PROGRAM,
    STATES,
    STOP,
)
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.isa.waiting import cpu_relax, sleep_while, wake

OP_BYTES = OP.itemsize


@intrinsic
def call_kernel(typingctx: Any, address: Any, op: Any, step: Any, tid: Any, nth: Any) -> tuple[Signature, Any]:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64] * 4)
        b.call(b.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.intp, types.intp), codegen


@njit(nogil=True, error_model="numpy")
def run_program(ops, n_ops, step_at, team, tid, nth):  # type: ignore[no-untyped-def]
    """Run all operations as thread `tid` of `nth`. A barrier is a counter and a generation: the last thread to arrive
    resets the counters of the operations before it, which all threads have left, and starts the next generation."""
    gate, gate_sleepers = team + types.uint64(GENERATION), team + types.uint64(BARRIER_SLEEPERS)
    own_patience = team + types.uint64(STATES + LINE * tid + PATIENCE)
    patience, most = load_atomic(own_patience), load_atomic(team + types.uint64(MOST_PATIENCE))
    waits = 0
    behind = 0  # the first operation since the last barrier
    bit = 1 if carray(as_step(step_at), 1)[0].small else 2
    for i in range(n_ops + 1):
        meet = i == n_ops
        if not meet:
            at = ops + types.uint64(i * OP_BYTES)
            meet = (carray(as_op(at), 1)[0].barrier & bit) != 0
        if meet and nth > 1:
            generation = load_atomic(gate)
            if fetch_add(team + types.uint64(ARRIVED), 1) == nth - 1:
                exchange(team + types.uint64(ARRIVED), 0)
                if bit == 2:
                    for j in range(behind, i):
                        counter = carray(as_op(ops + types.uint64(j * OP_BYTES)), 1)[0].next
                        if counter:
                            store_i64(counter, 0)
                fetch_add(gate, 1)
                wake(gate, gate_sleepers)
            else:
                waits += 1
                limit = most if waits % PROBE == 0 else patience
                spins = 0
                while load_atomic(gate) == generation:
                    if spins < limit:
                        spins += 1
                        cpu_relax()
                    else:
                        sleep_while(gate, generation, gate_sleepers, 0)
                if spins == limit:
                    patience = max(FEWEST_SPINS, patience >> 1)
                elif waits % PROBE == 0:
                    patience = most
                else:
                    patience = min(most, patience + MORE_SPINS)
            behind = i
        if i < n_ops:
            call_kernel(carray(as_op(at), 1)[0].kernel, at, step_at, tid, nth)
    store_i64(own_patience, patience)


def worker_loop(team, tid, nth, job):  # type: ignore[no-untyped-def]
    """A worker's life: wait for the job after `job`, walk its program, again. Returns the last
    job done, when it has waited long or the team stops."""
    state = team + types.uint64(STATES + LINE * tid)
    while True:
        spins = 0
        limit = load_atomic(state + types.uint64(PATIENCE)) * IDLE
        while load_atomic(team + types.uint64(JOB)) == job:
            spins += 1
            if load_atomic(team + types.uint64(STOP)) != 0:
                return job
            if spins < limit:
                cpu_relax()
            elif spins < limit + NAPS:
                sleep_while(team + types.uint64(JOB), job, team + types.uint64(JOB_SLEEPERS), team + types.uint64(NAP))
            else:
                exchange(state, ASLEEP)
                # a job posted before the state was seen would wake nobody
                if load_atomic(team + types.uint64(JOB)) == job or exchange(state, AWAKE) != ASLEEP:
                    return job
        job += 1
        ops = types.uint64(load_atomic(team + types.uint64(PROGRAM)))
        n_ops = load_atomic(team + types.uint64(PROGRAM + 8))
        step_at = types.uint64(load_atomic(team + types.uint64(PROGRAM + 16)))
        run_program(ops, n_ops, step_at, team, tid, nth)


def submit_step(ops, n_ops, step_at, team, nth, sleepers):  # type: ignore[no-untyped-def]
    """Thread 0's step: post the job, walk, return 0. If workers sleep, it does not walk: their numbers are
    written to `sleepers`, and their count is returned.

    Negative: nothing is posted yet; wake them and call again. Positive (a worker fell asleep just then): the job is
    posted; wake them and walk. One call for both, so that no interrupt of the Python side can come between posting and
    walking.
    """
    asleep = 0
    for tid in range(1, nth):
        if load_atomic(team + types.uint64(STATES + LINE * tid)) == ASLEEP:
            exchange(team + types.uint64(STATES + LINE * tid), AWAKE)
            store_i64(sleepers + types.uint64(8 * asleep), tid)
            asleep += 1
    if asleep:
        return -asleep
    store_i64(team + types.uint64(PROGRAM), ops)  # all have left the job before, and will read this one's when posted
    store_i64(team + types.uint64(PROGRAM + 8), n_ops)
    store_i64(team + types.uint64(PROGRAM + 16), step_at)
    fetch_add(team + types.uint64(JOB), 1)
    wake(team + types.uint64(JOB), team + types.uint64(JOB_SLEEPERS))
    for tid in range(1, nth):
        if exchange(team + types.uint64(STATES + LINE * tid), AWAKE) == ASLEEP:
            store_i64(sleepers + types.uint64(8 * asleep), tid)
            asleep += 1
    if asleep == 0:
        run_program(ops, n_ops, step_at, team, 0, nth)
    return asleep
