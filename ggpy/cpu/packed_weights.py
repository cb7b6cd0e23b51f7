"""The packed weights of a program: one arena of stripes, filled by threads of their own while the caller goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu import kernels
from ggpy.cpu.memory import allocate
from ggpy.cpu.sizes import arena_bytes
from ggpy.gguf.slices import read_halves
from ggpy.quant.formats import PACKED, packed_format
from ggpy.quant.packed import ROWS

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo

PACK_BYTES = 1 << 20  # of GGUF data a thread packs at a time: in its own cache between being read and packed


class PackedWeights:
    """Stripes of matrices, and of each matrix of a stack: experts lie one behind the other, each padded to whole
    stripes. beside: packed weights of the same file, whose matrices are not packed twice."""

    def __init__(
        self,
        matrices: list[TensorInfo],
        file: GGUFFile,
        n_threads: int,
        notify: Callable[[str], None],
        beside: PackedWeights | None = None,
    ) -> None:
        self.file, self._beside = file, beside
        known: dict[str, int] = beside._starts if beside else {}
        matrices = self._matrices = [m for m in matrices if m.name not in known]
        unpacked = sorted({m.type_name for m in matrices if m.type_name not in PACKED})
        if unpacked:
            notify(
                f"no packed kernels yet for {', '.join(unpacked)}: it runs as half precision, "
                "slower and larger in memory"
            )
        sizes = arena_bytes(matrices)
        self._arena = allocate(sum(sizes))
        starts = self._arena.ctypes.data + np.cumsum([0, *sizes])[:-1]
        self._starts: dict[str, int] = known | {m.name: int(start) for m, start in zip(matrices, starts, strict=True)}
        self._n_threads = n_threads
        self._jobs: list[Future[None]] = []

    def address(self, info: TensorInfo) -> int:
        return self._starts[info.name]

    @property
    def packing(self) -> bool:
        """True until the weights are known to be packed."""
        return bool(self._jobs)

    def start(self) -> None:
        """Start packing; `finish` waits for it. The file's pages are released as they are done."""
        self._packers = ThreadPoolExecutor(self._n_threads, "ggpy-pack")
        self._jobs = [
            self._packers.submit(self._pack, info, index, first, last)
            for info in self._matrices
            for index in range(prod(info.shape[:-2]))
            for first, last in self._pieces(info)
        ]

    def finish(self) -> None:
        """Wait until the weights are packed; the first step does so. Raises the error of a packing thread, every
        time: a step whose wait was interrupted, or failed, must not leave the next one with half the weights."""
        if self._beside and self._beside.packing:
            self._beside.finish()
        for job in self._jobs:
            job.result()
        self.file.check_unchanged()
        self.stop()

    def stop(self) -> None:
        self._packers.shutdown(cancel_futures=True)
        self._jobs = []

    @staticmethod
    def _pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
        """Stripes of one matrix that are packed at a time."""
        n_stripes = -(-info.shape[-2] // ROWS)
        n_bytes = info.nbytes // prod(info.shape[:-2])
        step = max(1, PACK_BYTES * n_stripes // max(1, n_bytes))
        for first in range(0, n_stripes, step):
            yield first, min(n_stripes, first + step)

    def _pack(self, info: TensorInfo, index: int, first: int, last: int) -> None:
        """Pack stripes first .. last of the matrix `index` of a stack, the only one where there is no stack."""
        packed = packed_format(info)
        n_rows, n_cols = info.shape[-2:]
        stripe = packed.stripe_bytes(n_cols)
        row_bytes = info.nbytes // prod(info.shape[:-1])
        n = min(n_rows, last * ROWS) - first * ROWS
        rows = self.file.read(info.name, (index * n_rows + first * ROWS) * row_bytes, n * row_bytes)
        pack = kernels.kernel(f"pack.{packed.name}").call
        codes = np.empty(64, np.uint8).ctypes
        if info.type_name not in PACKED:
            rows, row_bytes = read_halves(self.file, info, rows.reshape(n, row_bytes)), 2 * n_cols
        out = self.address(info) + index * packed.matrix_bytes(n_rows, n_cols) + first * stripe
        pack(rows.ctypes.data, out, n, n_cols, row_bytes, stripe, 0, last - first, codes.data)
