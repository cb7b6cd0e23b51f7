"""Q8_0: 32 weights as signed bytes under one fp16 scale; and Q8_1, which ggml has for activations."""

from __future__ import annotations

from typing import Any

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import half, values
from ggpy.quant.packed import Packed


class Q8_0(BlockFormat):
    """fp16 d, 32 codes; weight = d · code."""

    id, block_size, type_size = 8, 32, 34
    file_type = 7
    packed = Packed(8, signed=True)
    scales = half(0)
    codes = values(8, 2, (32,), (8,))

    def encoder(self) -> Any:
        from ggpy.quant.encode import around_zero, encode_8_bits

        return around_zero(self.type_size, encode_8_bits, 127.0)


class Q8_1(BlockFormat):
    id, block_size, type_size = 9, 32, 36
