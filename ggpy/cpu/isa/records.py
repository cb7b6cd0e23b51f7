"""Records behind raw addresses, as numba sees them (their fields are in `ggpy.cpu.isa.layout`)."""

from __future__ import annotations

from numba import njit
from numba.np.numpy_support import from_dtype

from ggpy.codegen.scalars import pointer_to
from ggpy.cpu.isa.layout import OP, STEP

as_op = pointer_to(from_dtype(OP))
as_step = pointer_to(from_dtype(STEP))


@njit(inline="always")
def stripes_of(tid, nth, n_stripes):  # type: ignore[no-untyped-def]
    """The stripes first..last of thread `tid`, an even number except at the end: how every operation over rows is
    divided among threads."""
    pairs = (n_stripes + 1) // 2
    return 2 * (pairs * tid // nth), min(n_stripes, 2 * (pairs * (tid + 1) // nth))
