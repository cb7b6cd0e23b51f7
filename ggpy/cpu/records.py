"""What kernels read: one fixed-size record per operation, and one per step. Addresses are plain integers, checked
before they are written here."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

OP = np.dtype(
    [
        ("kernel", np.uint64),
        ("barrier", np.int64),  # bit 0: all threads meet before this operation in a small step, bit 1: in a large one
        ("dst", np.uint64),  # float32 rows, `dst_stride` bytes apart; for activations the tile buffer
        ("src", np.uint64),
        ("src2", np.uint64),
        ("src3", np.uint64),
        ("weight", np.uint64),
        ("weight2", np.uint64),
        ("bias", np.uint64),
        ("cache_k", np.uint64),  # of this layer
        ("cache_v", np.uint64),
        ("scratch", np.uint64),
        ("scratch_stride", np.int64),  # bytes a thread
        ("dst_stride", np.int64),
        ("src_stride", np.int64),
        ("src2_stride", np.int64),
        ("src3_stride", np.int64),
        ("token_bytes", np.int64),  # of one token's activations
        ("private_stride", np.int64),  # bytes from one thread's own activations to the next one's, in a small step
        ("stripe_bytes", np.int64),
        ("n_stripes", np.int64),
        ("n_cols", np.int64),
        ("n_head", np.int64),
        ("n_head_kv", np.int64),
        ("head_dim", np.int64),
        ("head_pad", np.int64),  # head_dim rounded up to 16
        ("n_rot", np.int64),
        ("neox", np.int64),
        ("window", np.int64),  # positions a token sees; 0: all
        ("n_ctx", np.int64),  # cells of a slot, a multiple of 16
        ("outputs_only", np.int64),  # rows are the wanted outputs, not the batch
        ("accumulate", np.int64),  # add to dst instead of setting it
        ("combine", np.int64),  # src is attention that may have been split over positions
        ("eps", np.float32),
        ("scale", np.float32),
    ],
    align=True,
)

STEP = np.dtype(
    [
        ("n_tokens", np.int64),
        ("n_outputs", np.int64),
        ("small", np.int64),  # every thread prepares its own activations
        ("n_segments", np.int64),
        ("n_split", np.int64),  # parts that attention over one row tile is cut into, by position
        ("positions", np.uint64),  # int32 [n_tokens]
        ("slots", np.uint64),  # int32 [n_tokens]
        ("outputs", np.uint64),  # int32 [n_outputs], indices into the batch
        ("segments", np.uint64),  # int32 [n_segments][4]: slot, first token, tokens, position of the first
        ("angles", np.uint64),  # float32 [n_tokens][n_rot / 2][2]: cosine and sine
    ],
    align=True,
)


def _pointer_to(dtype: np.dtype) -> Any:
    record = from_dtype(dtype)

    def cast(typingctx: Any, address: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return b.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(record)(types.uintp), codegen

    return intrinsic(cast)


as_op = _pointer_to(OP)
as_step = _pointer_to(STEP)
