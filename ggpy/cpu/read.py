"""Reading memory as fast as the CPU can, and nothing else: what a machine's bandwidth is measured with."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.vector import VI, Vec

RUN = 1024  # bytes of one round: `n_bytes` is a multiple of it

sum_range: Any = None  # set by `specialized`


def read(at, n_bytes, out):  # type: ignore[no-untyped-def]
    """Sum the bytes from `at` on as integers, and leave 64 bytes of sums at `out` so that no load can be left out."""
    if n_bytes >= RUN:
        sum_range(at, n_bytes // RUN, out)


def sum_range_intrinsic(isa: str) -> Any:
    """`sum_range(at, rounds, out)`: a round is 16 loads of 64 bytes into 16 sums, which no load waits for. Every CPU
    has these: the plain tier uses them too."""

    def sum_range(typingctx: Any, at: Any, rounds: Any, out: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            n = RUN // 64

            def body(i: ir.Value, c: list[ir.Value]) -> list[ir.Value]:
                sums = [b.add(c[1 + k], v.load(v.at(c[0], 64 * k), VI)) for k in range(n)]
                return [v.at(c[0], RUN), *sums]

            _, *sums = v.loop(args[1], [args[0], *[v.int(0)] * n], body)
            total = sums[0]
            for part in sums[1:]:
                total = b.add(total, part)
            v.store(total, args[2])
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp), codegen

    return intrinsic(sum_range)
