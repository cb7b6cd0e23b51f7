"""Packed weights on their way to the tensor cores: a warp makes halves of them, from a tile in shared memory."""

from __future__ import annotations

import numpy as np

from ggpy.cuda.layout import bits_above
from ggpy.cuda.matmul_layout import BLOCKS
from ggpy.cuda.warp import Value, Warp, f32
from ggpy.quant.packed import Packed


def half2(value: float) -> int:
    """The bits of a half, twice."""
    return int(np.float16(value).view(np.uint16)) * 0x10001


class RowReader:
    """The halves of one row of a tile. `rows`: the row's place in each plane, in shared memory; `t`: lane % 4; `tile`:
    the tile's number in its row of the matrix."""

    def __init__(self, w: Warp, packed: Packed, rows: dict[str, Value], t: Value, tile: Value) -> None:
        self.w, self.packed, self.rows, self.t = w, packed, rows, t
        self.sources = [self._scales(block, tile) for block in range(BLOCKS)] if not packed.is_float else []

    def block(self, block: int) -> list[Value]:
        """Four registers, in the order that `matmul_layout` describes."""
        if self.packed.is_float:
            return self._floats(block)
        codes = self._bytes(block) if self.packed.bits == 8 else self._nibbles(block)
        first, last, minimum = self.sources[block]
        w = self.w
        if minimum is not None:
            return [w.half2_fma(code, first, minimum) for code in codes]
        return [w.half2_mul(code, first if k < 2 else last) for k, code in enumerate(codes)]

    # ---- scales

    def _scales(self, block: int, tile: Value) -> tuple[Value, Value, Value | None]:
        """The scales of the first and the last 16 columns and what is added, each twice in a register."""
        w, p = self.w, self.packed
        if not p.header:
            if p.minima:
                pair = w.load(self.rows["levels"] + 4 * block)
                scale = w.twice(pair, 0)
                return scale, scale, w.twice(pair, 1)
            if block == 0:
                self.level = w.load(self.rows["levels"])
            scale = w.twice(self.level, block)
            return scale, scale, None
        if block == 0:
            self.level = w.load(self.rows["levels"])
            if p.scales == "signed byte":
                self.level = self.level ^ 0x80808080
            supers = w.load(self.rows["supers"])
            if p.minima:
                self.supers = supers ^ 0x80000000 if p.minimum_sign < 0 else supers
            else:  # one half for 256 columns: the word holds two
                self.supers = w.twice(supers >> ((tile // 4 & 1) << 4), 0)
        # both bytes as 1024 + byte, then as they are, then as halves under their super-scale
        both = w.permute(self.level, 0x64646464, 0x4140 if block == 0 else 0x4342)
        both = w.half2_sub(both, w.word(half2(1024 + 128 * (p.scales == "signed byte"))))
        both = w.half2_mul(both, self.supers)
        first, second = w.twice(both, 0), w.twice(both, 1)
        return (first, first, second) if p.minima else (first, second, None)

    # ---- codes

    def _nibbles(self, block: int) -> list[Value]:
        """Codes of 4 to 6 bits as halves, less their offset."""
        w, p = self.w, self.packed
        word = w.load(self.rows["codes"] + 16 * block + self.t * 4)
        next_word = word >> 8
        # 0x6400 is the half 1024, whose last bit counts 1: a code below it, or 16 codes, is added by setting bits
        low = [w.mask_or(v, 0x000F000F, 0x64006400) for v in (word, next_word)]
        high = [w.mask_or(v, 0x00F000F0, 0x64006400) for v in (word, next_word)]
        if bits_above(p):
            more = self._high(block)
            low = [a | b for a, b in zip(low, more[:2], strict=True)]
            high = [a | b for a, b in zip(high, more[2:], strict=True)]
        sixteenth, less = w.word(half2(1 / 16)), w.word(half2(-64 - p.offset))
        return [w.half2_sub(v, w.word(half2(1024 + p.offset))) for v in low] + [
            w.half2_fma(v, sixteenth, less) for v in high
        ]

    def _high(self, block: int) -> list[Value]:
        """The bits above the fourth where `_nibbles` wants them: from bit 4 on, and from bit 8 on."""
        w, at = self.w, self.rows["high"] + block * 4 * bits_above(self.packed)
        if bits_above(self.packed) == 1:  # bit k of byte c: column 4k + c
            word = w.load(at) >> self.t
            left, right = word << 4, word >> 4
            return [left & 0x00100010, right & 0x00100010, left & 0x01000100, right & 0x01000100]
        first, last = (w.load(at + 4 * p) >> (self.t << 1) for p in range(2))
        return [
            (first << 4) & 0x00300030,
            (first >> 4) & 0x00300030,
            (last << 8) & 0x03000300,
            last & 0x03000300,
        ]

    def _bytes(self, block: int) -> list[Value]:
        """8-bit codes as halves; signed ones become unsigned with an offset first."""
        w, found = self.w, []
        less = w.word(half2(1024 + 128))
        for plane in ("codes", "last"):
            word = w.load(self.rows[plane] + 16 * block + self.t * 4) ^ 0x80808080
            for selector in (0x4240, 0x4341):
                found.append(w.half2_sub(w.permute(word, 0x64646464, selector), less))
        return found

    def _floats(self, block: int) -> list[Value]:
        w, bits, found = self.w, self.packed.bits, []
        for half in range(2):
            at = self.rows["codes"] + (32 * block + 16 * half) * (bits // 8) + self.t * (bits // 2)
            if bits == 32:
                a, b, c, d = w.load(at, f32, 4)
                found += [w.halves(a, c), w.halves(b, d)]
                continue
            first, last = w.load(at, count=2)
            if self.packed.name == "F16":
                found += [w.permute(first, last, 0x5410), w.permute(first, last, 0x7632)]
            else:
                low = [w.as_float(v << 16) for v in (first, last)]
                high = [w.as_float(v & 0xFFFF0000) for v in (first, last)]
                found += [w.halves(*low), w.halves(*high)]
        return found
