"""Q5_0 and Q5_1: 32 weights as 5-bit codes under one fp16 scale. The fifth bits lie apart, bit j of 32 being weight
j's; the nibbles after them as in Q4_0."""

from __future__ import annotations

from typing import Any

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Numbers, half
from ggpy.quant.packed import Packed


class Q5_0(BlockFormat):
    """fp16 d, 4 bytes of fifth bits, 16 bytes of nibbles; weight = d · (code - 16)."""

    id, block_size, type_size = 6, 32, 22
    file_type = 8
    packed = Packed(5, offset=16)
    scales = half(0)
    codes = Numbers((Bits(4, 6, (2, 16), (4, 8)), Bits(1, 2, (4, 8), (8, 1))))

    def encoder(self) -> Any:
        from ggpy.quant.encode import around_zero, encode_5_bits

        return around_zero(self.type_size, encode_5_bits, -16.0)


class Q5_1(BlockFormat):
    """fp16 d, fp16 m, fifth bits, nibbles; weight = d · code + m."""

    id, block_size, type_size = 7, 32, 24
    file_type = 9
    packed = Packed(5, minima=True)
    scales, mins = half(0), half(2)
    codes = Numbers((Bits(4, 8, (2, 16), (4, 8)), Bits(1, 4, (4, 8), (8, 1))))

    def encoder(self) -> Any:
        from ggpy.quant.encode import encode_5_bits, from_smallest

        return from_smallest(self.type_size, encode_5_bits, 31.0)
