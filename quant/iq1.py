"""IQ1_S and IQ1_M: eight weights are a row of a grid of -1, 0 and 1, shifted by an eighth up or down.

weight = d · (2 · scale + 1) · (number ± 1/8)
"""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Codebook, Numbers, half
from ggpy.quant.packed import Packed

_EIGHTHS = (-7, 1, 9, 0, -9, -1, 7, 0)  # -1, 0, 1, then an eighth more, or less


class IQ1_S(BlockFormat):
    """fp16 d, 32 bytes of rows' low bits, eight words: high bits of four rows, three each, then the scale of these 32
    weights and the sign of their shift."""

    id, block_size, type_size = 19, 256, 50
    packed = Packed(3, scales="byte", unit=1 / 8, table=_EIGHTHS, offset=16)
    d = half(0)
    scales = Numbers((Bits(3, 35, (8,), (16,), shift=4),), times=2, plus=1)
    codes = Codebook(
        "IQ1_S",
        rows=Numbers((Bits(8, 2, (32,), (8,)), Bits(3, 34, (8, 4), (16, 3)))),
        signs=Bits(1, 35, (8, 4), (16, 0), shift=7),
    )


class IQ1_M(BlockFormat):
    """32 bytes of rows' low bits, 32 nibbles of their high bits and the signs of their shifts, four words: each four
    scales of 16 weights, and a fourth of the bits of the fp16 d."""

    id, block_size, type_size = 29, 256, 56
    packed = Packed(3, group=16, scales="byte", unit=1 / 8, table=_EIGHTHS, offset=32)
    d = Numbers(tuple(Bits(4, 49 + 2 * word, shift=4) for word in range(4)))
    scales = Numbers((Bits(3, 48, (4, 4), (16, 3)),), times=2, plus=1)
    codes = Codebook(
        "IQ1_S",
        rows=Numbers((Bits(8, 0, (32,), (8,)), Bits(3, 32, (16, 2), (8, 4)))),
        signs=Bits(1, 32, (16, 2), (8, 4), shift=3),
    )
