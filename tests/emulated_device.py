"""A GPU for tests on machines without one: the driver's interface over `ptx_emulator`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from ptx_emulator import Memory, launch
from ptx_text import Entry, parse

from ggpy.cuda.compile import source, to_ptx

CC = (8, 0)  # the products of Hopper have instructions that are not emulated


@lru_cache(maxsize=256)
def entry_of(name: str) -> tuple[Entry, int]:
    return parse(to_ptx(name, CC)[0]), source(name).threads


class EmulatedKernel:
    def __init__(self, device: EmulatedDevice, name: str) -> None:
        self.device, self.name = device, name
        self.entry, self.threads = entry_of(name)

    def launch(
        self,
        grid: int | tuple[int, ...],
        *arguments: float,
        threads: int | None = None,
        shared: int = 0,
        dependent: bool = False,
    ) -> None:
        sizes = (grid,) if isinstance(grid, int) else grid

        def go() -> None:
            launch(self.entry, self.device.memory_map, sizes, threads or self.threads, list(arguments), shared)

        self.device.queue(go)


class EmulatedDevice:
    """Everything runs when it is queued, but between the ends of `capture`."""

    cc, n_multiprocessors, name, index, can_overlap = CC, 4, "emulated", 0, True
    shared_limit = 227 << 10

    def __init__(self) -> None:
        self.memory_map = Memory()
        self._arrays: dict[int, np.ndarray] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._kernels: dict[str, EmulatedKernel] = {}

    def queue(self, what: Callable[[], None]) -> None:
        if self._recording is None:
            what()
        else:
            self._recording.append(what)

    def use(self) -> None:
        pass

    def kernel(self, name: str) -> EmulatedKernel:
        if name not in self._kernels:
            self._kernels[name] = EmulatedKernel(self, name)
        return self._kernels[name]

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def allocate(self, n_bytes: int, *, zero: bool = False) -> int:
        raw = np.zeros(max(n_bytes, 256) + 256, np.uint8)
        skip = -raw.ctypes.data % 256
        array = raw[skip : skip + max(n_bytes, 256)]
        if not zero:
            array[:] = 0xFF  # what nobody wrote is no number
        address = self.memory_map.add(array)
        self._arrays[address] = array
        return address

    def free(self, address: int) -> None:
        self._arrays.pop(address)
        self.memory_map.arrays = [a for a in self.memory_map.arrays if a.ctypes.data != address]

    def page_locked(self, n_bytes: int) -> tuple[int, Any]:
        buffer = (ctypes.c_uint8 * n_bytes)()
        array = np.frombuffer(buffer, np.uint8)
        address = self.memory_map.add(array)  # kernels may write there too
        self._arrays[address] = array
        return address, buffer

    def upload(self, to: int, of: int, n_bytes: int) -> None:
        self.queue(lambda: ctypes.memmove(to, of, n_bytes) and None)

    def download(self, to: int, of: int, n_bytes: int) -> None:
        self.queue(lambda: ctypes.memmove(to, of, n_bytes) and None)

    def clear(self, address: int, n_bytes: int) -> None:
        self.queue(lambda: ctypes.memset(address, 0, n_bytes) and None)

    def synchronize(self) -> None:
        pass

    def capture(self, queue: Callable[[], None]) -> EmulatedGraph:
        self._recording = recorded = []
        try:
            queue()
        finally:
            self._recording = None
        return EmulatedGraph(recorded)

    def event(self) -> EmulatedEvent:
        return EmulatedEvent()

    def close(self) -> None:
        self._arrays.clear()


class EmulatedGraph:
    def __init__(self, recorded: list[Callable[[], None]]) -> None:
        self.recorded = recorded

    def launch(self) -> None:
        for what in self.recorded:
            what()


class EmulatedEvent:
    """Whatever it could wait for has ended."""

    def set(self) -> None:
        pass

    def wait(self) -> None:
        pass
