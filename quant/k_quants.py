"""The K formats: super-blocks of 256 weights, whose sub-blocks' scales are themselves quantized.

weight = d · scale · code - dmin · min, over sub-blocks of 16 or 32; codes of formats without mins are signed.
"""

from __future__ import annotations

from typing import Any

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.fields import Bits, Numbers, half, values
from ggpy.quant.packed import Packed

# 12 bytes of eight 6-bit (scale, min) pairs, after d and dmin: bytes 0..3 and 4..7 hold scales and mins 0..3 in their
# low six bits; their top two bits complete scales and mins 4..7, whose low nibbles share bytes 8..11.
_SIX_BIT_SCALES = Numbers((Bits(4, 4, (2, 4), (64, 8)), Bits(2, 4, (2, 4), (2, 8), shift=4)))
_SIX_BIT_MINS = Numbers((Bits(4, 8, (2, 4), (36, 8)), Bits(2, 8, (2, 4), (2, 8), shift=4)))


class Q2_K(BlockFormat):
    """16 bytes of 4-bit scales (low) and mins (high) of sub-blocks of 16, 64 bytes of 2-bit codes, fp16 d and dmin.
    Each 32 bytes of codes hold 128 weights, the first 32 in their lowest bits."""

    id, block_size, type_size = 10, 256, 84
    packed = Packed(2, group=16, scales="nibbles", minima=True, minimum_sign=-1)
    d, dmin = half(80), half(82)
    scales, mins = values(4, 0, (16,), (8,)), values(4, 0, (16,), (8,), shift=4)
    codes = values(2, 16, (2, 4, 32), (256, 2, 8))


class Q3_K(BlockFormat):
    """32 bytes of third bits (bit s of byte j: weight j of each 32), 64 bytes of low bits as in Q2_K, 12 bytes of
    sixteen 6-bit scales less 32 (nibbles of eight bytes, then pairs of four), fp16 d."""

    id, block_size, type_size = 11, 256, 110
    packed = Packed(3, group=16, scales="signed byte", offset=4)
    d = half(108)
    scales = Numbers((Bits(4, 96, (2, 8), (4, 8)), Bits(2, 104, (4, 4), (2, 8))), plus=-32)
    codes = Numbers((Bits(2, 32, (2, 4, 32), (256, 2, 8)), Bits(1, 0, (8, 32), (1, 8))))


class Q4_K(BlockFormat):
    """fp16 d and dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles: each 32 bytes hold one sub-block of 32
    in their low halves and the next in their high halves."""

    id, block_size, type_size = 12, 256, 144
    packed = Packed(4, scales="byte", minima=True, minimum_sign=-1)
    d, dmin = half(0), half(2)
    scales, mins = _SIX_BIT_SCALES, _SIX_BIT_MINS
    codes = values(4, 16, (4, 2, 32), (256, 4, 8))


class Q5_K(BlockFormat):
    """As Q4_K, with 32 bytes of fifth bits before the nibbles (bit s of byte j: weight j of sub-block s)."""

    id, block_size, type_size = 13, 256, 176
    packed = Packed(5, scales="byte", minima=True, minimum_sign=-1)
    d, dmin = half(0), half(2)
    scales, mins = _SIX_BIT_SCALES, _SIX_BIT_MINS
    codes = Numbers((Bits(4, 48, (4, 2, 32), (256, 4, 8)), Bits(1, 16, (8, 32), (1, 8))))


class Q6_K(BlockFormat):
    """128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales (sub-blocks of 16), fp16 d;
    weight = d · scale · (code - 32)."""

    id, block_size, type_size = 14, 256, 210
    packed = Packed(6, group=16, scales="signed byte", offset=32)
    d = half(208)
    scales = values(8, 192, (16,), (8,))
    codes = Numbers((Bits(4, 0, (2, 2, 64), (512, 4, 8)), Bits(2, 128, (2, 4, 32), (256, 2, 8))))

    def encoder(self) -> Any:
        from ggpy.quant.encode_q6_k import encode

        return encode


class Q8_K(BlockFormat):
    """The form of activations that ggml multiplies with K formats."""

    id, block_size, type_size = 15, 256, 292
