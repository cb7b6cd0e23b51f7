"""The blocks of a GGUF row, read one by one for packing on the GPU, as `ggpy.cpu.weights.blocks` does on the CPU: made
of what the type's class declares (`ggpy.quant.reading`)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from ggpy.quant.block_format import BlockFormat
from ggpy.quant.reading import BlockReader

_GLOBAL = 1  # the address space
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def readers(form: BlockFormat) -> tuple[Any, Any]:
    """The readers (`four`, `scales`) of a type; `block` is the address of the file's own block, of 32, 64 or 256
    columns, `sub` says which 32 columns of it are meant.

    four(block, sub, j): the codes of columns 4j .. 4j + 3 of these, a byte each. scales(block, sub): six numbers as the
    planes keep them, halves as their bits: d and dmin of the super-block, the scale of the first 16 columns and of the
    last, their mins; 0 where the type has none.
    """
    packed = form.packed
    assert packed is not None

    def four(typingctx: Any, block: Any, sub: Any, j: Any) -> tuple[Any, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return BlockReader(b, form, args[0], b.zext(args[1], _I64), _GLOBAL).four(b.zext(args[2], _I64))

        return types.uint32(types.uint64, types.int32, types.int32), codegen

    def scales(typingctx: Any, block: Any, sub: Any) -> tuple[Any, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            found = BlockReader(b, form, args[0], b.zext(args[1], _I64), _GLOBAL).scales(packed.n_scales)
            return context.make_tuple(b, sig.return_type, [b.trunc(number, _I32) for number in found])

        return types.UniTuple(types.uint32, 6)(types.uint64, types.int32), codegen

    return intrinsic(four), intrinsic(scales)
