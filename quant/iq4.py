"""IQ4_NL and IQ4_XS: 4-bit codes that stand for numbers at uneven steps, ggml's `kvalues_iq4nl`."""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Numbers, half, values
from ggpy.quant.packed import Packed

_NUMBERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class IQ4_NL(BlockFormat):
    """As Q4_0; weight = d · number."""

    id, block_size, type_size = 20, 32, 18
    packed = Packed(4, table=_NUMBERS, signed=True)
    scales = half(0)
    codes = values(4, 2, (2, 16), (4, 8))


class IQ4_XS(BlockFormat):
    """fp16 d, a word of the high pairs and 4 bytes of the low nibbles of eight scales less 32, codes of each 32 as in
    Q4_0; weight = d · scale · number."""

    id, block_size, type_size = 23, 256, 136
    packed = Packed(4, scales="signed byte", table=_NUMBERS, signed=True)
    d = half(0)
    scales = Numbers((Bits(4, 4, (4, 2), (8, 4)), Bits(2, 2, (2, 4), (8, 2))), plus=-32)
    codes = values(4, 8, (8, 2, 16), (128, 4, 8))
