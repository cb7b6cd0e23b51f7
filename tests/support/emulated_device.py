"""A GPU for tests on machines without one: the driver's interface over `ptx_emulator`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ggpy.cuda.compile import source, to_ptx
from tests.support.ptx_emulator import Trap, launch
from tests.support.ptx_memory import Memory
from tests.support.ptx_text import Entry, parse

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
            memory = Memory([array for device in self.device.reached for array in device.memory_map.arrays])
            memory.arrays.sort(key=lambda array: array.ctypes.data)
            launch(self.entry, memory, sizes, threads or self.threads, list(arguments), shared)

        self.device.queue(go)


class EmulatedDevice:
    """Everything runs when it is queued, but between the ends of `capture`. A kernel that has waited for another GPU in
    vain, and so has done nothing, is tried again when something waits for it or is queued there."""

    cc, n_multiprocessors, name, can_overlap = CC, 4, "emulated", True
    shared_limit, l2_bytes = 227 << 10, 50 << 20
    patience = 2  # looks at what another GPU has not written

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.memory_map = Memory()
        self._arrays: dict[int, np.ndarray] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._kernels: dict[str, EmulatedKernel] = {}
        self.reached: list[EmulatedDevice] = [self]  # whose memory kernels can touch
        self._waiting: list[Callable[[], None]] = []

    def queue(self, what: Callable[[], None]) -> None:
        if self._recording is None:
            self._waiting.append(what)
            self.go_on()
        else:
            self._recording.append(what)

    def go_on(self) -> bool:
        """Do what can be done; returns True where anything was."""
        before = len(self._waiting)
        try:
            while self._waiting:
                self._waiting[0]()
                self._waiting.pop(0)
        except Trap:
            pass
        return len(self._waiting) < before

    def finish(self) -> None:
        """Do everything, and what it waits for."""
        while sum(device.go_on() for device in self.reached):
            pass
        assert not self._waiting, "a kernel waits for what nobody will write"

    def reach(self, other: EmulatedDevice) -> bool:
        if other not in self.reached:
            self.reached.append(other)
        return True

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

    def copy(self, to: int, of: int, n_bytes: int) -> None:
        self.queue(lambda: ctypes.memmove(to, of, n_bytes))  # type: ignore[arg-type, return-value]

    def receive(self, to: int, source: EmulatedDevice, of: int, n_bytes: int) -> None:
        assert any(base <= of and of + n_bytes <= base + len(a) for base, a in source._arrays.items())
        ctypes.memmove(to, of, n_bytes)

    def clear(self, address: int, n_bytes: int) -> None:
        self.queue(lambda: ctypes.memset(address, 0, n_bytes) and None)

    def synchronize(self) -> None:
        self.finish()

    def capture(self, queue: Callable[[], None]) -> EmulatedGraph:
        self._recording = recorded = []
        try:
            queue()
        finally:
            self._recording = None
        return EmulatedGraph(self, recorded)

    def event(self) -> EmulatedEvent:
        return EmulatedEvent(self)

    def close(self) -> None:
        self._arrays.clear()


class EmulatedGraph:
    def __init__(self, device: EmulatedDevice, recorded: list[Callable[[], None]]) -> None:
        self.device, self.recorded = device, recorded

    def launch(self) -> None:
        for what in self.recorded:
            self.device.queue(what)


class EmulatedEvent:
    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device

    def set(self) -> None:
        pass

    def wait(self) -> None:
        self.device.finish()
