"""Weights from blocks in numpy, by a format's declarations (`ggpy.quant.fields`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.quant.codebooks import EIGHT_SIGNS, grid
from ggpy.quant.fields import Bits, Codebook, Numbers, Ternary

if TYPE_CHECKING:
    from ggpy.quant.block_format import BlockFormat

_WORDS = {1: "u1", 2: "<u2", 4: "<u4"}


def dequantize_blocks(form: BlockFormat, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, type_size], contiguous → float32 [n, block_size]."""
    p, n = form.packed, len(blocks)
    assert p is not None
    assert form.codes is not None
    codes = read_codes(form, blocks)
    if p.table:
        numbers = np.array(p.table, np.float32)[codes]
    else:
        numbers = (codes.view(np.int8) - np.int8(p.offset * (not p.signed))).astype(np.float32)
    scales = _scales(form, form.d, form.scales, blocks) * np.float32(p.unit)
    weights = scales[:, :, None] * numbers.reshape(n, scales.shape[1], -1)
    if p.minima:
        mins = _scales(form, form.dmin, form.mins, blocks)[:, :, None]
        weights = weights + mins if p.minimum_sign > 0 else weights - mins
    return weights.reshape(n, form.block_size)


def read_codes(form: BlockFormat, blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, block_size]: the codes of blocks [n, type_size]."""
    codes = form.codes
    if isinstance(codes, Codebook):
        assert form.packed is not None
        return _from_codebook(codes, blocks, form.packed.bits - 1)
    if isinstance(codes, Ternary):
        return _from_digits(codes, blocks)
    assert codes is not None
    return read_numbers(codes, blocks)


def read_numbers(numbers: Numbers, blocks: np.ndarray) -> np.ndarray:
    """[n, count]: numbers of blocks [n, type_size], uint8 where they and what is made of them fit, else int32 or
    uint32."""
    found, place = _bits(numbers.parts[0], blocks), numbers.parts[0].bits
    for part in numbers.parts[1:]:
        wide = found if place + part.bits <= 8 else found.astype(np.uint32)
        found = wide | (_bits(part, blocks).astype(wide.dtype) << wide.dtype.type(place))
        place += part.bits
    if numbers.table:
        return np.array(numbers.table, np.uint32)[found]
    if numbers.times != 1 or numbers.plus:
        return found.astype(np.int32) * numbers.times + numbers.plus
    return found


def _bits(part: Bits, blocks: np.ndarray) -> np.ndarray:
    """[n, count], uint8 where they fit, else uint32."""
    dtype, steps = np.dtype(_WORDS[part.width]), [stride // 8 for stride in part.strides]
    blocks = np.ascontiguousarray(blocks)
    words = np.ndarray((len(blocks), *part.shape), dtype, blocks, part.at, (blocks.shape[1], *steps))
    found = words
    if part.bits < 8 * part.width:
        shifts = np.array([part.place(x)[1] for x in range(part.count)], dtype).reshape(part.shape)
        found = (words >> shifts) & dtype.type((1 << part.bits) - 1)
    return found.astype(np.uint8 if part.bits <= 8 else np.uint32, copy=False).reshape(len(blocks), -1)


def _scales(form: BlockFormat, top: Numbers | None, stored: Numbers | None, blocks: np.ndarray) -> np.ndarray:
    """float32 [n, groups]: the scales or mins of every group of columns."""
    assert form.packed is not None
    kind = form.packed.scales
    tops = None if top is None else _halves(read_numbers(top, blocks))
    if stored is None:
        assert tops is not None
        return tops
    found = read_numbers(stored, blocks)
    if kind == "half":
        return _halves(found)
    if kind == "power":  # the two least are subnormal
        wide = found.astype(np.uint32)
        return np.where(wide < 2, np.uint32(0x200000) << wide, (wide - 1) << np.uint32(23)).view(np.float32)
    if kind == "signed byte":
        found = found.astype(np.uint8).view(np.int8)
    assert tops is not None
    return tops * found.astype(np.float32)


def _halves(bits: np.ndarray) -> np.ndarray:
    return bits.astype("<u2").view("<f2").astype(np.float32)


def _from_codebook(book: Codebook, blocks: np.ndarray, sign_at: int) -> np.ndarray:
    places = grid(book.grid)[read_numbers(book.rows, blocks)].reshape(len(blocks), -1, 8)
    signs = _bits(book.signs, blocks)
    if book.signs.bits == 7:
        signs = np.array(EIGHT_SIGNS, np.uint8)[signs]
    elif book.signs.bits == 1:
        signs = signs * np.uint8(255)
    each = (signs[:, :, None] >> np.arange(8, dtype=np.uint8)) & np.uint8(1)
    return (places | (each << np.uint8(sign_at))).reshape(len(blocks), -1)


def _from_digits(ternary: Ternary, blocks: np.ndarray) -> np.ndarray:
    parts, at = [], 0
    for n_bytes, n_digits in ternary.runs:
        powers = np.array([3**digit & 255 for digit in range(n_digits)], np.uint8)
        fractions = blocks[:, None, at : at + n_bytes] * powers[:, None]  # modulo 256
        parts.append((fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(blocks), -1))
        at += n_bytes
    return np.concatenate(parts, axis=1)
