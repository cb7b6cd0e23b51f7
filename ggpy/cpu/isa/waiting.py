"""Waiting for other threads, in machine code: a thread spins while the wait may be over soon, and then sleeps until
woken, so that the thread it waits for can have its CPU.

On Linux it sleeps in the kernel, by `futex`; on other systems it lets others run, again and again. On Linux that is
worse than either: each `sched_yield` gives up a thread's turn, some milliseconds, so that beside other busy processes a
team that did so in hundreds of waits a token came last (SmolLM2, 2 threads: 21 tokens a second, with sleep 171).
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import fetch_add, load_atomic

# The number of the system call, in Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
WAIT, WAKE, EVERYONE = 128, 129, 0x7FFFFFFF  # include/uapi/linux/futex.h, of this process alone


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

if FUTEX:
    _syscall = types.ExternalFunction(
        "syscall", types.intp(types.intp, types.uintp, types.intp, types.intp, types.uintp)
    )

    @njit(error_model="numpy")
    def sleep_while(word, value, sleepers, at_most):  # type: ignore[no-untyped-def]
        """Sleep while the int64 at `word` is `value`; `wake` ends that, or the time at `at_most` (0: none)."""
        fetch_add(sleepers, 1)
        # whoever changes the word after this looked at it sees a sleeper, and the kernel compares once more
        _syscall(FUTEX, word, WAIT, value & 0xFFFFFFFF, at_most)
        fetch_add(sleepers, -1)

    @njit(error_model="numpy")
    def wake(word, sleepers):  # type: ignore[no-untyped-def]
        """Wake all threads that sleep at `word`, which has just been changed."""
        if load_atomic(sleepers) != 0:
            _syscall(FUTEX, word, WAKE, EVERYONE, 0)

else:

    @njit(error_model="numpy")
    def sleep_while(word, value, sleepers, at_most):  # type: ignore[no-untyped-def]
        yield_cpu()

    @njit(error_model="numpy")
    def wake(word, sleepers):  # type: ignore[no-untyped-def]
        pass
