"""Sampling in machine code: the kernel of `ggpy.cpu.ops.sample`, ready for one sequence."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggpy.cpu.kernels import kernel
from ggpy.sampling.sample_spec import TopKChain

if TYPE_CHECKING:
    from ggpy.sampling.sampler import Floats, SamplingParams

MAX_TOP_K = 256  # top-k beyond it sorts faster in numpy


class NativeSampler:
    """A sampler that chooses a token from logits by top-k, top-p, min-p and temperature."""

    def __init__(self, chain: TopKChain) -> None:
        self._k = chain.candidates
        self._params = np.array([chain.top_p, chain.least, chain.temperature, 0.0])  # the last: where to draw
        self._values, self._ids = np.empty(self._k, np.float32), np.empty(self._k, np.int32)
        self._room = self._params.ctypes.data, self._values.ctypes.data, self._ids.ctypes.data
        self._call = kernel("sample").call

    @staticmethod
    def of(params: SamplingParams) -> NativeSampler | None:
        """A native sampler for these parameters (resolved); None where only numpy can follow them, or is faster."""
        chain = TopKChain.of(params)
        if chain is None or chain.candidates > MAX_TOP_K:
            return None
        return NativeSampler(chain)

    def __call__(self, logits: Floats, uniform: float, bits: NDArray[np.int32] | None = None) -> int:
        """The token at the point `uniform`, from 0 to below 1, of the distribution over logits, float32 [n], or over
        those whose bit is set in `bits`; -1 where these define no distribution, or where top-k is not below n."""
        n = len(logits)
        if self._k >= n or (bits is not None and 32 * bits.size < n):
            return -1
        if logits.dtype.char != "f":
            raise TypeError("logits must be float32")
        self._params[3] = uniform
        first = ctypes.c_char.from_buffer(logits.data)  # contiguous memory alone; quicker than asking numpy
        mask = 0 if bits is None else bits.ctypes.data
        return int(self._call(ctypes.addressof(first), n, *self._room, self._k, mask))
