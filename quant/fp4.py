"""MXFP4 and NVFP4: 4-bit floats of one fraction bit, looked up doubled, under scales of eight bits."""

from __future__ import annotations

import struct

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Numbers, values
from ggpy.quant.packed import Packed, either_sign

_NUMBERS = either_sign(0, 1, 2, 3, 4, 6, 8, 12)  # ggml's `kvalues_mxfp4`


def _half_of_ue4m3(byte: int) -> int:
    """Half-precision bits of half an unsigned float of 4 exponent and 3 fraction bits; 0 for 127, which is NaN."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    value = fraction / 8 * 2.0**-7 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 8)
    return 0 if byte == 127 else int.from_bytes(struct.pack("<e", value), "little")


class MXFP4(BlockFormat):
    """A byte e, 16 bytes of codes as in Q4_0; weight = 2^(e - 128) · number."""

    id, block_size, type_size = 39, 32, 17
    packed = Packed(4, scales="power", table=_NUMBERS, offset=16)
    scales = values(8, 0, (1,), (0,))
    codes = values(4, 1, (2, 16), (4, 8))


class NVFP4(BlockFormat):
    """Four scales of 16 weights as unsigned floats of 4 exponent and 3 fraction bits, which are kept as halves of half
    of that; codes of each 16, the first eight in the low nibbles."""

    id, block_size, type_size = 40, 64, 36
    packed = Packed(4, group=16, table=_NUMBERS, offset=32)
    scales = Numbers((Bits(8, 0, (4,), (8,)),), table=tuple(map(_half_of_ue4m3, range(256))))
    codes = values(4, 4, (4, 2, 8), (64, 4, 8))
