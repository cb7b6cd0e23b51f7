"""The memory that this process may still take, and the largest context that fits it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ggpy.errors import GGPYError
from ggpy.host import cgroups
from ggpy.units import size_text


def available_memory() -> int:
    """Bytes that can be had now without swapping: the machine's, or its control group's where that is less."""
    machine = _machine()
    return min([machine, *_control_groups(cgroups.MEMBERSHIP, cgroups.MOUNT)])


def choose_context(
    asked: int | None,
    trained: int,
    weights: int,
    cache: Callable[[int], int],
    available: int,
    notify: Callable[[str], None],
) -> int:
    """The context in tokens: what was asked for, else the training context as far as memory holds it.

    weights, available: bytes; cache(n): bytes of the cache for n tokens. Raises GGPYError where it does not fit.
    """
    room = usable(available) - weights

    def largest(limit: int) -> int:
        low, high = 0, limit  # cache(low) fits
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cache(middle) <= room else (low, middle - 1)
        return low if low == limit else low // 256 * 256

    if asked is not None:
        if cache(asked) > room:
            fits = largest(asked)
            advice = f"{fits} tokens would fit (-c {fits})" if fits else "not even a small context fits"
            raise GGPYError(
                f"A context of {asked} tokens needs {size_text(cache(asked))} for its cache and "
                f"{size_text(weights)} for the weights, but {size_text(available)} of memory are free; {advice}."
            )
        if asked > trained:
            notify(f"context {asked} tokens, more than the {trained} that the model was trained with")
        return asked
    context = largest(trained)
    least = min(256, trained)
    if context < least:
        raise GGPYError(
            f"The model needs {size_text(weights)} for its weights and {size_text(cache(least))} for a context of "
            f"{least} tokens, but {size_text(available)} of memory are free."
        )
    if context < trained:
        notify(f"context {context} tokens: the model was trained with {trained}, but memory holds no more")
    else:
        notify(f"context {context} tokens")
    return context


def usable(available: int) -> int:
    """The part of the free bytes to plan with: a twentieth is left for the program itself."""
    return available - available // 20


def _machine() -> int:
    if sys.platform == "win32":
        return _windows()
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    # No figure for what is free (macOS): what the system holds in all, less a share for everything else.
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.75)


def _windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "_1", "_2", "_3", "_4", "_5")),
        )

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.free)


def _control_groups(membership: Path, mount: Path) -> list[int]:
    """Bytes that each control group above this process still allows, for the groups that set a limit."""
    rooms = (_room(version, group) for version, group in cgroups.groups("memory", membership, mount))
    return [room for room in rooms if room is not None]


def _room(version: int, folder: Path) -> int | None:
    if version == 2:
        limit, used, reclaimable = "memory.max", "memory.current", "inactive_file"
    else:
        limit, used, reclaimable = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    try:
        allowed = int((folder / limit).read_text())  # "max" where there is no limit: ValueError
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, allowed - taken + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None
