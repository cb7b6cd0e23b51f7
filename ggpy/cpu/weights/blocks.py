"""The blocks of a GGUF row, read one by one: codes, scales and mins of 32 columns, as the type's class declares them
(`ggpy.quant.fields`). `raw` is the row's address, `i` the number of the 32 columns in it.

`read_codes(raw, i, codes)` fills the 32 bytes at the address `codes`, four at a time where it can.
`read_scales(raw, i)` returns six numbers as packed stripes keep them, halves as their bits: d and dmin of the
super-block, the scale of the first 16 columns and of the last, the min of the first and of the last; 0 where the type
has none.
Packing stores both; embedding computes with both, through `number_of` and `scale_of`.

Readers are written in LLVM's language: as closures of numba functions, a dozen for each type, they took two seconds
more to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import f16_to_f32, f32_from_bits
from ggpy.quant.block_format import BlockFormat
from ggpy.quant.codebooks import EIGHT_SIGNS, grid
from ggpy.quant.fields import Bits, Codebook, Numbers, Ternary
from ggpy.quant.packed import BLOCK, Packed

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_ONES = 0x0101010101010101


class _Block:
    """Emitter of what reads the 32 columns `i` of a row at `raw`, in 64-bit integers."""

    def __init__(self, b: ir.IRBuilder, form: BlockFormat, raw: ir.Value, i: ir.Value) -> None:
        last = form.block_size // BLOCK - 1
        self.b = b
        self.at = b.add(raw, b.mul(b.ashr(i, _I64(last.bit_length())), _I64(form.type_size)))
        self.sub = b.and_(i, _I64(last))  # which 32 columns of the file's own block

    def nth(self, per_sub: int, k: int) -> ir.Value:
        """The number `k` of those, `per_sub` each, that belong to these columns."""
        return self.b.add(self.b.mul(self.sub, _I64(per_sub)), _I64(k))

    def load(self, place: ir.Value, n_bytes: int) -> ir.Value:
        """An integer of that many bytes, so far into the block."""
        value = self.b.load(self.b.inttoptr(self.b.add(self.at, place), ir.IntType(8 * n_bytes).as_pointer()))
        value.align = 1
        return value

    def look_up(self, table: Any, kind: ir.IntType, i: ir.Value) -> ir.Value:
        b = self.b
        numbers = ir.Constant(ir.ArrayType(kind, len(table)), [int(n) for n in table])
        at = b.gep(cgutils.global_constant(b, "table", numbers), [_I64(0), i], inbounds=True)
        value = b.load(at)
        return value if kind.width == 64 else b.zext(value, _I64)

    def place(self, part: Bits, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Where the number x begins: bytes into the block, and bits from there."""
        b, in_bytes, in_bits = self.b, _I64(part.at), _I64(part.shift)
        for lowest, mask, byte_stride, bit_stride in part.digits:
            digit = b.and_(b.lshr(x, _I64(lowest)), _I64(mask))
            in_bytes = b.add(in_bytes, b.mul(digit, _I64(byte_stride)))
            in_bits = b.add(in_bits, b.mul(digit, _I64(bit_stride)))
        return in_bytes, in_bits

    def bits(self, part: Bits, x: ir.Value) -> ir.Value:
        place, down = self.place(part, x)
        word = self.b.zext(self.load(place, part.width), _I64)
        return self.b.and_(self.b.lshr(word, down), _I64((1 << part.bits) - 1))

    def number(self, numbers: Numbers | None, x: ir.Value) -> ir.Value:
        """The number x; 0 of numbers that a type has none of."""
        if numbers is None:
            return _I64(0)
        b, value, low = self.b, _I64(0), 0
        for part in numbers.parts:
            value = b.or_(value, b.shl(self.bits(part, x), _I64(low)))
            low += part.bits
        if numbers.table:
            return self.look_up(numbers.table, _I64, value)
        return b.add(b.mul(value, _I64(numbers.times)), _I64(numbers.plus))

    def store(self, codes: ir.Value, first: int, value: ir.Value) -> None:
        """Store the codes of columns first .., a byte each."""
        self.b.store(value, self.b.inttoptr(self.b.add(codes, _I64(first)), value.type.as_pointer()), align=1)

    def plain_codes(self, numbers: Numbers, codes: ir.Value) -> None:
        b, fours, low = self.b, [], 0
        for part in numbers.parts:
            fours.append((self.fours(part), _I32(low)))
            low += part.bits
        for j in range(8):
            word = _I32(0)
            for four, place in fours:
                word = b.or_(word, b.shl(four(j), place))
            self.store(codes, 4 * j, word)

    def fours(self, part: Bits) -> Callable[[int], ir.Value]:
        """`four(j)`: bits of the columns 4j .. 4j + 3, a byte each of 32 bits."""
        b, mask = self.b, _I32(((1 << part.bits) - 1) * 0x01010101)
        places = [8 * byte + bit for byte, bit in map(part.place, range(part.count))]
        if places[:4] == [places[0] + 8 * c for c in range(4)]:  # in bytes that follow each other

            def four(j: int) -> ir.Value:
                place, down = self.place(part, self.nth(BLOCK, 4 * j))
                return b.and_(b.lshr(self.load(place, 4), b.trunc(down, _I32)), mask)

        elif part.bits == 1 and places == list(range(places[0], places[0] + part.count)):  # bits that do
            every = self.load(b.add(_I64(part.at), b.mul(self.sub, _I64(4))), 4)

            def four(j: int) -> ir.Value:
                bits = b.and_(b.lshr(every, _I32(4 * j)), _I32(15))
                return b.and_(b.mul(bits, _I32(0x00204081)), mask)  # the factor repeats them 7 places apart

        else:

            def four(j: int) -> ir.Value:
                word = _I32(0)
                for c in range(4):
                    one = b.trunc(self.bits(part, self.nth(BLOCK, 4 * j + c)), _I32)
                    word = b.or_(word, b.shl(one, _I32(8 * c)))
                return word

        return four

    def codebook_codes(self, book: Codebook, sign_at: int, codes: ir.Value) -> None:
        """A row of the grid is an integer whose bytes are its columns."""
        b, per_eight = self.b, 8 // book.width
        rows = np.ascontiguousarray(grid(book.grid)).view(f"<u{book.width}")[:, 0]
        for k in range(4):
            signs = self.bits(book.signs, self.nth(4, k))
            if book.signs.bits == 7:
                signs = self.look_up(EIGHT_SIGNS, _I8, signs)
            elif book.signs.bits == 1:
                signs = b.mul(signs, _I64(255))
            # bit j alone stays in byte j; what is not 0 then carries into its highest bit
            apart = b.and_(b.mul(signs, _I64(_ONES)), _I64(0x8040201008040201))
            value = b.and_(b.lshr(b.add(apart, _I64(0x7F * _ONES)), _I64(7 - sign_at)), _I64(_ONES << sign_at))
            for r in range(per_eight):
                row = self.number(book.rows, self.nth(4 * per_eight, per_eight * k + r))
                row = self.look_up(rows, ir.IntType(8 * book.width), row)
                value = b.or_(value, b.shl(row, _I64(32 * r)))
            self.store(codes, 8 * k, value)

    def ternary_codes(self, ternary: Ternary, codes: ir.Value) -> None:
        b, places = self.b, [ternary.place(x) for x in range(ternary.count)]
        for j in range(BLOCK):
            x = self.nth(BLOCK, j)
            byte = b.zext(self.load(self.look_up([byte for byte, _ in places], _I8, x), 1), _I64)
            power = self.look_up([3**digit & 255 for _, digit in places], _I8, x)
            fraction = b.and_(b.mul(byte, power), _I64(255))
            self.store(codes, j, b.trunc(b.lshr(b.mul(fraction, _I64(3)), _I64(8)), _I8))


def readers(form: BlockFormat) -> tuple[Any, Any]:
    """(`read_codes`, `read_scales`) of a type."""
    p, declared = form.packed, form.codes
    assert p is not None
    assert declared is not None

    def read_codes(typingctx: Any, raw: Any, i: Any, codes: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            block, codes = _Block(b, form, args[0], args[1]), args[2]
            if isinstance(declared, Codebook):
                block.codebook_codes(declared, p.bits - 1, codes)
            elif isinstance(declared, Ternary):
                block.ternary_codes(declared, codes)
            else:
                block.plain_codes(declared, codes)
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp), codegen

    def read_scales(typingctx: Any, raw: Any, i: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            block, last = _Block(b, form, args[0], args[1]), p.n_scales - 1
            found = [block.number(numbers, _I64(0)) for numbers in (form.d, form.dmin)]
            for numbers in (form.scales, form.mins):
                found += [block.number(numbers, block.nth(p.n_scales, k)) for k in (0, last)]
            return context.make_tuple(b, sig.return_type, found)

        return types.UniTuple(types.int64, 6)(types.uintp, types.intp), codegen

    return intrinsic(read_codes), intrinsic(read_scales)


# ---- the values of codes and scales


def number_of(p: Packed) -> Any:
    """`number(code)`: what a code stands for."""
    if p.table:
        table = np.array(p.table, np.int64)
        return njit(lambda code: table[code])
    offset, signed = p.offset, p.signed

    @njit
    def number(code):  # type: ignore[no-untyped-def]
        code = types.int64(code)
        return code - 256 if signed and code > 127 else code - offset

    return number


def scale_of(p: Packed) -> Any:
    """`scale(top, stored)`: float32 of a scale or minimum in its stored form, under the super-scale `top` (a float,
    already times the format's unit)."""
    form = p.scales

    @njit
    def scale(top, stored):  # type: ignore[no-untyped-def]
        stored = types.int64(stored)
        if form == "half":
            return f16_to_f32(types.uint16(stored))
        if form == "power":
            bits = (stored - 1) << 23 if stored > 1 else (stored + 1) << 21  # the two least are subnormal
            return f32_from_bits(types.uint32(bits))
        if form == "super":
            return top
        if form == "signed byte" and stored > 127:
            stored -= 256
        return top * types.float32(stored)

    return scale
