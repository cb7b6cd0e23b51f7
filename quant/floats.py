"""Formats that store each weight by itself: floating point and integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.packed import Packed

if TYPE_CHECKING:
    import numpy as np


class _Single(BlockFormat):
    """A format of one number a block, of the numpy type `dtype`."""

    block_size = 1
    dtype: str

    def dequantize_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """uint8 [n, bytes a weight] → float32 [n, 1]. Values beyond float32's range become infinite, as in a cast."""
        import numpy as np

        with np.errstate(over="ignore"):
            return blocks.view(self.dtype).astype(np.float32)


class F32(_Single):
    id, type_size, dtype = 0, 4, "<f4"
    file_type = 0
    packed = Packed(32)

    def encoder(self) -> Any:
        from ggpy.quant.encode import copy_finite

        return copy_finite


class F16(_Single):
    id, type_size, dtype = 1, 2, "<f2"
    file_type = 1
    packed = Packed(16)

    def encoder(self) -> Any:
        from ggpy.quant.encode import narrow_fp16

        return narrow_fp16


class BF16(_Single):
    """The upper half of a float32."""

    id, type_size, dtype = 30, 2, "<u2"
    file_type = 32
    packed = Packed(16)

    def dequantize_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """uint8 [n, 2] → float32 [n, 1]."""
        import numpy as np

        return (blocks.view(self.dtype).astype(np.uint32) << 16).view(np.float32)

    def encoder(self) -> Any:
        from ggpy.quant.encode import narrow_bf16

        return narrow_bf16


class F64(_Single):
    id, type_size, dtype = 28, 8, "<f8"


class I8(_Single):
    id, type_size, dtype = 24, 1, "<i1"


class I16(_Single):
    id, type_size, dtype = 25, 2, "<i2"


class I32(_Single):
    id, type_size, dtype = 26, 4, "<i4"


class I64(_Single):
    id, type_size, dtype = 27, 8, "<i8"
