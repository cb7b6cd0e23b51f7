"""A kernel that only reads memory, as fast as the GPU can: the measure for decoding."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, i32, u32, u64
from ggpy.cuda.isa.instructions import store_u32, stream_128
from ggpy.cuda.weights.layout import READ_BLOCKS, READ_THREADS

TOGETHER = 4  # loads of a thread that are under way


def source() -> Source:
    """read(start, n, passes, out): n times 16 bytes from `start` on, so many times over; out: uint32 [threads of all
    blocks], each one's sum of the words that it has read, so that no load can be left out."""

    def read(start, n, passes, out):  # type: ignore[no-untyped-def]
        thread, step = i32(cuda.threadIdx.x), i32(cuda.gridDim.x) * i32(READ_THREADS)
        total = u32(0)
        for k in range(passes):
            # each time another block's part: its own may still be in the multiprocessor's first cache
            block = (i32(cuda.blockIdx.x) + i32(k)) % i32(cuda.gridDim.x)
            i = block * i32(READ_THREADS) + thread
            while i < n - i32(TOGETHER - 1) * step:
                for _ in range(TOGETHER):
                    a, b, c, d = stream_128(start + u64(u32(i)) * u64(16))
                    total += a + b + c + d
                    i += step
            while i < n:
                a, b, c, d = stream_128(start + u64(u32(i)) * u64(16))
                total += a + b + c + d
                i += step
        own = i32(cuda.blockIdx.x) * i32(READ_THREADS) + thread
        store_u32(at(out, own * i32(4)), total)

    return Source(read, "u64 i32 i32 u64", READ_THREADS, READ_BLOCKS)
