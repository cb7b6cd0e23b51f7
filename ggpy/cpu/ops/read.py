"""The measure of a machine's bandwidth: a kernel that reads memory as fast as the CPU can, and does nothing else."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.vector import VI, Vec

RUN = 1024  # bytes of one round: `n_bytes` is a multiple of it

sum_range: Any = None  # set by `specialized`


def read(at, n_bytes, out):  # type: ignore[no-untyped-def]
    """Sum the bytes from `at` on as integers, and leave 64 bytes of sums at `out` so that no load is optimized away."""
    if n_bytes >= RUN:
        sum_range(at, n_bytes // RUN, out)


def sum_range_intrinsic(isa: str) -> Any:
    """`sum_range(at, rounds, out)`: a round is 16 loads of 64 bytes into as many sums as registers hold, so that loads
    hardly wait for them. Every CPU has these: the plain tier uses them too."""

    def sum_range(typingctx: Any, at: Any, rounds: Any, out: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            n = 16 if isa == "avx512vnni" else 4

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                at, *sums = c
                for k in range(RUN // 64):
                    sums[k % n] = b.add(sums[k % n], v.load(v.at(at, 64 * k), VI))
                return [v.at(at, RUN), *sums]

            _, *sums = v.loop(args[1], [args[0], *[v.int(0)] * n], body)
            total = sums[0]
            for part in sums[1:]:
                total = b.add(total, part)
            v.store(total, args[2])
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp), codegen

    return intrinsic(sum_range)
