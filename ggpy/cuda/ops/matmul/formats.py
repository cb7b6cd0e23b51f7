"""Conversion of packed weights for the tensor cores: a warp turns a tile in shared memory into halves."""

from __future__ import annotations

import numpy as np

from ggpy.cuda.isa.warp import Value, Warp, f32
from ggpy.cuda.ops.matmul.layout import BLOCKS
from ggpy.cuda.weights.layout import MatrixLayout, bits_above, numbers, table_words
from ggpy.quant.packed import BLOCK, Packed


def half2(value: float) -> int:
    """The bits of a half, repeated in both halves of a word."""
    return int(np.float16(value).view(np.uint16)) * 0x10001


class RowReader:
    """The halves of one row of a tile. `rows`: the row's place in each plane, in shared memory; `t`: lane % 4; `tile`:
    the tile's number in its row of the matrix."""

    def __init__(self, w: Warp, packed: Packed, rows: dict[str, Value], t: Value, tile: Value) -> None:
        self.w, self.packed, self.rows, self.t = w, packed, rows, t
        self.sources = [self._scales(block, tile) for block in range(BLOCKS)] if not packed.is_float else []

    def block(self, block: int) -> list[Value]:
        """The halves of one block: four registers, in the order that `matmul_layout` describes."""
        if self.packed.is_float:
            return self._floats(block)
        if numbers(self.packed):
            codes = self._looked_up(block)
        else:
            codes = self._bytes(block) if self.packed.bits == 8 else self._nibbles(block)
        first, last, *minima = self.sources[block]
        scales, w = (first, first, last, last), self.w
        if not minima:
            return [w.half2_mul(code, scale) for code, scale in zip(codes, scales, strict=True)]
        first, last = minima
        added = (first, first, last, last)
        return [w.half2_fma(code, scale, add) for code, scale, add in zip(codes, scales, added, strict=True)]

    # ---- scales

    def _scales(self, block: int, tile: Value) -> tuple[Value, ...]:
        """The scales of the first and the last 16 columns, then the minima to add, in formats that have them; each
        twice in a register."""
        w, p = self.w, self.packed
        scale_bytes = MatrixLayout(p, 1, BLOCK).scale_bytes
        if scale_bytes == 4:
            self.scale_word = w.load(self.rows["scales"] + 4 * block)
        elif scale_bytes and block == 0:
            self.scale_word = w.load(self.rows["scales"])
            if scale_bytes == 1:  # the word has two tiles' scales
                self.scale_word = self.scale_word >> ((tile & 1) << 4)
        if p.super_scales and block == 0:
            self._supers(tile)
        if p.scales == "half":
            if scale_bytes == 2:
                scale = w.twice(self.scale_word, block)
                return scale, scale
            first, second = w.twice(self.scale_word, 0), w.twice(self.scale_word, 1)
            return (first, first, second, second) if p.minima else (first, second)
        if p.scales == "power":
            # a float's own exponent, so twice the scale (and the numbers half): 0 then needs no case of its own
            scale = w.as_float((self.scale_word >> (8 * block) & 255) << 23)
            scale = w.halves(scale, scale)
            return scale, scale
        if p.scales == "super":
            return self.supers, self.supers
        if p.scales == "nibbles":
            scales, minima = self.scale_word & 0x0F0F0F0F, self.scale_word >> 4 & 0x0F0F0F0F
            pairs = [
                w.half2_mul(self._two_bytes(v, block), by) for v, by in ((scales, self.supers), (minima, self.add))
            ]
            return tuple(w.twice(pair, which) for pair in pairs for which in range(2))
        if scale_bytes == 1:
            if block == 0:
                self.pair = w.half2_mul(self._two_bytes(self.scale_word, 0), self.supers)
            scale = w.twice(self.pair, block)
            return scale, scale
        both = w.half2_mul(self._two_bytes(self.scale_word, block), self.supers)
        first, second = w.twice(both, 0), w.twice(both, 1)
        return (first, first, second, second) if p.minima else (first, second)

    def _supers(self, tile: Value) -> None:
        """Load the factors of the bytes of the scales: one for scales and one for minima, or one for both scales."""
        w, p = self.w, self.packed
        supers = w.load(self.rows["supers"])
        if p.minima:
            self.supers = supers ^ 0x80000000 if p.minimum_sign < 0 else supers
            if p.scales == "nibbles":
                self.supers, self.add = w.twice(self.supers, 0), w.twice(self.supers, 1)
        else:  # one half for 256 columns: the word holds two
            self.supers = w.twice(supers >> ((tile // 4 & 1) << 4), 0)

    def _two_bytes(self, word: Value, which: int) -> Value:
        """The first or the last two bytes of a word as a pair of halves, by way of 1024 + byte."""
        w, signed = self.w, self.packed.scales == "signed byte"
        if signed:
            word = word ^ 0x80808080
        both = w.permute(word, 0x64646464, 0x4342 if which else 0x4140)
        return w.half2_sub(both, w.word(half2(1024 + 128 * signed)))

    # ---- codes

    def _nibbles(self, block: int) -> list[Value]:
        """Codes of 4 to 6 bits as halves, minus their offset."""
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
        """The bits above the fourth, shifted to where `_nibbles` needs them: from bit 4 on, and from bit 8 on."""
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

    def _looked_up(self, block: int) -> list[Value]:
        """The numbers that codes of up to 4 bits stand for, times the format's unit."""
        w, p, t = self.w, self.packed, self.t
        table = [w.word(word) for word in table_words(numbers(p), bias=128)]
        if p.bits == 4:
            word = w.load(self.rows["codes"] + 16 * block + t * 4)
            places, which = word & 0x77777777, w.mask_or(word >> 1, 0x44444444, 0x32103210)
        else:
            places = w.load(self.rows["codes"] + 8 * block + (t >> 1) * 4) >> ((t & 1) << 1) & 0x33333333
            if p.bits == 3:
                places = places | (w.load(self.rows["high"] + 4 * block) >> t & 0x11111111) << 2
        unit, found = p.unit / 2 if p.scales == "power" else p.unit, []
        for half in range(2):
            here = places >> 16 * half if half else places
            four = w.bytes_at(table[0], table[len(table) > 1], here)
            if p.bits == 4:  # the first and the last eight numbers; then one of both by the fourth bit
                last = w.bytes_at(table[2], table[3], here)
                four = w.bytes_at(four, last, which >> 16 if half else which)
            for selector in (0x4240, 0x4341):
                pair = w.permute(four, 0x64646464, selector)
                if unit == 1:
                    found.append(w.half2_sub(pair, w.word(half2(1024 + 128))))
                else:
                    found.append(w.half2_fma(pair, w.word(half2(unit)), w.word(half2(-unit * (1024 + 128)))))
        return found

    def _bytes(self, block: int) -> list[Value]:
        """8-bit codes as halves; signed ones are first made unsigned by an offset."""
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
