"""The memory of the emulated GPU, for `ptx_emulator`: numpy arrays at their own addresses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


@dataclass
class Memory:
    """Arrays that a kernel may touch."""

    arrays: list[Array] = field(default_factory=list)

    def add(self, array: Array) -> int:
        """The address of a contiguous array's data."""
        assert array.flags.c_contiguous
        flat = array.reshape(-1).view(np.uint8)
        self.arrays.append(flat)
        self.arrays.sort(key=lambda a: a.ctypes.data)
        return flat.ctypes.data

    def find(self, addresses: Array, n: int) -> list[tuple[Array, Array, Array]]:
        """(array, which of the addresses lie in it, their offsets); all must lie somewhere, with n bytes."""
        starts = np.array([a.ctypes.data for a in self.arrays], np.uint64)
        index = np.searchsorted(starts, addresses, "right").astype(np.int64) - 1
        found = []
        for i in np.unique(index):
            which = index == i
            offset = (addresses[which] - starts[i]).astype(np.int64) if i >= 0 else np.zeros(0, np.int64)
            if i < 0 or (offset + n > self.arrays[i].size).any():
                raise MemoryError(f"{n} bytes at {hex(int(addresses[which][0]))}, outside all arrays")
            found.append((self.arrays[i], which, offset))
        return found
