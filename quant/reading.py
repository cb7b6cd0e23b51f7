"""Readers of a file's blocks as LLVM's instructions, made from what the type's class declares (`ggpy.quant.fields`).
They are the same for CPUs and GPUs, which differ in how memory is named.

As closures of numba functions, a dozen for each type, readers took seconds more to compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from ggpy.quant.codebooks import EIGHT_SIGNS, grid
from ggpy.quant.fields import Bits, Codebook, Numbers, Ternary
from ggpy.quant.packed import BLOCK

if TYPE_CHECKING:
    from ggpy.quant.block_format import BlockFormat

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class BlockReader:
    """Emitter of what reads 32 columns of a block: those that begin `sub` times 32 columns into the one at the address
    `at`, both 64-bit integers. `space`: the address space of memory and of tables."""

    def __init__(self, b: ir.IRBuilder, form: BlockFormat, at: ir.Value, sub: ir.Value, space: int = 0) -> None:
        self.b, self.form, self.at, self.sub, self.space = b, form, at, sub, space
        self._loaded: dict[Bits, ir.Value] = {}

    def nth(self, per_sub: int, k: ir.Value) -> ir.Value:
        """The number `k` of those that belong to these columns, `per_sub` of them."""
        return self.b.add(self.b.mul(self.sub, _I64(per_sub)), k)

    # ---- memory

    def load(self, part: Bits, place: ir.Value, n_bytes: int) -> ir.Value:
        """An integer of that many bytes, `place` bytes into the block, where numbers of `part` lie."""
        even = not any(n % 2 for n in (self.form.type_size, part.at, *(step for _, _, step, _ in part.digits)))
        pointer = ir.PointerType(ir.IntType(8 * n_bytes), self.space)
        value = self.b.load(self.b.inttoptr(self.b.add(self.at, place), pointer))
        value.align = 2 if even and n_bytes > 1 else 1
        return value

    def look_up(self, name: str, table: Sequence[int] | np.ndarray, bits: int, i: ir.Value) -> ir.Value:
        """Number i of a constant table, of `bits` each; `name` says which table of the type it is."""
        b, kind = self.b, ir.IntType(bits)
        name = f"ggpy_{self.form.name}_{name}"
        found = b.module.globals.get(name)
        if found is None:
            found = ir.GlobalVariable(b.module, ir.ArrayType(kind, len(table)), name, addrspace=self.space)
            found.linkage, found.global_constant, found.align = "internal", True, bits // 8
            found.initializer = ir.Constant(found.value_type, [int(n) for n in table])
        value = b.load(b.gep(found, [_I64(0), i], inbounds=True))
        value.align = bits // 8
        return value

    # ---- numbers

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
        word = self.b.zext(self.load(part, place, part.width), _I64)
        return self.b.and_(self.b.lshr(word, down), _I64((1 << part.bits) - 1))

    def number(self, name: str, numbers: Numbers | None, x: ir.Value) -> ir.Value:
        """The number x; 0 of numbers that a type has none of."""
        if numbers is None:
            return _I64(0)
        b, value, low = self.b, _I64(0), 0
        for part in numbers.parts:
            value = b.or_(value, b.shl(self.bits(part, x), _I64(low)))
            low += part.bits
        if numbers.table:
            return b.zext(self.look_up(name, numbers.table, 32, value), _I64)
        return b.add(b.mul(value, _I64(numbers.times)), _I64(numbers.plus))

    def scales(self, n_scales: int) -> list[ir.Value]:
        """Six numbers: d and dmin of the super-block, the scale of the first 16 columns and of the last, their mins."""
        form, last = self.form, _I64(n_scales - 1)
        found = [self.number(name, getattr(form, name), _I64(0)) for name in ("d", "dmin")]
        for name in ("scales", "mins"):
            found += [self.number(name, getattr(form, name), self.nth(n_scales, k)) for k in (_I64(0), last)]
        return found

    # ---- codes

    def four(self, j: ir.Value) -> ir.Value:
        """The codes of the columns 4j .. 4j + 3, a byte each of 32 bits."""
        codes = self.form.codes
        if isinstance(codes, Codebook):
            return self._four_of_codebook(codes, j)
        if isinstance(codes, Ternary):
            return self._four_digits(codes, j)
        assert codes is not None
        b, word, low = self.b, _I32(0), 0
        for part in codes.parts:
            word = b.or_(word, b.shl(self._four_bits(part, j), _I32(low)))
            low += part.bits
        return word

    def _four_bits(self, part: Bits, j: ir.Value) -> ir.Value:
        b, mask = self.b, _I32(((1 << part.bits) - 1) * 0x01010101)
        first, *others = (8 * byte + bit for byte, bit in map(part.place, range(part.count)))
        ahead = [place - first for place in others]
        if ahead[:3] == [8, 16, 24]:  # in bytes that follow each other
            place, down = self.place(part, self.nth(BLOCK, b.shl(j, _I64(2))))
            return b.and_(b.lshr(self.load(part, place, 4), b.trunc(down, _I32)), mask)
        if part.bits == 1 and ahead == list(range(1, part.count)):  # bits that do
            if part not in self._loaded:
                self._loaded[part] = self.load(part, b.add(_I64(part.at), b.mul(self.sub, _I64(4))), 4)
            return self._spread(b.lshr(self._loaded[part], b.shl(b.trunc(j, _I32), _I32(2))))
        word = _I32(0)
        for c in range(4):
            one = self.bits(part, self.nth(BLOCK, b.add(b.shl(j, _I64(2)), _I64(c))))
            word = b.or_(word, b.shl(b.trunc(one, _I32), _I32(8 * c)))
        return word

    def _spread(self, bits: ir.Value) -> ir.Value:
        """The lowest four of 32 bits, as the lowest of four bytes: the factor repeats them 7 places apart."""
        b = self.b
        return b.and_(b.mul(b.and_(bits, _I32(15)), _I32(0x00204081)), _I32(0x01010101))

    def _four_of_codebook(self, book: Codebook, j: ir.Value) -> ir.Value:
        """A row of the grid is an integer whose bytes are its columns."""
        b, wide = self.b, 8 * book.width
        second = b.shl(b.trunc(b.and_(j, _I64(1)), _I32), _I32(2))  # 4 in the second half of eight columns, else 0
        row = self.number("rows", book.rows, self.nth(32 // book.width, j if book.width == 4 else b.lshr(j, _I64(1))))
        rows = np.ascontiguousarray(grid(book.grid)).view(f"<u{book.width}")[:, 0]
        word = self.look_up("grid", rows, wide, row)
        if book.width == 8:
            word = b.trunc(b.lshr(word, b.zext(b.shl(second, _I32(3)), _I64)), _I32)
        signs = self.bits(book.signs, self.nth(4, b.lshr(j, _I64(1))))
        if book.signs.bits == 7:
            signs = b.zext(self.look_up("signs", EIGHT_SIGNS, 8, signs), _I64)
        elif book.signs.bits == 1:
            signs = b.mul(signs, _I64(255))
        assert self.form.packed is not None
        apart = self._spread(b.lshr(b.trunc(signs, _I32), second))
        return b.or_(word, b.shl(apart, _I32(self.form.packed.bits - 1)))

    def _four_digits(self, ternary: Ternary, j: ir.Value) -> ir.Value:
        b, word = self.b, _I32(0)
        places = [ternary.place(x) for x in range(ternary.count)]
        for c in range(4):
            x = self.nth(BLOCK, b.add(b.shl(j, _I64(2)), _I64(c)))
            place = b.zext(self.look_up("places", [at for at, _ in places], 8, x), _I64)
            power = self.look_up("powers", [3**digit & 255 for _, digit in places], 8, x)
            fraction = b.zext(b.mul(self.load(Bits(8, 0), place, 1), power), _I32)  # modulo 256
            word = b.or_(word, b.shl(b.lshr(b.mul(fraction, _I32(3)), _I32(8)), _I32(8 * c)))
        return word
