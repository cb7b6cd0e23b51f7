"""IQ2_XXS, IQ2_XS and IQ2_S: eight weights are a row of a grid of three magnitudes, with their signs.

weight = d / 8 · (2 · scale + 1) · ± magnitude
"""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Codebook, Numbers, half
from ggpy.quant.packed import Packed, either_sign

_MAGNITUDES = either_sign(8, 25, 43, 0)


class IQ2_XXS(BlockFormat):
    """fp16 d, then for each 32 weights four rows, and a word of four times seven signs and the scale."""

    id, block_size, type_size = 16, 256, 66
    packed = Packed(3, scales="byte", unit=1 / 8, table=_MAGNITUDES, offset=64)
    d = half(0)
    scales = Numbers((Bits(4, 9, (8,), (64,), shift=4),), times=2, plus=1)
    codes = Codebook("IQ2_XXS", rows=Numbers((Bits(8, 2, (8, 4), (64, 8)),)), signs=Bits(7, 6, (8, 4), (64, 7)))


class IQ2_XS(BlockFormat):
    """fp16 d, 32 words of a row in nine bits and seven signs, 8 bytes of two scales of 16 weights."""

    id, block_size, type_size = 17, 256, 74
    packed = Packed(3, group=16, scales="byte", unit=1 / 8, table=_MAGNITUDES, offset=64)
    d = half(0)
    scales = Numbers((Bits(4, 66, (8, 2), (8, 4)),), times=2, plus=1)
    codes = Codebook("IQ2_XS", rows=Numbers((Bits(9, 2, (32,), (16,)),)), signs=Bits(7, 3, (32,), (16,), shift=1))


class IQ2_S(BlockFormat):
    """fp16 d, 32 bytes of rows' low bits, 32 of signs, 8 of rows' high bits, two each, 8 of two scales of 16
    weights."""

    id, block_size, type_size = 22, 256, 82
    packed = Packed(3, group=16, scales="byte", unit=1 / 8, table=_MAGNITUDES, offset=64)
    d = half(0)
    scales = Numbers((Bits(4, 74, (8, 2), (8, 4)),), times=2, plus=1)
    codes = Codebook(
        "IQ2_S",
        rows=Numbers((Bits(8, 2, (32,), (8,)), Bits(2, 66, (8, 4), (8, 2)))),
        signs=Bits(8, 34, (32,), (8,)),
    )
