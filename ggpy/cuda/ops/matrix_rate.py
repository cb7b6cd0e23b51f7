"""Rate of the GPU's tensor cores with operands at hand: the measure for products of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.warp import Value, Warp, kernel

THREADS = 256
TOKENS = 256  # of a tile of Hopper's instruction
DEPTH = 4  # of its steps of 16 columns that are started together
TILES = 16  # of `mma`, one after the other, that a warp sums up


def operations(instruction: str) -> int:
    """Multiplications and additions of a block of threads in a round."""
    return 2 * DEPTH * 2 * 64 * TOKENS * 16 if instruction == "group" else THREADS // 32 * TILES * 2 * 16 * 8 * 16


def shared_bytes(instruction: str) -> int:
    return 128 * TOKENS if instruction == "group" else 0


def source(instruction: str) -> Source:
    """matrix_rate.group(rounds, out) with Hopper's instruction for four warps, which reads one operand from shared
    memory; matrix_rate.warp(rounds, out) with `mma`. out: float32 [THREADS], so that nothing is left out."""

    def emit(w: Warp, rounds: Value, out: Value) -> None:
        thread = w.special("tid.x")

        def noise(seed: Value) -> Value:
            """Two halves of less than 2 in magnitude; with zeros the tensor cores would run faster."""
            return (seed * 2654435761 ^ seed * 40503) & 0xBFFFBFFF

        a = [noise(thread * 4 + k) for k in range(4)]
        if instruction == "group":
            shared = w.shared_memory()
            for k in range(shared_bytes("group") // (4 * THREADS)):
                at = thread + k * THREADS
                w.store(noise(at), shared + at * 4)
            w.barrier()
            w.shared_fence()

            def group(_: Value, sums: Sequence[Value]) -> list[Value]:
                w.group_fence()
                found = list(sums)
                for k in range(DEPTH):
                    found = w.group_mma(found, a, w.tile_descriptor(shared + 32 * k))
                w.group_commit()
                return w.group_wait(0, found)

            sums = w.loop(w.word(0), rounds, [w.real(0.0)] * (TOKENS // 2), group)
        else:
            b = [noise(thread * 2 + k) for k in range(2)]

            def warp(_: Value, sums: Sequence[Value]) -> list[Value]:
                return [s for k in range(TILES) for s in w.mma(sums[4 * k : 4 * k + 4], a, b)]

            sums = w.loop(w.word(0), rounds, [w.real(0.0)] * (4 * TILES), warp)
        w.store(sum(sums[1:], sums[0]), out + thread.wide() * 4)

    return Source(kernel(f"matrix_rate_{instruction}", "u32 u64", emit), "u32 u64", THREADS)
