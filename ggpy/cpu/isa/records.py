"""Records behind raw addresses, as numba sees them (their fields are in `ggpy.cpu.isa.layout`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from ggpy.cpu.isa.layout import OP, STEP


def _pointer_to(dtype: np.dtype) -> Any:
    record = from_dtype(dtype)

    def cast(typingctx: Any, address: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(record)(types.uintp), codegen

    return intrinsic(cast)


as_op = _pointer_to(OP)
as_step = _pointer_to(STEP)


@njit(inline="always")
def stripes_of(tid, nth, n_stripes):  # type: ignore[no-untyped-def]
    """The stripes first..last of thread `tid`, an even number except at the end: how every operation over rows is
    divided among threads."""
    pairs = (n_stripes + 1) // 2
    return 2 * (pairs * tid // nth), min(n_stripes, 2 * (pairs * (tid + 1) // nth))
