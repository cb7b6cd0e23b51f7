"""Helpers for the readers of all blocks."""

from __future__ import annotations

from ggpy.cuda.isa.device import at, inline, u32
from ggpy.cuda.isa.instructions import load_u16

NONE = 0  # of a level that a format lacks


@inline
def load_u32_of_halves(address):  # type: ignore[no-untyped-def]
    """A 32-bit word loaded as two of 16 bits, since blocks are only on even addresses."""
    return load_u16(address) | (load_u16(at(address, 2)) << u32(16))
