"""The blocks of a GGUF row, read one by one: codes, scales and mins of 32 columns, as the type's class declares them
(`ggpy.quant.reading`). `raw` is the row's address, `i` the number of the 32 columns in it.

`read_codes(raw, i, codes)` fills the 32 bytes at the address `codes`. `read_scales(raw, i)` returns six numbers as
packed stripes keep them, halves as their bits: d and dmin of the super-block, the scale of the first 16 columns and of
the last, the min of the first and of the last; 0 where the type has none.
Packing stores both; embedding computes with both, through `number_of` and `scale_of`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.codegen.scalars import f16_to_f32, f32_from_bits
from ggpy.quant.block_format import BlockFormat
from ggpy.quant.packed import BLOCK, Packed
from ggpy.quant.reading import BlockReader

_I64 = ir.IntType(64)


def readers(form: BlockFormat) -> tuple[Any, Any]:
    """(`read_codes`, `read_scales`) of a type."""
    packed, last = form.packed, form.block_size // BLOCK - 1
    assert packed is not None

    def block(b: ir.IRBuilder, raw: ir.Value, i: ir.Value) -> BlockReader:
        at = b.add(raw, b.mul(b.ashr(i, _I64(last.bit_length())), _I64(form.type_size)))
        return BlockReader(b, form, at, b.and_(i, _I64(last)))

    def read_codes(typingctx: Any, raw: Any, i: Any, codes: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            reader = block(b, args[0], args[1])
            for j in range(8):
                word = reader.four(_I64(j))
                b.store(word, b.inttoptr(b.add(args[2], _I64(4 * j)), word.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp), codegen

    def read_scales(typingctx: Any, raw: Any, i: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return context.make_tuple(b, sig.return_type, block(b, args[0], args[1]).scales(packed.n_scales))

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
