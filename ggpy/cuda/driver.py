"""The CUDA driver, called directly: memory, streams, modules, launches, graphs. No package is needed for it; without a
driver or a GPU `Device` raises GGPYError with a sentence that says what is missing."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from typing import Any

from ggpy.cuda import shortage
from ggpy.cuda.compile import Compiled, discard, missing_packages, obtain
from ggpy.cuda.weights.layout import READ_BLOCKS, READ_THREADS
from ggpy.errors import GGPYError, OutOfMemory
from ggpy.units import size_text

OUT_OF_MEMORY = 2
ALREADY_ENABLED = 704
# Images that are no code, of another GPU, of a later compiler; code that lacks the entry.
BAD_CODE = (200, 209, 218, 222, 300, 301, 302, 303, 500)
# Per cent of a multiprocessor's nearest memory that is shared memory, the rest being cache, where launches overlap and
# a kernel does not need more. It must be empty to be divided again, so all of them want one division: on an H100 a
# 1.8B model decodes 1,721 tokens a second so, 1,538 where the driver chooses (benchmarks/results/cuda_h100.txt). What
# prompts are made of is left to the driver: there it cost 4 to 8 %.
CARVEOUT = 70
OLDEST_DRIVER = 12000  # CUDA 12: graphs that keep programmatic edges need 12.3, and do without before
READ_BYTES = 4 << 30  # to see how fast it reads: a few milliseconds
OTHERWISE = "take another one, or run on the CPU (--device cpu)"  # where a GPU cannot be opened

_CODES = {"u64": "Q", "i64": "q", "u32": "I", "i32": "i", "f32": "f"}  # of the struct module


class _Attribute(ctypes.Structure):
    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_int), ("rest", c_int * 15))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("n_attributes", c_uint),
    )


_SIZES = struct.Struct("@7I")  # what a _Config begins with
_PROGRAMMATIC = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


_opened_by = 0  # the process that opened the driver


def _is_forked() -> bool:
    """True where this process was forked from one that had opened the driver, so the driver fails here."""
    return _opened_by not in (0, os.getpid())


@lru_cache(maxsize=1)
def _library() -> Any:
    global _opened_by
    if _is_forked():
        raise GGPYError(
            "This process was forked from one that had already used the GPU, which CUDA does not allow: load the model "
            "in each process, or start them without fork (multiprocessing's 'spawn')."
        )
    _opened_by = os.getpid()
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise GGPYError(
            "No NVIDIA driver was found on this machine; install it, or run on the CPU (--device cpu)."
        ) from None
    status = library.cuInit(0)
    if status:
        raise GGPYError(
            f"The NVIDIA driver found no GPU that it can use (error {status}); run on the CPU (--device cpu)."
        )
    found = c_int()
    library.cuDriverGetVersion(byref(found))
    if found.value < OLDEST_DRIVER:
        raise GGPYError(
            f"The NVIDIA driver is of CUDA {found.value // 1000}.{found.value % 1000 // 10}, but ggpy needs one of "
            f"CUDA {OLDEST_DRIVER // 1000} or later; update the driver."
        )
    return library


if hasattr(os, "register_at_fork"):  # from then on every failure says so
    os.register_at_fork(after_in_child=_library.cache_clear)


class DriverError(GGPYError):
    """An error of the driver; `status` is its number."""

    def __init__(self, status: int, what: str, remedy: str) -> None:
        text = c_char_p()
        _library().cuGetErrorString(status, byref(text))
        said = (text.value or b"unknown error").decode()
        self.status = status
        super().__init__(f"The GPU failed while {what}: {said} (CUDA error {status}); {remedy}.")


def check(status: int, what: str, remedy: str = "the model must be loaded again") -> None:
    """Raise the error that a call's status stands for; `what` says what the call was for. Nearly every call may run out
    of memory."""
    if status == OUT_OF_MEMORY:
        raise OutOfMemory(shortage.ran_out(_library(), what))
    if status:
        raise DriverError(status, what, remedy)


def device_count() -> int:
    """GPUs that the driver offers; 0 without a driver."""
    try:
        count = c_int()
        check(_library().cuDeviceGetCount(byref(count)), "counting GPUs")
        return count.value
    except GGPYError:
        return 0


def driver_version() -> str:
    """The CUDA version that the driver supports. Raises GGPYError without a driver or a GPU."""
    found = c_int()
    check(_library().cuDriverGetVersion(byref(found)), "asking for the driver's version")
    return f"{found.value // 1000}.{found.value % 1000 // 10}"


def device_index(device: str) -> int:
    """The number of the GPU that "cuda" or "cuda:1" names."""
    return int(device.partition(":")[2] or 0)


def usable() -> bool:
    """True where there is a GPU that ggpy runs on, and the packages that compile kernels for it."""
    return not unusable()


def unusable() -> str:
    """Why ggpy can run on no GPU here, in a sentence; empty where it can."""
    try:
        _library()
    except GGPYError as error:
        return str(error)
    missing, why = missing_packages(), ""
    if missing:
        return f"Kernels for the GPU need {' and '.join(missing)}; install it with `pip install 'ggpy[cuda]'`."
    for index in range(device_count()):
        try:
            Device(index).close()
        except GGPYError as error:
            why = why or str(error)
        else:
            return ""
    return why or "The NVIDIA driver offers no GPU."


class Kernel:
    """A loaded kernel. `launch` only queues it."""

    def __init__(self, device: Device, made: Compiled) -> None:
        self.name, self.threads, self.registers, self.stack = made.name, made.threads, made.registers, made.stack
        module, function = c_void_p(), c_void_p()
        check(device.lib.cuModuleLoadData(byref(module), made.cubin), f"loading the kernel {made.name}")
        check(
            device.lib.cuModuleGetFunction(byref(function), module, made.entry.encode()),
            f"loading the kernel {made.name}",
        )
        self._function, self._device, self._shared, self._overlaps = function, device, 48 << 10, False
        # A step launches hundreds: what the driver reads is laid out once, and each launch only writes its numbers.
        codes = [_CODES[kind] for kind in made.signature.split()]
        self._arguments = struct.Struct("@" + "".join(codes))
        self._values = ctypes.create_string_buffer(max(1, self._arguments.size))
        ends = [struct.calcsize("@" + "".join(codes[: i + 1])) for i in range(len(codes))]
        places = [end - struct.calcsize(code) for end, code in zip(ends, codes, strict=True)]
        at = ctypes.addressof(self._values)
        self._pointers = (c_void_p * len(codes))(*(at + place for place in places))
        self._attribute = _Attribute(_PROGRAMMATIC, 0, 1)
        self._config = _Config()
        self._config.stream, self._config.attributes = device.stream, ctypes.pointer(self._attribute)
        self._call, self._reference = device.lib.cuLaunchKernelEx, byref(self._config)

    def launch(
        self,
        grid: int | tuple[int, ...],
        *arguments: float,
        threads: int | None = None,
        shared: int = 0,
        dependent: bool = False,
    ) -> None:
        """Queue one run on the device's stream. grid: blocks; threads: per block; shared: bytes of dynamic memory.

        dependent: the kernel begins by `wait_for_previous`, and may start before those ahead of it have ended.
        """
        device, config = self._device, self._config
        if shared > self._shared:
            check(device.lib.cuFuncSetAttribute(self._function, 8, shared), f"preparing {self.name}")
            self._shared = shared
        if dependent and not self._overlaps:
            check(device.lib.cuFuncSetAttribute(self._function, 9, CARVEOUT), f"preparing {self.name}")
            self._overlaps = True
        try:
            self._arguments.pack_into(self._values, 0, *arguments)
        except struct.error as error:
            raise TypeError(f"{self.name}: {error}") from None
        x, y, z = (grid, 1, 1) if isinstance(grid, int) else (*grid, 1, 1)[:3]
        _SIZES.pack_into(config, 0, x, y, z, threads or self.threads, 1, 1, shared)
        config.n_attributes = dependent and device.can_overlap
        status = self._call(self._reference, self._function, self._pointers, None)
        if status:
            check(status, f"starting {self.name}")


class Device:
    """One GPU: its memory, one stream, its kernels."""

    patience = 1 << 25  # looks at what another GPU has not written, before a kernel gives up: well under a minute

    def __init__(self, index: int = 0) -> None:
        self.lib = _library()
        handle, context, stream = c_int(), c_void_p(), c_void_p()
        if not 0 <= index < device_count():
            raise GGPYError(f"There is no GPU number {index}; this machine has {device_count()}.")
        check(self.lib.cuDeviceGet(byref(handle), index), "opening the GPU", OTHERWISE)
        self.index, self._handle = index, handle
        status = self.lib.cuDevicePrimaryCtxRetain(byref(context), handle)
        if status == OUT_OF_MEMORY:
            raise OutOfMemory(shortage.cannot_open(self.lib, index, handle))
        check(status, "opening the GPU", OTHERWISE)
        self._context = context
        self.use()
        check(self.lib.cuStreamCreate(byref(stream), 1), "opening the GPU", OTHERWISE)
        self.stream = stream
        self.cc = (self._attribute(75), self._attribute(76))
        self.n_multiprocessors = self._attribute(16)
        self.shared_limit = self._attribute(97)  # bytes of a block, once asked for
        self.l2_bytes = self._attribute(38)
        self.can_overlap = self.cc >= (9, 0)
        self._kernels: dict[str, Kernel] = {}
        self._allocated: dict[int, int] = {}
        self._page_locked: list[int] = []
        self._peers: dict[Device, tuple[Event, Event]] = {}
        if self.cc < (8, 0):
            raise GGPYError(
                f"{self.name} is of compute capability {self.cc[0]}.{self.cc[1]}, but ggpy's kernels need 8.0 "
                "(Ampere) or later; run on the CPU (--device cpu)."
            )

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(128)
        check(self.lib.cuDeviceGetName(text, 128, self._handle), "asking its name")
        return text.value.decode()

    def _attribute(self, number: int) -> int:
        value = c_int()
        check(self.lib.cuDeviceGetAttribute(byref(value), number, self._handle), "asking what it is")
        return value.value

    def use(self) -> None:
        """Make this the GPU of the calling thread; every thread must, before anything else."""
        check(self.lib.cuCtxSetCurrent(self._context), "opening the GPU", OTHERWISE)

    def kernel(self, name: str) -> Kernel:
        """A kernel by name, loaded once; compiled where it is not on disk."""
        found = self._kernels.get(name)
        if found is None:
            try:
                found = Kernel(self, obtain(name, self.cc))
            except DriverError as error:
                if error.status not in BAD_CODE:
                    raise
                discard(name, self.cc)  # a file of ours that this driver cannot load is made again
                found = Kernel(self, obtain(name, self.cc))
            self._kernels[name] = found
        return found

    # ---- memory

    def memory(self) -> tuple[int, int]:
        """Bytes free and in total."""
        free, total = c_size_t(), c_size_t()
        check(self.lib.cuMemGetInfo_v2(byref(free), byref(total)), "asking for its memory")
        return free.value, total.value

    def allocate(self, n_bytes: int, *, zero: bool = False) -> int:
        """The address of `n_bytes` of its memory, on a 256-byte boundary. Raises OutOfMemory where there is no room."""
        address = c_uint64()
        status = self.lib.cuMemAlloc_v2(byref(address), c_size_t(max(n_bytes, 256)))
        if status == OUT_OF_MEMORY:
            raise OutOfMemory(shortage.ran_out(self.lib, "allocating", n_bytes))
        check(status, "allocating memory")
        self._allocated[address.value] = n_bytes
        if zero:
            check(self.lib.cuMemsetD8Async(address, 0, c_size_t(max(n_bytes, 256)), self.stream), "clearing memory")
        return address.value

    def free(self, address: int) -> None:
        del self._allocated[address]
        check(self.lib.cuMemFree_v2(c_uint64(address)), "freeing memory")

    def page_locked(self, n_bytes: int) -> tuple[int, Any]:
        """Host memory that the GPU copies from and to by itself: its address, and a writable buffer over it."""
        pointer = c_void_p()
        status = self.lib.cuMemHostAlloc(byref(pointer), c_size_t(n_bytes), 0)
        if status == OUT_OF_MEMORY:  # not the GPU's
            raise GGPYError(
                f"The machine has no {size_text(n_bytes)} of memory left that the GPU can copy from; end other "
                "programs, or raise the limit of the container that this one runs in."
            )
        check(status, "allocating host memory")
        assert pointer.value is not None
        self._page_locked.append(pointer.value)
        return pointer.value, (ctypes.c_uint8 * n_bytes).from_address(pointer.value)

    def upload(self, to: int, of: int, n_bytes: int) -> None:
        """Queue a copy from host address `of`; memory that is not page-locked has been read when this returns."""
        check(
            self.lib.cuMemcpyHtoDAsync_v2(c_uint64(to), c_void_p(of), c_size_t(n_bytes), self.stream), "copying to it"
        )

    def copy(self, to: int, of: int, n_bytes: int) -> None:
        """Queue a copy within the GPU's memory."""
        check(
            self.lib.cuMemcpyDtoDAsync_v2(c_uint64(to), c_uint64(of), c_size_t(n_bytes), self.stream),
            "copying within it",
        )

    def download(self, to: int, of: int, n_bytes: int) -> None:
        """Queue a copy to host address `to`; complete after `synchronize`."""
        check(
            self.lib.cuMemcpyDtoHAsync_v2(c_void_p(to), c_uint64(of), c_size_t(n_bytes), self.stream), "copying from it"
        )

    def receive(self, to: int, source: Device, of: int, n_bytes: int) -> None:
        """Queue a copy from another GPU's memory. It waits for what is queued there, and what is queued there later
        waits for it. Where the two can access each other's memory it goes directly, else the driver takes it through
        the host."""
        if source not in self._peers:
            self.reach(source)
            source.use()
            sent = source.event()
            self.use()
            self._peers[source] = sent, self.event()
        sent, received = self._peers[source]
        source.use()
        sent.set()
        self.use()
        sent.hold_back(self)
        check(
            self.lib.cuMemcpyPeerAsync(
                c_uint64(to), self._context, c_uint64(of), source._context, c_size_t(n_bytes), self.stream
            ),
            "copying from another GPU",
        )
        received.set()
        source.use()
        received.hold_back(source)
        self.use()

    def reach(self, other: Device) -> bool:
        """Enable direct access to another GPU's memory; True where kernels of this one can read and write it from now
        on."""
        if other.index == self.index:
            return True
        can = c_int()
        status = self.lib.cuDeviceCanAccessPeer(byref(can), self._handle, other._handle)
        if status or not can.value:
            return False
        self.use()
        return self.lib.cuCtxEnablePeerAccess(other._context, 0) in (0, ALREADY_ENABLED)

    def clear(self, address: int, n_bytes: int) -> None:
        check(self.lib.cuMemsetD8Async(c_uint64(address), 0, c_size_t(n_bytes), self.stream), "clearing memory")

    def synchronize(self) -> None:
        """Wait for everything queued; a fault of a kernel is reported here."""
        check(self.lib.cuStreamSynchronize(self.stream), "running the model")

    def bandwidth(self, n_bytes: float) -> float:
        """Bytes a second when it reads `n_bytes` again and again, some of which its L2 cache may hold; the best of a
        few runs."""
        n = max(1, int(min(n_bytes, READ_BYTES, self.memory()[0] // 4)) // 16)
        passes, blocks = -(-READ_BYTES // (16 * n)), READ_BLOCKS * self.n_multiprocessors
        buffer, sums = self.allocate(16 * n, zero=True), self.allocate(4 * READ_THREADS * blocks)
        kernel, best = self.kernel("read"), 0.0
        for _ in range(5):
            elapsed = self.timer()
            kernel.launch(blocks, buffer, n, passes, sums)
            best = max(best, 16 * n * passes / elapsed())
        self.free(buffer)
        self.free(sums)
        return best

    # ---- graphs

    def capture(self, queue: Callable[[], None]) -> Graph:
        """A graph of the kernels that `queue` launches; none of them runs now."""
        check(self.lib.cuStreamBeginCapture_v2(self.stream, 1), "recording a graph")
        recorded, executable = c_void_p(), c_void_p()
        try:
            queue()
        finally:
            status = self.lib.cuStreamEndCapture(self.stream, byref(recorded))
        check(status, "recording a graph")
        check(self.lib.cuGraphInstantiateWithFlags(byref(executable), recorded, c_uint64(0)), "making a graph")
        check(self.lib.cuGraphDestroy(recorded), "making a graph")
        check(self.lib.cuGraphUpload(executable, self.stream), "loading a graph")
        return Graph(self, executable)

    def event(self) -> Event:
        """A new event for this device's stream, not yet set."""
        return Event(self)

    # ---- time

    def timer(self) -> Callable[[], float]:
        """Mark a moment in the stream; calling the result waits, and returns the seconds that the GPU took since."""
        first, second = c_void_p(), c_void_p()
        for event in (first, second):
            check(self.lib.cuEventCreate(byref(event), 0), "timing")
        check(self.lib.cuEventRecord(first, self.stream), "timing")

        def elapsed() -> float:
            check(self.lib.cuEventRecord(second, self.stream), "timing")
            check(self.lib.cuEventSynchronize(second), "running the model")
            result = c_float()
            check(self.lib.cuEventElapsedTime(byref(result), first, second), "timing")
            return result.value / 1e3

        return elapsed

    def close(self) -> None:
        """Free all its memory; the device cannot be used afterwards."""
        if _is_forked():
            return
        self.use()
        self.lib.cuStreamSynchronize(self.stream)
        for address in list(self._allocated):
            self.lib.cuMemFree_v2(c_uint64(address))
        for address in self._page_locked:
            self.lib.cuMemFreeHost(c_void_p(address))
        self._allocated.clear()
        self._page_locked.clear()


class Graph:
    """Launches recorded once, to be queued by one call."""

    def __init__(self, device: Device, executable: c_void_p) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        check(self._device.lib.cuGraphLaunch(self._executable, self._device.stream), "starting a graph")


class Event:
    """A mark in a device's stream. Before it is first set, nothing waits for it."""

    def __init__(self, device: Device) -> None:
        self._device, self._handle = device, c_void_p()
        check(device.lib.cuEventCreate(byref(self._handle), 2), "making a mark")  # without a time

    def set(self) -> None:
        """Mark what is queued so far."""
        check(self._device.lib.cuEventRecord(self._handle, self._device.stream), "setting a mark")

    def wait(self) -> None:
        """Wait until what was queued before the mark has ended; a fault of a kernel is reported here."""
        check(self._device.lib.cuEventSynchronize(self._handle), "running the model")

    def hold_back(self, other: Device) -> None:
        """Have what is queued on another device from now on wait for the mark."""
        check(self._device.lib.cuStreamWaitEvent(other.stream, self._handle, 0), "waiting for another GPU")
