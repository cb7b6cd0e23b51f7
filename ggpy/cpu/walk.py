"""The walk over a program in machine code: each thread calls every kernel by address and meets the others at spin
barriers."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import (
    ARRIVED,
    ASLEEP,
    AWAKE,
    GENERATION,
    JOB,
    LINE,
    OP,
    SPINS_BEFORE_SLEEP,
    SPINS_BEFORE_YIELD,
    STATES,
    STOP,
)
from ggpy.cpu.memory import exchange, fetch_add, load_atomic, store_i64
from ggpy.cpu.records import as_op, as_step

OP_BYTES = OP.itemsize


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
    """Tell the core that this is a spin loop, and let some 40 ns pass."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        def call(name: str, *operands: ir.Constant) -> None:
            kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
            b.call(cgutils.get_or_insert_function(b.module, kind, name), operands)

        triple = b.module.triple
        if triple.startswith(("x86", "i386", "i686", "amd64")):
            call("llvm.x86.sse2.pause")
        elif triple.startswith(("aarch64", "arm64")):
            # `yield` does nothing on most cores; waiting for the pipeline to drain does, some 10 ns each
            for _ in range(4):
                call("llvm.aarch64.isb", ir.Constant(ir.IntType(32), 15))
        return context.get_dummy_value()

    return types.void(), codegen


if os.name == "nt":
    yield_cpu = types.ExternalFunction("SwitchToThread", types.int32())
else:
    yield_cpu = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True, error_model="numpy")
def walk(ops, n_ops, step_at, team, tid, nth):  # type: ignore[no-untyped-def]
    """Run all operations as thread `tid` of `nth`. A barrier is a counter and a generation: the last to arrive winds
    back what the operations before it counted, which nobody is in any more, and opens the next one."""
    behind = 0  # the first operation since the last barrier
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
                if bit == 2:
                    for j in range(behind, i):
                        counter = carray(as_op(ops + types.uint64(j * OP_BYTES)), 1)[0].next
                        if counter:
                            store_i64(counter, 0)
                fetch_add(team + types.uint64(GENERATION), 1)
            else:
                spins = 0
                while load_atomic(team + types.uint64(GENERATION)) == generation:
                    spins += 1
                    if spins < SPINS_BEFORE_YIELD:
                        cpu_relax()
                    else:
                        yield_cpu()
            behind = i
        if i < n_ops:
            call_kernel(carray(as_op(at), 1)[0].kernel, at, step_at, tid, nth)


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
            store_i64(sleepers + types.uint64(8 * asleep), tid)
            asleep += 1
    if asleep:
        return -asleep
    fetch_add(team + types.uint64(JOB), 1)
    for tid in range(1, nth):
        if exchange(team + types.uint64(STATES + LINE * tid), AWAKE) == ASLEEP:
            store_i64(sleepers + types.uint64(8 * asleep), tid)
            asleep += 1
    if asleep == 0:
        walk(ops, n_ops, step_at, team, 0, nth)
    return asleep
