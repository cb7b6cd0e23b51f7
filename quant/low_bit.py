"""Q1_0 and Q2_0: weights of one and two bits under one fp16 scale."""

from __future__ import annotations

from ggpy.quant.block_format import BlockFormat


class Q1_0(BlockFormat):
    id, block_size, type_size = 41, 128, 18


class Q2_0(BlockFormat):
    id, block_size, type_size = 42, 64, 18
