"""The description of a step, as the GPU reads it. Imports no numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.ops.sample_layout import SPEC_WORDS
from ggpy.sampling.sample_spec import SAMPLE_SPEC

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device


class Inputs:
    """The description of a batch: a block of page-locked host memory and its copy on the GPU, which several may share:
    each is uploaded when the steps before it have ended."""

    # words: the number of tokens, where tokens chosen go (`DeviceSampler.place`), the step's first epoch; the fifth and
    # sixth are a host's address where kernels tell of what they cut (`ggpy.cuda.ops.kv_cache`)
    HEADER = 16
    ARRAYS = ("tokens", "slots", "positions", "outputs", "types", "cells")  # int32 [capacity]

    def __init__(self, device: Device, capacity: int, samples: bool = False, address: int = 0) -> None:
        self.capacity, n = capacity, len(self.ARRAYS)
        self._bytes = 4 * (self.HEADER + (n + 4 + (SPEC_WORDS if samples else 0)) * capacity)
        self._host, buffer = device.page_locked(self._bytes)
        words = np.frombuffer(buffer, np.int32)
        words[:] = 0
        self.address = address or device.allocate(self._bytes)
        self.header = words[: self.HEADER]
        at = self.HEADER
        self.tokens, self.slots, self.positions, self.outputs, self.types, self.cells = (
            words[at + i * capacity : at + (i + 1) * capacity] for i in range(len(self.ARRAYS))
        )
        # runs of tokens in one slot (`token_segments`), for kernels that want them
        self.segments = words[at + n * capacity : at + (n + 4) * capacity].reshape(capacity, 4)
        self.specs = words[at + (n + 4) * capacity :].view(SAMPLE_SPEC)  # of none where no tokens are chosen
        self.done = device.event()  # with reading them
        self._device = device

    def device_address(self, name: str) -> int:
        place = len(self.ARRAYS) + 4 if name == "specs" else (*self.ARRAYS, "segments").index(name)
        return self.address + 4 * (self.HEADER + place * self.capacity)

    def upload(self) -> None:
        self._device.upload(self.address, self._host, self._bytes)
