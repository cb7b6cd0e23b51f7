"""Messages for a GPU whose memory is full: which one, how much is free, and what to do. Functions take the driver's
library as loaded by ctypes."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from ggpy.units import size_text

OPENING = "about half a GiB"  # what a process's context takes on an H100, before it allocates anything


def cannot_open(library: Any, index: int, handle: c_int) -> str:
    """Message that GPU `index` has no room for this process. handle: the driver's, of a GPU without a context."""
    found, n_gpus = free_without_opening(library, handle), c_int()
    library.cuDeviceGetCount(byref(n_gpus))
    free = f"{_of(*found)} are free" if found else "nothing to speak of is free"
    other = f"take another one (--device cuda:{1 if index == 0 else 0}), " if n_gpus.value > 1 else ""
    return (
        f"{_gpu(library, index, handle)} is full: {free}, and to open it takes {OPENING}; end other programs that use "
        f"it (nvidia-smi lists them), {other}or run on the CPU (--device cpu)."
    )


def ran_out(library: Any, what: str, n_bytes: int = 0) -> str:
    """Message that the GPU open in this thread ran out of memory while `what`; n_bytes: how much was asked for, where
    that is known."""
    handle, free, total = c_int(), c_size_t(), c_size_t()
    library.cuCtxGetDevice(byref(handle))
    library.cuMemGetInfo_v2(byref(free), byref(total))
    asked = f"{size_text(n_bytes)} more are needed, and " if n_bytes else ""
    return (
        f"{_gpu(library, handle.value, handle)} ran out of memory while {what}: {asked}{_of(free.value, total.value)} "
        "are free; end other programs that use it, leave more layers to the CPU (-ngl), take a smaller context (-c), "
        "or run on the CPU (--device cpu)."
    )


def free_without_opening(library: Any, handle: c_int) -> tuple[int, int] | None:
    """Bytes free and in total of a GPU, as reported by NVML, which needs no context; None without that library."""

    class Memory(ctypes.Structure):  # nvmlMemory_t
        _fields_ = (("total", c_uint64), ("free", c_uint64), ("used", c_uint64))

    try:
        management = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        place, gpu, memory = ctypes.create_string_buffer(32), c_void_p(), Memory()
        # the two libraries number GPUs differently: on the bus each has one place
        failed = (
            library.cuDeviceGetPCIBusId(place, 32, handle)
            or management.nvmlInit_v2()
            or management.nvmlDeviceGetHandleByPciBusId_v2(c_char_p(place.value), byref(gpu))
            or management.nvmlDeviceGetMemoryInfo(gpu, byref(memory))
        )
        return None if failed else (memory.free, memory.total)
    except (OSError, AttributeError):
        return None


def _gpu(library: Any, index: int, handle: c_int) -> str:
    text = ctypes.create_string_buffer(128)
    library.cuDeviceGetName(text, 128, handle)
    return f"GPU {index}" + (f" ({text.value.decode(errors='replace')})" if text.value else "")


def _of(n_bytes: int, total: int) -> str:
    return f"{size_text(n_bytes)} of {size_text(total)}"
