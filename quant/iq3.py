"""IQ3_XXS and IQ3_S: four weights are a row of a grid of eight magnitudes, with their signs.

weight = d · (2 · scale + 1) · ± magnitude, of IQ3_XXS a fourth of that
"""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Codebook, Numbers, half
from ggpy.quant.packed import Packed, either_sign


class IQ3_XXS(BlockFormat):
    """fp16 d, 64 rows, then for each 32 weights a word of four times seven signs and the scale."""

    id, block_size, type_size = 18, 256, 98
    packed = Packed(4, scales="byte", unit=1 / 4, table=either_sign(4, 12, 20, 28, 36, 44, 52, 62), offset=64)
    d = half(0)
    scales = Numbers((Bits(4, 69, (8,), (32,), shift=4),), times=2, plus=1)
    codes = Codebook("IQ3_XXS", rows=Numbers((Bits(8, 2, (64,), (8,)),)), signs=Bits(7, 66, (8, 4), (32, 7)), width=4)


class IQ3_S(BlockFormat):
    """fp16 d, 64 bytes of rows' low bits, 8 of their high bits, 32 of signs, 4 of two scales of 32 weights."""

    id, block_size, type_size = 21, 256, 110
    packed = Packed(4, scales="byte", table=either_sign(1, 3, 5, 7, 9, 11, 13, 15), offset=16)
    d = half(0)
    scales = Numbers((Bits(4, 106, (4, 2), (8, 4)),), times=2, plus=1)
    codes = Codebook(
        "IQ3_S",
        rows=Numbers((Bits(8, 2, (64,), (8,)), Bits(1, 66, (8, 8), (8, 1)))),
        signs=Bits(8, 74, (32,), (8,)),
        width=4,
    )
