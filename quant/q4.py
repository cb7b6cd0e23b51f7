"""Q4_0 and Q4_1: 32 weights as 4-bit codes under one fp16 scale."""

from __future__ import annotations

from typing import Any

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import half, values
from ggpy.quant.packed import Packed


class Q4_0(BlockFormat):
    """fp16 d, 16 bytes of codes; weight = d · (code - 8). Byte j holds weight j in its low nibble and weight j + 16 in
    its high nibble."""

    id, block_size, type_size = 2, 32, 18
    file_type = 2
    packed = Packed(4, offset=8)
    scales = half(0)
    codes = values(4, 2, (2, 16), (4, 8))

    def encoder(self) -> Any:
        from ggpy.quant.encode import around_zero, encode_4_bits

        return around_zero(self.type_size, encode_4_bits, -8.0)


class Q4_1(BlockFormat):
    """fp16 d, fp16 m, 16 bytes of codes as in Q4_0; weight = d · code + m."""

    id, block_size, type_size = 3, 32, 20
    file_type = 3
    packed = Packed(4, minima=True)
    scales, mins = half(0), half(2)
    codes = values(4, 4, (2, 16), (4, 8))

    def encoder(self) -> Any:
        from ggpy.quant.encode import encode_4_bits, from_smallest

        return from_smallest(self.type_size, encode_4_bits, 15.0)
