"""A model's weights on the GPU: matrices uploaded piece by piece and packed there, so that host memory holds no second
copy; small tensors as float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.driver import Device
from ggpy.cuda.weights.layout import ALIGN, MatrixLayout, round_up
from ggpy.gguf.slices import raw_rows, read_halves, read_vector
from ggpy.quant.formats import PACKED, packed_format
from ggpy.quant.packed import Packed

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo

PIECE = 64 << 20  # bytes of a tensor on their way at a time
SLACK = 1024  # bytes after the last matrix that may be read
PACK_THREADS = 256


@dataclass(frozen=True)
class Matrix:
    """One or several tensors of the same type and width, row after row, at `address`; of experts' tensors the rows of
    each expert lie together, tensor after tensor."""

    layout: MatrixLayout
    address: int
    names: tuple[str, ...]

    @property
    def planes(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Addresses of codes, high, scales and supers, and their strides: the first arguments of kernels."""
        planes = self.layout.codes, self.layout.high, self.layout.scales, self.layout.supers
        codes, high, scales, supers = (self.address + plane.offset for plane in planes)
        return codes, high, scales, supers, *(plane.stride for plane in planes)  # type: ignore[return-value]


def layout_of(infos: Sequence[TensorInfo]) -> MatrixLayout:
    return MatrixLayout(packed_format(infos[0]), sum(map(_n_rows, infos)), infos[0].shape[-1])


class Weights:
    """All tensors of a model, which stay constant, in GPU memory."""

    def __init__(self, device: Device, file: GGUFFile) -> None:
        self.device, self.file = device, file
        self._matrices: dict[tuple[str, ...], Matrix] = {}
        self._vectors: dict[tuple[str, ...], int] = {}

    @staticmethod
    def kernel_names(groups: Sequence[Sequence[TensorInfo]]) -> list[str]:
        return list(dict.fromkeys(_pack_kernel(packed_format(group[0])) for group in groups))

    def load(self, groups: Sequence[Sequence[TensorInfo]], notify: Callable[[str], None]) -> None:
        """Load these groups of tensors, each of which becomes one matrix, into GPU memory."""
        foreign = sorted({info.type_name for group in groups for info in group if info.type_name not in PACKED})
        if foreign:
            notify(
                f"no packed kernels yet for {', '.join(foreign)}: it runs as half precision, "
                "slower and larger in memory"
            )
        layouts = [layout_of(group) for group in groups]
        at = self.device.allocate(sum(layout.n_bytes for layout in layouts) + SLACK)
        staging = self.device.allocate(
            max(min(PIECE + _row_bytes(info), _n_rows(info) * _row_bytes(info)) for group in groups for info in group)
        )
        for group, layout in zip(groups, layouts, strict=True):
            names = tuple(info.name for info in group)
            matrix = self._matrices[names] = Matrix(layout, at, names)
            self.device.clear(at, layout.n_bytes)  # what pads a row is read with it
            first, together = 0, sum(info.shape[-2] for info in group)  # rows of all tensors, or of one expert in all
            for info in group:
                self._pack(info, matrix, first, together, staging)
                first += info.shape[-2]
            at += round_up(layout.n_bytes, ALIGN)
        self.device.synchronize()
        self.device.free(staging)

    def matrix(self, infos: Sequence[TensorInfo]) -> Matrix:
        return self._matrices[tuple(info.name for info in infos)]

    def vector(self, *infos: TensorInfo | None, sizes: Sequence[int] = (), n_experts: int = 1) -> int:
        """The address of small tensors as float32, one after the other, or each expert's part of them; None stands for
        zeros of that size, one number for as many, and the address is 0 where all are None."""
        if all(info is None for info in infos):
            return 0
        sizes = sizes or [0] * len(infos)
        key = (*("" if info is None else info.name for info in infos), *map(str, sizes))
        if key not in self._vectors:
            parts = [
                self._entries(info, n_experts * size).reshape(n_experts, -1)
                for info, size in zip(infos, sizes, strict=True)
            ]
            self._vectors[key] = self._upload(np.concatenate(parts, axis=1).reshape(-1))
        return self._vectors[key]

    def ones(self, n: int) -> int:
        """The address of n ones: the weight of a norm that has none."""
        key = ("ones", str(n))
        if key not in self._vectors:
            self._vectors[key] = self._upload(np.ones(n, np.float32))
        return self._vectors[key]

    def _entries(self, info: TensorInfo | None, size: int) -> np.ndarray:
        if info is None:
            return np.zeros(size, np.float32)
        values = read_vector(self.file, info)
        return np.repeat(values, size) if len(values) == 1 and size else values

    def _upload(self, values: np.ndarray) -> int:
        padded = np.zeros(round_up(len(values), 32) + 32, np.float32)
        padded[: len(values)] = values
        address = self.device.allocate(padded.nbytes)
        self.device.upload(address, padded.ctypes.data, padded.nbytes)
        return address

    def _pack(self, info: TensorInfo, matrix: Matrix, first: int, together: int, staging: int) -> None:
        """Pack the rows of one tensor into a matrix from row `first` on; those of the next expert `together` rows
        after the one before."""
        layout, row_bytes, (n_each, n_cols) = matrix.layout, _row_bytes(info), info.shape[-2:]
        n_rows = _n_rows(info)
        if len(info.shape) > 2:
            info = replace(info, shape=(n_rows, n_cols))
        kernel = self.device.kernel(_pack_kernel(layout.packed))
        step = max(1, PIECE // row_bytes)
        for start in range(0, n_rows, step):
            rows = raw_rows(self.file, info, start, min(start + step, n_rows))
            if info.type_name not in PACKED:
                rows = read_halves(self.file, info, rows).view(np.uint8)
            self.device.upload(staging, rows.ctypes.data, rows.nbytes)
            codes, high, scales, supers, *strides = matrix.planes
            end, at = start + len(rows), start
            while at < end:
                n = min(end, (at // n_each + 1) * n_each) - at  # of one expert
                row, of = at // n_each * together + first + at % n_each, staging + (at - start) * row_bytes
                to = [
                    address + row * stride
                    for address, stride in zip((codes, high, scales, supers), strides, strict=True)
                ]
                if layout.packed.is_float:
                    kernel.launch(-(-n * n_cols // PACK_THREADS), of, row_bytes, n, n_cols, to[0], strides[0])
                else:
                    grid = -(-n * layout.n_blocks // PACK_THREADS)
                    kernel.launch(grid, of, row_bytes, n, layout.n_blocks, *to, *strides)
                at += n
            if info.type_name not in PACKED:
                self.device.synchronize()  # `rows` goes away


def _n_rows(info: TensorInfo) -> int:
    """Rows of a matrix, or of those of all experts."""
    return math.prod(info.shape[:-1])


def _row_bytes(info: TensorInfo) -> int:
    return info.nbytes // _n_rows(info) if info.type_name in PACKED else 2 * info.shape[-1]


def _pack_kernel(packed: Packed) -> str:
    return f"pack.{'F16' if packed.bits == 16 else packed.name}"
