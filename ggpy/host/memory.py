"""The memory that this process may still take, what a model would take of it, and the largest context that fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggpy.errors import GGPYError
from ggpy.host import cgroups
from ggpy.units import size_text


def available_memory() -> int:
    """Bytes that can be had now without swapping: the machine's, or its control group's where that is less."""
    machine = _machine()
    return min([machine, *_control_groups(cgroups.MEMBERSHIP, cgroups.MOUNT)])


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of memory that a model, or some of its layers, takes on a device.

    device: "cpu" or "cuda:N". free: bytes of the device's memory that can be had. weights: as they are kept there.
    state: of all sequences (keys, values and the like). working: what steps work in. kept: what an engine may keep
    beside, copies of state to go on from. drafts: all that who drafts tokens for the model takes.
    """

    device: str
    free: int
    weights: int
    working: int
    state: int
    kept: int = 0
    drafts: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.working + self.state + self.kept + self.drafts

    @property
    def room(self) -> int:
        """Bytes that all else leaves for state."""
        return max(0, usable(self.free) - self.weights - self.working - self.kept - self.drafts)

    def allowed(self, kv_memory: KVMemory | None) -> int:
        """Bytes that state may take."""
        if isinstance(kv_memory, int):
            return min(self.room, kv_memory)
        return int((1.0 if kv_memory is None else kv_memory) * self.room)


KVMemory = int | float  # bytes for the state of all sequences together; or a share of the room for it, up to 1.0


def within(uses: Sequence[MemoryUse], kv_memory: KVMemory | None = None) -> bool:
    """True where a model fits the memory of its devices, and its state what it may take of that."""
    share = kv_memory if isinstance(kv_memory, float) else 1.0
    fits = all(use.total <= usable(use.free) and use.state <= share * use.room for use in uses)
    return fits and not (isinstance(kv_memory, int) and sum(use.state for use in uses) > kv_memory)


def largest_context(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest context up to `limit` tokens that fits, a multiple of 256 unless it is the limit; 0: none."""
    if fits(limit):
        return limit
    low, high = 0, (limit - 1) // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(256 * middle) else (low, middle - 1)
    return 256 * low


def choose_context(
    asked: int | None,
    trained: int,
    uses: Callable[[int], Sequence[MemoryUse] | None],
    notify: Callable[[str], None],
    kv_memory: KVMemory | None = None,
) -> int:
    """The context in tokens: what was asked for, else the training context as far as memory holds it.

    uses(n): the memory that n tokens take on every device; None where they fit in no way at all. kv_memory: a limit for
    the state. Raises GGPYError where the context does not fit.
    """

    def fits(n: int) -> bool:
        found = uses(n)
        return found is not None and within(found, kv_memory)

    if asked is not None:
        if not fits(asked):
            largest = largest_context(asked, fits)
            advice = f"{largest} tokens would fit (-c {largest})" if largest else "not even a small context fits"
            raise GGPYError(f"A context of {asked} tokens {_too_much(uses(asked) or (), kv_memory)}; {advice}.")
        if asked > trained:
            notify(f"context {asked} tokens, more than the {trained} that the model was trained with")
        return asked
    context, least = largest_context(trained, fits), min(256, trained)
    if context < least:
        raise GGPYError(f"Even a context of {least} tokens {_too_much(uses(least) or (), kv_memory)}.")
    if context == trained:
        notify(f"context {context} tokens")
    elif kv_memory is None:
        notify(f"context {context} tokens: the model was trained with {trained}, but memory holds no more")
    else:
        notify(f"context {context} tokens: the model was trained with {trained}, but --kv-memory holds no more")
    return context


def _too_much(uses: Sequence[MemoryUse], kv_memory: KVMemory | None) -> str:
    """The figures by which a model does not fit, as the end of a sentence: those of devices that have too little."""
    uses = [use for use in uses if use.total > usable(use.free)] or uses
    state, weights, working, kept, drafts, free = (
        size_text(sum(getattr(use, name) for use in uses))
        for name in ("state", "weights", "working", "kept", "drafts", "free")
    )
    needs = f"needs {state} for keys, values and other state, {weights} for the weights and {working} to work in"
    if any(use.kept for use in uses):
        turns = f"{kept} for earlier turns (--cache-ram)"
        needs = f"{needs}, beside {turns}" if any(use.weights for use in uses) else f"needs {turns}"
    if any(use.drafts for use in uses):
        needs = f"{needs}, and {drafts} for drafts (--draft, --spec mtp)"
    if kv_memory is None or not within(uses):
        return f"{needs}, but {free} of memory are free"
    allowed = kv_memory if isinstance(kv_memory, int) else sum(use.allowed(kv_memory) for use in uses if use.state)
    return f"needs {state} for keys, values and other state, but --kv-memory allows {size_text(allowed)}"


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
