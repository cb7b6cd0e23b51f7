"""Host memory that an engine takes beside the slots: checkpoints, copies of state that cannot be cut back, and
conversations whose slot another one took. How much each may take is settled before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINTS = 6  # of a slot
MOST_CHECKPOINTS = 1 << 30  # bytes, of all slots
MOST_PARKED = 2 << 30  # bytes, where nothing is said


@dataclass(frozen=True)
class HostMemory:
    """Limits in bytes: of all slots' checkpoints, and of parked conversations with theirs."""

    checkpoints: int = 0
    parked: int = 0

    @property
    def total(self) -> int:
        return self.checkpoints + self.parked

    @staticmethod
    def of(n_slots: int, checkpoint: int, room: int, cache_ram: int | None) -> HostMemory:
        """The limits for slots whose checkpoints have so many bytes, where weights and working memory leave `room`
        bytes: at most a quarter of that for checkpoints, and a tenth for conversations unless `cache_ram` says how
        many bytes."""
        checkpoints = min(CHECKPOINTS * n_slots * checkpoint, MOST_CHECKPOINTS, room // 4)
        return HostMemory(checkpoints, min(MOST_PARKED, room // 10) if cache_ram is None else cache_ram)


CHECKPOINTS_ALONE = HostMemory(MOST_CHECKPOINTS)
