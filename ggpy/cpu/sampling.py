"""Sampling in machine code: the kernel of `ggpy.cpu.sample`, ready for one sequence's parameters."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cpu.kernels import kernel

if TYPE_CHECKING:
    from ggpy.sampler import Floats, SamplingParams

MOST_CANDIDATES = 256  # top-k beyond it sorts faster in numpy


class MachineChain:
    """Chooses a token from logits by top-k, top-p, min-p and temperature."""

    def __init__(self, params: SamplingParams) -> None:
        self._k = params.top_k or 0
        self._params = np.zeros(4)
        min_p = np.float32(math.log(params.min_p)) if params.min_p else -math.inf
        self._params[:3] = 1.0 if params.top_p is None else params.top_p, min_p, max(params.temperature or 0.0, 1e-30)
        self._values, self._ids = np.empty(self._k, np.float32), np.empty(self._k, np.int32)
        self._room = self._params.ctypes.data, self._values.ctypes.data, self._ids.ctypes.data
        self._call = kernel("sample").call

    @staticmethod
    def fits(params: SamplingParams) -> bool:
        """Whether this chain is all that the parameters (resolved) ask for."""
        k, typical = params.top_k or 0, params.typical_p
        return bool(params.temperature) and 0 < k <= MOST_CANDIDATES and (typical is None or typical >= 1.0)

    def __call__(self, logits: Floats, uniform: float) -> int:
        """The token at the point `uniform`, from 0 to below 1, of the distribution over logits, float32 [n]; -1 where
        they are none, or top-k is off because there are so few."""
        n = len(logits)
        if self._k >= n:
            return -1
        if logits.dtype.char != "f":
            raise TypeError("logits must be float32")
        self._params[3] = uniform
        first = ctypes.c_char.from_buffer(logits.data)  # contiguous memory alone; quicker than asking numpy
        return int(self._call(ctypes.addressof(first), n, *self._room, self._k))
