"""TQ1_0 and TQ2_0: 256 weights of -1, 0 and 1 under one fp16 d; weight = d · (code - 1)."""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Ternary, half, values
from ggpy.quant.packed import Packed


class TQ1_0(BlockFormat):
    """48 bytes of five weights, in runs of 32 and 16, 4 bytes of four weights, fp16 d."""

    id, block_size, type_size = 34, 256, 54
    packed = Packed(2, scales="super", offset=1)
    d = half(52)
    codes = Ternary(((32, 5), (16, 5), (4, 4)))


class TQ2_0(BlockFormat):
    """64 bytes of 2-bit codes as in Q2_K, fp16 d."""

    id, block_size, type_size = 35, 256, 66
    packed = Packed(2, scales="super", offset=1)
    d = half(64)
    codes = values(2, 0, (2, 4, 32), (256, 2, 8))
